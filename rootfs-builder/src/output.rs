//! The disk file that a writer fills: sparse, written mostly from front to back.
//!
//! Blocks of zeros are never written, the file is made long enough first: what is not written reads as zero. Writes that
//! follow each other on the disk are collected.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::disk::Follower;

/// Bytes of a block, in every format that is written here.
pub(crate) const BLOCK: usize = 4096;
/// Bytes collected before they are written.
const COLLECTED: usize = 1 << 20;

/// The disk being written.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    file: &'a File,
    follower: Option<&'a Follower>,
    collected: Aligned,
    /// Where `collected` begins.
    at: u64,
}

impl<'a> Output<'a> {
    /// An empty file becomes a disk of zeros.
    pub(crate) fn new(file: &'a File, len: u64, follower: Option<&'a Follower>) -> io::Result<Self> {
        file.set_len(0)?;
        file.set_len(len)?;
        Ok(Self { file, follower, collected: Aligned::default(), at: 0 })
    }

    /// Puts whole blocks at block number `block`.
    pub(crate) fn put(&mut self, block: u64, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(bytes.len().is_multiple_of(BLOCK));
        for (offset, one) in bytes.chunks(BLOCK).enumerate() {
            if is_zero(one) {
                continue;
            }
            let at = (block + offset as u64) * BLOCK as u64;
            let have = self.collected.bytes().len();
            if at != self.at + have as u64 || have + one.len() > COLLECTED {
                self.flush()?;
                self.at = at;
            }
            self.collected.push(one);
        }
        Ok(())
    }

    /// Writes what is collected.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.collected.bytes().is_empty() {
            return Ok(());
        }
        match self.follower {
            Some(follower) => follower.write(self.at, &mut self.collected)?,
            None => self.file.write_all_at(self.collected.bytes(), self.at)?,
        }
        self.collected.clear();
        Ok(())
    }
}

/// Room for [`COLLECTED`] bytes that begin at the start of a page, as direct I/O wants them (open(2), O_DIRECT).
#[derive(Debug)]
pub(crate) struct Aligned {
    room: Vec<u8>,
    start: usize,
}

impl Default for Aligned {
    fn default() -> Self {
        let mut room: Vec<u8> = Vec::with_capacity(COLLECTED + BLOCK);
        let start = room.as_ptr().addr().next_multiple_of(BLOCK) - room.as_ptr().addr();
        room.resize(start, 0);
        Self { room, start }
    }
}

impl Aligned {
    /// What is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.room[self.start..]
    }

    /// Empty again.
    pub(crate) fn clear(&mut self) {
        self.room.truncate(self.start);
    }

    /// Appends; more than there is room for would move it.
    fn push(&mut self, bytes: &[u8]) {
        debug_assert!(self.room.len() + bytes.len() <= self.room.capacity());
        self.room.extend_from_slice(bytes);
    }
}

/// Whether there is nothing but zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Sixteen bytes at a time, which the compiler turns into vector code.
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && rest.iter().all(|byte| *byte == 0)
}
