//! From an archive to files below one folder.
//!
//! A file gets a name of its own first and its real one when it is whole; what had that name, also a link, is replaced and never
//! written through. A hard link leads to a file of the same archive or nowhere. Folders get their modes and times last: what is
//! kept of each until then is small, and bounded in all ([`Folders`]).

mod folders;

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, Uid};

use crate::Totals;
use crate::below;
use crate::name::{Name, shown};
use crate::read::{ArchiveError, Entry, Kind, Reader};
use folders::{Attributes, Folders};

/// Bytes that are copied at once.
const CHUNK: usize = 128 << 10;
/// What an unfinished file is called, with a number behind it.
const DRAFT: &str = ".labyard-cp-";

/// How to unpack.
#[derive(Debug, Clone)]
pub struct Unpacking {
    /// What the first part of every name becomes; as it is where missing.
    pub rename: Option<Vec<u8>>,
    /// Keep owners, set-user-id bits, devices and named pipes. Without it everything belongs to who unpacks.
    pub owners: bool,
    /// Make devices (with `owners`); refused otherwise.
    pub devices: bool,
    /// Permissions that nothing gets without owners (umask(2)).
    pub umask: u32,
    /// Bytes of data at most.
    pub max_bytes: u64,
}

/// Why not everything is there.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The file system.
    #[error("{name}: {doing}")]
    File {
        /// Which entry.
        name: String,
        /// What was tried.
        doing: &'static str,
        /// What it says.
        source: io::Error,
    },
    /// An entry that is not taken.
    #[error("{name}: {why}")]
    Refused {
        /// Which entry.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// More data than allowed.
    #[error("more than {0} bytes of data, which is as much as was allowed")]
    Long(u64),
}

/// Where something is to go as `cp` has it: into the folder at `path` under its own name, or, where nothing is at `path`, into the
/// folder around it under that name. Links in `path` itself are the caller's own and followed.
///
/// # Errors
/// Where neither is a folder.
pub fn place(path: &Path) -> io::Result<(OwnedFd, Option<Vec<u8>>)> {
    use std::os::unix::ffi::OsStrExt;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(folder) => return Ok((folder, None)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
        Err(error) => return Err(error.into()),
    }
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "no folder is there"));
    }
    let name = path.file_name().ok_or_else(|| io::Error::other("it has no name"))?.as_bytes().to_vec();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((rustix::fs::openat(CWD, parent, flags, Mode::empty())?, Some(name)))
}

/// Unpacks an archive below `root`.
///
/// # Errors
/// At the first entry that is broken, refused or fails. What came before stays.
pub fn unpack(from: impl Read, root: BorrowedFd<'_>, how: &Unpacking) -> Result<Totals, UnpackError> {
    let mut work = Work {
        reader: Reader::new(from),
        root,
        how,
        totals: Totals::default(),
        made: HashSet::new(),
        folders: Folders::default(),
        open: None,
        buffer: vec![0; CHUNK],
    };
    while let Some(entry) = work.reader.next()? {
        work.entry(entry)?;
    }
    work.finish_folders()?;
    Ok(work.totals)
}

struct Work<'a, R> {
    reader: Reader<R>,
    root: BorrowedFd<'a>,
    how: &'a Unpacking,
    totals: Totals,
    /// Device and inode of every file that this archive has brought.
    made: HashSet<(u64, u64)>,
    /// Folders, whose modes and times come last.
    folders: Folders,
    /// The folder of the last entry: most come one after the other.
    open: Option<(Vec<Vec<u8>>, OwnedFd)>,
    buffer: Vec<u8>,
}

fn failed(name: &Name, doing: &'static str) -> impl FnOnce(io::Error) -> UnpackError {
    let name = shown(&name.0.join(&b'/'));
    move |source| UnpackError::File { name, doing, source }
}

impl<R: Read> Work<'_, R> {
    fn entry(&mut self, mut entry: Entry) -> Result<(), UnpackError> {
        if let Some(first) = &self.how.rename {
            entry.name = entry.name.renamed(first);
            if let Kind::HardLink(target) = entry.kind {
                entry.kind = Kind::HardLink(target.renamed(first));
            }
        }
        let refused = |why| UnpackError::Refused { name: shown(&entry.name.0.join(&b'/')), why };
        let Some((folder, last)) = entry.name.split() else {
            return match entry.kind {
                // The folder itself, whose mode is the business of who made it.
                Kind::Folder => Ok(()),
                _ => Err(refused("something else than a folder in place of the folder itself")),
            };
        };
        match entry.kind {
            Kind::Device { .. } | Kind::Fifo if !self.how.owners => {
                return Err(refused("devices and named pipes are only made with owners (--archive)"));
            }
            Kind::Device { .. } if !self.how.devices => return Err(refused("a device: none are made here")),
            _ => {}
        }
        if last.starts_with(DRAFT.as_bytes()) {
            return Err(refused("a name that unfinished files have"));
        }
        self.totals.entries = self.totals.entries.saturating_add(1);
        let parent = match self.open.take() {
            Some((parts, open)) if parts == folder => open,
            _ => below::make(self.root, folder).map_err(failed(&entry.name, "opening its folder, through no link"))?,
        };
        let done = self.make(&parent, last, &entry);
        self.open = Some((folder.to_vec(), parent));
        done?;
        if entry.kind == Kind::Folder {
            self.folders.keep(&entry).map_err(refused)?;
        }
        Ok(())
    }

    fn make(&mut self, parent: &OwnedFd, last: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let name = &entry.name;
        let last_c = below::c(last).map_err(failed(name, "naming it"))?;
        if entry.kind == Kind::Folder {
            match below::kind_of(parent, last).map_err(failed(name, "looking at what is there"))? {
                Some(FileType::Directory) => return Ok(()),
                Some(_) => below::clear(parent, last).map_err(failed(name, "replacing what is there"))?,
                None => {}
            }
            let made = rustix::fs::mkdirat(parent, &last_c, Mode::from_raw_mode(0o700));
            return made.map_err(|error| failed(name, "making a folder")(error.into()));
        }
        if entry.kind == Kind::File {
            return self.file(parent, last, entry);
        }
        below::clear(parent, last).map_err(failed(name, "replacing what is there"))?;
        match &entry.kind {
            Kind::Symlink(target) => {
                let target = below::c(target).map_err(failed(name, "naming where it leads"))?;
                rustix::fs::symlinkat(&target, parent, &last_c)
                    .map_err(|error| failed(name, "making a link")(error.into()))?;
                self.owner_of_name(parent, &last_c, entry)?;
                let times = times(entry.mtime);
                rustix::fs::utimensat(parent, &last_c, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|error| failed(name, "setting its time")(error.into()))
            }
            Kind::HardLink(target) => self.hard_link(parent, &last_c, entry, target),
            Kind::Fifo => self.node(parent, &last_c, entry, FileType::Fifo, 0),
            Kind::Device { block, major, minor } => {
                let kind = if *block { FileType::BlockDevice } else { FileType::CharacterDevice };
                self.node(parent, &last_c, entry, kind, rustix::fs::makedev(*major, *minor))
            }
            Kind::File | Kind::Folder => Ok(()),
        }
    }

    fn node(
        &self,
        parent: &OwnedFd,
        last: &std::ffi::CStr,
        entry: &Entry,
        kind: FileType,
        device: u64,
    ) -> Result<(), UnpackError> {
        // With no right for anybody until it has its owner.
        let made = rustix::fs::mknodat(parent, last, kind, Mode::empty(), device);
        made.map_err(|error| failed(&entry.name, "making a device or pipe")(error.into()))?;
        self.owner_of_name(parent, last, entry)?;
        let mode = rustix::fs::chmodat(parent, last, Mode::from_raw_mode(entry.mode), AtFlags::empty());
        mode.map_err(|error| failed(&entry.name, "setting its mode")(error.into()))
    }

    fn owner_of_name(&self, parent: &OwnedFd, last: &std::ffi::CStr, entry: &Entry) -> Result<(), UnpackError> {
        if !self.how.owners {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(parent, last, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(&entry.name, "giving it to its owner")(error.into()))
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        last: &std::ffi::CStr,
        entry: &Entry,
        target: &Name,
    ) -> Result<(), UnpackError> {
        let refused = |why| UnpackError::Refused { name: shown(&entry.name.0.join(&b'/')), why };
        let (folder, target_last) = target.split().ok_or_else(|| refused("a hard link to the folder itself"))?;
        let from = below::folder(self.root, folder);
        let from = from.map_err(failed(&entry.name, "opening the folder that it links to, through no link"))?;
        let target_c = below::c(target_last).map_err(failed(&entry.name, "naming where it leads"))?;
        let found = rustix::fs::statat(&from, &target_c, AtFlags::SYMLINK_NOFOLLOW);
        let found = found.map_err(|error| failed(&entry.name, "looking at what it links to")(error.into()))?;
        if !self.made.contains(&(found.st_dev, found.st_ino)) {
            return Err(refused("a hard link to a file that did not come with it"));
        }
        let made = rustix::fs::linkat(&from, &target_c, parent, last, AtFlags::empty());
        made.map_err(|error| failed(&entry.name, "making a hard link")(error.into()))
    }

    fn file(&mut self, parent: &OwnedFd, last: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let name = &entry.name;
        if below::kind_of(parent, last).map_err(failed(name, "looking at what is there"))? == Some(FileType::Directory)
        {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(failed(name, "replacing what is there")(source));
        }
        let draft = format!("{DRAFT}{}-{}", std::process::id(), self.totals.entries);
        let draft_c = below::c(draft.as_bytes()).map_err(failed(name, "naming it"))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, &draft_c, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| failed(name, "making a file")(error.into()))?;
        let done = self.fill(&file, entry).and_then(|()| {
            attributes(&file, &Attributes::of(entry), self.how)
                .map_err(failed(name, "giving it owner, mode and time"))?;
            let id = rustix::fs::fstat(&file).map_err(|error| failed(name, "looking at it")(error.into()))?;
            let renamed = below::c(last).and_then(|last| Ok(rustix::fs::renameat(parent, &draft_c, parent, &last)?));
            renamed.map_err(failed(name, "giving it its name"))?;
            self.made.insert((id.st_dev, id.st_ino));
            Ok(())
        });
        if done.is_err() {
            let _ = rustix::fs::unlinkat(parent, &draft_c, AtFlags::empty());
        }
        done
    }

    fn fill(&mut self, file: &OwnedFd, entry: &Entry) -> Result<(), UnpackError> {
        let length = rustix::fs::ftruncate(file, entry.size);
        length.map_err(|error| failed(&entry.name, "giving it its length")(error.into()))?;
        for (offset, len) in &entry.parts {
            let (mut at, end) = (*offset, offset.saturating_add(*len));
            while at < end {
                let most = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(self.buffer.len());
                let n = self.reader.data(self.buffer.get_mut(..most).unwrap_or_default())?;
                self.totals.bytes = self.totals.bytes.saturating_add(n as u64);
                if self.totals.bytes > self.how.max_bytes {
                    return Err(UnpackError::Long(self.how.max_bytes));
                }
                let mut bytes = self.buffer.get(..n).unwrap_or_default();
                while !bytes.is_empty() {
                    let wrote = rustix::io::pwrite(file, bytes, at);
                    let wrote = wrote.map_err(|error| failed(&entry.name, "writing")(error.into()))?;
                    at = at.saturating_add(wrote as u64);
                    bytes = bytes.get(wrote..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }

    /// Inner ones first: a folder that nobody may write has its inner ones already.
    fn finish_folders(&mut self) -> Result<(), UnpackError> {
        for (path, kept) in self.folders.inner_first() {
            let failed = |doing| {
                let name = shown(path);
                move |source| UnpackError::File { name, doing, source }
            };
            let open = below::folder_at(self.root, path).map_err(failed("opening it again, through no link"))?;
            attributes(&open, kept, self.how).map_err(failed("giving it owner, mode and time"))?;
        }
        Ok(())
    }
}

fn times(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
    }
}

/// Owner, then mode: a change of the owner takes set-user-id bits away.
fn attributes(file: impl AsFd, of: &Attributes, how: &Unpacking) -> io::Result<()> {
    let bits = if how.owners { of.mode } else { of.mode & 0o777 & !how.umask };
    if how.owners {
        rustix::fs::fchown(&file, Some(Uid::from_raw(of.uid)), Some(Gid::from_raw(of.gid)))?;
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(bits))?;
    Ok(rustix::fs::futimens(&file, &times(of.mtime))?)
}
