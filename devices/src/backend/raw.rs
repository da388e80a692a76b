//! A drive in a plain file: byte n of the drive is byte n of the file.
//!
//! The file arrives open. Each request is one vectored system call between guest memory and the file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, RawFd};

use super::block::{BlockBackend, Completion, Operation, Tag};
use labyard_sys::iov;

/// Bytes of a sector (VIRTIO 1.2, §5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// A file cannot be a drive.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// Its size.
    #[error("reading its size")]
    Stat(#[source] io::Error),
    /// Not whole sectors.
    #[error("{bytes} bytes is not a whole number of sectors of 512 bytes")]
    Unaligned {
        /// Its size.
        bytes: u64,
    },
}

/// A plain file.
pub struct RawFile {
    file: File,
    capacity_bytes: u64,
    read_only: bool,
    done: VecDeque<Completion>,
}

impl RawFile {
    /// The drive in `file`, whose size is fixed from now on.
    pub fn new(file: File, read_only: bool) -> Result<Self, RawError> {
        let bytes = file.metadata().map_err(RawError::Stat)?.len();
        if bytes & SECTOR_BYTES.wrapping_sub(1) != 0 {
            return Err(RawError::Unaligned { bytes });
        }
        Ok(Self { file, capacity_bytes: bytes, read_only, done: VecDeque::new() })
    }
}

impl BlockBackend for RawFile {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&mut self, tag: Tag, operation: Operation<'_>) {
        let result = match operation {
            Operation::Read { offset, mut into } => iov::read_exact_at(self.file.as_fd(), &mut into, offset),
            Operation::Write { .. } if self.read_only => Err(io::ErrorKind::PermissionDenied.into()),
            Operation::Write { offset, mut from } => iov::write_all_at(self.file.as_fd(), &mut from, offset),
            Operation::Flush if self.read_only => Ok(()),
            // Data and the metadata needed to read it back; times do not matter.
            Operation::Flush => self.file.sync_data(),
        };
        self.done.push_back(Completion { tag, result });
    }

    fn collect(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}
