#!/usr/bin/env python3
"""Writes added.tar and changed.tar into the folder given: the second and third layer of the example image.

They hold what image builders meet in the field and what a plain installation of packages lacks: hard links across
folders, devices, capabilities, long names, whiteouts, an opaque folder, files that become folders and the other way
round (image-spec, layer.md). Everything is fixed, so the same bytes come out every time, and no right is needed.
"""

import io
import os
import sys
import tarfile

EPOCH = int(os.environ["SOURCE_DATE_EPOCH"])
PLACE = "usr/local/share/labyard"
# struct vfs_cap_data, revision 2, effective: cap_net_raw.
NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")


class Layer:
    """A tar whose entries carry their parents before them."""

    def __init__(self, path):
        self.tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)

    def add(self, name, kind=tarfile.REGTYPE, data=b"", mode=0o644, xattrs=None, **fields):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime, info.size = kind, mode, EPOCH, len(data)
        info.uname = info.gname = ""
        for field, value in fields.items():
            setattr(info, field, value)
        # PAX headers are UTF-8; surrogates carry the bytes of a value that is none.
        for key, value in (xattrs or {}).items():
            info.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        self.tar.addfile(info, io.BytesIO(data))

    def folder(self, name, mode=0o755, **fields):
        self.add(name, tarfile.DIRTYPE, mode=mode, **fields)

    def link(self, name, target):
        self.add(name, tarfile.SYMTYPE, mode=0o777, linkname=target)

    def hard_link(self, name, target):
        self.add(name, tarfile.LNKTYPE, linkname=target)

    def whiteout(self, name):
        folder, _, base = name.rpartition("/")
        self.add(f"{folder}/.wh.{base}")

    def opaque(self, folder):
        self.add(f"{folder}/.wh..wh..opq")


def noise(length, seed=1):
    """Bytes that do not compress, from a fixed xorshift."""
    words = []
    for _ in range(length // 8):
        seed ^= (seed << 13) & (2**64 - 1)
        seed ^= seed >> 7
        seed ^= (seed << 17) & (2**64 - 1)
        words.append(seed)
    return b"".join(word.to_bytes(8, "little") for word in words)


def added(path):
    layer = Layer(path)
    layer.folder(PLACE)
    layer.add("etc/motd", data=b"A machine of a Labyard lab.\n")

    # What keeps a lab's machine from booting fast and does nothing for it.
    for unit in ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
                 "e2scrub_reap.service", "fstrim.timer", "motd-news.timer"):
        layer.link(f"etc/systemd/system/{unit}", "/dev/null")

    layer.folder(f"{PLACE}/many")
    for number in range(2000):
        layer.add(f"{PLACE}/many/{number:04}", data=f"{number}\n".encode())

    layer.folder(f"{PLACE}/links")
    layer.add(f"{PLACE}/links/first", data=b"one file, three names\n", uid=1000, gid=1000)
    layer.hard_link(f"{PLACE}/links/second", f"{PLACE}/links/first")
    layer.hard_link(f"{PLACE}/third", f"{PLACE}/links/first")
    layer.link(f"{PLACE}/links/relative", "../many/0007")
    layer.link(f"{PLACE}/links/absolute", "/etc/os-release")
    layer.link(f"{PLACE}/links/dangling", "nowhere")
    layer.link(f"{PLACE}/links/fast", "f" * 59)  # the longest that ext4 keeps in the inode
    layer.link(f"{PLACE}/links/slow", "s" * 60)
    layer.link(f"{PLACE}/links/long", "../" * 300 + "etc/os-release")

    layer.folder(f"{PLACE}/devices")
    layer.add(f"{PLACE}/devices/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)
    layer.add(f"{PLACE}/devices/wide", tarfile.BLKTYPE, mode=0o660, gid=6, devmajor=511, devminor=70000)
    layer.add(f"{PLACE}/devices/pipe", tarfile.FIFOTYPE, mode=0o600)

    layer.folder(f"{PLACE}/rights")
    layer.add(f"{PLACE}/rights/capable", data=b"#!/bin/sh\n", mode=0o755, xattrs={"security.capability": NET_RAW})
    layer.add(f"{PLACE}/rights/marked", xattrs={"user.labyard": b"example"})
    layer.add(f"{PLACE}/rights/long", xattrs={"user.long": b"x" * 1500})
    layer.add(f"{PLACE}/rights/setuid", mode=0o4755, data=b"#!/bin/sh\n")
    layer.add(f"{PLACE}/rights/wide-owner", uid=200_000, gid=3_000_000)
    layer.folder(f"{PLACE}/rights/sticky", mode=0o1777)

    layer.folder(f"{PLACE}/names")
    layer.add(f"{PLACE}/names/{'n' * 255}")
    layer.add(f"{PLACE}/names/grüße aus Köln", data="ß\n".encode())
    layer.add(f"{PLACE}/names/ two  spaces ")

    layer.folder(f"{PLACE}/sizes")
    layer.add(f"{PLACE}/sizes/noise", data=noise(2 << 20))
    layer.add(f"{PLACE}/sizes/zeros", data=bytes(8 << 20))
    for length in (1, 4095, 4096, 4097):
        layer.add(f"{PLACE}/sizes/{length}", data=b"a" * length)

    # For the third layer.
    for folder in ("gone", "gone/deeper", "replaced", "was-folder"):
        layer.folder(f"{PLACE}/{folder}")
    for name in ("gone/a", "gone/deeper/b", "replaced/old", "replaced/kept-name", "was-folder/inside", "was-file",
                 "was-link-target"):
        layer.add(f"{PLACE}/{name}", data=b"second layer\n")
    layer.link(f"{PLACE}/was-link", "was-link-target")
    layer.tar.close()


def changed(path):
    layer = Layer(path)
    layer.folder(PLACE, mode=0o751)
    # Gone: a file of Debian's, a folder with all it holds, one of three names of a file.
    layer.whiteout("usr/share/doc/fio")
    layer.whiteout(f"{PLACE}/gone")
    layer.whiteout(f"{PLACE}/links/second")
    # Replaced as a whole: nothing of the second layer shows through.
    layer.folder(f"{PLACE}/replaced", mode=0o700)
    layer.opaque(f"{PLACE}/replaced")
    for name in ("replaced/new", "replaced/kept-name"):
        layer.add(f"{PLACE}/{name}", data=b"third layer\n")
    # Of another kind than before.
    layer.add(f"{PLACE}/was-folder", data=b"now a file\n")
    layer.folder(f"{PLACE}/was-file")
    layer.add(f"{PLACE}/was-file/inside", data=b"now a folder\n")
    layer.add(f"{PLACE}/was-link", data=b"now a file\n")
    layer.add("etc/motd", data=b"A machine of a Labyard lab, third layer.\n")
    layer.tar.close()


if __name__ == "__main__":
    added(os.path.join(sys.argv[1], "added.tar"))
    changed(os.path.join(sys.argv[1], "changed.tar"))
