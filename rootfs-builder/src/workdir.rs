//! Work in progress in the store: a folder `.tmp-<name>` that becomes `<name>` by rename, or disappears.
//!
//! The folder is its own lock (flock on its descriptor), so who builds the same thing twice at once builds it once, and a
//! folder whose lock is free belongs to nobody: its builder was killed. Because the name can change between opening and
//! locking, a lock only counts while the name still leads to the folder that was locked.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::watch::{Interrupted, Watch};

/// What unfinished folders are called.
const PREFIX: &str = ".tmp-";
/// Between two looks at somebody else's lock.
const PATIENCE: Duration = Duration::from_millis(50);

/// Why there is no place to work.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum WorkdirError {
    #[error("{path}: making a folder to work in")]
    Make { path: PathBuf, source: io::Error },
    #[error("{path}: moving the finished folder there")]
    Publish { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// A folder that only this process writes to. Dropped, it is removed.
#[derive(Debug)]
pub struct Workdir {
    path: PathBuf,
    /// Held for as long as the folder has its temporary name.
    lock: File,
    published: bool,
}

impl Workdir {
    /// The folder in which `name` is made; waits while somebody else makes it. Look whether `name` is there afterwards.
    pub fn enter(parent: &Path, name: &str, watch: &Watch) -> Result<Self, WorkdirError> {
        let path = parent.join(format!("{PREFIX}{name}"));
        let failed = |source| WorkdirError::Make { path: path.clone(), source };
        loop {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
            match lock(&path).map_err(failed)? {
                Locked::Mine(lock) => {
                    empty(&path).map_err(failed)?;
                    return Ok(Self { path, lock, published: false });
                }
                Locked::Gone => {}
                Locked::Taken => {
                    watch.at("waiting for another builder", 0, 0)?;
                    std::thread::sleep(PATIENCE);
                }
            }
        }
    }

    /// Where to work.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the folder its name. Its files have been synced by whoever wrote them.
    pub fn publish(mut self, to: &Path) -> Result<(), WorkdirError> {
        let renamed = self.lock.sync_all().and_then(|()| fs::rename(&self.path, to)).and_then(|()| {
            self.published = true;
            to.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        });
        renamed.map_err(|source| WorkdirError::Publish { path: to.to_owned(), source })
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if !self.published {
            // What stays is removed by the next builder.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes what killed builders have left.
pub fn remove_stale(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && let Locked::Mine(_lock) = lock(&entry.path())?
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

enum Locked {
    Mine(File),
    Taken,
    Gone,
}

fn lock(path: &Path) -> io::Result<Locked> {
    let folder = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Locked::Gone),
        other => other?,
    };
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Locked::Taken),
        other => other?,
    }
    let locked = folder.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => Ok(Locked::Mine(folder)),
        Ok(_) => Ok(Locked::Gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Locked::Gone),
        Err(error) => Err(error),
    }
}

fn empty(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_folder_in_work_is_not_stale_and_a_left_one_is() {
        let home = tempfile::tempdir().unwrap();
        let work = Workdir::enter(home.path(), "a", &Watch::unattended()).unwrap();
        fs::create_dir_all(home.path().join(".tmp-left/deep")).unwrap();
        remove_stale(home.path()).unwrap();
        assert!(work.path().exists());
        assert!(!home.path().join(".tmp-left").exists());
        let path = work.path().to_owned();
        drop(work);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_builder_left_under_the_name_is_not_built_upon() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join(".tmp-a/early")).unwrap();
        fs::write(home.path().join(".tmp-a/disk"), "half").unwrap();
        let work = Workdir::enter(home.path(), "a", &Watch::unattended()).unwrap();
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
        work.publish(&home.path().join("a")).unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn who_waits_for_another_builder_can_be_interrupted() {
        let home = tempfile::tempdir().unwrap();
        let _work = Workdir::enter(home.path(), "a", &Watch::unattended()).unwrap();
        let cancelled = Arc::new(AtomicBool::new(true));
        let error = Workdir::enter(home.path(), "a", &Watch::new(cancelled, Box::new(|_, _, _| {}))).unwrap_err();
        assert!(matches!(error, WorkdirError::Interrupted(_)), "{error}");
    }

    #[test]
    fn two_builders_of_one_name_take_turns() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("a");
        let made: usize = std::thread::scope(|scope| {
            let builders: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let work = Workdir::enter(home.path(), "a", &Watch::unattended()).unwrap();
                        if target.exists() {
                            return 0;
                        }
                        work.publish(&target).unwrap();
                        1
                    })
                })
                .collect();
            builders.into_iter().map(|builder| builder.join().unwrap()).sum()
        });
        assert_eq!(made, 1);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
