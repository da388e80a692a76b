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
    collected: Vec<u8>,
    /// Where `collected` begins.
    at: u64,
}

impl<'a> Output<'a> {
    /// An empty file becomes a disk of zeros.
    pub(crate) fn new(file: &'a File, len: u64, follower: Option<&'a Follower>) -> io::Result<Self> {
        file.set_len(0)?;
        file.set_len(len)?;
        Ok(Self { file, follower, collected: Vec::with_capacity(COLLECTED), at: 0 })
    }

    /// Puts whole blocks at block number `block`.
    pub(crate) fn put(&mut self, block: u64, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(bytes.len().is_multiple_of(BLOCK));
        for (offset, one) in bytes.chunks(BLOCK).enumerate() {
            if is_zero(one) {
                continue;
            }
            let at = (block + offset as u64) * BLOCK as u64;
            if at != self.at + self.collected.len() as u64 || self.collected.len() + one.len() > COLLECTED {
                self.flush()?;
                self.at = at;
            }
            self.collected.extend_from_slice(one);
        }
        Ok(())
    }

    /// Writes what is collected.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.collected, self.at)?;
        if let Some(follower) = self.follower {
            follower.wrote(self.at, self.collected.len() as u64);
        }
        self.collected.clear();
        Ok(())
    }
}

/// Whether there is nothing but zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Sixteen bytes at a time, which the compiler turns into vector code.
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && rest.iter().all(|byte| *byte == 0)
}
