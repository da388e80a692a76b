//! What a hostile driver does to the vsock device.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::packet::{HEADER_BYTES, Header, TYPE_STREAM, op};
use super::tests::{Accept, CID, Fixture, RX, TX};
use super::*;
use crate::testing::{GuestDriver, readable, writable};

#[test]
fn lies_about_credit_end_the_connection_or_starve_only_their_own() {
    type Lie = fn(&mut Header);
    let cases: &[(&str, Lie, bool)] = &[
        ("bytes taken that were never sent", |header| header.fwd_cnt = 1, true),
        ("nearly all numbers taken", |header| header.fwd_cnt = 0x7fff_ffff, true),
        ("fewer bytes taken than before", |header| header.fwd_cnt = u32::MAX, false),
        ("no room at all", |header| header.buf_alloc = 0, false),
        ("all the room there is", |header| header.buf_alloc = u32::MAX, false),
    ];
    for (name, lie, ends) in cases {
        let mut fixture = Fixture::new();
        let mut host = fixture.connected(1025);
        let mut header = fixture.header(1025, 5000, op::CREDIT_UPDATE);
        lie(&mut header);
        fixture.send(header, &[]);
        assert_eq!(fixture.ops(), if *ends { vec![op::RST] } else { vec![] }, "{name}");
        assert_eq!(fixture.guest.faults(), u64::from(*ends), "{name}");
        assert!(!fixture.guest.needs_reset(), "{name}");
        let _ = host.write(b"more"); // closed where the lie ended it
        fixture.guest.run();
        fixture.received();
        // Another connection knows nothing of it.
        fixture.send(fixture.header(80, 6000, op::REQUEST), &[]);
        assert_eq!(fixture.ops(), [op::RESPONSE], "{name}");
    }
}

#[test]
fn credit_that_comes_in_the_wrong_order_is_no_lie() {
    let mut fixture = Fixture::new();
    let mut host = fixture.connected(1025);
    let update = Header { buf_alloc: 100, ..fixture.header(1025, 5000, op::CREDIT_UPDATE) };
    fixture.send(update, &[]);
    host.write_all(&[7; 300]).expect("sent");
    fixture.guest.run();
    fixture.received();
    // The second of two updates overtook the first.
    fixture.send(Header { fwd_cnt: 100, ..update }, &[]);
    fixture.send(Header { fwd_cnt: 60, ..update }, &[]);
    fixture.send(Header { fwd_cnt: 200, ..update }, &[]);
    let got: usize = fixture.received().iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!((got, fixture.guest.faults()), (200, 0));
}

#[test]
fn a_guest_that_ignores_its_credit_loses_the_connection_only() {
    let mut fixture = Fixture::new();
    let _host = fixture.connected(1025);
    let bytes = vec![1; 32 << 10];
    let header = Header { len: bytes.len() as u32, ..fixture.header(1025, 5000, op::RW) };
    let mut ops = Vec::new();
    // The host reads nothing: its socket buffer and ours fill, then the rule is broken.
    for _ in 0..64 {
        fixture.send(header, &bytes);
        ops.extend(fixture.ops());
        fixture.post(1);
    }
    assert!(ops.contains(&op::RST), "{ops:?}");
    assert!(!fixture.guest.needs_reset());
}

#[test]
fn hostile_packets_are_counted_and_answered_with_a_reset() {
    let fixture = Fixture::new();
    let base = fixture.header(1025, 5000, op::RW);
    let cases = [
        ("bytes without a connection", Header { len: 0, ..base }, Some(op::RST), 0),
        ("another sender", Header { src_cid: 9, ..base }, None, 1),
        ("another receiver", Header { dst_cid: 9, ..base }, None, 1),
        ("datagrams", Header { kind: 2, ..base }, Some(op::RST), 1),
        ("an unknown operation", Header { op: 77, ..base }, Some(op::RST), 0),
        ("a reset of nothing", Header { op: op::RST, ..base }, None, 0),
        ("a response to nothing", Header { op: op::RESPONSE, ..base }, Some(op::RST), 0),
        ("a refused port", Header { op: op::REQUEST, dst_port: 99, ..base }, Some(op::RST), 0),
    ];
    for (name, header, answer, faults) in cases {
        let mut fixture = Fixture::new();
        fixture.send(header, &[]);
        assert_eq!(fixture.ops(), answer.into_iter().collect::<Vec<_>>(), "{name}");
        assert_eq!(fixture.guest.faults(), faults, "{name}");
    }
    for (name, change) in [
        ("a length that is not there", (|header: &mut Header| header.len = 1000) as fn(&mut Header)),
        ("a length of 4 GiB", |header| header.len = u32::MAX),
        ("a second request", |header| header.op = op::REQUEST),
        ("a second response", |header| header.op = op::RESPONSE),
    ] {
        let mut fixture = Fixture::new();
        let _host = fixture.connected(1025);
        let mut header = base;
        change(&mut header);
        fixture.send(header, b"abc");
        assert_eq!((fixture.ops(), fixture.guest.faults()), (vec![op::RST], 1), "{name}");
    }
}

#[test]
fn a_flood_without_buffers_for_answers_is_bounded() {
    let (sender, _accepted) = mpsc::channel();
    let hub = Hub::new().expect("eventfd");
    let mut guest = GuestDriver::attach(Box::new(Vsock::new(CID, hub, Box::new(Accept(sender)))));
    let header = Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        kind: TYPE_STREAM,
        op: op::CREDIT_UPDATE,
        ..Header::default()
    };
    guest.put(0x1000, &header.encode());
    let mut returned = 0;
    for _ in 0..6 {
        for _ in 0..QUEUE_SIZE {
            guest.offer(TX, &[readable(0x1000, 44)]);
        }
        guest.kick(TX);
        let used = guest.used(TX).len();
        returned += used;
        if used < usize::from(QUEUE_SIZE) {
            break;
        }
    }
    assert_eq!(returned, 256, "then no packet is looked at until answers leave");
}

#[test]
fn a_flood_of_connections_ends_at_the_limit_and_frees_what_it_closes() {
    let (mut accepted, mut refused) = (0, 0);
    let mut fixture = Fixture::new();
    // 99 is refused by the host; a second request for a connection ends it.
    for port in [99, 1, 99, 2, 1, 1, 2, 2] {
        fixture.send(fixture.header(port, 5000, op::REQUEST), &[]);
        for op in fixture.ops() {
            match op {
                op::RESPONSE => accepted += 1,
                op::RST => refused += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!((accepted, refused), (4, 4));
}

#[test]
fn a_caller_that_gives_up_leaves_no_connection_behind() {
    let mut fixture = Fixture::new();
    let outcome = fixture.hub.connect(1024, Duration::ZERO);
    assert!(matches!(outcome, Err(ConnectError::Silent { .. })), "{outcome:?}");
    fixture.guest.run();
    fixture.guest.run();
    assert_eq!(fixture.ops(), [op::REQUEST, op::RST]);
}

#[test]
fn hostile_chains_come_back_and_no_connection_is_lost() {
    type Case<'a> = (&'a str, usize, &'a [crate::testing::Buffer]);
    let cases: &[Case<'_>] = &[
        ("a header that loops", TX, &[readable(0x1000, 44).then(1)]),
        ("a header behind memory", TX, &[readable(0x40_0000, 44)]),
        ("a header cut short", TX, &[readable(0x1000, 43)]),
        ("a header to be written", TX, &[writable(0x1000, 44)]),
        ("nothing", TX, &[readable(0x1000, 0)]),
    ];
    for (name, queue, buffers) in cases {
        let mut fixture = Fixture::new();
        let mut host = fixture.connected(1025);
        let head = fixture.guest.offer(*queue, buffers);
        fixture.guest.kick(*queue);
        assert_eq!((fixture.guest.used(*queue), fixture.guest.faults()), (vec![(head, 0)], 1), "{name}");
        fixture.send(Header { len: 2, ..fixture.header(1025, 5000, op::RW) }, b"ok");
        let mut bytes = [0; 2];
        host.read_exact(&mut bytes).expect("bytes of the guest");
        assert_eq!(&bytes, b"ok", "{name}");
    }
    // Buffers to receive in that nothing fits into: each comes back empty, the packet waits for one that fits.
    for (name, buffer) in [
        ("a byte", writable(0x6000, 1)),
        ("room for a header cut short", writable(0x6000, 43)),
        ("nothing", writable(0x6000, 0)),
        ("to be read", readable(0x6000, 4096)),
        ("behind memory", writable(u64::MAX - 1, 2)),
    ] {
        let (sender, _accepted) = mpsc::channel();
        let hub = Hub::new().expect("eventfd");
        let mut guest = GuestDriver::attach(Box::new(Vsock::new(CID, hub, Box::new(Accept(sender)))));
        let request =
            Header { src_cid: CID.into(), dst_cid: HOST_CID, kind: TYPE_STREAM, op: op::REQUEST, ..Header::default() };
        guest.put(0x1000, &request.encode());
        let bad = guest.offer(RX, &[buffer]);
        let good = guest.offer(RX, &[writable(0x8000, 4096)]);
        guest.offer(TX, &[readable(0x1000, 44)]);
        guest.kick(TX);
        assert_eq!(guest.used(RX), [(bad, 0), (good, 44)], "{name}");
    }
}

#[test]
fn a_header_that_changes_while_it_is_handled_is_of_no_matter() {
    struct Meddler(Arc<std::sync::OnceLock<crate::Memory>>);
    impl Incoming for Meddler {
        fn accept(&mut self, port: u32) -> Option<UnixStream> {
            let mem = self.0.get().expect("set before the first kick");
            vm_memory::Bytes::write_slice(mem, &[0xff; 44], vm_memory::GuestAddress(0x1000)).expect("the header");
            (port == 1025).then(|| UnixStream::pair().expect("pair").0)
        }
    }
    let mem = Arc::new(std::sync::OnceLock::new());
    let hub = Hub::new().expect("eventfd");
    let mut guest = GuestDriver::attach(Box::new(Vsock::new(CID, hub, Box::new(Meddler(Arc::clone(&mem))))));
    assert!(mem.set(guest.memory().clone()).is_ok());
    let request = Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: 5000,
        dst_port: 1025,
        kind: TYPE_STREAM,
        op: op::REQUEST,
        ..Header::default()
    };
    guest.put(0x1000, &request.encode());
    guest.offer(RX, &[writable(0x8000, 4096)]);
    guest.offer(TX, &[readable(0x1000, 44)]);
    guest.kick(TX);
    assert_eq!(guest.used(RX).len(), 1);
    let answer = Header::decode(&guest.bytes(0x8000, HEADER_BYTES).try_into().expect("a header"));
    assert_eq!((answer.op, answer.src_port, answer.dst_port, answer.dst_cid), (op::RESPONSE, 1025, 5000, CID.into()));
    assert_eq!(guest.faults(), 0);
}
