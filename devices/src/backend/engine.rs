//! How a backend's bytes reach its files: one step of input or output at a time, started with a tag and collected later.
//!
//! A backend decides what has to be read, written and synced, in which order; an engine carries it out. [`SyncEngine`] does so
//! within `submit`, by vectored system calls; [`uring::UringEngine`] starts steps together and goes on meanwhile. Completions come in any order: what must wait for something waits in the backend.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, RawFd};

use labyard_sys::iov::{self, GuestSlices};
use labyard_sys::space;

use crate::Memory;

pub mod uring;

#[cfg(test)]
mod tests;

/// Names a step until it completes; chosen by the backend.
pub type IoTag = u64;

/// One of the engine's files: its position in the list that the engine was made with.
pub type FileIndex = usize;

/// A step.
pub enum Io<'mem> {
    /// Fills guest memory from `offset`.
    Read {
        /// From which file.
        file: FileIndex,
        /// In bytes.
        offset: u64,
        /// Where to.
        into: GuestSlices<'mem>,
    },
    /// Stores guest memory at `offset`.
    Write {
        /// To which file.
        file: FileIndex,
        /// In bytes.
        offset: u64,
        /// Where from.
        from: GuestSlices<'mem>,
    },
    /// Makes what was written durable: data, and the metadata needed to read it back (fdatasync(2)).
    Sync {
        /// Which file.
        file: FileIndex,
    },
    /// Gives the range's space back to the host; it reads as zeros (fallocate(2), FALLOC_FL_PUNCH_HOLE).
    Punch {
        /// In which file.
        file: FileIndex,
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Makes the range zeros without giving its space back (fallocate(2), FALLOC_FL_ZERO_RANGE, else by writing them).
    Zero {
        /// In which file.
        file: FileIndex,
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
}

/// Carries out steps.
pub trait Engine: Send {
    /// From now on most steps are of this memory; an engine that goes on when `submit` has returned keeps it alive. Steps of
    /// other memory, a backend's own buffers, end within `submit`.
    fn attach(&mut self, _memory: &Memory) {}
    /// No step is in flight, and none of that memory will come before the next `attach`: it may go.
    fn detach(&mut self) {}
    /// Starts a step.
    fn submit(&mut self, tag: IoTag, io: Io<'_>);
    /// No more steps come for now: what `submit` may have kept back to start together is started.
    fn kick(&mut self) {}
    /// The next step that has ended.
    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)>;
    /// Can be read when `collect` has news; `None` for an engine that completes within `submit`.
    fn source(&self) -> Option<RawFd>;
}

impl<E: Engine + ?Sized> Engine for Box<E> {
    fn attach(&mut self, memory: &Memory) {
        (**self).attach(memory);
    }

    fn detach(&mut self) {
        (**self).detach();
    }

    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        (**self).submit(tag, io);
    }

    fn kick(&mut self) {
        (**self).kick();
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        (**self).collect()
    }

    fn source(&self) -> Option<RawFd> {
        (**self).source()
    }
}

/// Which engine is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// io_uring where this host has and allows it, else system calls.
    #[default]
    Auto,
    /// System calls.
    Sync,
    /// io_uring or nothing.
    Uring,
}

/// An engine over these files, and its name with the reason where there was a choice.
///
/// # Errors
/// io_uring alone was wanted and is not to be had.
pub fn choose(choice: Choice, files: Vec<File>) -> io::Result<(Box<dyn Engine>, String)> {
    if choice == Choice::Sync {
        return Ok((Box::new(SyncEngine::new(files)), "system calls, as asked for".into()));
    }
    match (uring::UringEngine::new(files), choice) {
        (Ok(engine), _) => Ok((Box::new(engine), "io_uring".into())),
        (Err(refused), Choice::Uring) => Err(refused.why),
        (Err(uring::Refused { files, why }), _) => {
            Ok((Box::new(SyncEngine::new(files)), format!("system calls, because io_uring is not to be had: {why}")))
        }
    }
}

/// Steps are system calls of the calling thread.
pub struct SyncEngine {
    files: Vec<File>,
    done: VecDeque<(IoTag, io::Result<()>)>,
}

impl SyncEngine {
    /// An engine over these files.
    pub fn new(files: Vec<File>) -> Self {
        Self { files, done: VecDeque::new() }
    }

    fn run(&self, io: Io<'_>) -> io::Result<()> {
        let file = |index: FileIndex| self.files.get(index).ok_or(io::ErrorKind::NotFound);
        match io {
            Io::Read { file: index, offset, mut into } => iov::read_exact_at(file(index)?.as_fd(), &mut into, offset),
            Io::Write { file: index, offset, mut from } => iov::write_all_at(file(index)?.as_fd(), &mut from, offset),
            Io::Sync { file: index } => file(index)?.sync_data(),
            Io::Punch { file: index, offset, len } => space::punch(file(index)?, offset, len),
            Io::Zero { file: index, offset, len } => space::zero(file(index)?, offset, len),
        }
    }
}

impl Engine for SyncEngine {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        let result = self.run(io);
        self.done.push_back((tag, result));
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        self.done.pop_front()
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}
