//! Part of a file, read by position, so that many readers share one descriptor.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

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
