//! A device behind its registers, and a driver that does anything: chains that loop and nest, addresses beyond memory,
//! registers out of order, rings that change under the device's hands.
//!
//! Beside panics, these rules are checked: what comes back is not longer than the chain's room, and after a reset the device
//! serves an honest driver again.

use labyard_devices::bus::BusDevice;
use labyard_devices::testing::{Buffer, GuestDriver, readable, writable};
use labyard_devices::virtio::{Entry, feature};

use crate::input::Input;

/// Below the driver's rings; buffers and tables lie here.
const BUFFERS_END: u64 = 0x30_0000;
/// The guest's memory ends here.
const MEMORY_END: u64 = 4 << 20;
/// Things that one input does at most.
const STEPS: usize = 200;
/// Status register.
const STATUS: u32 = 0x70;

/// Reads the bytes as a driver's doings.
pub(super) fn run(entry: &Entry, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut guest = GuestDriver::power_on((entry.sample)());
    let queues = guest.transport().info().queue_sizes.len();
    if !input.one_in(8) {
        set_up(&mut guest, &mut input);
    }
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut guest, queues, &mut input);
    }
    guest.run();
    honest_again(&mut guest, entry, queues);
}

fn set_up(guest: &mut GuestDriver, input: &mut Input<'_>) {
    let mask = match input.below(4) {
        0 => input.long() | feature::VERSION_1,
        1 => !0,
        2 => !feature::INDIRECT_DESC,
        _ => !feature::EVENT_IDX,
    };
    guest.set_up(mask);
}

fn step(guest: &mut GuestDriver, queues: usize, input: &mut Input<'_>) {
    let queue = input.below(queues);
    match input.below(16) {
        0..=4 => offer(guest, queue, input),
        5..=7 => guest.kick(queue),
        8 => {
            // A header where a request may find it, or a table of descriptors.
            let address = near(input);
            let len = input.below(64);
            guest.put(address, input.bytes(len));
        }
        9 => {
            let at = BUFFERS_END + u64::from(input.word()) % (MEMORY_END - BUFFERS_END - 64);
            guest.put(at, &input.array::<4>());
        }
        10 => guest.offer_head(queue, input.short()),
        11 => match input.byte() % 2 {
            0 => guest.set_avail(queue, input.short()),
            _ => guest.set_avail_flags(queue, input.short()),
        },
        12 => access(guest, input),
        13 => {
            let register = u32::from(input.byte() & 0x3f) * 4;
            let value = if input.one_in(2) { input.word() } else { input.byte().into() };
            guest.write(register, value);
            guest.run();
        }
        14 => {
            let saved = guest.transport().save();
            assert!(saved.is_some(), "the device was lost");
            guest.run();
        }
        _ => {
            guest.write(STATUS, 0);
            set_up(guest, input);
        }
    }
}

/// An address of a few, so that things meet.
fn near(input: &mut Input<'_>) -> u64 {
    u64::from(input.byte() % 16) * 0x1000
}

fn buffer(input: &mut Input<'_>) -> Buffer {
    let address = match input.byte() % 16 {
        14 => input.long(),
        15 => MEMORY_END - u64::from(input.short() % 64),
        13 => BUFFERS_END + u64::from(input.word() % 0x4_0000),
        _ => near(input),
    };
    let len = match input.byte() % 16 {
        15 => input.word(),
        14 => u32::from(input.short()) * 512,
        0..=3 => 512,
        4..=6 => 16,
        7 => 1,
        _ => input.byte().into(),
    };
    let buffer = if input.one_in(2) { writable(address, len) } else { readable(address, len) };
    match input.byte() % 16 {
        14 => buffer.then(input.short() % 300),
        15 => buffer.indirect(),
        _ => buffer,
    }
}

fn offer(guest: &mut GuestDriver, queue: usize, input: &mut Input<'_>) {
    // A block request, a frame or a packet that makes sense, as often as one that does not.
    if input.one_in(2) {
        let kind = u32::from(input.byte() % 12);
        let sector = if input.one_in(4) { input.long() } else { u64::from(input.byte()) };
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        guest.put(0x1000, &header);
        let len = u32::from(input.byte() % 8) * 512;
        let data = if input.one_in(2) { writable(0x2000, len) } else { readable(0x2000, len) };
        guest.offer(queue, &[readable(0x1000, 16), data, writable(0x8000, 1)]);
        return;
    }
    let count = input.below(6) + 1;
    let buffers: Vec<Buffer> = (0..count).map(|_| buffer(input)).collect();
    guest.offer(queue, &buffers);
    if input.one_in(4) {
        // A table that a descriptor with the flag may find.
        let address = near(input);
        for place in 0..4u16 {
            let following = (!input.one_in(4)).then_some(place + 1);
            guest.put(address + u64::from(place) * 16, &buffer(input).encode(following));
        }
    }
}

/// Reads or writes of any width at any offset.
fn access(guest: &mut GuestDriver, input: &mut Input<'_>) {
    let offset = if input.one_in(4) { input.long() } else { u64::from(input.short() % 0x1100) };
    let width = input.pick(&[0usize, 1, 2, 3, 4, 8, 16]);
    let mut data = input.array::<16>();
    if input.one_in(2) {
        guest.transport().write(offset, &data[..width]);
        guest.run();
    } else {
        guest.transport().read(offset, &mut data[..width]);
    }
}

fn honest_again(guest: &mut GuestDriver, entry: &Entry, queues: usize) {
    guest.write(STATUS, 0);
    assert_eq!(guest.read(STATUS), 0, "{}: a reset device has no status", entry.name);
    guest.set_up(!feature::EVENT_IDX);
    assert!(!guest.needs_reset(), "{}: a device that was reset works again", entry.name);
    for queue in 0..queues {
        let room = 64;
        let head = guest.offer(queue, &[readable(0x1000, 16), writable(0x2000, room)]);
        guest.kick(queue);
        for (used, written) in guest.used(queue) {
            assert_eq!(used, head, "{}: queue {queue} gives back what was offered", entry.name);
            assert!(written <= room, "{}: {written} bytes in a buffer of {room}", entry.name);
        }
        assert!(!guest.needs_reset(), "{}: queue {queue} serves an honest driver", entry.name);
    }
}
