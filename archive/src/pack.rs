//! From files to an archive. They may change meanwhile: a file that becomes shorter is filled up with zeros, and said.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::block::{BLOCK, Block, Fields};
use crate::name::shown;
use crate::read::padding;
use crate::{MAX_DEPTH, MAX_ENTRIES, Totals, below};

const CHUNK: usize = 128 << 10;
/// Parts that a sparse file is written in at most; what lies behind is one part.
const MAX_PARTS: usize = 1 << 16;
/// Holes that are worth a map.
const WORTH: u64 = 64 << 10;
/// Most bytes of names, and of one value, of a file's extended attributes (xattr(7)).
const MAX_ATTRIBUTE: usize = 64 << 10;
/// Records of GNU's sparse files.
const SPARSE: &[u8] = b"GNU.sparse.";
/// Records of extended attributes (star, and with it every OCI tool).
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// How to pack.
#[derive(Debug, Clone, Default)]
pub struct Packing {
    /// Pack what a link leads to in its place, where `path` itself is one.
    pub follow: bool,
    /// Devices and named pipes, too.
    pub specials: bool,
    /// Extended attributes, capabilities and ACLs among them, and times to the nanosecond, too.
    pub attributes: bool,
    /// How much of an entry is packed, by its name in the archive; all of everything where missing.
    pub choose: Option<fn(&[u8]) -> Choice>,
}

/// How much of an entry is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// All of it.
    Whole,
    /// A folder without what is in it, a file without its bytes.
    Empty,
    /// It is left out.
    Nothing,
}

/// Records of a pax header.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Why not everything is packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file.
    #[error("{name}: {doing}")]
    File {
        /// Which.
        name: String,
        /// What was tried.
        doing: &'static str,
        /// What the file system says.
        source: io::Error,
    },
    /// Something that an archive cannot have.
    #[error("{name}: {why}")]
    Refused {
        /// Which.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// Who reads the archive.
    #[error("writing the archive")]
    Write(#[from] io::Error),
}

fn failed<E: Into<io::Error>>(name: &[u8], doing: &'static str) -> impl FnOnce(E) -> PackError {
    let name = shown(name);
    move |source| PackError::File { name, doing, source: source.into() }
}

/// Packs what is at `path` under its own name; `note` is told of what is passed over.
///
/// # Errors
/// At the first file that cannot be read.
pub fn pack(path: &Path, how: &Packing, out: impl Write, note: &mut dyn FnMut(String)) -> Result<Totals, PackError> {
    let given = path.as_os_str().as_bytes();
    let resolved;
    // Of `x/.`, `..` and `/` the name is in the file system.
    let path = if how.follow || given.ends_with(b"/") || path.file_name().is_none() || given.ends_with(b"/.") {
        resolved = std::fs::canonicalize(path).map_err(failed(given, "finding it"))?;
        resolved.as_path()
    } else {
        path
    };
    // The contents alone, as cp(1) has it, of a folder that ends in `/.`; and `/` has no name at all.
    let contents = given.ends_with(b"/.") || given == b".";
    let name = path.file_name().map(OsStrExt::as_bytes).filter(|_| !contents).unwrap_or(b".");
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    };
    let parent = rustix::fs::openat(CWD, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed(given, "opening its folder"))?;
    let file = path.file_name().map(OsStrExt::as_bytes).unwrap_or(b".");
    let mut work = Work { how, out, note, totals: Totals::default(), linked: HashMap::new(), buffer: vec![0; CHUNK] };
    work.item(&parent, file, name.to_vec(), 0)?;
    work.out.write_all(&[0; 2 * BLOCK])?;
    work.out.flush()?;
    Ok(work.totals)
}

/// What is known of a folder beside what stat(2) says.
struct Inner {
    depth: usize,
    choice: Choice,
    more: Records,
}

struct Work<'a, W> {
    how: &'a Packing,
    out: W,
    note: &'a mut dyn FnMut(String),
    totals: Totals,
    /// Files with several names: the one that they are in the archive under.
    linked: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Write> Work<'_, W> {
    fn item(&mut self, folder: &OwnedFd, file: &[u8], name: Vec<u8>, depth: usize) -> Result<(), PackError> {
        let refused = |why| PackError::Refused { name: shown(&name), why };
        let file_c = below::c(file).map_err(failed(&name, "naming it"))?;
        let found = match rustix::fs::statat(folder, &file_c, AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since the folder was listed.
            Err(Errno::NOENT) if depth > 0 => return Ok(()),
            other => other.map_err(failed(&name, "looking at it"))?,
        };
        let choice = self.how.choose.map_or(Choice::Whole, |choose| choose(&name));
        if choice == Choice::Nothing {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(refused("it is too deep"));
        }
        if self.totals.entries >= MAX_ENTRIES {
            return Err(refused("it is one file too many for an archive"));
        }
        let kind = FileType::from_raw_mode(found.st_mode);
        let packed =
            self.how.specials || !matches!(kind, FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice);
        let more = match kind {
            FileType::Socket | FileType::Unknown => Records::new(),
            _ if packed && self.how.attributes => self.attributes(folder, &file_c, &found, &name)?,
            _ => Records::new(),
        };
        match kind {
            FileType::Directory => self.folder(folder, &file_c, &found, name, Inner { depth, choice, more }),
            FileType::RegularFile => self.file(folder, &file_c, name, choice, more),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, &file_c, Vec::new());
                let target = target.map_err(failed(&name, "reading where it leads"))?;
                self.header(&name, &found, b'2', 0, target.as_bytes(), &more)
            }
            FileType::Fifo if packed => self.header(&name, &found, b'6', 0, b"", &more),
            FileType::CharacterDevice if packed => self.header(&name, &found, b'3', 0, b"", &more),
            FileType::BlockDevice if packed => self.header(&name, &found, b'4', 0, b"", &more),
            _ => {
                (self.note)(format!("{}: a socket, pipe or device is passed over", shown(&name)));
                Ok(())
            }
        }
    }

    fn folder(
        &mut self,
        folder: &OwnedFd,
        file: &std::ffi::CStr,
        found: &Stat,
        name: Vec<u8>,
        inner: Inner,
    ) -> Result<(), PackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = rustix::fs::openat(folder, file, flags, Mode::empty()).map_err(failed(&name, "opening it"))?;
        self.header(&[name.as_slice(), b"/"].concat(), found, b'5', 0, b"", &inner.more)?;
        if inner.choice == Choice::Empty {
            return Ok(());
        }
        let depth = inner.depth.saturating_add(1);
        let mut names = Vec::new();
        for entry in Dir::read_from(&open).map_err(failed(&name, "listing it"))? {
            let entry = entry.map_err(failed(&name, "listing it"))?;
            let inner = entry.file_name().to_bytes();
            if inner != b"." && inner != b".." {
                names.push(inner.to_vec());
            }
        }
        names.sort_unstable();
        for inner in names {
            let inner_name = [name.as_slice(), b"/", &inner].concat();
            self.item(&open, &inner, inner_name, depth)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        folder: &OwnedFd,
        file: &std::ffi::CStr,
        name: Vec<u8>,
        choice: Choice,
        mut more: Records,
    ) -> Result<(), PackError> {
        // Not to wait where a pipe has taken the file's place.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = rustix::fs::openat(folder, file, flags, Mode::empty()).map_err(failed(&name, "opening it"))?;
        let found = rustix::fs::fstat(&open).map_err(failed(&name, "looking at it"))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(PackError::Refused { name: shown(&name), why: "it became something else while it was packed" });
        }
        if found.st_nlink > 1 {
            let id = (found.st_dev, found.st_ino);
            if let Some(first) = self.linked.get(&id).cloned() {
                return self.header(&name, &found, b'1', 0, &first, &[]);
            }
            self.linked.insert(id, name.clone());
        }
        let size = match choice {
            Choice::Empty => 0,
            _ => u64::try_from(found.st_size).unwrap_or(0),
        };
        let parts = parts(&open, size);
        let data = parts.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        if size.saturating_sub(data) < WORTH {
            self.header(&name, &found, b'0', size, b"", &more)?;
            return self.data(&open, &name, &[(0, size)], size);
        }
        let mut map = format!("{}\n", parts.len());
        for (offset, len) in &parts {
            map.push_str(&format!("{offset}\n{len}\n"));
        }
        let mut map = map.into_bytes();
        let filled = map.len().saturating_add(usize::try_from(padding(map.len() as u64)).unwrap_or(0));
        map.resize(filled, 0);
        let real = size.to_string();
        let sparse: [(&str, &[u8]); 4] =
            [("major", b"1"), ("minor", b"0"), ("name", &name), ("realsize", real.as_bytes())];
        more.extend(sparse.map(|(key, value)| ([SPARSE, key.as_bytes()].concat(), value.to_vec())));
        let stored = data.saturating_add(map.len() as u64);
        self.header(&name, &found, b'0', stored, b"", &more)?;
        self.out.write_all(&map)?;
        self.data(&open, &name, &parts, data)
    }

    /// Extended attributes, and the time where the header has no room for it.
    fn attributes(
        &mut self,
        folder: &OwnedFd,
        file: &std::ffi::CStr,
        found: &Stat,
        name: &[u8],
    ) -> Result<Records, PackError> {
        let mut more = Records::new();
        if found.st_mtime_nsec != 0 || found.st_mtime < 0 {
            more.push((b"mtime".to_vec(), time(found.st_mtime, found.st_mtime_nsec).into_bytes()));
        }
        // Links and devices cannot be opened; their names can be led to by way of their folder.
        let path = [format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), file.to_bytes()].concat();
        let doing = "reading its extended attributes";
        let mut names = vec![0; MAX_ATTRIBUTE];
        let len = match rustix::fs::llistxattr(path.as_slice(), names.as_mut_slice()) {
            Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(more),
            other => other.map_err(failed(name, doing))?,
        };
        let mut value = vec![0; MAX_ATTRIBUTE];
        for key in names.get(..len).unwrap_or_default().split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
            if key.contains(&b'=') {
                (self.note)(format!("{}: its attribute {} has no place in an archive", shown(name), shown(key)));
                continue;
            }
            let len = match rustix::fs::lgetxattr(path.as_slice(), key, value.as_mut_slice()) {
                Err(Errno::NODATA) => continue,
                other => other.map_err(failed(name, doing))?,
            };
            more.push(([ATTRIBUTE, key].concat(), value.get(..len).unwrap_or_default().to_vec()));
        }
        Ok(more)
    }

    fn data(&mut self, file: &OwnedFd, name: &[u8], parts: &[(u64, u64)], sum: u64) -> Result<(), PackError> {
        let mut short = false;
        for (offset, len) in parts {
            let (mut at, end) = (*offset, offset.saturating_add(*len));
            while at < end {
                let most = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(self.buffer.len());
                let into = self.buffer.get_mut(..most).unwrap_or_default();
                let n = match rustix::io::pread(file, &mut *into, at).map_err(failed(name, "reading it"))? {
                    0 => {
                        short = true;
                        into.fill(0);
                        most
                    }
                    n => n,
                };
                self.out.write_all(self.buffer.get(..n).unwrap_or_default())?;
                at = at.saturating_add(n as u64);
                self.totals.bytes = self.totals.bytes.saturating_add(n as u64);
            }
        }
        if short {
            (self.note)(format!("{}: it became shorter while it was packed; the rest is zeros", shown(name)));
        }
        let padding = usize::try_from(padding(sum)).unwrap_or(0);
        Ok(self.out.write_all([0; BLOCK].get(..padding).unwrap_or_default())?)
    }

    /// Writes an entry's header, with a pax header before it where the block has no room.
    fn header(
        &mut self,
        name: &[u8],
        found: &Stat,
        kind: u8,
        size: u64,
        link: &[u8],
        more: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<(), PackError> {
        self.totals.entries = self.totals.entries.saturating_add(1);
        let mut records = Vec::new();
        more.iter().for_each(|(key, value)| record(&mut records, key, value));
        let sparse = more.iter().any(|(key, _)| key.starts_with(SPARSE));
        // A name that ends in a slash and is cut there would be another name.
        if name.len() >= 100 && !sparse {
            record(&mut records, b"path", name);
        }
        if link.len() >= 100 {
            record(&mut records, b"linkpath", link);
        }
        for (key, value, most) in [
            ("size", size, 1 << 33),
            ("uid", u64::from(found.st_uid), 1 << 21),
            ("gid", u64::from(found.st_gid), 1 << 21),
        ] {
            if value >= most {
                record(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        let fields = Fields {
            name,
            kind,
            mode: found.st_mode & 0o7777,
            uid: found.st_uid,
            gid: found.st_gid,
            size,
            mtime: u64::try_from(found.st_mtime).unwrap_or(0),
            link,
            device: match kind {
                b'3' | b'4' => (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev)),
                _ => (0, 0),
            },
        };
        if !records.is_empty() {
            let extension = Fields {
                name: b"PaxHeader",
                kind: b'x',
                size: records.len() as u64,
                link: b"",
                device: (0, 0),
                mode: 0o644,
                ..fields.clone()
            };
            self.out.write_all(&Block::of(&extension).0)?;
            let filled = records.len().saturating_add(usize::try_from(padding(records.len() as u64)).unwrap_or(0));
            records.resize(filled, 0);
            self.out.write_all(&records)?;
        }
        Ok(self.out.write_all(&Block::of(&fields).0)?)
    }
}

/// `LENGTH KEY=VALUE\n`, the length counting its own digits, too.
fn record(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len().saturating_add(value.len()).saturating_add(3);
    let mut len = rest;
    while len.to_string().len().saturating_add(rest) != len {
        len = len.to_string().len().saturating_add(rest);
    }
    into.extend_from_slice(format!("{len} ").as_bytes());
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

/// Seconds since 1970 with a fraction; before that, both count backwards.
fn time(seconds: i64, nanoseconds: u64) -> String {
    let nanoseconds = i64::try_from(nanoseconds).unwrap_or(0);
    if seconds < 0 && nanoseconds > 0 {
        return format!(
            "-{}.{:09}",
            seconds.saturating_add(1).unsigned_abs(),
            1_000_000_000i64.saturating_sub(nanoseconds)
        );
    }
    format!("{seconds}.{nanoseconds:09}")
}

/// Where a file has data (lseek(2), SEEK_DATA); all of it where the file system does not tell.
fn parts(file: impl AsFd, size: u64) -> Vec<(u64, u64)> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return vec![(0, size)],
        };
        let end = match rustix::fs::seek(&file, SeekFrom::Hole(start)) {
            Ok(end) if end > start && parts.len() < MAX_PARTS => end.min(size),
            _ => size,
        };
        parts.push((start, end.saturating_sub(start)));
        at = end;
    }
    // So that the last hole has a length for readers that look at parts alone.
    if parts.last().is_none_or(|(offset, len)| offset.saturating_add(*len) < size) {
        parts.push((size, 0));
    }
    parts
}
