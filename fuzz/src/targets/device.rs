//! A device behind its registers, and a driver that does anything: chains that loop and nest, addresses beyond memory,
//! registers out of order, rings that change under the device's hands.
//!
//! Beside panics, these rules are checked: what comes back is not longer than the chain's room, and after a reset the device
//! serves an honest driver again; and what it gives to be saved is taken by another, whatever its driver had done.

use labyard_devices::REGISTRY;
use labyard_devices::bus::BusDevice;
use labyard_devices::testing::{Buffer, GuestDriver, InlineHost, readable, writable};
use labyard_devices::virtio::device::{DeviceState, DeviceType};
use labyard_devices::virtio::transport::mmio::State;
use labyard_devices::virtio::{Entry, feature};

use super::requests;
use super::worlds::{self, HostSide};
use crate::input::Input;

/// Below the driver's rings; buffers and tables lie here.
const BUFFERS_END: u64 = 0x30_0000;
/// The guest's memory ends here.
const MEMORY_END: u64 = 4 << 20;
/// Things that one input does at most.
const STEPS: usize = 200;
/// Registers (VIRTIO 1.2, §4.2.2): of queues, and the status.
const QUEUE_SEL: u32 = 0x30;
const QUEUE_REGISTERS: [u32; 8] = [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4];
const STATUS: u32 = 0x70;
/// DRIVER_OK and the bits before it.
const ACTIVE: u32 = 1 | 2 | 4 | 8;

/// A guest with one device, and the host's side of that.
struct Lab {
    guest: GuestDriver,
    host_side: HostSide,
    kind: DeviceType,
    queues: usize,
}

/// Reads the bytes as a driver's doings with any device.
pub(super) fn any(bytes: &[u8]) {
    let (number, rest) = bytes.split_first().unwrap_or((&0, bytes));
    if let Some(entry) = REGISTRY.get(usize::from(*number) % REGISTRY.len()) {
        run(entry, rest);
    }
}

/// Reads the bytes as a driver's doings.
pub(super) fn run(entry: &Entry, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let host = InlineHost::default();
    let (device, host_side) = worlds::of(entry, &host, &mut input);
    let mut guest = GuestDriver::power_on_at(device, host);
    let queues = guest.transport().info().queue_sizes.len();
    // What the driver does uses up all that is left.
    let mut ending = Input::new(input.bytes(8));
    if !input.one_in(8) {
        set_up(&mut guest, &mut input);
    }
    let mut lab = Lab { guest, host_side, kind: entry.device_type, queues };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut lab, &mut input);
    }
    lab.guest.run();
    go_on_elsewhere(&mut lab.guest, entry, queues, &mut ending);
    honest_again(&mut lab.guest, entry, queues);
    go_on_elsewhere(&mut lab.guest, entry, queues, &mut ending);
    assert!(lab.guest.power_off().is_some(), "{}: the device was lost", entry.name);
}

/// Mostly as a driver should, so that most inputs have a device at work.
fn set_up(guest: &mut GuestDriver, input: &mut Input<'_>) {
    let mask = match input.below(4) {
        0 => input.long() | feature::VERSION_1,
        1 => !0,
        2 => !feature::INDIRECT_DESC,
        _ => !feature::EVENT_IDX,
    };
    if input.one_in(8) {
        let size = 1 << (input.byte() % 4);
        for queue in 0..guest.transport().info().queue_sizes.len() {
            guest.shorten_queue(queue, size);
        }
    }
    if input.one_in(16) {
        // A queue is left out, or lies where no memory is.
        guest.negotiate(mask);
        for queue in 0..guest.transport().info().queue_sizes.len() {
            match input.byte() % 4 {
                0 => {}
                1 => {
                    guest.set_up_queue(queue);
                    guest.write(0x44, 0);
                    guest.write(input.pick(&QUEUE_REGISTERS[2..]), input.word());
                    guest.write(0x44, 1);
                }
                _ => guest.set_up_queue(queue),
            }
        }
        guest.write(STATUS, ACTIVE);
        guest.run();
        return;
    }
    guest.set_up(mask);
}

fn step(lab: &mut Lab, input: &mut Input<'_>) {
    let queue = input.below(lab.queues);
    let guest = &mut lab.guest;
    match input.below(20) {
        0..=2 => {
            if !requests::offer(guest, lab.kind, queue, input) {
                offer(guest, queue, input);
            }
        }
        3 | 4 => offer(guest, queue, input),
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
            guest.read(register);
            guest.run();
        }
        14 => {
            let saved = guest.transport().save();
            assert!(saved.is_some(), "the device was lost");
            guest.run();
        }
        15 | 16 => {
            (lab.host_side)(input);
            guest.run();
        }
        17 => {
            // A queue is changed under a device that may be at work.
            guest.write(QUEUE_SEL, if input.one_in(4) { input.word() } else { queue as u32 });
            guest.write(input.pick(&QUEUE_REGISTERS), if input.one_in(2) { input.word() } else { input.byte().into() });
            guest.read(0x34);
            guest.read(0x44);
        }
        18 => {
            let status = guest.read(STATUS);
            guest.write(STATUS, status & !u32::from(input.byte()) | u32::from(input.byte()));
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

/// Buffers of any kind.
fn offer(guest: &mut GuestDriver, queue: usize, input: &mut Input<'_>) {
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
    (0..queues).for_each(|queue| guest.shorten_queue(queue, u16::MAX));
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

/// A state that is cut or has another byte is refused, or its device serves an honest driver.
fn spoilt_elsewhere(state: &State, entry: &Entry, queues: usize, input: &mut Input<'_>) {
    let DeviceState { mut bytes, device_type, version } = state.device().clone();
    if bytes.is_empty() || !input.one_in(2) {
        return;
    }
    // What counts is at the beginning; behind that there are frames.
    let end = if input.one_in(2) { bytes.len() } else { bytes.len().min(128) };
    let at = input.below(end);
    match input.byte() % 4 {
        0 => bytes.truncate(at),
        1 => bytes.push(input.byte()),
        _ => bytes[at] = input.byte(),
    }
    let mut text = serde_json::to_value(state).expect("plain data has a JSON form");
    text["device"] = serde_json::to_value(DeviceState { bytes, device_type, version }).expect("plain data");
    let spoilt: State = serde_json::from_value(text).expect("the same form");
    let mut other = GuestDriver::power_on((entry.sample)());
    match other.transport().restore(&spoilt) {
        Ok(()) => {
            other.run();
            honest_again(&mut other, entry, queues);
        }
        Err(error) => assert!(!error.to_string().is_empty(), "a refusal says why"),
    }
}

/// What was saved is taken by a device of the same kind, and nothing else is.
fn go_on_elsewhere(guest: &mut GuestDriver, entry: &Entry, queues: usize, input: &mut Input<'_>) {
    let Some(state) = guest.transport().save() else { panic!("{}: the device was lost", entry.name) };
    spoilt_elsewhere(&state, entry, queues, input);
    let mut other = GuestDriver::power_on((entry.sample)());
    other.transport().hold();
    let taken = other.transport().restore(&state);
    if entry.device_type == DeviceType::Block && taken.is_err() {
        return; // the sample has another size, and so it has to be refused
    }
    assert!(taken.is_ok(), "{}: its own state: {taken:?}", entry.name);
    let again = other.transport().save();
    // At the sample's console somebody has typed already, and that stays.
    if entry.device_type != DeviceType::Console {
        assert_eq!(again.as_ref().map(State::device), Some(state.device()), "{}: what was taken is there", entry.name);
    }
    other.transport().release();
    other.run();
    assert!(!format!("{:?}", other.transport().info()).is_empty());
    assert!(other.transport().restore(&state).is_err() || !other.is_at_work(), "{}: a device at work", entry.name);
    let stranger = &REGISTRY[input.below(REGISTRY.len())];
    if stranger.device_type != entry.device_type {
        let mut stranger = GuestDriver::power_on((stranger.sample)());
        assert!(stranger.transport().restore(&state).is_err(), "another device's state");
    }
}
