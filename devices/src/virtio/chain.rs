//! A split virtqueue (VIRTIO 1.2, §2.7) and the descriptor chains in it.
//!
//! Ring indices are `virtio-queue`'s; the walk of a chain is ours, because a broken chain must be told from a short one.
//! A chain is copied out of guest memory once, checked as it is copied, and then owned: what the guest changes later
//! changes nothing. Addresses were checked to lie in memory; bytes behind them are only ever copied.
//!
//! Errors are of two kinds: a [`ChainFault`] is one chain's, which goes back with 0 bytes; a [`RingFault`] means that the
//! ring itself makes no sense, and the device stops.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::Memory;
use crate::fault::Faults;
use crate::irq::Interrupt;
use labyard_sys::iov::Filling;

/// VIRTQ_DESC_F_NEXT (§2.7.5).
pub const DESC_F_NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes, the driver reads.
pub const DESC_F_WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT (§2.7.5.3).
pub const DESC_F_INDIRECT: u16 = 4;
/// VIRTQ_AVAIL_F_NO_INTERRUPT (§2.7.6).
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Bytes of a descriptor.
const DESC_BYTES: u64 = 16;
/// Bytes of an element of the used ring, and of what lies before the first (§2.7.8).
const USED_ELEMENT_BYTES: u64 = 8;
const USED_RING_HEADER_BYTES: u64 = 4;

/// What is wrong with one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// `next` points outside of the table.
    #[error("descriptor {0} is outside of its table")]
    OutOfTable(u16),
    /// A loop, or a table longer than the queue (§2.7.5.3.1).
    #[error("more descriptors than the queue is long")]
    TooManyDescriptors,
    /// The buffer is not in guest memory.
    #[error("buffer of {len} bytes at {address:#x} is not in memory")]
    BadAddress {
        /// Its address.
        address: u64,
        /// Its length.
        len: u32,
    },
    /// §2.7.4.2: all device-readable buffers come first.
    #[error("a readable buffer behind a writable one")]
    ReadableBehindWritable,
    /// §2.7.5.3.1: tables do not nest, hold whole descriptors, and end the chain.
    #[error("a table of descriptors is nested, not in memory, or not a whole number of descriptors")]
    BadTable,
    /// §2.7.5.2: at most 2^32 bytes.
    #[error("buffers of 4 GiB or more in all")]
    TooLong,
}

/// The ring makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum RingFault {
    /// An index or an address of the ring.
    #[error("the ring is broken")]
    Index(#[source] virtio_queue::Error),
    /// A head outside of the table.
    #[error("head {0} is outside of the descriptor table")]
    Head(u16),
    /// Reading the ring.
    #[error("the ring cannot be read")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// A range of guest memory that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    address: u64,
    len: u32,
}

/// One request: what the driver wrote for the device, and room for the answer. Reused from request to request, so that
/// taking one allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Span>,
    writable: Vec<Span>,
    readable_len: u64,
    writable_len: u64,
}

/// Where a chain ended.
#[derive(Clone, Copy)]
struct Mark {
    spans: (usize, usize),
    lens: (u64, u64),
}

/// Several chains that are filled as if they were one (merged receive buffers, §5.1.6.4). Reused like [`Chain`].
#[derive(Debug, Default)]
pub struct Merged {
    all: Chain,
    /// Head and room of each.
    parts: Vec<(u16, u64)>,
}

impl Merged {
    /// With room for as many descriptors as a queue of `size` has.
    pub fn with_capacity(size: u16) -> Self {
        Self { all: Chain::with_capacity(size), parts: Vec::with_capacity(size.into()) }
    }

    /// None.
    pub fn clear(&mut self) {
        self.all.clear();
        self.parts.clear();
    }

    /// All of them as one.
    pub fn chain(&self) -> &Chain {
        &self.all
    }

    /// How many.
    pub fn count(&self) -> u16 {
        u16::try_from(self.parts.len()).unwrap_or(u16::MAX)
    }

    /// Descriptors in all.
    pub fn descriptors(&self) -> usize {
        self.all.readable.len().saturating_add(self.all.writable.len())
    }
}

/// What [`VirtQueue::take`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// No chain.
    Nothing,
    /// A good one.
    Good,
    /// A broken one, which has gone back empty.
    Broken,
}

impl Chain {
    /// A chain with room for the longest of a queue of `size`.
    pub fn with_capacity(size: u16) -> Self {
        let (readable, writable) = (Vec::with_capacity(size.into()), Vec::with_capacity(size.into()));
        Self { readable, writable, ..Self::default() }
    }

    /// Index of its first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes from the driver.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Room for the device's bytes.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Copies from the driver's bytes at `offset`; how many there were.
    pub fn read_at(&self, mem: &Memory, offset: u64, into: &mut [u8]) -> usize {
        let mut done = 0usize;
        each(&self.readable, offset, into.len() as u64, |address, len| {
            let Some(part) = done.checked_add(len).and_then(|end| into.get_mut(done..end)) else { return };
            if mem.read_slice(part, GuestAddress(address)).is_ok() {
                done = done.saturating_add(len);
            }
        });
        done
    }

    /// Copies into the device's room at `offset`; how many bytes fitted.
    pub fn write_at(&self, mem: &Memory, offset: u64, from: &[u8]) -> usize {
        let mut done = 0usize;
        each(&self.writable, offset, from.len() as u64, |address, len| {
            let Some(part) = done.checked_add(len).and_then(|end| from.get(done..end)) else { return };
            if mem.write_slice(part, GuestAddress(address)).is_ok() {
                done = done.saturating_add(len);
            }
        });
        done
    }

    /// The device's room as ranges of guest memory: address and length of each buffer.
    pub fn writable_ranges(&self) -> impl Iterator<Item = (u64, u32)> {
        self.writable.iter().map(|span| (span.address, span.len))
    }

    /// Guest address of byte `offset` of the device's room.
    pub fn writable_address(&self, offset: u64) -> Option<u64> {
        let mut found = None;
        each(&self.writable, offset, 1, |address, _| found = Some(address));
        found
    }

    /// Slices of the driver's bytes, `len` from `offset`; `false` where they do not fit into the list.
    pub fn readable_slices<'m>(&self, mem: &'m Memory, offset: u64, len: u64, list: &mut Filling<'m>) -> bool {
        gather(&self.readable, mem, offset, len, Permissions::Read, list)
    }

    /// Slices of the device's room, `len` from `offset`; `false` where they do not fit into the list.
    pub fn writable_slices<'m>(&self, mem: &'m Memory, offset: u64, len: u64, list: &mut Filling<'m>) -> bool {
        gather(&self.writable, mem, offset, len, Permissions::Write, list)
    }

    /// Copies `len` of the driver's bytes from `offset` straight into the room of another guest's chain at `to_offset`:
    /// one copy from memory to memory. How many bytes were copied.
    pub fn copy_to(&self, mem: &Memory, offset: u64, len: u64, to: &Self, to_mem: &Memory, to_offset: u64) -> u64 {
        let mut done = 0u64;
        each(&self.readable, offset, len, |address, part| {
            for source in slices(mem, address, part, Permissions::Read) {
                let at = to_offset.saturating_add(done);
                let mut from = 0usize;
                each(&to.writable, at, source.len() as u64, |address, part| {
                    for target in slices(to_mem, address, part, Permissions::Write) {
                        let Ok(piece) = source.subslice(from, target.len()) else { return };
                        piece.copy_to_volatile_slice(target);
                        from = from.saturating_add(target.len());
                    }
                });
                done = done.saturating_add(from as u64);
            }
        });
        done
    }

    fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len) = (0, 0);
    }

    /// How far it reaches.
    fn mark(&self) -> Mark {
        Mark { spans: (self.readable.len(), self.writable.len()), lens: (self.readable_len, self.writable_len) }
    }

    /// Forgets what was added since.
    fn cut(&mut self, mark: Mark) {
        self.readable.truncate(mark.spans.0);
        self.writable.truncate(mark.spans.1);
        (self.readable_len, self.writable_len) = mark.lens;
    }

    fn push(&mut self, mem: &Memory, descriptor: Descriptor) -> Result<(), ChainFault> {
        let Descriptor { address, len, .. } = descriptor;
        let writable = descriptor.flags & DESC_F_WRITE != 0;
        if len != 0 && !mem.check_range(GuestAddress(address), len as usize, access(writable)) {
            return Err(ChainFault::BadAddress { address, len });
        }
        let (list, total) = match writable {
            true => (&mut self.writable, &mut self.writable_len),
            false if !self.writable.is_empty() => return Err(ChainFault::ReadableBehindWritable),
            false => (&mut self.readable, &mut self.readable_len),
        };
        *total = total.saturating_add(len.into());
        list.push(Span { address, len });
        if self.readable_len.saturating_add(self.writable_len) > u32::MAX.into() {
            return Err(ChainFault::TooLong);
        }
        Ok(())
    }
}

fn access(writable: bool) -> Permissions {
    if writable { Permissions::Write } else { Permissions::Read }
}

/// Calls with each contiguous guest range of `len` bytes from `offset`.
fn each(spans: &[Span], mut offset: u64, mut len: u64, mut call: impl FnMut(u64, usize)) {
    for span in spans {
        let span_len = u64::from(span.len);
        if offset >= span_len {
            offset = offset.saturating_sub(span_len);
            continue;
        }
        let part = span_len.saturating_sub(offset).min(len);
        if part == 0 {
            return;
        }
        call(span.address.saturating_add(offset), part as usize);
        len = len.saturating_sub(part);
        offset = 0;
    }
}

fn slices(mem: &Memory, address: u64, len: usize, access: Permissions) -> impl Iterator<Item = VolatileSlice<'_, ()>> {
    mem.get_slices(GuestAddress(address), len, access).into_iter().flatten().filter_map(Result::ok)
}

fn gather<'m>(
    spans: &[Span],
    mem: &'m Memory,
    offset: u64,
    len: u64,
    access: Permissions,
    list: &mut Filling<'m>,
) -> bool {
    let mut fits = true;
    each(spans, offset, len, |address, part| {
        for slice in slices(mem, address, part, access) {
            fits = fits && list.push(slice);
        }
    });
    fits
}

/// A descriptor (§2.7.5), as read from guest memory once.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(mem: &Memory, table: u64, index: u16) -> Option<Self> {
        let at = u64::from(index).checked_mul(DESC_BYTES)?.checked_add(table)?;
        let mut bytes = [0; DESC_BYTES as usize];
        mem.read_slice(&mut bytes, GuestAddress(at)).ok()?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Some(Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

/// State of a ring in a snapshot; everything else of it is in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    /// Size that the driver chose.
    pub size: u16,
    /// The driver said that it is ready.
    pub ready: bool,
    /// Address of the descriptor table.
    pub desc_table: u64,
    /// Address of the available ring.
    pub avail_ring: u64,
    /// Address of the used ring.
    pub used_ring: u64,
    /// Next entry of the available ring to look at.
    pub next_avail: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
}

/// A queue that its driver has set up.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    indirect: bool,
    /// Chains went back since the driver was signalled.
    news: bool,
    /// Index of the used ring when it was last decided whether to signal (§2.7.10.1).
    decided: u16,
}

impl VirtQueue {
    /// The queue number `index` with the addresses that the driver gave, continuing at `state`.
    pub fn new(index: u16, max_size: u16, state: RingState, features: u64, mem: &Memory) -> Result<Self, RingFault> {
        let event_idx = features & super::feature::EVENT_IDX != 0;
        let queue = Queue::try_from(QueueState {
            max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        })
        .map_err(RingFault::Index)?;
        // A driver need not use every queue; one that it left alone has no chains (§3.1.1).
        if state.ready && !queue.is_valid(mem) {
            return Err(RingFault::Index(virtio_queue::Error::QueueNotReady));
        }
        let indirect = features & super::feature::INDIRECT_DESC != 0;
        let decided = queue.next_used();
        Ok(Self { index, queue, indirect, news: false, decided })
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether the driver has set it up: one of a feature that was not accepted is left out, and stays empty.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> RingState {
        let state = self.queue.state();
        RingState {
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }

    /// Takes the next good chain into `chain`; `false` when there is none. Broken ones on the way go back empty and are noted.
    pub fn pop(&mut self, mem: &Memory, chain: &mut Chain, faults: &Faults) -> Result<bool, RingFault> {
        chain.clear();
        if !self.queue.ready() {
            return Ok(false);
        }
        loop {
            match self.add_next(mem, chain, faults)? {
                (Taken::Nothing, _) => return Ok(false),
                (Taken::Good, head) => {
                    chain.head = head;
                    return Ok(true);
                }
                (Taken::Broken, _) => {}
            }
        }
    }

    /// Adds the next chain to those in `merged`.
    pub fn take(&mut self, mem: &Memory, merged: &mut Merged, faults: &Faults) -> Result<Taken, RingFault> {
        let had = merged.all.writable_len;
        let (taken, head) = self.add_next(mem, &mut merged.all, faults)?;
        if taken == Taken::Good {
            merged.parts.push((head, merged.all.writable_len.saturating_sub(had)));
        }
        Ok(taken)
    }

    /// Puts the chains of `merged`, which were taken last and one after the other, back, to be taken again.
    pub fn put_back_all(&mut self, merged: &mut Merged) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(merged.count()));
        merged.clear();
    }

    /// Gives all chains of `merged` back at once with `written` bytes in them, front to back: the driver sees all or none.
    pub fn complete_all(&mut self, mem: &Memory, merged: &mut Merged, written: u64) -> Result<(), RingFault> {
        let Some(((last, last_room), others)) = merged.parts.split_last() else { return Ok(()) };
        let (mut left, mut next) = (written, self.queue.next_used());
        for (head, room) in others {
            let len = left.min(*room);
            left = left.saturating_sub(len);
            self.write_used(mem, next, *head, len)?;
            next = next.wrapping_add(1);
        }
        // The last one's element is written with the index that makes all of them visible (§2.7.8.2).
        self.queue.set_next_used(next);
        let (last, len) = (*last, u32::try_from(left.min(*last_room)).unwrap_or(u32::MAX));
        merged.clear();
        self.complete(mem, last, len)
    }

    /// Writes an element of the used ring (§2.7.8), which is not visible before the index is.
    fn write_used(&self, mem: &Memory, index: u16, head: u16, len: u64) -> Result<(), RingFault> {
        let place = u64::from(index.checked_rem(self.queue.size()).unwrap_or(0)).saturating_mul(USED_ELEMENT_BYTES);
        let at = self.queue.used_ring().saturating_add(USED_RING_HEADER_BYTES).saturating_add(place);
        let mut element = [0; USED_ELEMENT_BYTES as usize];
        let (id, length) = element.split_at_mut(4);
        id.copy_from_slice(&u32::from(head).to_le_bytes());
        length.copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        mem.write_slice(&element, GuestAddress(at)).map_err(RingFault::Memory)
    }

    /// Adds the next chain to `chain`; its head.
    fn add_next(&mut self, mem: &Memory, chain: &mut Chain, faults: &Faults) -> Result<(Taken, u16), RingFault> {
        let head = match self.queue.iter(mem).map_err(RingFault::Index)?.next() {
            Some(found) => found.head_index(),
            None => return Ok((Taken::Nothing, 0)),
        };
        if head >= self.queue.size() {
            return Err(RingFault::Head(head));
        }
        let mark = chain.mark();
        if let Err(fault) = self.walk(mem, head, chain) {
            chain.cut(mark);
            faults.note(fault);
            self.complete(mem, head, 0)?;
            return Ok((Taken::Broken, head));
        }
        Ok((Taken::Good, head))
    }

    /// Puts the chain that was taken last back, to be taken again.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back with `written` bytes in its writable part.
    pub fn complete(&mut self, mem: &Memory, head: u16, written: u32) -> Result<(), RingFault> {
        self.news = true;
        self.queue.add_used(mem, head, written).map_err(RingFault::Index)
    }

    /// Signals the driver of what has gone back since the last time, unless it asked not to be told (§2.7.7.2, §2.7.10).
    pub fn signal_if_needed(&mut self, mem: &Memory, irq: &dyn Interrupt) -> Result<(), RingFault> {
        if !std::mem::take(&mut self.news) {
            return Ok(());
        }
        // The used index is visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let wish = |at: u64| -> Result<u16, RingFault> {
            let word = mem.load(GuestAddress(at), Ordering::Relaxed).map_err(RingFault::Memory)?;
            Ok(u16::from_le(word))
        };
        let used = self.queue.next_used();
        let decided = std::mem::replace(&mut self.decided, used);
        let wanted = if self.queue.event_idx_enabled() {
            // used_event lies behind the available ring (§2.7.6). Several chains may have gone back at once, so the question is
            // whether the index has passed it since the last time.
            let ring = u64::from(self.queue.size()).saturating_mul(2).saturating_add(4);
            let event = wish(self.queue.avail_ring().saturating_add(ring))?;
            used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(decided)
        } else {
            wish(self.queue.avail_ring())? & AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            irq.signal_queue(self.index);
        }
        Ok(())
    }

    /// Asks to be kicked for the next chain; `true` where one is already there, so the caller looks again.
    pub fn enable_kicks(&mut self, mem: &Memory) -> Result<bool, RingFault> {
        if !self.queue.ready() {
            return Ok(false);
        }
        self.queue.enable_notification(mem).map_err(RingFault::Index)
    }

    /// Asks not to be kicked.
    pub fn disable_kicks(&mut self, mem: &Memory) -> Result<(), RingFault> {
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue.disable_notification(mem).map_err(RingFault::Index)
    }

    /// Adds the chain that starts at `head` to `chain`.
    fn walk(&self, mem: &Memory, head: u16, chain: &mut Chain) -> Result<(), ChainFault> {
        let (mut table, mut table_len, mut index) = (self.queue.desc_table(), u32::from(self.queue.size()), head);
        let mut nested = false;
        let mut budget = self.queue.size();
        loop {
            if u32::from(index) >= table_len {
                return Err(ChainFault::OutOfTable(index));
            }
            let descriptor = Descriptor::read(mem, table, index).ok_or(ChainFault::BadTable)?;
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                let whole = u64::from(descriptor.len).checked_rem(DESC_BYTES) == Some(0) && descriptor.len != 0;
                if nested || !self.indirect || !whole || descriptor.flags & DESC_F_NEXT != 0 {
                    return Err(ChainFault::BadTable);
                }
                nested = true;
                table = descriptor.address;
                table_len = descriptor.len.checked_div(DESC_BYTES as u32).unwrap_or(0);
                index = 0;
                continue;
            }
            budget = budget.checked_sub(1).ok_or(ChainFault::TooManyDescriptors)?;
            chain.push(mem, descriptor)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
    }
}
