//! The contract between the block device and what stores its bytes.
//!
//! A request is submitted with a tag and completes later, possibly at once and in any order. A flush is a request like
//! any other: when it completes, every write that had completed before it was submitted is durable.

use std::io;
use std::os::fd::RawFd;

use labyard_sys::iov::GuestSlices;

use super::raw::SECTOR_BYTES;
use crate::Memory;

/// Names a request until it completes; chosen by the device.
pub type Tag = u16;

/// What to do. Offsets and lengths were checked against the capacity.
pub enum Operation<'mem> {
    /// Fills guest memory from `offset`.
    Read {
        /// In bytes.
        offset: u64,
        /// Where to.
        into: GuestSlices<'mem>,
    },
    /// Stores guest memory at `offset`.
    Write {
        /// In bytes.
        offset: u64,
        /// Where from.
        from: GuestSlices<'mem>,
    },
    /// Makes completed writes durable.
    Flush,
    /// The guest needs the range no more: its space goes back to the host, and it reads as zeros.
    Discard {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// The range reads as zeros from now on.
    WriteZeroes {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
        /// Whether its space may go back to the host.
        unmap: bool,
    },
}

/// A request that ended.
#[derive(Debug)]
pub struct Completion {
    /// Whose.
    pub tag: Tag,
    /// How.
    pub result: io::Result<()>,
}

/// A drive cannot be given another size.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum GrowError {
    #[error("a drive of this kind keeps its size")]
    Fixed,
    #[error("{bytes} bytes are less than its {capacity}, and a drive cannot shrink while its machine runs")]
    Smaller { bytes: u64, capacity: u64 },
    #[error("{bytes} bytes is not a whole number of sectors of 512 bytes")]
    Unaligned { bytes: u64 },
    #[error("{bytes} bytes are more than the {most} that a drive can have")]
    Large { bytes: u64, most: u64 },
    #[error("{bytes} bytes are more than the {file_bytes} of the file behind it: grow the file first")]
    BeyondFile { bytes: u64, file_bytes: u64 },
    #[error("reading the size of the file behind it")]
    Stat(#[source] io::Error),
    #[error("no guest uses it now; try again when its machine has booted")]
    AtRest,
    #[error("its machine has ended")]
    Ended,
    #[error(
        "its flush has not ended for {seconds} s, for lack of room on the host's disk, it may be; it has its old size"
    )]
    Late { seconds: u64 },
    #[error("making its files larger")]
    Files(#[source] io::Error),
}

impl GrowError {
    /// Whether a drive of `capacity` bytes may have `bytes`: whole sectors, and not fewer.
    pub(crate) fn check(bytes: u64, capacity: u64) -> Result<(), Self> {
        if bytes < capacity {
            return Err(Self::Smaller { bytes, capacity });
        }
        if bytes & SECTOR_BYTES.wrapping_sub(1) != 0 {
            return Err(Self::Unaligned { bytes });
        }
        Ok(())
    }
}

/// What a drive was told to write still waits for room on the host's disk.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NoRoom {
    #[error("no room on the host's disk for what it writes")]
    Full(#[source] io::Error),
    #[error("no word from the host's disk for {seconds} s")]
    Late { seconds: u64 },
}

/// Reaches a backend while it is at work, from any thread.
pub trait Remote: Send + Sync {
    /// From now on the drive has `bytes`. One call at a time.
    ///
    /// # Errors
    /// The size is smaller than the drive, or not to be had.
    fn grow(&self, bytes: u64) -> Result<(), GrowError>;
    /// There may be room on the host's disk again: what waits for it is tried now. Returns what has become of that; at once where
    /// nothing waits.
    ///
    /// # Errors
    /// There is none, or the drive does not say.
    fn retry(&self) -> Result<(), NoRoom> {
        Ok(())
    }
    /// The machine ends, and nobody waits for room on the host's disk any more: what waits for it, or finds none, fails.
    fn give_up(&self) {}
}

/// Stores the bytes of one drive.
pub trait BlockBackend: Send {
    /// Bytes; a whole number of sectors.
    fn capacity_bytes(&self) -> u64;
    /// What reaches the backend while it is at work; `None` where its size is fixed and it waits for nothing.
    fn remote(&self) -> Option<Box<dyn Remote>> {
        None
    }
    /// Writes are refused.
    fn read_only(&self) -> bool;
    /// From now on requests are of this memory; a backend that goes on when `submit` has returned keeps it alive.
    fn attach(&mut self, _memory: &Memory) {}
    /// No request is in flight, and none will come before the next `attach`: the memory may go.
    fn detach(&mut self) {}
    /// Starts a request.
    fn submit(&mut self, tag: Tag, operation: Operation<'_>);
    /// No more requests come for now: what `submit` may have kept back to start together is started.
    fn kick(&mut self) {}
    /// The next request that has ended.
    fn collect(&mut self) -> Option<Completion>;
    /// Can be read when `collect` has news; `None` for a backend that completes within `submit`.
    fn source(&self) -> Option<RawFd>;
}
