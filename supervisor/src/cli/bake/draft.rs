//! The folder that is made: `DIR.part` until it is whole, which whoever comes next may take over from somebody who was killed.
//!
//! What has that name already may be anybody's: it is taken over only where it is ours and says so, through no link, and what is
//! removed is removed below the descriptor that was looked at.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use labyard_sys::lease::{self, Lease};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::Failure;

/// The file that tells a draft from a folder of somebody's own. It is made first and removed last.
const MARKER: &str = ".labyard-bake";
/// A folder, and no link to one.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A folder in the making; removed when dropped.
pub(super) struct Draft {
    pub(super) path: PathBuf,
    /// The folder that it lies in, and what it is called there.
    parent: OwnedFd,
    name: OsString,
    /// Itself, with a lease for as long as somebody works in it.
    folder: File,
    /// Whether it has the name that was asked for.
    whole: bool,
}

impl Draft {
    /// Begins `to`, which is not there.
    pub(super) fn begin(to: &Path) -> Result<Self, Failure> {
        let to = std::path::absolute(to)?;
        let shown = to.display();
        if fs::symlink_metadata(&to).is_ok() {
            return Err(Failure::input(format!(
                "--out {shown}: something is there already: remove it, or name another"
            )));
        }
        let (Some(name), Some(around)) = (to.file_name(), to.parent()) else {
            return Err(Failure::input(format!("--out {shown}: this is no name of a folder")));
        };
        let mut part = name.to_owned();
        part.push(".part");
        let path = to.with_file_name(&part);
        let failed = || path.display().to_string();
        fs::create_dir_all(around).with_context(failed)?;
        let parent = rustix::fs::openat(CWD, around, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty());
        let parent = parent.with_context(failed)?;
        match rustix::fs::mkdirat(&parent, &part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(anyhow::Error::from(error).context(failed()).into()),
        }
        let refused = |why: &str| {
            Failure::input(format!(
                "--out {shown}: {} is there, and is no draft of `labyard bake`: {why}; move it away, or name another",
                failed()
            ))
        };
        let folder = match rustix::fs::openat(&parent, &part, FOLDER, Mode::empty()) {
            Ok(folder) => File::from(folder),
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(refused("it is no folder")),
            Err(error) => return Err(anyhow::Error::from(error).context(failed()).into()),
        };
        let found = rustix::fs::fstat(&folder).with_context(failed)?;
        if found.st_uid != rustix::process::geteuid().as_raw() {
            return Err(refused("it is somebody else's"));
        }
        if found.st_mode & 0o022 != 0 {
            return Err(refused("others may write into it"));
        }
        if !lease::take(&folder, Lease::Writer).with_context(failed)? {
            return Err(Failure::input(format!("--out {shown}: another `labyard bake` is about to make it")));
        }
        // Who was killed before it could mark its draft has left an empty one.
        if !is_marked(&folder).with_context(failed)? {
            if !is_empty(&folder).with_context(failed)? {
                return Err(refused("it has files of another kind"));
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&folder, MARKER, flags, Mode::from_raw_mode(0o600)).with_context(failed)?;
        }
        let draft = Self { path: path.clone(), parent, name: part, folder, whole: false };
        empty(&draft.folder).with_context(failed)?;
        Ok(draft)
    }

    /// Writes a file; a secret one is for its owner alone.
    pub(super) fn write(&self, name: &str, bytes: &[u8], secret: bool) -> Result<(), Failure> {
        let path = self.path.join(name);
        let mode = if secret { 0o600 } else { 0o644 };
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        Ok(write().with_context(|| path.display().to_string())?)
    }

    /// Gives it its name.
    pub(super) fn finish(mut self, to: &Path) -> Result<(), Failure> {
        let mut named = || -> io::Result<()> {
            let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            self.folder.sync_all()?;
            rustix::fs::renameat(&self.parent, &self.name, &self.parent, name)?;
            self.whole = true;
            Ok(rustix::fs::unlinkat(&self.folder, MARKER, AtFlags::empty())?)
        };
        Ok(named().with_context(|| format!("{}: giving it its name", to.display()))?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.whole {
            return;
        }
        // What cannot be removed stays a draft, for the next to take over.
        let _ = empty(&self.folder).and_then(|()| {
            rustix::fs::unlinkat(&self.folder, MARKER, AtFlags::empty())?;
            Ok(rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR)?)
        });
    }
}

fn is_marked(folder: &File) -> io::Result<bool> {
    match rustix::fs::statat(folder, MARKER, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(FileType::from_raw_mode(found.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_empty(folder: &File) -> io::Result<bool> {
    for entry in Dir::read_from(folder)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes all that is in a draft but its marker.
fn empty(folder: &File) -> io::Result<()> {
    clear(folder, MARKER.as_bytes())
}

/// Removes what is in a folder, but for one name, and follows no link.
fn clear(folder: impl AsFd, but: &[u8]) -> io::Result<()> {
    let folder = folder.as_fd();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == but || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::openat(folder, name, FOLDER, Mode::empty()) {
            Ok(inner) => {
                clear(&inner, b"")?;
                rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?;
            }
            Err(Errno::LOOP | Errno::NOTDIR) => rustix::fs::unlinkat(folder, name, AtFlags::empty())?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
