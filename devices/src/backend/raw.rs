//! A drive in a plain file: byte n of the drive is byte n of the file.
//!
//! The file arrives open. Each request is one step of an engine, between guest memory and the file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use labyard_sys::lease;

use super::block::{BlockBackend, Completion, GrowError, Operation, Remote, Tag};
use super::engine::{Engine, FileIndex, Io, SyncEngine};
use crate::Memory;

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
    /// How it was opened.
    #[error("asking how it was opened")]
    Access(#[source] io::Error),
    /// Nothing could be written.
    #[error(
        "opened for reading only, and the drive is to be written; pass it opened for both, or make the drive read only"
    )]
    ReadOnly,
}

/// A plain file.
pub struct RawFile<E> {
    engine: E,
    capacity: Arc<AtomicU64>,
    /// The same file, where the drive may grow with it.
    grows_with: Option<Arc<File>>,
    read_only: bool,
    /// Answered without the engine.
    refused: VecDeque<Completion>,
}

/// The one file of the engine.
const FILE: FileIndex = 0;

impl RawFile<SyncEngine> {
    /// The drive in `file`, with the size that the file has now.
    pub fn new(file: File, read_only: bool) -> Result<Self, RawError> {
        let capacity_bytes = capacity(&file, read_only)?;
        Ok(Self::over(SyncEngine::new(vec![file]), capacity_bytes, read_only))
    }
}

/// Bytes of the drive in `file`.
///
/// # Errors
/// Its size cannot be read, or is not a whole number of sectors, or it cannot be written where the drive is.
pub fn capacity(file: &File, read_only: bool) -> Result<u64, RawError> {
    let bytes = file.metadata().map_err(RawError::Stat)?.len();
    if bytes & SECTOR_BYTES.wrapping_sub(1) != 0 {
        return Err(RawError::Unaligned { bytes });
    }
    if !read_only && !lease::can_write(file).map_err(RawError::Access)? {
        return Err(RawError::ReadOnly);
    }
    Ok(bytes)
}

impl<E: Engine> RawFile<E> {
    /// The drive in the first file of `engine`, of which the guest sees `capacity_bytes`.
    pub fn over(engine: E, capacity_bytes: u64, read_only: bool) -> Self {
        let capacity = Arc::new(AtomicU64::new(capacity_bytes));
        Self { engine, capacity, grows_with: None, read_only, refused: VecDeque::new() }
    }

    /// The same drive, which may become as large as `file`, the engine's first, has become.
    #[must_use]
    pub fn growing_with(self, file: Arc<File>) -> Self {
        Self { grows_with: Some(file), ..self }
    }
}

/// Lets the guest see more of a file that has grown.
struct RawGrowth {
    capacity: Arc<AtomicU64>,
    file: Arc<File>,
}

impl Remote for RawGrowth {
    fn grow(&self, bytes: u64) -> Result<(), GrowError> {
        let capacity = self.capacity.load(Ordering::SeqCst);
        GrowError::check(bytes, capacity)?;
        let file_bytes = self.file.metadata().map_err(GrowError::Stat)?.len();
        if bytes > file_bytes {
            return Err(GrowError::BeyondFile { bytes, file_bytes });
        }
        self.capacity.store(bytes, Ordering::SeqCst);
        Ok(())
    }
}

impl<E: Engine> BlockBackend for RawFile<E> {
    fn capacity_bytes(&self) -> u64 {
        self.capacity.load(Ordering::SeqCst)
    }

    fn remote(&self) -> Option<Box<dyn Remote>> {
        let (capacity, file) = (Arc::clone(&self.capacity), Arc::clone(self.grows_with.as_ref()?));
        Some(Box::new(RawGrowth { capacity, file }))
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn attach(&mut self, memory: &Memory) {
        self.engine.attach(memory);
    }

    fn detach(&mut self) {
        self.engine.detach();
    }

    fn kick(&mut self) {
        self.engine.kick();
    }

    fn submit(&mut self, tag: Tag, operation: Operation<'_>) {
        let io = match operation {
            Operation::Read { offset, into } => Io::Read { file: FILE, offset, into },
            Operation::Flush if self.read_only => return self.refused.push_back(Completion { tag, result: Ok(()) }),
            _ if self.read_only => {
                let result = Err(io::ErrorKind::PermissionDenied.into());
                return self.refused.push_back(Completion { tag, result });
            }
            Operation::Write { offset, from } => Io::Write { file: FILE, offset, from },
            Operation::Flush => Io::Sync { file: FILE },
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, unmap: true } => {
                Io::Punch { file: FILE, offset, len }
            }
            Operation::WriteZeroes { offset, len, unmap: false } => Io::Zero { file: FILE, offset, len },
        };
        self.engine.submit(tag.into(), io);
    }

    fn collect(&mut self) -> Option<Completion> {
        if let Some(refused) = self.refused.pop_front() {
            return Some(refused);
        }
        let (tag, result) = self.engine.collect()?;
        Some(Completion { tag: Tag::try_from(tag).ok()?, result })
    }

    fn source(&self) -> Option<RawFd> {
        self.engine.source()
    }
}
