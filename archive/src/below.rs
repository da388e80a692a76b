//! Folders below one that is open: never left, and no link in them followed (openat2(2), RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A name for the kernel.
pub(crate) fn c(name: &[u8]) -> io::Result<CString> {
    CString::new(name).map_err(io::Error::other)
}

/// Opens the folder of these parts.
pub(crate) fn folder(root: BorrowedFd<'_>, parts: &[Vec<u8>]) -> io::Result<OwnedFd> {
    folder_at(root, &parts.join(&b'/'))
}

/// The same by its parts with slashes between them.
pub(crate) fn folder_at(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let path = c(if path.is_empty() { b"." } else { path })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, &path, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile (openat2(2)).
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Opens the folder of these parts, and makes what is missing.
pub(crate) fn make(root: BorrowedFd<'_>, parts: &[Vec<u8>]) -> io::Result<OwnedFd> {
    match folder(root, parts) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some((last, before)) = parts.split_last() else { return Err(error) };
            let parent = make(root, before)?;
            match rustix::fs::mkdirat(&parent, c(last)?, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => folder(root, parts),
                Err(error) => Err(error.into()),
            }
        }
        other => other,
    }
}

/// What is in a folder under this name, not followed; nothing where nothing is.
pub(crate) fn kind_of(folder: impl AsFd, name: &[u8]) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(folder, c(name)?, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes what is there under this name, unless it is a folder.
pub(crate) fn clear(folder: impl AsFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, c(name)?, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
