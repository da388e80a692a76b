//! Steps are entries of a ring that the kernel works on while the device's thread goes on (`labyard_sys::uring`).
//!
//! Steps of one batch start with one system call. What the ring does not take, because it is full or the bytes are not in the
//! guest's memory, is done within `submit`, and so are zeros on a file system that has to write them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, RawFd};

use labyard_sys::space;
use labyard_sys::uring::{NotStarted, Ring, Task};

use super::{Engine, FileIndex, Io, IoTag, SyncEngine};
use crate::Memory;

/// Steps at a time: as many as a drive's queue has entries.
pub const DEPTH: u16 = 256;

/// An engine over a ring.
pub struct UringEngine {
    ring: Ring,
    otherwise: SyncEngine,
    /// Ranges that are being made zeros, for the day that the file system cannot.
    zeroing: Vec<(IoTag, FileIndex, u64, u64)>,
}

/// No ring was to be had.
pub struct Refused {
    /// Come back.
    pub files: Vec<File>,
    /// What the kernel said.
    pub why: io::Error,
}

impl UringEngine {
    /// An engine over these files.
    ///
    /// # Errors
    /// The kernel has no io_uring, or forbids it.
    pub fn new(files: Vec<File>) -> Result<Self, Refused> {
        let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        match Ring::new(&descriptors, DEPTH) {
            Ok(ring) => Ok(Self { ring, otherwise: SyncEngine::new(files), zeroing: Vec::new() }),
            Err(why) => Err(Refused { files, why }),
        }
    }

    fn start(&mut self, tag: IoTag, io: &Io<'_>) -> Result<(), NotStarted> {
        let index = |file: FileIndex| u32::try_from(file).map_err(|_| NotStarted);
        match *io {
            Io::Read { file, offset, ref into } => self.ring.read(tag, index(file)?, offset, into),
            Io::Write { file, offset, ref from } => self.ring.write(tag, index(file)?, offset, from),
            Io::Sync { file } => self.ring.task(tag, index(file)?, Task::Sync),
            Io::Punch { file, offset, len } => self.ring.task(tag, index(file)?, Task::Punch { offset, len }),
            Io::Zero { file, offset, len } => {
                self.ring.task(tag, index(file)?, Task::Zero { offset, len })?;
                self.zeroing.push((tag, file, offset, len));
                Ok(())
            }
        }
    }

    /// The result of a step, after a second try where it was zeros and the file system has to write them.
    fn settle(&mut self, tag: IoTag, result: io::Result<()>) -> io::Result<()> {
        let Some(position) = self.zeroing.iter().position(|(zeroing, ..)| *zeroing == tag) else { return result };
        let (_, file, offset, len) = self.zeroing.swap_remove(position);
        match result {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                let file = self.otherwise.files.get(file).ok_or(io::ErrorKind::NotFound)?;
                space::write_zeros(file, offset, len)
            }
            other => other,
        }
    }
}

impl Engine for UringEngine {
    fn attach(&mut self, memory: &Memory) {
        self.ring.attach(memory.clone());
    }

    fn detach(&mut self) {
        self.ring.detach();
    }

    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        if self.start(tag, &io).is_err() {
            self.otherwise.submit(tag, io);
            self.ring.raise();
        }
    }

    fn kick(&mut self) {
        self.ring.kick();
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        if let Some(done) = self.otherwise.collect() {
            return Some(done);
        }
        let (tag, result) = self.ring.collect()?;
        Some((tag, self.settle(tag, result)))
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.ring.source())
    }
}
