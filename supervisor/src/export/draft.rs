//! A file that is complete or not there: it is written beside its place, and gets its name at the end.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Why the file cannot be written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DraftError {
    #[error("{path}: it is there already; --force replaces it")]
    Exists { path: PathBuf },
    #[error("{path}: not a plain file; give the name of one")]
    Place { path: PathBuf },
    #[error("{path}: writing")]
    File { path: PathBuf, source: io::Error },
}

/// The draft; removed when dropped before it has its name.
pub(super) struct Draft {
    path: PathBuf,
    draft: PathBuf,
    file: File,
    replace: bool,
    is_published: bool,
}

impl Draft {
    /// A draft of `path`, which may be there only to be replaced.
    pub(super) fn new(path: &Path, replace: bool) -> Result<Self, DraftError> {
        match fs::symlink_metadata(path) {
            Ok(there) if !there.is_file() => return Err(DraftError::Place { path: path.to_owned() }),
            Ok(_) if !replace => return Err(DraftError::Exists { path: path.to_owned() }),
            _ => {}
        }
        let failed = |source| DraftError::File { path: path.to_owned(), source };
        let name = path.file_name().ok_or_else(|| DraftError::Place { path: path.to_owned() })?;
        let mut id = [0; 4];
        labyard_sys::random::fill(&mut id).map_err(failed)?;
        let draft = path.with_file_name(format!(".{}.{:08x}", name.to_string_lossy(), u32::from_le_bytes(id)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&draft);
        Ok(Self { path: path.to_owned(), draft, file: file.map_err(failed)?, replace, is_published: false })
    }

    /// For writing.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The error of a write.
    pub(super) fn failed(&self, source: io::Error) -> DraftError {
        DraftError::File { path: self.path.clone(), source }
    }

    /// Syncs it and gives it its name.
    pub(super) fn publish(mut self) -> Result<(), DraftError> {
        self.file.sync_all().map_err(|error| self.failed(error))?;
        let flags = if self.replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.draft, CWD, &self.path, flags) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(DraftError::Exists { path: self.path.clone() }),
            // A file system that knows no such rename: its name was free when we began.
            Err(Errno::INVAL) => fs::rename(&self.draft, &self.path).map_err(|error| self.failed(error))?,
            Err(error) => return Err(self.failed(error.into())),
        }
        self.is_published = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| self.failed(error))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_published {
            let _ = fs::remove_file(&self.draft); // the reason why there is no file counts
        }
    }
}
