//! A disk as an object: which parts of it are not zero, and one digest over them.
//!
//! The digest is SHA-256 over the disk's length and, for each piece of [`PIECE`] bytes that is not all zeros, its place and its own
//! SHA-256. So it says nothing about where a file has holes, and pieces are read by several threads. It finds damage; who may write
//! to the store can write another digest, too.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::watch::{Interrupted, Watch};

/// Bytes of a piece.
pub const PIECE: u64 = 256 << 10;
/// More threads are no faster: the disk gives no more, or memory does not.
const MAX_THREADS: usize = 4;

/// Why a disk has no digest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DiskError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What a disk has in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Length of the disk.
    pub len: u64,
    /// Numbers of the pieces that are not all zeros, and their sums, in order.
    pieces: Vec<(u64, [u8; 32])>,
}

impl Contents {
    /// The digest of the disk.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(format!("labyard disk {} {PIECE}\n", self.len));
        for (number, sum) in &self.pieces {
            hash.update(number.to_le_bytes());
            hash.update(sum);
        }
        hash.into()
    }

    /// Where they lie: offset and length, neighbours joined.
    pub fn extents(&self) -> Vec<(u64, u64)> {
        let mut extents: Vec<(u64, u64)> = Vec::new();
        for (number, _) in &self.pieces {
            let at = number * PIECE;
            let len = PIECE.min(self.len - at);
            match extents.last_mut() {
                Some((start, length)) if *start + *length == at => *length += len,
                _ => extents.push((at, len)),
            }
        }
        extents
    }
}

/// Reads a disk; holes cost nothing.
pub fn read(disk: &File, step: &str, watch: &Watch) -> Result<Contents, DiskError> {
    let len = disk.metadata()?.len();
    let numbers = with_data(disk, len)?;
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let mut pieces = Vec::with_capacity(numbers.len());
    std::thread::scope(|scope| {
        let (sender, sums) = mpsc::sync_channel(64);
        for _ in 0..threads {
            let sender = sender.clone();
            let (numbers, next, stop) = (&numbers, &next, &stop);
            scope.spawn(move || {
                let mut bytes = vec![0; PIECE as usize];
                while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed))
                    && !stop.load(Ordering::Relaxed)
                    && sender.send(sum(disk, len, *number, &mut bytes)).is_ok()
                {}
            });
        }
        drop(sender);
        let mut done = 0;
        let result = sums.iter().try_for_each(|piece| {
            pieces.extend(piece?);
            done += PIECE;
            Ok(watch.at(step, done.min(len), len)?)
        });
        stop.store(true, Ordering::Relaxed);
        result.map_err(|error: DiskError| error)
    })?;
    pieces.sort_unstable_by_key(|(number, _)| *number);
    Ok(Contents { len, pieces })
}

fn sum(disk: &File, len: u64, number: u64, bytes: &mut [u8]) -> io::Result<Option<(u64, [u8; 32])>> {
    let at = number * PIECE;
    let bytes = &mut bytes[..PIECE.min(len - at) as usize];
    disk.read_exact_at(bytes, at)?;
    Ok(bytes.iter().any(|byte| *byte != 0).then(|| (number, Sha256::digest(&*bytes).into())))
}

/// Numbers of the pieces that are not wholly in a hole.
fn with_data(disk: &File, len: u64) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut at = 0;
    while at < len {
        let from = match rustix::fs::seek(disk, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let to = rustix::fs::seek(disk, SeekFrom::Hole(from))?.min(len);
        let first = (from / PIECE).max(numbers.last().map_or(0, |last| last + 1));
        numbers.extend(first..to.div_ceil(PIECE));
        at = to;
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(len: u64, parts: &[(u64, &[u8])]) -> Contents {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(len).expect("a length");
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).expect("writing");
        }
        read(&file, "reading", &Watch::unattended()).expect("reading")
    }

    #[test]
    fn a_disk_is_what_it_reads_as_wherever_it_has_holes() {
        let len = 5 * PIECE + 100;
        let holes = contents(len, &[(PIECE + 7, b"x"), (2 * PIECE, b"y"), (5 * PIECE + 99, b"z")]);
        let mut whole = vec![0; len as usize];
        for (at, byte) in [(PIECE + 7, b'x'), (2 * PIECE, b'y'), (5 * PIECE + 99, b'z')] {
            whole[at as usize] = byte;
        }
        assert_eq!(contents(len, &[(0, &whole)]), holes);
        assert_eq!(holes.extents(), [(PIECE, 2 * PIECE), (5 * PIECE, 100)]);
    }

    #[test]
    fn every_byte_its_place_and_the_length_count() {
        let one = contents(3 * PIECE, &[(5, b"x")]).digest();
        for (len, at, bytes) in
            [(3 * PIECE, 6, b"x"), (3 * PIECE, 5, b"y"), (4 * PIECE, 5, b"x"), (3 * PIECE, PIECE + 5, b"x")]
        {
            assert_ne!(contents(len, &[(at, bytes)]).digest(), one);
        }
        assert_eq!(contents(0, &[]).extents(), []);
    }
}
