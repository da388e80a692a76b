//! vsock packets of a guest whose connections have somebody at the other end: headers that nearly make sense, in any order,
//! while the host connects, writes, reads and hangs up.
//!
//! Rules: packets to the guest are whole, come from the host, and never bring more bytes than the guest said it has room for.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use labyard_devices::testing::{GuestDriver, readable, writable};
use labyard_devices::virtio::vsock::packet::{HEADER_BYTES, Header, TYPE_STREAM, op};
use labyard_devices::virtio::vsock::{HOST_CID, Hub, Incoming, Vsock};

use crate::input::Input;

const CID: u32 = 3;
const RX: usize = 0;
const TX: usize = 1;
/// Room of one receive buffer.
const ROOM: u32 = 4096;
/// Receive buffers lie from here on, one a page; a packet at 0.
const RX_BUFFERS: u64 = 0x10_0000;
/// Things that one input does at most.
const STEPS: usize = 200;
/// Where the host's own connections begin.
const HOST_PORT: u32 = 1 << 31;

type Streams = Arc<Mutex<Vec<UnixStream>>>;

/// Takes connections to some ports and keeps the other end.
struct Keeper(Streams);

impl Incoming for Keeper {
    fn accept(&mut self, port: u32) -> Option<UnixStream> {
        let (ours, theirs) = (port % 4 != 3).then(UnixStream::pair)?.ok()?;
        theirs.set_nonblocking(true).ok()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(theirs);
        Some(ours)
    }
}

/// Reads the bytes as packets and as doings of the host.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let streams = Streams::default();
    let Ok(hub) = Hub::new() else { return };
    let mut guest = GuestDriver::attach(Box::new(Vsock::new(CID, Arc::clone(&hub), Box::new(Keeper(streams.clone())))));
    let mut offered = 0;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.below(16) {
            0..=8 => packet(&mut guest, &mut input),
            9 | 10 => {
                for _ in 0..input.below(8) {
                    let room = if input.one_in(8) { input.byte().into() } else { ROOM };
                    guest.offer(RX, &[writable(RX_BUFFERS + u64::from(offered % 128) * u64::from(ROOM), room)]);
                    offered += 1u32;
                }
                guest.kick(RX);
            }
            // Nobody answers in time: what matters is what the wish leaves behind.
            11 => {
                let _ = hub.connect(input.byte().into(), Duration::ZERO);
                guest.run();
            }
            12 => guest.kick(TX),
            _ => host(&streams, &mut guest, &mut input),
        }
        check(&mut guest);
    }
}

fn packet(guest: &mut GuestDriver, input: &mut Input<'_>) {
    let len = match input.byte() % 8 {
        0 => input.word(),
        1 => u32::from(input.short()),
        _ => u32::from(input.byte()),
    };
    let header = Header {
        src_cid: if input.one_in(16) { input.long() } else { CID.into() },
        dst_cid: if input.one_in(16) { input.long() } else { HOST_CID },
        src_port: u32::from(input.byte() % 4),
        dst_port: if input.one_in(4) { HOST_PORT + u32::from(input.byte() % 4) } else { u32::from(input.byte() % 4) },
        len,
        kind: if input.one_in(16) { input.short() } else { TYPE_STREAM },
        op: if input.one_in(16) {
            input.short()
        } else {
            input.pick(&[
                op::REQUEST,
                op::RESPONSE,
                op::RST,
                op::SHUTDOWN,
                op::RW,
                op::RW,
                op::CREDIT_UPDATE,
                op::CREDIT_REQUEST,
            ])
        },
        flags: if input.one_in(8) { input.word() } else { u32::from(input.byte() % 4) },
        buf_alloc: if input.one_in(4) { input.word() } else { 64 << 10 },
        fwd_cnt: if input.one_in(4) { input.word() } else { 0 },
    };
    guest.put(0, &header.encode());
    let there = if input.one_in(8) { input.word() % 0x10_0000 } else { len.min(0x8_0000) };
    let bytes = HEADER_BYTES as u32;
    match input.byte() % 8 {
        0 => guest.offer(TX, &[readable(0, input.byte().into())]),
        1 => guest.offer(TX, &[readable(0, bytes), readable(0x1000, there), writable(0x2000, 8)]),
        _ => guest.offer(TX, &[readable(0, bytes), readable(0x1000, there)]),
    };
    if !input.one_in(4) {
        guest.kick(TX);
    }
}

fn host(streams: &Streams, guest: &mut GuestDriver, input: &mut Input<'_>) {
    let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
    if streams.is_empty() {
        return;
    }
    let place = input.below(streams.len());
    match input.byte() % 4 {
        0 => drop(streams.swap_remove(place)),
        1 => drop(streams[place].shutdown(input.pick(&[
            std::net::Shutdown::Write,
            std::net::Shutdown::Read,
            std::net::Shutdown::Both,
        ]))),
        2 => drop(streams[place].read(&mut [0; 4096])),
        // A full or closed stream is as good.
        _ => drop(streams[place].write(&vec![0x5a; input.short().into()])),
    }
    drop(streams);
    guest.run();
}

fn check(guest: &mut GuestDriver) {
    for (head, written) in guest.used(RX) {
        assert!(written == 0 || written >= HEADER_BYTES as u32, "{written} bytes are no packet");
        assert!(written <= ROOM, "{written} bytes in a buffer of {ROOM}");
        let _ = head;
    }
    guest.used(TX);
    assert!(!guest.needs_reset(), "packets alone do not stop the device");
}
