//! Part of a file, read by position, so that many readers share one descriptor.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// File systems whose times and numbers nobody can make up without being root (statfs(2)): ext2 to 4, XFS, Btrfs, tmpfs, overlayfs.
const OF_THE_KERNEL: [i64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630];
/// A file that was changed so shortly ago may change again without its times showing it.
const SETTLED_SECONDS: i64 = 2;

/// Which bytes of the host these are: as long as all of this is the same, they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
    modified: (i64, i64),
    at: u64,
    len: u64,
}

/// Bytes `at..at + len` of a file.
#[derive(Debug, Clone)]
pub struct Section {
    file: Arc<File>,
    at: u64,
    len: u64,
}

impl Section {
    /// All of a file, as long as it is now.
    pub fn whole(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), at: 0, len })
    }

    /// Part of this one; cut where it ends.
    pub fn part(&self, at: u64, len: u64) -> Self {
        let at = at.min(self.len);
        Self { file: Arc::clone(&self.file), at: self.at + at, len: len.min(self.len - at) }
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Which bytes these are; `None` where the file system cannot be relied on to tell.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let kind = rustix::fs::fstatfs(&self.file).ok()?.f_type;
        let file = self.file.metadata().ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
        (OF_THE_KERNEL.contains(&kind) && file.ctime() + SETTLED_SECONDS < now).then(|| Identity {
            device: file.dev(),
            inode: file.ino(),
            changed: (file.ctime(), file.ctime_nsec()),
            modified: (file.mtime(), file.mtime_nsec()),
            at: self.at,
            len: self.len,
        })
    }

    /// From the start.
    pub fn reader(&self) -> Reader {
        Reader { section: self.clone(), done: 0 }
    }

    /// All of it, where it is no longer than `limit`.
    pub fn bytes(&self, limit: u64) -> io::Result<Option<Vec<u8>>> {
        if self.len > limit {
            return Ok(None);
        }
        let mut bytes = vec![0; self.len as usize];
        self.file.read_exact_at(&mut bytes, self.at)?;
        Ok(Some(bytes))
    }
}

/// Reads a section.
#[derive(Debug)]
pub struct Reader {
    section: Section,
    done: u64,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.section.len - self.done;
        let len = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let len = self.section.file.read_at(&mut into[..len], self.section.at + self.done)?;
        self.done += len as u64;
        Ok(len)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.done.checked_add_signed(by),
            SeekFrom::End(by) => self.section.len.checked_add_signed(by),
        };
        // Behind the end is the end: an archive that is cut off is then found to be.
        self.done = at.ok_or(io::ErrorKind::InvalidInput)?.min(self.section.len);
        Ok(self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_known_again_once_their_file_has_settled() {
        let fresh = Section::whole(tempfile::tempfile().expect("a file")).expect("a section");
        assert_eq!(fresh.identity(), None);
        let own = || Section::whole(File::open("/proc/self/exe").expect("this program")).expect("a section");
        let identity = own().identity();
        // On a file system that tells: then it is this file, all of it.
        assert_eq!(own().identity(), identity);
        assert!(identity.is_none() || own().part(1, 10).identity() != identity);
        // One that is made up as it is read says nothing.
        let made_up = File::open("/proc/self/cmdline").expect("a file of the kernel");
        assert_eq!(Section::whole(made_up).expect("a section").identity(), None);
    }
}
