//! virtio-blk (VIRTIO 1.2, §5.2): one queue of reads, writes and flushes over a [`BlockBackend`].
//!
//! A request is parsed once from its header ([`request`]), given to the backend with a tag, and answered when the backend
//! says so. What the guest asks for beyond the drive's end, or in anything but whole sectors, is an I/O error to it.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, RingFault};
use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceType, Refused, VirtioDevice, wrong_queues};
use crate::Memory;
use crate::backend::block::{BlockBackend, Operation, Tag};
use crate::fault::Faults;
use crate::irq::Interrupt;
use crate::worker::{Activation, ActiveQueue, Rest, Source, Token, Worker, WorkerFault};
use labyard_sys::iov::GuestSlices;
use request::{Kind, Request};

pub mod request;
#[cfg(test)]
mod tests;

/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 256;
/// Data segments of one request: with header, status and splits at memory regions they fit into [`GuestSlices`].
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

/// Token of the backend's completions.
const COMPLETIONS: Token = 1;

/// A block device at rest.
pub struct Block {
    serial: [u8; SERIAL_BYTES],
    backend: Box<dyn BlockBackend>,
    faults: Faults,
}

impl Block {
    /// A drive that the guest knows by `serial`, of which 20 bytes count.
    pub fn new(serial: &str, backend: Box<dyn BlockBackend>) -> Self {
        let mut bytes = [0; SERIAL_BYTES];
        for (to, from) in bytes.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self { serial: bytes, backend, faults: Faults::new(&format!("block {serial}")) }
    }
}

impl VirtioDevice for Block {
    fn info(&self) -> DeviceInfo {
        let sectors = self.backend.capacity_bytes() >> 9;
        // struct virtio_blk_config, §5.2.4: capacity, size_max, seg_max, geometry, blk_size.
        let mut config = Vec::with_capacity(24);
        config.extend_from_slice(&sectors.to_le_bytes());
        config.extend_from_slice(&0u32.to_le_bytes());
        config.extend_from_slice(&MAX_SEGMENTS.to_le_bytes());
        config.extend_from_slice(&[0; 4]);
        config.extend_from_slice(&512u32.to_le_bytes());
        let read_only = if self.backend.read_only() { F_RO } else { 0 };
        let features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | read_only;
        DeviceInfo {
            device_type: DeviceType::Block,
            features,
            queue_sizes: vec![QUEUE_SIZE],
            config: ConfigSpace::new(config),
        }
    }

    fn activate(mut self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let Some(([queue], mem, irq)) = with.queues() else { return Err(wrong_queues(self)) };
        self.backend.attach(&mem);
        let size = queue.ring.size();
        Ok(Box::new(BlockWorker {
            block: *self,
            chain: Chain::with_capacity(size),
            flight: Flight::new(size),
            queue,
            mem,
            irq,
        }))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }
}

/// What is left to do when a request ends.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    head: u16,
    status_at: u64,
    /// Bytes in the guest's buffers if it went well, status included.
    written: u32,
}

/// Requests that the backend has, by tag. Filled once, so that taking and giving a tag allocates nothing.
struct Flight {
    pending: Vec<Pending>,
    free: Vec<Tag>,
}

impl Flight {
    fn new(size: u16) -> Self {
        Self { pending: vec![Pending::default(); size.into()], free: (0..size).collect() }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.pending.len()
    }

    fn put(&mut self, pending: Pending) -> Option<Tag> {
        let tag = self.free.pop()?;
        *self.pending.get_mut(usize::from(tag))? = pending;
        Some(tag)
    }

    fn take(&mut self, tag: Tag) -> Option<Pending> {
        let pending = self.pending.get(usize::from(tag)).copied()?;
        self.free.push(tag);
        Some(pending)
    }
}

struct BlockWorker {
    block: Block,
    queue: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    flight: Flight,
}

impl BlockWorker {
    fn serve(&mut self) -> Result<(), RingFault> {
        loop {
            while !self.flight.free.is_empty() && self.queue.ring.pop(&self.mem, &mut self.chain, &self.block.faults)? {
                self.submit()?;
            }
            self.finish()?;
            // A full flight looks again when something has landed.
            if self.flight.free.is_empty() || !self.queue.ring.enable_kicks(&self.mem)? {
                break;
            }
        }
        self.queue.ring.signal_if_needed(&self.mem, &*self.irq)
    }

    /// Hands one chain to the backend, or answers it at once.
    fn submit(&mut self) -> Result<(), RingFault> {
        let head = self.chain.head();
        let capacity = self.block.backend.capacity_bytes();
        let request = match Request::parse(&self.chain, &self.mem, capacity) {
            Ok(request) => request,
            Err(fault) => {
                self.block.faults.note(&fault);
                return match fault.status_at() {
                    Some(at) => self.answer(head, at, fault.status(), 1),
                    None => self.queue.ring.complete(&self.mem, head, 0),
                };
            }
        };
        let Request { kind, status_at, .. } = request;
        let mut list = GuestSlices::new();
        let (operation, fits, data_len) = match kind {
            Kind::Read { offset, len } => {
                let fits = self.chain.writable_slices(&self.mem, 0, len, &mut list);
                (Operation::Read { offset, into: list }, fits, len)
            }
            Kind::Write { offset, len } => {
                let fits = self.chain.readable_slices(&self.mem, request::HEADER_BYTES, len, &mut list);
                (Operation::Write { offset, from: list }, fits, 0)
            }
            Kind::Flush => (Operation::Flush, true, 0),
            Kind::Serial => {
                let written = self.chain.write_at(&self.mem, 0, &self.block.serial);
                return self.answer(
                    head,
                    status_at,
                    request::S_OK,
                    u32::try_from(written).unwrap_or(0).saturating_add(1),
                );
            }
        };
        let written = u32::try_from(data_len).unwrap_or(u32::MAX).saturating_add(1);
        if !fits {
            self.block.faults.note("a request of more segments than seg_max");
            return self.answer(head, status_at, request::S_IOERR, 1);
        }
        match self.flight.put(Pending { head, status_at, written }) {
            Some(tag) => {
                self.block.backend.submit(tag, operation);
                Ok(())
            }
            None => self.answer(head, status_at, request::S_IOERR, 1),
        }
    }

    /// Answers what the backend has ended.
    fn finish(&mut self) -> Result<(), RingFault> {
        while let Some(completion) = self.block.backend.collect() {
            let Some(pending) = self.flight.take(completion.tag) else { continue };
            let (status, written) = match completion.result {
                Ok(()) => (request::S_OK, pending.written),
                Err(error) => {
                    log::error!("{}: {error}", self.block.faults.device());
                    (request::S_IOERR, 1)
                }
            };
            self.answer(pending.head, pending.status_at, status, written)?;
        }
        Ok(())
    }

    fn answer(&mut self, head: u16, status_at: u64, status: u8, written: u32) -> Result<(), RingFault> {
        self.mem.write_slice(&[status], GuestAddress(status_at)).map_err(RingFault::Memory)?;
        self.queue.ring.complete(&self.mem, head, written)
    }
}

impl Worker for BlockWorker {
    fn sources(&self) -> Vec<Source> {
        let completions = self.block.backend.source().map(|fd| Source { fd, token: COMPLETIONS });
        std::iter::once(self.queue.source()).chain(completions).collect()
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        if token != COMPLETIONS {
            self.queue.take_kick();
        }
        self.serve().map_err(|source| WorkerFault::Ring { queue: 0, source })
    }

    fn deactivate(mut self: Box<Self>) -> Rest {
        while !self.flight.is_empty() {
            if let Some(fd) = self.block.backend.source() {
                crate::worker::wait_readable(fd);
            }
            if let Err(fault) = self.finish() {
                log::error!("{}: answering the last requests: {fault}", self.block.faults.device());
                break;
            }
        }
        let _ = self.queue.ring.signal_if_needed(&self.mem, &*self.irq); // a ring that cannot be read needs no signal
        Rest { device: Box::new(self.block), queues: vec![self.queue] }
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
