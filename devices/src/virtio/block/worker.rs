//! A block device at work: takes chains, hands requests to the backend, and answers what has ended.

use std::sync::Arc;

use labyard_sys::iov::SliceList;
use vm_memory::{Bytes, GuestAddress};

use super::super::chain::{Chain, RingFault};
use super::request::{self, Drive, Kind, Request};
use super::{Block, SERIAL_BYTES};
use crate::Memory;
use crate::backend::block::{Operation, Tag};
use crate::irq::Interrupt;
use crate::worker::{ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// Token of the backend's completions.
const COMPLETIONS: Token = 1;
/// Token of the limits: a request that was held back may go.
const ADMISSION: Token = 2;

/// What is left to do when a request ends.
#[derive(Debug, Clone, Copy)]
struct Pending {
    head: u16,
    request: Request,
}

/// Requests that the backend has, by tag. Filled once, so that taking and giving a tag allocates nothing.
struct Flight {
    pending: Vec<Option<Pending>>,
    free: Vec<Tag>,
}

impl Flight {
    fn new(size: u16) -> Self {
        Self { pending: vec![None; size.into()], free: (0..size).collect() }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.pending.len()
    }

    fn put(&mut self, pending: Pending) -> Option<Tag> {
        let tag = self.free.pop()?;
        *self.pending.get_mut(usize::from(tag))? = Some(pending);
        Some(tag)
    }

    fn take(&mut self, tag: Tag) -> Option<Pending> {
        let pending = self.pending.get_mut(usize::from(tag))?.take()?;
        self.free.push(tag);
        Some(pending)
    }
}

pub(super) struct BlockWorker {
    block: Block,
    queue: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    slices: SliceList,
    flight: Flight,
    /// The request of `chain`, which no limit has let through yet; while it waits no other is taken.
    held: Option<Request>,
}

impl BlockWorker {
    pub(super) fn new(mut block: Block, queue: ActiveQueue, mem: Memory, irq: Arc<dyn Interrupt>) -> Self {
        let size = queue.ring.size();
        block.backend.attach(&mem);
        block.handle.set_driver(Some(Arc::clone(&irq)));
        let (chain, flight) = (Chain::with_capacity(size), Flight::new(size));
        Self { block, queue, mem, irq, chain, slices: SliceList::new(), flight, held: None }
    }

    fn serve(&mut self) -> Result<(), RingFault> {
        loop {
            if let Some(request) = self.held.take() {
                self.pass(request)?;
            }
            while self.can_take() && self.queue.ring.pop(&self.mem, &mut self.chain, &self.block.faults)? {
                self.take()?;
            }
            self.block.backend.kick();
            self.finish()?;
            // A full flight looks again when something has landed, a held request when its time has come.
            if !self.can_take() || !self.queue.ring.enable_kicks(&self.mem)? {
                break;
            }
        }
        self.queue.ring.signal_if_needed(&self.mem, &*self.irq)
    }

    fn can_take(&self) -> bool {
        self.held.is_none() && !self.flight.free.is_empty()
    }

    /// Looks at the chain that was popped, and hands its request on or answers it at once.
    fn take(&mut self) -> Result<(), RingFault> {
        let backend = &self.block.backend;
        let drive = Drive { capacity_bytes: backend.capacity_bytes(), read_only: backend.read_only() };
        match Request::parse(&self.chain, &self.mem, drive) {
            Ok(Request { kind: Kind::Serial, status_at }) => self.tell_serial(status_at),
            Ok(request) => {
                self.pass(request)?;
                if self.held.is_some() {
                    self.block.handle.counters().throttled.add(1);
                }
                Ok(())
            }
            Err(fault) => {
                self.block.faults.note(&fault);
                let head = self.chain.head();
                match fault.status_at() {
                    Some(at) => self.answer(head, at, fault.status(), 1),
                    None => self.queue.ring.complete(&self.mem, head, 0),
                }
            }
        }
    }

    /// Submits the request, or holds it back until its limits let it through.
    fn pass(&mut self, request: Request) -> Result<(), RingFault> {
        if self.block.limiter.as_mut().is_none_or(|limiter| limiter.admit(request.kind.moved_bytes())) {
            return self.submit(request);
        }
        self.held = Some(request);
        Ok(())
    }

    fn submit(&mut self, request: Request) -> Result<(), RingFault> {
        let (head, status_at) = (self.chain.head(), request.status_at);
        let Some(operation) = operation(request.kind, &self.chain, &self.mem, &mut self.slices) else {
            self.block.faults.note("a request of more segments than seg_max");
            return self.answer(head, status_at, request::S_IOERR, 1);
        };
        // There is a free tag: `serve` takes no chain without.
        if let Some(tag) = self.flight.put(Pending { head, request }) {
            self.block.backend.submit(tag, operation);
        }
        Ok(())
    }

    /// VIRTIO_BLK_T_GET_ID: as much of the serial as there is room for before the status byte.
    fn tell_serial(&mut self, status_at: u64) -> Result<(), RingFault> {
        let room = usize::try_from(self.chain.writable_len().saturating_sub(1)).unwrap_or(SERIAL_BYTES);
        let serial = self.block.serial.get(..room).unwrap_or(&self.block.serial);
        let written = self.chain.write_at(&self.mem, 0, serial);
        let written = u32::try_from(written).unwrap_or(0).saturating_add(1);
        self.answer(self.chain.head(), status_at, request::S_OK, written)
    }

    /// Answers what the backend has ended.
    fn finish(&mut self) -> Result<(), RingFault> {
        while let Some(completion) = self.block.backend.collect() {
            let Some(Pending { head, request }) = self.flight.take(completion.tag) else { continue };
            let (status, written) = match completion.result {
                Ok(()) => (request::S_OK, self.count(request.kind).saturating_add(1)),
                // A full host disk is never an error to the guest, not even to one whose power is being cut.
                Err(_) if self.block.handle.has_given_up() => continue,
                Err(error) => {
                    let count = self.block.handle.counters().errors.add(1);
                    // A guest can ask for the same error for ever: the 1st, 2nd, 4th, … is logged.
                    if count.is_power_of_two() {
                        log::error!("{}: error {count}: {error}", self.block.faults.device());
                    }
                    (request::S_IOERR, 1)
                }
            };
            self.answer(head, request.status_at, status, written)?;
        }
        Ok(())
    }

    /// Counts a request that went well; how many bytes of data the guest has got by it.
    fn count(&self, kind: Kind) -> u32 {
        let counters = self.block.handle.counters();
        match kind {
            Kind::Read { len, .. } => {
                counters.reads.add(1);
                counters.read_bytes.add(len);
                return u32::try_from(len).unwrap_or(u32::MAX);
            }
            Kind::Write { len, .. } => {
                counters.writes.add(1);
                counters.written_bytes.add(len);
            }
            Kind::Flush => {
                counters.flushes.add(1);
            }
            Kind::Discard { .. } | Kind::WriteZeroes { .. } => {
                counters.discards.add(1);
            }
            Kind::Serial => {}
        }
        0
    }

    fn answer(&mut self, head: u16, status_at: u64, status: u8, written: u32) -> Result<(), RingFault> {
        self.mem.write_slice(&[status], GuestAddress(status_at)).map_err(RingFault::Memory)?;
        self.queue.ring.complete(&self.mem, head, written)
    }
}

/// What the backend is asked for; `None` where the data is in too many pieces.
fn operation<'a>(kind: Kind, chain: &Chain, mem: &'a Memory, slices: &'a mut SliceList) -> Option<Operation<'a>> {
    let mut list = slices.fill();
    Some(match kind {
        Kind::Read { offset, len } => {
            let fits = chain.writable_slices(mem, 0, len, &mut list);
            Operation::Read { offset, into: fits.then(|| list.done())? }
        }
        Kind::Write { offset, len } => {
            let fits = chain.readable_slices(mem, request::HEADER_BYTES, len, &mut list);
            Operation::Write { offset, from: fits.then(|| list.done())? }
        }
        Kind::Discard { offset, len } => Operation::Discard { offset, len },
        Kind::WriteZeroes { offset, len, unmap } => Operation::WriteZeroes { offset, len, unmap },
        // The serial is told without the backend.
        Kind::Flush | Kind::Serial => Operation::Flush,
    })
}

impl Worker for BlockWorker {
    fn sources(&self) -> Vec<Source> {
        let completions = self.block.backend.source().map(|fd| Source { fd, token: COMPLETIONS });
        let admission = self.block.limiter.as_ref().map(|limiter| Source { fd: limiter.source(), token: ADMISSION });
        std::iter::once(self.queue.source()).chain(completions).chain(admission).collect()
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        match (token, &self.block.limiter) {
            (COMPLETIONS, _) => {}
            (ADMISSION, Some(limiter)) => limiter.woken(),
            _ => self.queue.take_kick(),
        }
        self.serve().map_err(|source| WorkerFault::Ring { queue: 0, source })
    }

    fn deactivate(mut self: Box<Self>) -> Rest {
        if self.held.take().is_some() {
            // It was the last one that was taken.
            self.queue.ring.put_back();
        }
        if let Some(limiter) = &mut self.block.limiter {
            limiter.forget();
        }
        // A ring that broke within a round has left requests that were not started, and ends that were not collected.
        self.block.backend.kick();
        loop {
            if let Err(fault) = self.finish() {
                // The memory of the others is in use until they have ended, too.
                log::error!("{}: answering one of the last requests: {fault}", self.block.faults.device());
                continue;
            }
            if self.flight.is_empty() {
                break;
            }
            if let Some(fd) = self.block.backend.source() {
                crate::worker::wait_readable(fd);
            }
        }
        self.block.backend.detach();
        self.block.handle.set_driver(None);
        let _ = self.queue.ring.signal_if_needed(&self.mem, &*self.irq); // a ring that cannot be read needs no signal
        Rest { device: Box::new(self.block), queues: vec![self.queue] }
    }
}
