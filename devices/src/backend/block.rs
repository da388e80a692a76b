//! The contract between the block device and what stores its bytes.
//!
//! A request is submitted with a tag and completes later, possibly at once and in any order. A flush is a request like
//! any other: when it completes, every write that had completed before it was submitted is durable.

use std::io;
use std::os::fd::RawFd;

use labyard_sys::iov::GuestSlices;

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

/// Stores the bytes of one drive.
pub trait BlockBackend: Send {
    /// Bytes; a whole number of sectors.
    fn capacity_bytes(&self) -> u64;
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
