//! virtio-blk (VIRTIO 1.2, §5.2): one queue of reads, writes, flushes, discards and write-zeroes over a [`BlockBackend`].
//!
//! A request is parsed once from its header ([`request`]), given to the backend with a tag, and answered when the backend
//! says so (`worker`); as many are in flight as the queue is long. What the guest asks for beyond the drive's end, or in
//! anything but whole sectors, is an I/O error to it.
//!
//! The drive has a write-back cache, always: a write that was answered may be lost until a flush is answered.
//! VIRTIO_BLK_F_CONFIG_WCE, by which a driver could ask for write-through, is not offered.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceState, DeviceType, Refused, StateError, VirtioDevice, wrong_queues};
use crate::backend::block::{BlockBackend, Operation};
use crate::backend::raw::SECTOR_BYTES;
use crate::counters::Counters;
use crate::fault::Faults;
use crate::limiter::Limiter;
use crate::worker::{Activation, Worker, wait_readable};
use handle::Handle;

pub mod counters;
pub mod handle;
pub mod request;
#[cfg(test)]
mod tests;
mod worker;

/// System calls beside what all devices make ([`crate::virtio::registry::Entry::calls`]).
pub(super) const CALLS: &[&str] = &[
    "io_uring_enter",
    "io_uring_register:IORING_REGISTER_FILES_UPDATE",
    "preadv",
    "pwritev",
    "pread64",
    "pwrite64",
    "fdatasync",
    "fsync",
    "fallocate",
    "ftruncate",
    "statx:AT_EMPTY_PATH",
    "flock",
    "epoll_create1",
    "timerfd_settime",
];
/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// Data segments of one request: with header, status and splits at memory regions they fit into a `SliceList`.
pub const MAX_SEGMENTS: u32 = 126;
/// Bytes of a serial (§5.2.6.1, VIRTIO_BLK_T_GET_ID).
pub const SERIAL_BYTES: usize = 20;

/// VIRTIO_BLK_F_SEG_MAX, §5.2.3.
const F_SEG_MAX: u64 = 1 << 2;
/// VIRTIO_BLK_F_RO.
const F_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
const F_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
const F_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_TOPOLOGY.
const F_TOPOLOGY: u64 = 1 << 10;
/// VIRTIO_BLK_F_DISCARD.
const F_DISCARD: u64 = 1 << 13;
/// VIRTIO_BLK_F_WRITE_ZEROES.
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Bytes of a saved drive: its serial, and its capacity as a u64.
const STATE_BYTES: usize = SERIAL_BYTES + 8;

/// log2 of the sectors in a physical block: 4 KiB, the page and the block of the host's files.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// A block device at rest.
pub struct Block {
    serial: [u8; SERIAL_BYTES],
    backend: Box<dyn BlockBackend>,
    faults: Faults,
    handle: Handle,
    limiter: Option<Limiter>,
}

impl Block {
    /// A drive that the guest knows by `serial`, of which 20 bytes count.
    pub fn new(serial: &str, backend: Box<dyn BlockBackend>) -> Self {
        let mut bytes = [0; SERIAL_BYTES];
        for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let shared = handle::Shared {
            counters: Arc::default(),
            config: ConfigSpace::new(config(backend.capacity_bytes())),
            remote: backend.remote(),
            given_up: AtomicBool::new(false),
            resizing: Mutex::default(),
            driver: Mutex::default(),
        };
        let (faults, handle) = (Faults::new(&format!("block {serial}")), Handle(Arc::new(shared)));
        Self { serial: bytes, backend, faults, handle, limiter: None }
    }

    /// The same drive, whose reads, writes and flushes pass these limits.
    #[must_use]
    pub fn limited_by(self, limiter: Limiter) -> Self {
        Self { limiter: Some(limiter), ..self }
    }

    /// A handle of the drive, for its whole life.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

/// struct virtio_blk_config, §5.2.4.
fn config(capacity_bytes: u64) -> Vec<u8> {
    let physical_sectors = 1u32 << PHYSICAL_BLOCK_EXP;
    let mut config = Vec::with_capacity(60);
    config.extend_from_slice(&sectors(capacity_bytes));
    config.extend_from_slice(&0u32.to_le_bytes()); // size_max
    config.extend_from_slice(&MAX_SEGMENTS.to_le_bytes());
    config.extend_from_slice(&[0; 4]); // geometry
    config.extend_from_slice(&(SECTOR_BYTES as u32).to_le_bytes());
    // topology: physical_block_exp, alignment_offset, min_io_size and opt_io_size in sectors
    config.extend_from_slice(&[PHYSICAL_BLOCK_EXP, 0]);
    config.extend_from_slice(&(1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes());
    config.extend_from_slice(&0u32.to_le_bytes());
    config.extend_from_slice(&[0; 4]); // writeback, unused0, num_queues: not offered
    // max_discard_sectors, max_discard_seg, discard_sector_alignment
    for word in [request::MAX_DISCARD_SECTORS, 1, physical_sectors] {
        config.extend_from_slice(&word.to_le_bytes());
    }
    // max_write_zeroes_sectors, max_write_zeroes_seg
    for word in [request::MAX_ZEROES_SECTORS, 1] {
        config.extend_from_slice(&word.to_le_bytes());
    }
    config.extend_from_slice(&[1, 0, 0, 0]); // write_zeroes_may_unmap, unused1
    config
}

/// The field `capacity`.
fn sectors(capacity_bytes: u64) -> [u8; 8] {
    (capacity_bytes >> SECTOR_BYTES.trailing_zeros()).to_le_bytes()
}

impl VirtioDevice for Block {
    fn info(&self) -> DeviceInfo {
        let changing = if self.backend.read_only() { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        DeviceInfo {
            device_type: DeviceType::Block,
            features: F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | changing,
            queue_sizes: vec![QUEUE_SIZE],
            config: self.handle.0.config.clone(),
        }
    }

    fn activate(self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let Some(([queue], mem, irq)) = with.queues() else { return Err(wrong_queues(self)) };
        Ok(Box::new(worker::BlockWorker::new(*self, queue, mem, irq)))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn counters(&self) -> Counters {
        Counters::of_faults(&self.faults).and(Arc::clone(&self.handle.0.counters) as _)
    }

    /// A flush: a write-back cache may have been told of writes that the file behind it, or a layer's map, does not have yet.
    fn settle(&mut self) -> std::io::Result<()> {
        if self.backend.read_only() {
            return Ok(());
        }
        self.backend.submit(0, Operation::Flush);
        self.backend.kick();
        loop {
            // At rest nothing else is in flight, so what ends is the flush.
            if let Some(flush) = self.backend.collect() {
                return flush.result;
            }
            match self.backend.source() {
                Some(fd) => wait_readable(fd),
                None => return Err(std::io::ErrorKind::WouldBlock.into()),
            }
        }
    }

    fn save(&self) -> DeviceState {
        let mut bytes = self.serial.to_vec();
        bytes.extend_from_slice(&self.backend.capacity_bytes().to_le_bytes());
        DeviceState { device_type: DeviceType::Block, version: 1, bytes }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let bytes = state.bytes_of(DeviceType::Block, STATE_BYTES, "not a serial and a capacity")?;
        let Some((serial, capacity)) = bytes.split_first_chunk::<SERIAL_BYTES>() else { return Ok(()) };
        if *serial != self.serial {
            return Err(StateError::Damaged(DeviceType::Block, "another drive is in this place"));
        }
        if *capacity != self.backend.capacity_bytes().to_le_bytes() {
            return Err(StateError::Damaged(DeviceType::Block, "the drive had another size"));
        }
        Ok(())
    }
}

/// A small drive in memory, for tests and fuzzing.
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), expect(clippy::expect_used, reason = "for tests and fuzzing"))]
pub(super) fn sample() -> Block {
    let file = labyard_sys::memfd::create("sample drive", 1 << 20).expect("a memfd");
    let backend = crate::backend::raw::RawFile::new(file, false).expect("whole sectors");
    Block::new("d00", Box::new(backend))
}
