//! What a hostile driver does to registers, for every device of the registry. Beside it runs another guest on the same host,
//! which must notice nothing.

use super::*;
use crate::REGISTRY;
use crate::testing::{Buffer, GuestDriver, InlineHost, readable, writable};
use crate::virtio::Entry;
use crate::virtio::rng::Rng;

/// Below the rings: memory that only buffers are in, and what is in it.
const LOW: u64 = 0x30_0000;
const UNTOUCHED: u8 = 0x5a;

/// A hostile guest with one device, and its neighbour.
struct Pair {
    name: &'static str,
    guest: GuestDriver,
    neighbour: GuestDriver,
    queues: usize,
}

impl Pair {
    fn new(entry: &Entry) -> Self {
        let host = InlineHost::default();
        let guest = GuestDriver::power_on_at((entry.sample)(), host.clone());
        let mut neighbour = GuestDriver::power_on_at(Box::new(Rng::new()), host);
        neighbour.set_up(!feature::EVENT_IDX);
        let mut pair = Self { name: entry.name, guest, neighbour, queues: 0 };
        pair.queues = pair.guest.transport().info().queue_sizes.len();
        pair
    }

    fn at_work(entry: &Entry) -> Self {
        let mut pair = Self::new(entry);
        pair.guest.set_up(!feature::EVENT_IDX);
        pair
    }

    /// After `what`: the device is reset and serves an honest driver, and the neighbour was never disturbed.
    fn survives(&mut self, what: &str) {
        let name = self.name;
        let head = self.neighbour.offer(0, &[writable(0x1000, 8)]);
        self.neighbour.kick(0);
        assert_eq!(self.neighbour.used(0), [(head, 8)], "{name}, {what}: the neighbour answers");
        assert_eq!(self.neighbour.faults(), 0, "{name}, {what}: the neighbour has no faults");
        self.guest.write(0x70, 0);
        assert_eq!(self.guest.read(0x70), 0, "{name}, {what}: a reset leaves no status");
        assert_eq!(self.guest.read(0x60), 0, "{name}, {what}: a reset leaves no interrupt");
        self.guest.set_up(!feature::EVENT_IDX);
        assert!(!self.guest.needs_reset(), "{name}, {what}: an honest driver is served");
        assert_eq!(self.guest.read(0x70), 15, "{name}, {what}: an honest driver gets to DRIVER_OK");
    }
}

/// The register writes that set a device up, as [`GuestDriver::set_up`] does them.
fn set_up_writes(pair: &mut Pair) -> Vec<(u32, u32)> {
    let mut writes = vec![(0x70, 1), (0x70, 3)];
    for word in 0..2 {
        pair.guest.write(0x14, word);
        let offered = pair.guest.read(0x10);
        writes.extend([(0x14, word), (0x24, word), (0x20, offered)]);
    }
    writes.push((0x70, 11));
    for queue in 0..pair.queues as u32 {
        let base = 0x30_0000 + queue * 0x1_0000;
        pair.guest.write(0x30, queue);
        let size = pair.guest.read(0x34).min(64);
        writes.extend([(0x30, queue), (0x38, size), (0x80, base), (0x84, 0)]);
        writes.extend([(0x90, base + 0x4000), (0x94, 0), (0xa0, base + 0x8000), (0xa4, 0), (0x44, 1)]);
    }
    writes.push((0x70, 15));
    writes
}

#[test]
fn a_reset_at_every_step_of_the_set_up_leaves_a_device_that_works() {
    for entry in REGISTRY {
        let mut pair = Pair::new(entry);
        let writes = set_up_writes(&mut pair);
        for steps in 0..=writes.len() {
            for (register, value) in &writes[..steps] {
                pair.guest.write(*register, *value);
            }
            pair.survives(&format!("reset after {steps} steps"));
            pair.guest.write(0x70, 0);
        }
        assert_eq!(pair.guest.faults(), 0, "{}: nothing of this was wrong", entry.name);
    }
}

#[test]
fn a_set_up_that_leaves_out_or_repeats_any_step_harms_nobody() {
    for entry in REGISTRY {
        let mut pair = Pair::new(entry);
        let writes = set_up_writes(&mut pair);
        for skipped in 0..writes.len() {
            for (step, (register, value)) in writes.iter().enumerate() {
                if step != skipped {
                    pair.guest.write(*register, *value);
                    pair.guest.write(*register, *value);
                }
            }
            for queue in 0..pair.queues {
                pair.guest.offer(queue, &[writable(0x1000, 64)]);
                pair.guest.kick(queue);
            }
            pair.survives(&format!("step {skipped} left out, the others twice"));
            pair.guest.write(0x70, 0);
        }
    }
}

#[test]
fn a_queue_at_work_cannot_be_changed() {
    for entry in REGISTRY {
        for register in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
            for value in [0, 1, 2, 0x10_0000, u32::MAX] {
                let mut pair = Pair::at_work(entry);
                let before = pair.guest.transport().save().map(|state| state.registers);
                for queue in 0..pair.queues as u32 {
                    pair.guest.write(0x30, queue);
                    pair.guest.write(register, value);
                }
                let after = pair.guest.transport().save().map(|state| state.registers);
                let queues = |registers: Option<Registers>| registers.map(|registers| registers.queues);
                assert_eq!(queues(after), queues(before), "{}: {value:#x} to {register:#x}", entry.name);
                assert_eq!(pair.guest.faults(), pair.queues as u64, "{}: {value:#x} to {register:#x}", entry.name);
                pair.survives("a queue was changed at work");
            }
        }
    }
}

#[test]
fn notifications_of_queues_that_are_not_there_are_counted() {
    for entry in REGISTRY {
        let mut pair = Pair::at_work(entry);
        let first = pair.queues as u32;
        let numbers = [first, first + 1, 0xff, 0xffff, 0x1_0000, u32::MAX];
        for number in numbers {
            pair.guest.kick(number as usize);
        }
        assert_eq!(pair.guest.faults(), numbers.len() as u64, "{}", entry.name);
        pair.survives("notifications of no queue");
    }
}

#[test]
fn notifications_before_the_set_up_and_in_a_flood_start_nothing() {
    for entry in REGISTRY {
        let mut pair = Pair::new(entry);
        for queue in (0..pair.queues).cycle().take(2000) {
            pair.guest.kick(queue);
        }
        assert_eq!((pair.guest.read(0x70), pair.guest.faults()), (0, 0), "{}", entry.name);
        pair.survives("a flood of early notifications");
        for queue in (0..pair.queues).cycle().take(2000) {
            pair.guest.kick(queue);
        }
        assert_eq!(pair.guest.faults(), 0, "{}: a notification without a request is no fault", entry.name);
        pair.survives("a flood of notifications");
    }
}

#[test]
fn every_feature_that_is_not_offered_is_refused() {
    for entry in REGISTRY {
        for bit in 0..64u32 {
            let mut pair = Pair::new(entry);
            let offered = pair.guest.transport().info().features | feature::COMMON;
            // All that is offered: some features need others.
            let asked = offered | 1 << bit;
            pair.guest.write(0x70, 3);
            for word in 0..2 {
                pair.guest.write(0x24, word);
                pair.guest.write(0x20, (asked >> (32 * word)) as u32);
            }
            pair.guest.write(0x70, 11);
            let taken = pair.guest.read(0x70) & status::FEATURES_OK != 0;
            assert_eq!(taken, asked & !offered == 0, "{}: feature {bit}", entry.name);
            // A driver that goes on all the same gets nowhere.
            pair.guest.write(0x70, 15);
            assert_eq!(pair.guest.read(0x70) & status::DRIVER_OK != 0, taken, "{}: feature {bit}", entry.name);
            pair.survives("a feature");
        }
    }
}

#[test]
fn abuse_of_features_and_status_is_counted_and_changes_nothing() {
    type Abuse = fn(&mut GuestDriver);
    let cases: &[(&str, Abuse)] = &[
        ("a third word of features", |guest| {
            guest.write(0x24, 2);
            guest.write(0x20, 1);
        }),
        ("features once they are settled", |guest| {
            guest.negotiate(!0);
            guest.write(0x20, 0);
        }),
        ("DRIVER_OK without features", |guest| guest.write(0x70, 7)),
        ("a bit taken back", |guest| {
            guest.write(0x70, 3);
            guest.write(0x70, 2);
        }),
    ];
    for entry in REGISTRY {
        for (name, abuse) in cases {
            let mut pair = Pair::new(entry);
            abuse(&mut pair.guest);
            assert_eq!(pair.guest.faults(), 1, "{}: {name}", entry.name);
            assert_eq!(pair.guest.read(0x70) & status::DRIVER_OK, 0, "{}: {name}", entry.name);
            pair.survives(name);
        }
        // Selectors far away read as nothing, and no harm.
        let mut pair = Pair::new(entry);
        for select in [2, 3, u32::MAX] {
            pair.guest.write(0x14, select);
            assert_eq!(pair.guest.read(0x10), 0, "{}: features of word {select}", entry.name);
        }
        for select in [pair.queues as u32, u32::MAX] {
            pair.guest.write(0x30, select);
            assert_eq!((pair.guest.read(0x34), pair.guest.read(0x44)), (0, 0), "{}: queue {select}", entry.name);
        }
        // A driver can neither ask for a reset by the device's bit, nor go on after it has failed.
        pair.guest.set_up(!feature::EVENT_IDX);
        pair.guest.write(0x70, 15 | status::NEEDS_RESET | status::FAILED);
        assert!(!pair.guest.needs_reset(), "{}", entry.name);
        pair.survives("FAILED");
    }
}

#[test]
fn a_driver_that_acknowledges_no_interrupt_is_signalled_on_and_stays_alone_with_it() {
    let host = InlineHost::default();
    let mut guest = GuestDriver::power_on_at(Box::new(Rng::new()), host.clone());
    let mut neighbour = GuestDriver::power_on_at(Box::new(Rng::new()), host);
    guest.set_up(!feature::EVENT_IDX);
    neighbour.set_up(!feature::EVENT_IDX);
    for round in 1..=1000 {
        guest.offer(0, &[writable(0x1000, 1)]);
        guest.kick(0);
        assert_eq!((guest.used(0).len(), guest.read(0x60), guest.interrupts()), (1, 1, round));
    }
    // Acknowledging what is not there, and more than there is, changes nothing.
    guest.write(0x64, 2);
    assert_eq!(guest.read(0x60), 1);
    guest.write(0x64, u32::MAX);
    assert_eq!((guest.read(0x60), guest.faults()), (0, 0));
    assert_eq!(neighbour.interrupts(), 0);
}

#[test]
fn rings_at_every_edge_of_memory_are_inside_or_refused() {
    const END: u64 = 4 << 20;
    let places = [END - 1, END - 16, END - 64 * 16, END, END + 16, u64::MAX - 15, 1 << 63, 0xffff_ffff_0000];
    for entry in REGISTRY {
        for register in [0x80, 0x90, 0xa0] {
            for place in places {
                let mut pair = Pair::new(entry);
                pair.guest.negotiate(!feature::EVENT_IDX);
                for queue in 0..pair.queues {
                    pair.guest.set_up_queue(queue);
                }
                pair.guest.write(0x30, 0);
                pair.guest.write(0x44, 0);
                pair.guest.write(register, place as u32);
                pair.guest.write(register + 4, (place >> 32) as u32);
                pair.guest.write(0x44, 1);
                pair.guest.write(0x70, 15);
                pair.guest.kick(0);
                pair.survives(&format!("register {register:#x} at {place:#x}"));
            }
        }
    }
}

#[test]
fn hostile_chains_on_every_queue_of_every_device_harm_nobody() {
    let cases: &[(&str, &[Buffer])] = &[
        ("a loop", &[readable(0x1000, 64).then(0)]),
        ("a long loop", &[readable(0x1000, 64), writable(0x2000, 64), writable(0x3000, 64).then(0)]),
        ("out of the table", &[readable(0x1000, 64).then(u16::MAX)]),
        ("behind memory", &[readable(4 << 20, 64), writable(4 << 20, 64)]),
        ("over the end", &[writable((4 << 20) - 1, 2)]),
        ("around the end of all", &[readable(u64::MAX, 2)]),
        ("nothing", &[readable(0, 0), writable(0, 0)]),
        ("nothing from nowhere", &[readable(u64::MAX, 0), writable(u64::MAX, 0)]),
        ("everything", &[readable(0, u32::MAX)]),
        ("all of memory to read", &[readable(0, 4 << 20)]),
        ("all of memory to fill", &[writable(0, 4 << 20)]),
        ("its own rings to fill", &[writable(0x30_0000, 0x5_0000)]),
        ("the wrong way round", &[writable(0x1000, 64), readable(0x2000, 64)]),
        ("only to read", &[readable(0x1000, 64)]),
        ("only to fill", &[writable(0x1000, 64)]),
        ("a table of itself", &[readable(0x30_0000, 64).indirect()]),
        ("a table of nothing", &[readable(0x1000, 0).indirect()]),
    ];
    for entry in REGISTRY {
        for (name, buffers) in cases {
            let mut pair = Pair::at_work(entry);
            pair.guest.put(0, &vec![UNTOUCHED; LOW as usize]);
            for queue in 0..pair.queues {
                let head = pair.guest.offer(queue, buffers);
                pair.guest.kick(queue);
                for (used, _) in pair.guest.used(queue) {
                    assert_eq!(used, head, "{}, {name}: queue {queue}", entry.name);
                }
            }
            // What was offered to be filled may be; nothing else is.
            let mut memory = pair.guest.bytes(0, LOW as usize);
            for (address, len) in buffers.iter().filter_map(Buffer::room).filter(|(address, _)| *address < LOW) {
                let end = (address + u64::from(len)).min(LOW);
                memory[address as usize..end as usize].fill(UNTOUCHED);
            }
            assert!(
                memory.iter().all(|byte| *byte == UNTOUCHED),
                "{}, {name}: memory that was not offered",
                entry.name
            );
            pair.survives(name);
        }
    }
}

#[test]
fn an_index_that_jumps_stops_the_device_until_it_is_reset() {
    for entry in REGISTRY {
        for jump in [1000u16, 0x7fff, 0x8000, u16::MAX] {
            let mut pair = Pair::at_work(entry);
            for queue in 0..pair.queues {
                pair.guest.set_avail(queue, jump);
                pair.guest.kick(queue);
            }
            // Where only a switch looks into the queue, the next frame would tell.
            assert!(pair.guest.needs_reset(), "{}: DEVICE_NEEDS_RESET (§2.1.2)", entry.name);
            assert_eq!(pair.guest.read(0x60) & 2, 2, "{}: the driver is told by a configuration change", entry.name);
            pair.survives(&format!("an index of {jump}"));
        }
    }
}

#[test]
fn a_device_that_gave_up_serves_no_queue_until_it_is_reset() {
    for entry in REGISTRY {
        let queues = Pair::new(entry).queues;
        for broken in 0..queues {
            let mut pair = Pair::at_work(entry);
            pair.guest.offer_head(broken, u16::MAX);
            pair.guest.kick(broken);
            if !pair.guest.needs_reset() {
                continue; // nothing asks for this queue's buffers by itself
            }
            for queue in 0..queues {
                pair.guest.offer(queue, &[readable(0x1000, 64), writable(0x2000, 64)]);
                pair.guest.kick(queue);
                assert_eq!(pair.guest.used(queue), [], "{}: queue {queue} after queue {broken}", entry.name);
            }
            // The bit is the device's: a driver neither clears it nor gets on with it.
            pair.guest.write(0x70, 15);
            assert!(pair.guest.needs_reset(), "{}", entry.name);
            pair.survives(&format!("a head outside of queue {broken}"));
        }
    }
}

#[test]
fn a_reset_between_any_two_requests_leaves_memory_alone_from_then_on() {
    let end = 4 << 20;
    for entry in REGISTRY {
        for (requests, kicked) in (0..4).flat_map(|requests| [(requests, false), (requests, true)]) {
            let mut pair = Pair::at_work(entry);
            for queue in 0..pair.queues {
                for _ in 0..requests {
                    pair.guest.offer(queue, &[readable(0x1000, 64), writable(0x2000, 4096)]);
                }
                if kicked {
                    pair.guest.kick(queue);
                }
            }
            pair.guest.write(0x70, 0);
            let edges = pair.guest.interrupts();
            pair.guest.put(0, &vec![UNTOUCHED; end]);
            for queue in 0..pair.queues {
                pair.guest.kick(queue);
            }
            let memory = pair.guest.bytes(0, end);
            assert!(memory.iter().all(|byte| *byte == UNTOUCHED), "{}: after {requests} requests", entry.name);
            assert_eq!(pair.guest.interrupts(), edges, "{}: a signal after the reset", entry.name);
            pair.survives(&format!("a reset after {requests} requests"));
        }
    }
}

#[test]
fn a_full_queue_of_the_longest_requests_is_served_and_signalled_by_turns() {
    for entry in REGISTRY {
        let mut pair = Pair::at_work(entry);
        for queue in 0..pair.queues {
            let size = pair.guest.transport().info().queue_sizes[queue];
            for _ in 0..size {
                pair.guest.offer(queue, &[writable(0, LOW as u32)]);
            }
            pair.guest.kick(queue);
            let back = pair.guest.used(queue).len();
            assert!(back <= size.into(), "{}: queue {queue} gave {back} back", entry.name);
            assert!(pair.guest.interrupts() <= (1 + queue as u64) * u64::from(size), "{}: a storm", entry.name);
        }
        assert!(!pair.guest.needs_reset(), "{}", entry.name);
        pair.survives("full queues");
    }
}
