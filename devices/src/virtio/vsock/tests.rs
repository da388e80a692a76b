use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::packet::{HEADER_BYTES, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::*;
use crate::testing::{GuestDriver, readable, writable};

pub(super) const CID: u32 = 7;
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
const RX_BUFFERS: u64 = 0x10_0000;
const RX_BYTES: u64 = 0x1000;

pub(super) struct Accept(pub(super) mpsc::Sender<(u32, UnixStream)>);

impl Incoming for Accept {
    fn accept(&mut self, port: u32) -> Option<UnixStream> {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        (port != 99).then(|| {
            self.0.send((port, theirs)).expect("the test listens");
            ours
        })
    }
}

pub(super) struct Fixture {
    pub(super) guest: GuestDriver,
    pub(super) hub: Arc<Hub>,
    pub(super) accepted: mpsc::Receiver<(u32, UnixStream)>,
    posted: u64,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let (sender, accepted) = mpsc::channel();
        let hub = Hub::new().expect("eventfd");
        let guest = GuestDriver::attach(Box::new(Vsock::new(CID, Arc::clone(&hub), Box::new(Accept(sender)))));
        let mut fixture = Self { guest, hub, accepted, posted: 0 };
        fixture.post(16);
        fixture
    }

    pub(super) fn post(&mut self, count: u64) {
        for _ in 0..count {
            self.guest.offer(RX, &[writable(RX_BUFFERS + self.posted % 100 * RX_BYTES, RX_BYTES as u32)]);
            self.posted += 1;
        }
        self.guest.kick(RX);
    }

    pub(super) fn header(&self, host: u32, guest: u32, op: u16) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: TYPE_STREAM,
            op,
            buf_alloc: 1 << 20,
            ..Header::default()
        }
    }

    pub(super) fn send(&mut self, header: Header, bytes: &[u8]) {
        self.guest.put(0x1000, &header.encode());
        self.guest.put(0x2000, bytes);
        let head = match bytes {
            [] => self.guest.offer(TX, &[readable(0x1000, 44)]),
            bytes => self.guest.offer(TX, &[readable(0x1000, 44), readable(0x2000, bytes.len() as u32)]),
        };
        self.guest.kick(TX);
        assert_eq!(self.guest.used(TX), [(head, 0)]);
    }

    /// Packets for the guest since the last call; each used buffer is posted again.
    pub(super) fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = self.guest.used(RX);
        let mut packets = Vec::new();
        for (head, len) in used {
            let at = self.address_of(head);
            let header: [u8; HEADER_BYTES] = self.guest.bytes(at, HEADER_BYTES).try_into().expect("header");
            packets.push((Header::decode(&header), self.guest.bytes(at + 44, len as usize - HEADER_BYTES)));
        }
        packets
    }

    fn address_of(&self, head: u16) -> u64 {
        let bytes = self.guest.bytes(0x30_0000 + u64::from(head) * 16, 8);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// The guest connects to `port` of the host.
    pub(super) fn connected(&mut self, port: u32) -> UnixStream {
        self.send(self.header(port, 5000, op::REQUEST), &[]);
        let (accepted, stream) = self.accepted.try_recv().expect("accepted");
        assert_eq!(accepted, port);
        let packets = self.received();
        assert_eq!(packets.len(), 1);
        assert_eq!((packets[0].0.op, packets[0].0.src_port, packets[0].0.dst_port), (op::RESPONSE, port, 5000));
        assert_eq!(packets[0].0.buf_alloc, 256 << 10);
        stream
    }

    pub(super) fn ops(&mut self) -> Vec<u16> {
        self.received().into_iter().map(|(header, _)| header.op).collect()
    }
}

#[test]
fn a_connection_of_the_guest_carries_bytes_both_ways() {
    let mut fixture = Fixture::new();
    let mut host = fixture.connected(1025);
    let header = Header { len: 5, ..fixture.header(1025, 5000, op::RW) };
    fixture.send(header, b"hello");
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).expect("bytes of the guest");
    assert_eq!(&bytes, b"hello");
    host.write_all(b"welcome").expect("sent");
    fixture.guest.run();
    let packets = fixture.received();
    assert_eq!(packets.len(), 1);
    assert_eq!((packets[0].0.op, packets[0].0.len, packets[0].1.as_slice()), (op::RW, 7, b"welcome".as_slice()));
    assert_eq!(packets[0].0.fwd_cnt, 5);
}

#[test]
fn the_host_connects_and_hears_when_nobody_listens() {
    for (answer, accepted) in [(op::RESPONSE, true), (op::RST, false)] {
        let mut fixture = Fixture::new();
        let hub = Arc::clone(&fixture.hub);
        let caller = std::thread::spawn(move || hub.connect(1024, Duration::from_secs(10)));
        let mut packets = Vec::new();
        while packets.is_empty() && !caller.is_finished() {
            fixture.guest.run();
            packets = fixture.received();
            std::thread::yield_now();
        }
        assert_eq!((packets[0].0.op, packets[0].0.dst_port), (op::REQUEST, 1024));
        fixture.send(fixture.header(packets[0].0.src_port, 1024, answer), &[]);
        let outcome = caller.join().expect("no panic");
        assert_eq!(outcome.is_ok(), accepted, "{outcome:?}");
    }
}

#[test]
fn without_a_driver_the_host_is_told_at_once() {
    let mut fixture = Fixture::new();
    fixture.guest.write(0x70, 0);
    let outcome = fixture.hub.connect(1024, Duration::from_secs(10));
    assert!(matches!(outcome, Err(ConnectError::NoDriver(1024))), "{outcome:?}");
}

#[test]
fn the_end_of_either_side_reaches_the_other() {
    let mut fixture = Fixture::new();
    let mut host = fixture.connected(1025);
    let header = Header { flags: SHUTDOWN_SEND, ..fixture.header(1025, 5000, op::SHUTDOWN) };
    fixture.send(header, &[]);
    assert_eq!(host.read(&mut [0; 8]).expect("end of stream"), 0);
    host.write_all(b"last words").expect("the other way is open");
    drop(host);
    fixture.guest.run();
    let packets = fixture.received();
    assert_eq!((packets[0].0.op, packets[0].1.as_slice()), (op::RW, b"last words".as_slice()));
    assert_eq!(packets.last().map(|(header, _)| header.op), Some(op::RST));
}

#[test]
fn a_half_closed_host_still_hears_the_guest() {
    let mut fixture = Fixture::new();
    let mut host = fixture.connected(1025);
    host.shutdown(std::net::Shutdown::Write).expect("shut down");
    fixture.guest.run();
    let packets = fixture.received();
    assert_eq!((packets.len(), packets[0].0.op, packets[0].0.flags), (1, op::SHUTDOWN, SHUTDOWN_SEND));
    let header = Header { len: 3, ..fixture.header(1025, 5000, op::RW) };
    fixture.send(header, b"yes");
    let mut bytes = [0; 3];
    host.read_exact(&mut bytes).expect("bytes of the guest");
    assert_eq!(&bytes, b"yes");
    let header = Header { flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE, ..fixture.header(1025, 5000, op::SHUTDOWN) };
    fixture.send(header, &[]);
    assert_eq!(fixture.ops(), [op::RST]);
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut fixture = Fixture::new();
    let mut host = fixture.connected(1025);
    let update = Header { buf_alloc: 100, ..fixture.header(1025, 5000, op::CREDIT_UPDATE) };
    fixture.send(update, &[]);
    host.write_all(&[7; 300]).expect("sent");
    fixture.guest.run();
    let sizes = |packets: Vec<(Header, Vec<u8>)>| packets.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>();
    assert_eq!(sizes(fixture.received()), [100]);
    fixture.send(Header { fwd_cnt: 100, ..update }, &[]);
    assert_eq!(sizes(fixture.received()), [100]);
}

#[test]
fn bytes_wait_for_buffers_of_the_guest_and_none_is_lost() {
    let mut fixture = Fixture::new();
    let mut host = fixture.connected(1025);
    host.write_all(&vec![9; 100_000]).expect("sent");
    let mut got = 0;
    for _ in 0..60 {
        fixture.guest.run();
        got += fixture.received().iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        fixture.post(4);
    }
    assert_eq!(got, 100_000);
}

#[test]
fn a_stream_that_hung_up_waits_for_the_guests_buffers_without_spinning() {
    let (sender, ended) = mpsc::channel();
    // Spinning would never come back.
    std::thread::spawn(move || {
        let mut fixture = Fixture::new();
        let mut stream = fixture.connected(80);
        let question = fixture.header(80, 5000, op::CREDIT_REQUEST);
        for _ in 0..15 {
            fixture.send(question, &[]);
        }
        assert_eq!(fixture.received().len(), 15, "no buffer is left");
        stream.write_all(b"last words").expect("written");
        drop(stream);
        fixture.guest.run();
        fixture.post(4);
        let packets = fixture.received();
        assert_eq!((packets[0].0.op, packets[0].1.as_slice()), (op::RW, b"last words".as_slice()));
        assert_eq!(packets[1].0.op, op::SHUTDOWN);
        sender.send(()).expect("the test listens");
    });
    ended.recv_timeout(Duration::from_secs(20)).expect("the worker sleeps until there are buffers");
}

#[test]
fn a_slow_reader_gets_the_last_bytes_of_a_guest_that_is_gone() {
    let mut fixture = Fixture::new();
    let mut host = fixture.connected(1025);
    let bytes = vec![7; 32 << 10];
    let mut sent = 0;
    // More than the socket takes, less than the room here.
    for _ in 0..12 {
        fixture.send(Header { len: bytes.len() as u32, ..fixture.header(1025, 5000, op::RW) }, &bytes);
        sent += bytes.len();
        fixture.received();
        fixture.post(1);
    }
    let done = Header { flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE, ..fixture.header(1025, 5000, op::SHUTDOWN) };
    fixture.send(done, &[]);
    assert!(fixture.ops().is_empty(), "not over while bytes wait");
    // Linux waits eight seconds for our reset, then forgets the connection.
    fixture.send(fixture.header(1025, 5000, op::RST), &[]);
    host.set_nonblocking(true).expect("nonblocking");
    let mut got = 0;
    loop {
        match host.read(&mut [0; 4096]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(_) => fixture.guest.run(),
        }
    }
    assert_eq!((got, fixture.ops(), fixture.guest.faults()), (sent, vec![], 0));
    fixture.send(fixture.header(1025, 5000, op::REQUEST), &[]);
    assert_eq!(fixture.ops(), [op::RESPONSE], "its number is free again");
}

#[test]
fn every_stream_has_its_turn() {
    let mut fixture = Fixture::new();
    let mut hosts: Vec<UnixStream> = (0..8)
        .map(|port| {
            fixture.send(fixture.header(port, 5000, op::REQUEST), &[]);
            fixture.accepted.try_recv().expect("accepted").1
        })
        .collect();
    fixture.received();
    fixture.post(8);
    for host in &mut hosts {
        host.set_nonblocking(true).expect("nonblocking");
        host.write_all(&[1; 100_000]).expect("sent");
    }
    // A buffer at a time: each stream is served once before one is served twice.
    let mut served = Vec::new();
    for _ in 0..20 {
        fixture.guest.run();
        served.extend(fixture.received().iter().map(|(header, _)| header.src_port));
        fixture.post(1);
    }
    for round in served.chunks_exact(8).take(3) {
        let mut ports = round.to_vec();
        ports.sort_unstable();
        assert_eq!(ports, [0, 1, 2, 3, 4, 5, 6, 7], "{served:?}");
    }
}

#[test]
fn hundreds_of_streams_at_once_lose_nothing() {
    const STREAMS: u32 = 200;
    const FIRST: u32 = 100;
    let mut fixture = Fixture::new();
    let mut hosts = Vec::new();
    for port in FIRST..FIRST + STREAMS {
        fixture.send(fixture.header(port, 7000 + port, op::REQUEST), &[]);
        assert_eq!(fixture.ops(), [op::RESPONSE]);
        fixture.post(1);
        hosts.push(fixture.accepted.try_recv().expect("accepted").1);
    }
    for (port, host) in (FIRST..).zip(&mut hosts) {
        host.write_all(&[port as u8; 3000]).expect("sent");
        fixture.send(Header { len: 1000, ..fixture.header(port, 7000 + port, op::RW) }, &[port as u8; 1000]);
    }
    let mut got = vec![0; STREAMS as usize];
    for _ in 0..STREAMS {
        fixture.guest.run();
        for (header, bytes) in fixture.received() {
            assert!(
                bytes.iter().all(|byte| *byte == header.src_port as u8),
                "stream {} has others' bytes",
                header.src_port
            );
            got[(header.src_port - FIRST) as usize] += bytes.len();
        }
        fixture.post(4);
    }
    assert_eq!(got, vec![3000; STREAMS as usize]);
    for (port, host) in (FIRST..).zip(&mut hosts) {
        let mut bytes = [0; 1000];
        host.read_exact(&mut bytes).expect("the guest's bytes");
        assert_eq!(bytes, [port as u8; 1000]);
    }
}

#[test]
fn connections_outlast_a_save_and_end_with_a_reset() {
    let mut fixture = Fixture::new();
    let mut host = fixture.connected(1025);
    let _state = fixture.guest.transport().save().expect("not lost");
    host.write_all(b"still here").expect("sent");
    fixture.guest.run();
    let packets = fixture.received();
    assert_eq!(packets[0].1, b"still here");
    fixture.guest.write(0x70, 0);
    assert_eq!(host.read(&mut [0; 8]).expect("end of stream"), 0);
}

#[test]
fn a_restored_device_tells_its_driver_that_connections_are_gone() {
    let mut fixture = Fixture::new();
    let _host = fixture.connected(1025);
    let state = fixture.guest.transport().save().expect("not lost");
    let host = crate::testing::InlineHost::default();
    let mem = fixture.guest.memory().clone();
    let (sender, _accepted) = mpsc::channel();
    let device = Box::new(Vsock::new(CID, Hub::new().expect("eventfd"), Box::new(Accept(sender))));
    let line = Box::new(crate::testing::Recorder::default());
    let mut restored = crate::virtio::transport::mmio::MmioTransport::new(device, mem, line, Arc::new(host.clone()))
        .expect("eventfds");
    restored.restore(&state).expect("its own state");
    // The driver had no buffer for events; now it has one that is too small, and one that fits.
    fixture.guest.put(0x5000, &[0xff; 8]);
    let small = fixture.guest.offer(2, &[writable(0x6000, 2)]);
    let fits = fixture.guest.offer(2, &[writable(0x5000, 8)]);
    crate::bus::BusDevice::write(&mut restored, 0x50, &2u32.to_le_bytes());
    host.run();
    assert_eq!(fixture.guest.used(2), [(small, 0), (fits, 4)]);
    assert_eq!(fixture.guest.bytes(0x5000, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(restored.faults().count(), 1);
}

#[test]
fn a_foreign_or_damaged_state_is_refused() {
    let good = sample().save();
    for harm in [
        (|state| state.version = 2) as fn(&mut DeviceState),
        |state| state.device_type = DeviceType::Rng,
        |state| state.bytes.push(0),
    ] {
        let mut state = good.clone();
        harm(&mut state);
        assert!(sample().restore(&state).is_err(), "{state:?}");
    }
}

#[test]
fn connections_and_bytes_are_counted() {
    let (sender, accepted) = mpsc::channel();
    let device = Vsock::new(CID, Hub::new().expect("eventfd"), Box::new(Accept(sender)));
    let counters = device.counters();
    let mut guest = GuestDriver::attach(Box::new(device));
    for number in 0..4 {
        guest.offer(RX, &[writable(RX_BUFFERS + number * RX_BYTES, RX_BYTES as u32)]);
    }
    let base = Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: 5000,
        dst_port: 1025,
        kind: TYPE_STREAM,
        buf_alloc: 1 << 20,
        ..Header::default()
    };
    for header in [
        Header { op: op::REQUEST, ..base },
        Header { op: op::REQUEST, dst_port: 99, ..base }, // is refused
        Header { op: op::RW, len: 7, ..base },
    ] {
        guest.put(0x1000, &header.encode());
        guest.offer(TX, &[readable(0x1000, 44), readable(0x2000, header.len)]);
        guest.kick(TX);
    }
    let (_, mut host) = accepted.try_recv().expect("accepted");
    host.write_all(b"hello").expect("sent");
    guest.run();
    let expected = [
        ("faults", 0),
        ("from_guest", 1),
        ("from_host", 0),
        ("resets", 1),
        ("bytes_to_host", 7),
        ("bytes_to_guest", 5),
    ];
    assert_eq!(counters.read(), expected);
}
