//! Files that nobody has to clean up: they never have a name, so they are gone when their process is, however it ended.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat, unlinkat};

/// An empty file in `folder` for reading and writing.
pub(crate) fn unnamed(folder: &Path) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(CWD, folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(file) => Ok(file.into()),
        // File systems without O_TMPFILE: a name for a moment.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
            let name = folder.join(format!(".spool-{}", std::process::id()));
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = openat(CWD, &name, flags, mode)?;
            unlinkat(CWD, &name, AtFlags::empty())?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// A file that gets its name once it is complete; until then it has none, or a hidden one that goes with it.
pub(crate) struct Draft {
    pub(crate) file: File,
    hidden: Option<PathBuf>,
    to: PathBuf,
}

impl Draft {
    /// For a file `to`, on its file system.
    pub(crate) fn new(to: &Path) -> io::Result<Self> {
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (mode, flags) = (Mode::RUSR | Mode::WUSR, OFlags::RDWR | OFlags::CLOEXEC);
        let (file, hidden) = match openat(CWD, folder, flags | OFlags::TMPFILE, mode) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::INVAL) => {
                let path = hidden(to);
                (openat(CWD, &path, flags | OFlags::CREATE | OFlags::TRUNC, mode)?, Some(path))
            }
            file => (file?, None),
        };
        Ok(Self { file: file.into(), hidden, to: to.to_owned() })
    }

    /// Gives it its name; what has that name already is replaced only with `force`.
    pub(crate) fn finish(mut self, force: bool) -> io::Result<()> {
        match self.link(&self.to) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && force => {
                if self.hidden.is_none() {
                    let path = hidden(&self.to);
                    self.link(&path)?;
                    self.hidden = Some(path);
                }
                let path = self.hidden.as_ref().expect("it has just been given one");
                fs::rename(path, &self.to)
            }
            other => other,
        }
    }

    fn link(&self, to: &Path) -> io::Result<()> {
        if let Some(path) = &self.hidden {
            return fs::hard_link(path, to);
        }
        // open(2), "O_TMPFILE": the way that needs no privileges.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(linkat(CWD, path, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = &self.hidden {
            let _ = fs::remove_file(path);
        }
    }
}

fn hidden(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}
