//! Blobs of the store, `blobs/sha256/<hex>`: what a registry gave, under the digest of its bytes.
//!
//! A file with its final name is complete and was checked. A blob that is being fetched is `.part-<hex>`, locked by who
//! fetches it; who wants the same blob waits. What a killed process left there is taken up again: its bytes are hashed
//! anew, so nothing that lies there is trusted.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// What unfinished blobs are called.
pub(crate) const PREFIX: &str = ".part-";
/// Bytes hashed at once.
const CHUNK: usize = 256 << 10;

/// The folder of blobs.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// Below a state directory.
    pub fn open(home: &Path) -> io::Result<Self> {
        let folder = home.join("blobs/sha256");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    /// Where a blob is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    /// Whether the blob is complete.
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// A small blob that is in memory already.
    pub(super) fn put(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        if self.has(digest) {
            return Ok(());
        }
        let mut file = tempfile_in(&self.folder, digest)?;
        file.1.write_all(bytes)?;
        file.1.sync_all()?;
        fs::rename(&file.0, self.path(digest))?;
        File::open(&self.folder)?.sync_all()
    }

    /// The place to write a blob to; `None` while somebody else has it. What was given on a login goes on only with what the same
    /// `giver` gives on one.
    ///
    /// What is there when it is dropped stays if `keep` says so by then.
    pub(super) fn begin(
        &self,
        digest: &Digest,
        giver: Option<&str>,
        keep: &Rc<Cell<bool>>,
    ) -> io::Result<Option<Part>> {
        let giver = giver.map(|giver| format!("-{}", &Digest::of(giver.as_bytes()).hex()[..16])).unwrap_or_default();
        let path = self.folder.join(format!("{PREFIX}{}{giver}", digest.hex()));
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            // The name may have changed between opening and locking.
            match fs::metadata(&path) {
                Ok(named) if named.ino() == file.metadata()?.ino() => {
                    let mut part = Part {
                        blobs: self.clone(),
                        digest: *digest,
                        path,
                        file,
                        hash: Sha256::new(),
                        len: 0,
                        keep: Rc::clone(keep),
                        done: false,
                    };
                    part.take_up()?;
                    return Ok(Some(part));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A name of its own beside the blobs; whoever is killed in between leaves a few bytes that `prune` removes.
fn tempfile_in(folder: &Path, digest: &Digest) -> io::Result<(PathBuf, File)> {
    let path = folder.join(format!("{PREFIX}{}.{}", digest.hex(), std::process::id()));
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    // Who removes what killed processes have left keeps off.
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok((path, file))
}

/// A blob that is being written. Dropped, it is removed, unless it is to be kept for who goes on from it.
#[derive(Debug)]
pub(super) struct Part {
    blobs: Blobs,
    digest: Digest,
    path: PathBuf,
    file: File,
    hash: Sha256,
    len: u64,
    keep: Rc<Cell<bool>>,
    /// There is nothing under the temporary name, or nothing worth keeping.
    done: bool,
}

impl Part {
    /// Bytes that are there.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    fn take_up(&mut self) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let len = self.file.read(&mut chunk)?;
            if len == 0 {
                return Ok(());
            }
            self.hash.update(&chunk[..len]);
            self.len += len as u64;
        }
    }

    /// The next bytes.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// From the beginning.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hash = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// Gives the blob its name, or tells what its bytes are instead. Once they are right, `note` comes first: whoever finds the blob finds
    /// what is noted of it.
    pub(super) fn finish(mut self, note: impl FnOnce() -> io::Result<()>) -> io::Result<Result<(), Digest>> {
        let found = Digest::from(std::mem::take(&mut self.hash));
        self.done = true;
        if found != self.digest {
            fs::remove_file(&self.path)?;
            return Ok(Err(found));
        }
        self.file.sync_all()?;
        note()?;
        fs::rename(&self.path, self.blobs.path(&self.digest))?;
        File::open(&self.blobs.folder)?.sync_all()?;
        Ok(Ok(()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done && !self.keep.get() {
            // What stays is taken up, or removed, by the next one.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let home = tempfile::tempdir().expect("a folder");
        let blobs = Blobs::open(home.path()).expect("opening");
        (home, blobs)
    }

    #[test]
    fn a_part_that_was_left_is_taken_up_and_checked() {
        let (_home, blobs) = blobs();
        let digest = Digest::of(b"hello world");
        let keep = Rc::new(Cell::new(false));
        let mut part = blobs.begin(&digest, None, &keep).expect("begin").expect("free");
        part.append(b"hello ").expect("writing");
        keep.set(true);
        drop(part);
        let mut part = blobs.begin(&digest, None, &keep).expect("begin").expect("free");
        assert_eq!(part.len(), 6);
        part.append(b"world").expect("writing");
        assert_eq!(part.finish(|| Ok(())).expect("finish"), Ok(()));
        assert_eq!(fs::read(blobs.path(&digest)).expect("reading"), b"hello world");
    }

    #[test]
    fn wrong_bytes_are_told_and_leave_nothing() {
        let (_home, blobs) = blobs();
        let digest = Digest::of(b"right");
        let mut part = blobs.begin(&digest, None, &Rc::default()).expect("begin").expect("free");
        part.append(b"wrong").expect("writing");
        assert_eq!(part.finish(|| Ok(())).expect("finish"), Err(Digest::of(b"wrong")));
        assert_eq!(fs::read_dir(&blobs.folder).expect("listing").count(), 0);
    }

    #[test]
    fn what_was_given_on_a_login_is_taken_up_only_from_there() {
        let (_home, blobs) = blobs();
        let digest = Digest::of(b"hello world");
        let keep = Rc::new(Cell::new(true));
        let mut part = blobs.begin(&digest, Some("a.example"), &keep).expect("begin").expect("free");
        part.append(b"hello ").expect("writing");
        drop(part);
        let len = |giver| blobs.begin(&digest, giver, &keep).expect("begin").expect("free").len();
        assert_eq!((len(None), len(Some("b.example")), len(Some("a.example"))), (0, 0, 6));
    }

    #[test]
    fn one_at_a_time_fetches_a_blob() {
        let (_home, blobs) = blobs();
        let digest = Digest::of(b"x");
        let part = blobs.begin(&digest, None, &Rc::default()).expect("begin").expect("free");
        assert!(blobs.begin(&digest, None, &Rc::default()).expect("begin").is_none());
        drop(part);
        assert!(blobs.begin(&digest, None, &Rc::default()).expect("begin").is_some());
    }
}
