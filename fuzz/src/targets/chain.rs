//! A ring and the chains in it, without a device: descriptors that loop, nest, wrap and lie outside of memory, and every way in
//! which a device takes chains and gives them back.
//!
//! Rules: what is taken lies in memory, is as long as it says and no longer than the queue; what goes back is seen by the driver.

use labyard_devices::Memory;
use labyard_devices::fault::Faults;
use labyard_devices::irq::Interrupt;
use labyard_devices::testing::{Buffer, readable, writable};
use labyard_devices::virtio::chain::{Chain, Merged, RingFault, RingState, Taken, VirtQueue};
use labyard_devices::virtio::feature;
use labyard_sys::iov::SliceList;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::input::Input;

/// Two regions with a hole between them, and two that touch, so that a buffer may lie across.
const REGIONS: [(GuestAddress, usize); 3] =
    [(GuestAddress(0), 0x1_0000), (GuestAddress(0x1_0000), 0x1_0000), (GuestAddress(0x4_0000), 0x1_0000)];
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;
/// Tables of descriptors beside the ring's.
const INDIRECT: u64 = 0x8000;
const MAX_SIZE: u16 = 256;
/// Things that one input does at most.
const STEPS: usize = 100;
/// Bytes that one chain is copied by at most.
const COPIED: usize = 4096;

struct Nobody;

impl Interrupt for Nobody {
    fn signal_queue(&self, queue: u16) {
        assert_eq!(queue, 0, "there is one queue");
    }
    fn signal_config(&self) {}
    fn needs_reset(&self) {}
}

struct Ring {
    mem: Memory,
    queue: VirtQueue,
    chain: Chain,
    merged: Merged,
    faults: Faults,
    available: u16,
    /// Heads that were taken and not given back.
    open: Vec<u16>,
}

/// Reads the bytes as what driver and device do to a ring.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mem = Memory::from_ranges(&REGIONS).expect("memory");
    let size = input.pick(&[1u16, 2, 4, 8, 8, 256]);
    let features = if input.one_in(4) { input.long() } else { feature::COMMON };
    let start = if input.one_in(8) { input.short() } else { 0 };
    let mut state = RingState {
        size,
        ready: !input.one_in(32),
        desc_table: TABLE,
        avail_ring: AVAILABLE,
        used_ring: USED,
        next_avail: start,
        next_used: start,
    };
    if input.one_in(16) {
        let place = [&mut state.desc_table, &mut state.avail_ring, &mut state.used_ring].into_iter();
        place
            .for_each(|place| *place = if input.one_in(2) { input.long() } else { u64::from(input.word() % 0x6_0000) });
    }
    let Ok(queue) = VirtQueue::new(0, MAX_SIZE, state, features, &mem) else { return };
    assert_eq!(queue.state(), state, "a ring begins where it is told");
    let (chain, merged) = (Chain::with_capacity(size), Merged::with_capacity(size));
    let faults = Faults::new("chain");
    let mut ring = Ring { mem, queue, chain, merged, faults, available: start, open: Vec::new() };
    for _ in 0..STEPS {
        // A broken ring stops its device.
        if input.is_empty() || ring.step(&mut input).is_err() {
            return;
        }
    }
}

impl Ring {
    fn step(&mut self, input: &mut Input<'_>) -> Result<(), RingFault> {
        let Self { mem, queue, chain, merged, faults, open, .. } = self;
        match input.byte() % 16 {
            0..=5 => self.offer(input),
            6..=8 => {
                if queue.pop(mem, chain, faults)? {
                    open.push(chain.head());
                    check(mem, chain, queue.size(), input);
                    if input.one_in(8) {
                        queue.put_back();
                        open.pop();
                    }
                }
            }
            9 => {
                // As a receiver takes buffers until a frame fits.
                merged.clear();
                let mut room = 0;
                while room < u64::from(input.short()) {
                    match queue.take(mem, merged, faults)? {
                        Taken::Good => room = merged.chain().writable_len(),
                        Taken::Broken if merged.count() == 0 => {}
                        Taken::Broken | Taken::Nothing => break,
                    }
                    if merged.descriptors() > usize::from(queue.size()) {
                        break;
                    }
                }
                if input.one_in(4) {
                    queue.put_back_all(merged);
                } else {
                    queue.complete_all(mem, merged, room)?;
                }
                assert_eq!(merged.count(), 0, "all of them went back");
            }
            10 | 11 => {
                if let Some(head) = open.pop() {
                    let before = queue.state().next_used;
                    queue.complete(mem, head, input.word())?;
                    assert_eq!(queue.state().next_used, before.wrapping_add(1), "one went back");
                    let at = queue.state().used_ring.saturating_add(2);
                    let index = mem.read_obj::<u16>(GuestAddress(at)).map_err(RingFault::Memory)?;
                    assert_eq!(index, before.wrapping_add(1), "the driver sees it");
                }
            }
            12 => drop(queue.enable_kicks(mem)?),
            13 => queue.disable_kicks(mem)?,
            14 => queue.signal_if_needed(mem, &Nobody)?,
            _ => {
                // Anything, anywhere: the index, flags, a descriptor, used_event.
                let at = input.pick(&[AVAILABLE, AVAILABLE + 2, TABLE, TABLE + 8, INDIRECT + 12, AVAILABLE + 4]);
                mem.write_slice(&input.array::<4>(), GuestAddress(at)).expect("in memory");
            }
        }
        Ok(())
    }

    /// Descriptors into the table, some into another, and a head into the available ring.
    fn offer(&mut self, input: &mut Input<'_>) {
        let size = self.queue.size();
        let count = u16::from(input.byte() % 8) + 1;
        let first = input.short() % size.max(1);
        let table = if input.one_in(4) { INDIRECT } else { TABLE };
        for number in 0..count {
            let place = if table == TABLE { (first + number) % size } else { number };
            let following =
                (number + 1 < count).then_some(if table == TABLE { (place + 1) % size } else { number + 1 });
            self.put(table, place, buffer(input), following);
        }
        if table == INDIRECT {
            let len = if input.one_in(8) { input.word() } else { u32::from(count) * 16 };
            self.put(TABLE, first, readable(INDIRECT, len).indirect(), None);
        }
        let place = AVAILABLE + 4 + u64::from(self.available % size) * 2;
        let head = if input.one_in(32) { input.short() } else { first };
        self.available = self.available.wrapping_add(1);
        self.mem.write_obj(head, GuestAddress(place)).expect("in memory");
        self.mem.write_obj(self.available, GuestAddress(AVAILABLE + 2)).expect("in memory");
    }

    fn put(&self, table: u64, place: u16, buffer: Buffer, following: Option<u16>) {
        let at = GuestAddress(table + u64::from(place) * 16);
        self.mem.write_slice(&buffer.encode(following), at).expect("in memory");
    }
}

fn buffer(input: &mut Input<'_>) -> Buffer {
    let address = match input.byte() % 8 {
        0 => input.long(),
        1 => u64::from(input.word() % 0x6_0000),
        2 => 0xfff0, // over the place where two regions touch
        3 => 0x4_0000,
        _ => 0x9000,
    };
    let len = match input.byte() % 8 {
        0 => input.word(),
        1 => 0,
        _ => input.byte().into(),
    };
    let buffer = if input.one_in(2) { readable(address, len) } else { writable(address, len) };
    match input.byte() % 32 {
        30 => buffer.then(input.short()),
        31 => buffer.indirect(),
        _ => buffer,
    }
}

/// What a chain says of itself is so.
fn check(mem: &Memory, chain: &Chain, size: u16, input: &mut Input<'_>) {
    let ranges: Vec<(u64, u32)> = chain.writable_ranges().collect();
    assert!(ranges.len() <= usize::from(size), "a chain longer than its queue");
    assert_eq!(ranges.iter().map(|(_, len)| u64::from(*len)).sum::<u64>(), chain.writable_len());
    assert!(chain.readable_len() + chain.writable_len() <= u32::MAX.into(), "a chain of 4 GiB or more");
    for (address, len) in ranges.iter().filter(|(_, len)| *len > 0) {
        assert!(
            mem.check_range(GuestAddress(*address), *len as usize),
            "{len} bytes at {address:#x} are not in memory"
        );
    }
    assert_eq!(chain.writable_address(chain.writable_len()), None, "behind the end");
    let offset = if input.one_in(4) { input.long() } else { u64::from(input.byte()) };
    let mut bytes = vec![0; COPIED];
    let there = chain.readable_len().saturating_sub(offset).min(COPIED as u64);
    assert_eq!(chain.read_at(mem, offset, &mut bytes) as u64, there, "all that is there is read");
    let room = chain.writable_len().saturating_sub(offset).min(COPIED as u64);
    assert_eq!(chain.write_at(mem, offset, &bytes) as u64, room, "all that there is room for is written");
    let len = u64::from(input.byte());
    let fitting = len.min(chain.readable_len().saturating_sub(offset)).min(chain.writable_len());
    assert_eq!(chain.copy_to(mem, offset, len, chain, mem, 0), fitting, "from memory to memory");
    for write in [false, true] {
        let mut list = SliceList::new();
        let mut filling = list.fill();
        let fits = match write {
            false => chain.readable_slices(mem, offset, len, &mut filling),
            true => chain.writable_slices(mem, offset, len, &mut filling),
        };
        assert!(fits || chain.writable_len() + chain.readable_len() > 0, "nothing always fits");
    }
}
