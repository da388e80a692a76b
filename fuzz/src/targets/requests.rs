//! Requests as drivers send them, one shape for each kind of device, for the bytes to spoil: a request that is nearly right gets
//! further into a device than one that is not. A kind without a shape is given buffers of any kind, as all are now and then.

use labyard_devices::testing::{Buffer, GuestDriver, readable, writable};
use labyard_devices::virtio::device::DeviceType;
use labyard_devices::virtio::vsock::HOST_CID;
use labyard_devices::virtio::vsock::packet::{HEADER_BYTES, Header, TYPE_STREAM};

use crate::input::Input;

/// Where headers and what follows them are put, the answers go, and larger data lies.
pub(super) const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const ANSWER: u64 = 0x8000;
/// Above all addresses that requests name by chance.
pub(super) const LARGE: u64 = 0x1_0000;

/// Offers a request of the device's own kind; `false` where it has none on this queue.
pub(super) fn offer(guest: &mut GuestDriver, kind: DeviceType, queue: usize, input: &mut Input<'_>) -> bool {
    let buffers = match (kind, queue) {
        (DeviceType::Block, _) => block(guest, input),
        (DeviceType::Net, 0) => vec![writable(LARGE, input.pick(&[1526, 1526, 2048, 66_000, 100, 12]))],
        (DeviceType::Net, 1) => frame(guest, input),
        (DeviceType::Net, _) => command(guest, input),
        (DeviceType::Console, 0) | (DeviceType::Rng, _) => vec![writable(LARGE, input.pick(&[1, 64, 4096, 8192]))],
        (DeviceType::Console, _) => vec![readable(LARGE, input.pick(&[1, 80, 4096, 70_000]))],
        (DeviceType::Balloon, 0 | 1) => pages(guest, input),
        (DeviceType::Balloon, 2) if !input.one_in(4) => statistics(guest, input),
        (DeviceType::Balloon, _) => reports(input),
        (DeviceType::Vsock, 1) => packet(guest, input),
        (DeviceType::Vsock, 0) => vec![writable(LARGE, input.pick(&[4096, 4096, 20_000, 44, 10]))],
        (DeviceType::Vsock, _) => vec![writable(ANSWER, input.pick(&[4, 4, 64, 1]))],
    };
    let mut buffers: Vec<Buffer> = buffers;
    if input.one_in(16) {
        buffers.reverse();
    }
    if input.one_in(16) {
        buffers.pop();
    }
    let complete = !buffers.is_empty();
    if complete {
        guest.offer(queue, &buffers);
    }
    complete
}

/// Type, sector, and a segment for those types that have one (VIRTIO 1.2, §5.2.6).
fn block(guest: &GuestDriver, input: &mut Input<'_>) -> Vec<Buffer> {
    let kind: u32 = input.pick(&[0, 0, 1, 1, 4, 8, 11, 13, 13, 2, 16]);
    let sector = match input.byte() % 16 {
        15 => input.long(),
        14 => 2048 - u64::from(input.byte()),
        _ => u64::from(input.byte()),
    };
    guest.put(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    let header = readable(HEADER, if input.one_in(16) { input.byte().into() } else { 16 });
    let answer = writable(ANSWER, u32::from(!input.one_in(16)));
    let len = u32::from(input.byte() % 64) * 512 + u32::from(input.one_in(16));
    match kind {
        0 => vec![header, writable(LARGE, len), answer],
        1 => vec![header, readable(LARGE, len), answer],
        8 => vec![header, writable(DATA, input.pick(&[20, 20, 64, 3])), answer],
        11 | 13 => {
            let sectors = if input.one_in(8) { input.word() } else { u32::from(input.byte()) };
            let flags = if input.one_in(8) { input.word() } else { u32::from(input.byte() % 2) };
            let segment = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
            guest.put(DATA, &segment);
            vec![header, readable(DATA, if input.one_in(8) { 32 } else { 16 }), answer]
        }
        _ => vec![header, answer],
    }
}

/// From the address of the sample NIC, with nothing left to do; the switch has a target of its own.
fn frame(guest: &GuestDriver, input: &mut Input<'_>) -> Vec<Buffer> {
    let to = input.pick(&[[2, 0, 0, 0, 0, 2], [0xff; 6], [2, 0, 0, 0, 0, 9]]);
    let from = if input.one_in(8) { input.array() } else { [2, 0, 0, 0, 0, 1] };
    let net_header = if input.one_in(8) { input.array() } else { [0; 12] };
    guest.put(HEADER, &[&net_header[..], &to, &from, &[8, 6]].concat());
    let len = input.pick(&[46, 1500, 1501, 70_000]);
    match input.byte() % 8 {
        0 => vec![readable(HEADER, 26 + len)],
        1 => vec![readable(HEADER, 26), readable(LARGE, len), writable(ANSWER, 1)],
        2 => vec![readable(HEADER, input.byte().into())],
        _ => vec![readable(HEADER, 26), readable(LARGE, len)],
    }
}

/// Class, command and offloads (VIRTIO 1.2, §5.1.6.5).
fn command(guest: &GuestDriver, input: &mut Input<'_>) -> Vec<Buffer> {
    let class = input.pick(&[5, 5, 5, 0, 1, 4]);
    let offloads = if input.one_in(2) { 0 } else { input.long() & (1 << 55 | 1 << 54 | 1 << 8 | 1 << 7 | 1 << 1) };
    guest.put(HEADER, &[&[class, u8::from(input.one_in(8))][..], &offloads.to_le_bytes()].concat());
    let len = input.pick(&[10, 10, 10, 2, 1, 11]);
    vec![readable(HEADER, len), writable(ANSWER, input.pick(&[1, 1, 8]))]
}

/// Page numbers (VIRTIO 1.2, §5.5.6).
fn pages(guest: &GuestDriver, input: &mut Input<'_>) -> Vec<Buffer> {
    let count = u32::from(input.byte() % 32);
    let first = if input.one_in(8) { input.word() } else { u32::from(input.byte()) };
    let numbers: Vec<u8> = (0..count).flat_map(|page| first.wrapping_add(page).to_le_bytes()).collect();
    guest.put(LARGE, &numbers);
    let len = match input.byte() % 8 {
        0 => numbers.len() as u32 + 1,
        1 => 0x2_0000,
        2 => 0x5_0000,
        _ => numbers.len() as u32,
    };
    vec![readable(LARGE, len)]
}

/// Tags and values (VIRTIO 1.2, §5.5.6.4).
fn statistics(guest: &GuestDriver, input: &mut Input<'_>) -> Vec<Buffer> {
    let count = input.byte() % 40;
    let entries: Vec<u8> =
        (0..count).flat_map(|_| [&u16::from(input.byte()).to_le_bytes()[..], &input.array::<8>()].concat()).collect();
    guest.put(DATA, &entries);
    vec![readable(DATA, entries.len() as u32 + u32::from(input.one_in(8)))]
}

/// Free pages (VIRTIO 1.2, §5.5.6.7).
fn reports(input: &mut Input<'_>) -> Vec<Buffer> {
    let range = |input: &mut Input<'_>| {
        let address = u64::from(input.byte()) * 0x1000 + if input.one_in(8) { 1 } else { 0 };
        writable(address, input.pick(&[4096, 0x2_0000, 0, 100, 0x20_0000]))
    };
    (0..=input.byte() % 3).map(|_| range(input)).collect()
}

/// A packet of guest 3; connections in all their states have a target of their own.
fn packet(guest: &GuestDriver, input: &mut Input<'_>) -> Vec<Buffer> {
    let len = u32::from(input.byte());
    let header = Header {
        src_cid: if input.one_in(16) { input.long() } else { 3 },
        dst_cid: if input.one_in(16) { input.long() } else { HOST_CID },
        src_port: u32::from(input.byte() % 4),
        dst_port: if input.one_in(4) { 1 << 31 } else { u32::from(input.byte() % 4) },
        len,
        kind: if input.one_in(16) { input.short() } else { TYPE_STREAM },
        op: u16::from(input.byte() % 9),
        flags: u32::from(input.byte() % 4),
        buf_alloc: if input.one_in(4) { input.word() } else { 64 << 10 },
        fwd_cnt: if input.one_in(8) { input.word() } else { 0 },
    };
    guest.put(HEADER, &header.encode());
    vec![readable(HEADER, HEADER_BYTES as u32), readable(LARGE, len)]
}
