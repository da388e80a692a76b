"""Lists every entry of a tree, one JSON line each, for comparison.

walk.py FOLDER       as the running kernel sees it
walk.py --tar FILE   as a PAX tar describes it
"""

import hashlib
import json
import os
import stat
import sys
import tarfile


def digest(file):
    # In emulation BLAKE2 is four times faster than SHA-256.
    sum_ = hashlib.blake2b()
    while block := file.read(1 << 20):
        sum_.update(block)
    return sum_.hexdigest()


def text(name):
    """A name that need not be UTF-8; readers of JSON refuse the surrogates that Python would put there."""
    name = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    return name.decode("utf-8", "backslashreplace")


def below(top):
    """Entries of a folder, with the file that each name leads to."""
    top = top.encode()
    folders = [top]
    while folders:
        path = folders.pop()
        seen = os.lstat(path)
        line = {
            "name": text(os.path.relpath(path, top)),
            "mode": oct(seen.st_mode),
            "owner": [seen.st_uid, seen.st_gid],
            "mtime": seen.st_mtime_ns,
        }
        xattrs = os.listxattr(path, follow_symlinks=False)
        line["xattrs"] = {x: os.getxattr(path, x, follow_symlinks=False).hex() for x in xattrs}
        if stat.S_ISDIR(seen.st_mode):
            inside = (os.path.join(path, name) for name in os.listdir(path))
            folders.extend(name for name in inside if name != os.path.join(top, b"lost+found"))
        elif stat.S_ISREG(seen.st_mode):
            with open(path, "rb") as file:
                line.update(size=seen.st_size, digest=digest(file))
        elif stat.S_ISLNK(seen.st_mode):
            line["target"] = text(os.readlink(path))
        elif stat.S_ISCHR(seen.st_mode) or stat.S_ISBLK(seen.st_mode):
            line["device"] = [os.major(seen.st_rdev), os.minor(seen.st_rdev)]
        yield line, (seen.st_dev, seen.st_ino) if not stat.S_ISDIR(seen.st_mode) else None


KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def in_tar(path):
    """Entries of a tar, with the entry that holds the content of each name."""
    lines = {}
    with tarfile.open(path, errors="surrogateescape") as tar:
        for member in tar:
            name = text(os.path.normpath(member.name))
            if member.islnk():
                target = text(os.path.normpath(member.linkname))
                line, held_by = lines[target]
                lines[name] = ({**line, "name": name}, held_by)
                continue
            kind = KINDS[member.type]
            seconds, _, rest = member.pax_headers.get("mtime", str(int(member.mtime))).partition(".")
            line = {
                "name": name,
                "mode": oct(kind | member.mode),
                "owner": [member.uid, member.gid],
                "mtime": int(seconds) * 10**9 + int(rest[:9].ljust(9, "0") or 0),
                "xattrs": {
                    x.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape").hex()
                    for x, value in member.pax_headers.items()
                    if x.startswith("SCHILY.xattr.")
                },
            }
            if kind == stat.S_IFREG:
                line.update(size=member.size, digest=digest(tar.extractfile(member)))
            elif kind == stat.S_IFLNK:
                line["target"] = text(member.linkname)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                line["device"] = [member.devmajor, member.devminor]
            lines[name] = (line, name if kind != stat.S_IFDIR else None)
    return lines.values()


entries = list(in_tar(sys.argv[2]) if sys.argv[1] == "--tar" else below(sys.argv[1]))
names = {}
for line, file in entries:
    names.setdefault(file, []).append(line["name"])
for line, file in entries:
    if file is not None:
        # A file with several names is told by the first of them.
        line.update(links=len(names[file]), same_as=min(names[file]))
    print(json.dumps(line, sort_keys=True))
