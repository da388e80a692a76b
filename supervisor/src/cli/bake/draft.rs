//! The folder that is made: `DIR.part` until it is whole, which whoever comes next may take over from somebody who was killed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use labyard_sys::lease::{self, Lease};

use super::super::Failure;

/// A folder in the making; removed when dropped.
pub(super) struct Draft {
    pub(super) path: PathBuf,
    /// Held for as long as somebody works in it.
    lock: File,
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
        let Some(name) = to.file_name() else {
            return Err(Failure::input(format!("--out {shown}: this is no name of a folder")));
        };
        let mut part = name.to_owned();
        part.push(".part");
        let path = to.with_file_name(part);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        let lock = File::open(&path).with_context(|| path.display().to_string())?;
        if !lease::take(&lock, Lease::Writer).with_context(|| path.display().to_string())? {
            return Err(Failure::input(format!("--out {shown}: another `labyard bake` is about to make it")));
        }
        let draft = Self { path, lock };
        draft.empty().with_context(|| draft.path.display().to_string())?;
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
    pub(super) fn finish(self, to: &Path) -> Result<(), Failure> {
        let renamed = self.lock.sync_all().and_then(|()| fs::rename(&self.path, to));
        Ok(renamed.with_context(|| format!("{}: giving it its name", to.display()))?)
    }

    fn empty(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Where it has its name by now, there is none of this.
        let _ = fs::remove_dir_all(&self.path);
    }
}
