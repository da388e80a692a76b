//! Paths inside the image's root, resolved strictly below it.
//!
//! The image is hostile: `etc` may be a link to `../../..`, `etc/resolv.conf` one to `/run/…`. Folders are opened with
//! `openat2(RESOLVE_IN_ROOT)`, so every link ends inside; files are never followed but replaced by rename.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Bytes of a file of the image that is read whole.
const MAX_READ_BYTES: u64 = 16 << 20;

/// A folder that stands for `/`.
pub(crate) struct Below(OwnedFd);

impl Below {
    /// Takes the folder at `path` as the root.
    pub(crate) fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(CWD, path.as_ref(), flags, Mode::empty())?))
    }

    /// Opens the folder `path`; `OFlags::PATH` is enough to mount on it.
    pub(crate) fn dir(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve)?)
    }

    /// Whether `path` leads to a folder.
    pub(crate) fn has_dir(&self, path: &str) -> bool {
        self.dir(path, OFlags::PATH).is_ok()
    }

    /// Opens the folder `path` and makes what is missing of it.
    pub(crate) fn make_dir(&self, path: &str) -> io::Result<OwnedFd> {
        let mut parent = self.dir("", OFlags::PATH)?;
        let mut so_far = String::new();
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path inside the root may not contain `..`"));
            }
            // From the root each time: an absolute link on the way starts there, not at its own folder.
            so_far.push('/');
            so_far.push_str(part);
            parent = match self.dir(&so_far, OFlags::PATH) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    rustix::fs::mkdirat(&parent, part, Mode::from_raw_mode(0o755))?;
                    self.dir(&so_far, OFlags::PATH)?
                }
                found => found?,
            };
        }
        Ok(parent)
    }

    /// Puts a file of mode 0644 at `path`. What was there, also a link, is replaced in one step and never followed.
    pub(crate) fn put_file(&self, path: &str, contents: &str) -> io::Result<()> {
        self.put(path, contents.as_bytes(), 0o644, (0, 0))
    }

    /// What the file at `path` has, links followed below the root; nothing where there is none.
    pub(crate) fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match self.open_file(path, flags) {
            Ok(file) => {
                let mut contents = Vec::new();
                io::Read::read_to_end(&mut io::Read::take(file, MAX_READ_BYTES), &mut contents)?;
                Ok(Some(contents))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes behind what the file at `path` has; false where there is none.
    pub(crate) fn append(&self, path: &str, contents: &[u8]) -> io::Result<bool> {
        match self.open_file(path, OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::CLOEXEC) {
            Ok(mut file) => io::Write::write_all(&mut file, contents).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets what is given of the file at `path`, links followed below the root.
    pub(crate) fn set(&self, path: &str, mode: Option<u32>, owner: Option<(u32, u32)>) -> io::Result<()> {
        let file = self.open_file(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
        give(&file, mode, owner)
    }

    fn open_file(&self, path: &str, flags: OFlags) -> io::Result<std::fs::File> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve)?.into())
    }

    /// Puts a file of this mode and owner at `path`, as [`Self::put_file`] does.
    pub(crate) fn put(&self, path: &str, contents: &[u8], mode: u32, owner: (u32, u32)) -> io::Result<()> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.make_dir(folder)?;
        let folder = self.dir(folder, OFlags::RDONLY)?;
        let fresh = format!(".{name}.labyard");
        match rustix::fs::unlinkat(&folder, &fresh, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, &fresh, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        io::Write::write_all(&mut file, contents)?;
        // Only root can, and everything is root's already.
        let owner = Some(owner).filter(|owner| *owner != (0, 0));
        give(&file, Some(mode), owner)?;
        Ok(rustix::fs::renameat(&folder, &fresh, &folder, name)?)
    }
}

/// Owner first: its change takes bits of the mode away.
fn give(file: &std::fs::File, mode: Option<u32>, owner: Option<(u32, u32)>) -> io::Result<()> {
    if let Some((uid, gid)) = owner {
        rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(uid)), Some(rustix::fs::Gid::from_raw(gid)))?;
    }
    if let Some(mode) = mode {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// The name under which the kernel finds an open folder again, for calls that take only a path. Needs `/proc`.
pub(crate) fn path_of(folder: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Below) {
        let outer = tempfile::tempdir().expect("a folder");
        fs::create_dir(outer.path().join("root")).expect("the root");
        let below = Below::open(outer.path().join("root")).expect("opening the root");
        (outer, below)
    }

    #[test]
    fn a_link_in_place_of_the_file_is_replaced_and_never_followed() {
        let (outer, below) = root();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("etc")).expect("etc");
        fs::write(outer.path().join("victim"), "untouched").expect("victim");
        symlink("../../victim", root.join("etc/hosts")).expect("link");
        symlink("/run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf")).expect("link");
        for name in ["hosts", "resolv.conf"] {
            below.put_file(&format!("etc/{name}"), "ours").expect("writing");
            let written = root.join("etc").join(name);
            assert!(fs::symlink_metadata(&written).expect("stat").is_file());
            assert_eq!(fs::read_to_string(written).expect("reading"), "ours");
        }
        assert_eq!(fs::read_to_string(outer.path().join("victim")).expect("victim"), "untouched");
    }

    #[test]
    fn a_folder_that_is_a_link_out_of_the_root_ends_inside() {
        for target in ["../../..", "/", "../../../../../.."] {
            let (outer, below) = root();
            symlink(target, outer.path().join("root/etc")).expect("link");
            below.put_file("etc/hostname", "web\n").expect("writing");
            assert_eq!(fs::read_to_string(outer.path().join("root/hostname")).expect("inside"), "web\n");
            assert_eq!(fs::read_dir(outer.path()).expect("listing").count(), 1);
        }
    }

    #[test]
    fn missing_folders_are_made_behind_absolute_links() {
        let (outer, below) = root();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("usr/lib")).expect("usr");
        symlink("/usr/lib", root.join("lib")).expect("link");
        below.make_dir("/lib/modules/6.12").expect("making");
        assert!(root.join("usr/lib/modules/6.12").is_dir());
        assert!(below.make_dir("a/../../b").is_err());
    }

    #[test]
    fn a_folder_in_place_of_the_file_is_an_error() {
        let (outer, below) = root();
        fs::create_dir_all(outer.path().join("root/etc/hosts")).expect("folder");
        assert!(below.put_file("etc/hosts", "x").is_err());
    }
}
