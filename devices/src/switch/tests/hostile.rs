//! Drivers that lie.

use super::packets::{FORMS, Form, claim, noise, packet};
use super::*;
use crate::virtio::net::F_MRG_RXBUF;

const ALL: u64 = !feature::EVENT_IDX;

#[test]
fn a_claim_that_does_not_hold_is_counted_and_its_frame_dropped() {
    let tcp = packet(FORMS[0], mac(2), &noise(3000));
    let tcp6 = packet(FORMS[1], mac(2), &noise(3000));
    let udp = packet(FORMS[2], mac(2), &noise(3000));
    let small = packet(FORMS[0], mac(2), &noise(100));
    let tagged = packet(FORMS[4], mac(2), &noise(3000));
    let changed = |packet: &packets::Packet, at: usize, bytes: &[u8]| {
        let mut frame = packet.bytes.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let mut arp = small.bytes.clone();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let triple_tag = [&tcp.bytes[..12], &[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3], &tcp.bytes[12..]].concat();
    let chained = Form { extras: 16, ..FORMS[1] };
    let chained = packet(chained, mac(2), &noise(3000));
    let endless = changed(&chained, chained.network + 40, &[60, 255]);
    let loops: Vec<u8> =
        [&chained.bytes[..chained.network + 40], &[60, 0, 0, 0, 0, 0, 0, 0].repeat(12), b"end"].concat();

    let cases: Vec<(&str, [u8; 12], Vec<u8>)> = vec![
        ("a type that nobody knows", claim(1, 0x7f, 54, 1000, 34, 16), tcp.bytes.clone()),
        ("UFO", claim(1, 3, 42, 1000, 34, 6), udp.bytes.clone()),
        ("ECN, which was not offered", claim(1, 0x81, 54, 1000, 34, 16), tcp.bytes.clone()),
        ("a large segment without a checksum to be done", claim(0, 1, 54, 1000, 34, 16), tcp.bytes.clone()),
        ("segments of 0 bytes", tcp.claim(0x1000).map(|b| if b == 0x10 { 0 } else { b }), tcp.bytes.clone()),
        ("a segment longer than the MTU", tcp.claim(1461), tcp.bytes.clone()),
        ("segments of 65,535 bytes", tcp.claim(u16::MAX), tcp.bytes.clone()),
        (
            "a large segment without payload",
            packet(FORMS[0], mac(2), &[]).claim(1000),
            packet(FORMS[0], mac(2), &[]).bytes,
        ),
        ("TSO of a datagram", claim(1, 1, 42, 1000, 34, 6), udp.bytes.clone()),
        ("USO of TCP", claim(1, 5, 54, 1000, 34, 16), tcp.bytes.clone()),
        ("TSO6 of IPv4", claim(1, 4, 54, 1000, 34, 16), tcp.bytes.clone()),
        ("TSO4 of IPv6", claim(1, 1, 74, 1000, 54, 16), tcp6.bytes.clone()),
        ("TSO of ARP", claim(1, 1, 54, 1000, 34, 16), arp.clone()),
        ("a checksum in ARP", claim(1, 0, 0, 0, 34, 16), arp),
        ("the checksum of the datagram where TCP has it", claim(1, 0, 0, 0, 34, 6), small.bytes.clone()),
        ("a checksum within the IP header", claim(1, 0, 0, 0, 14, 10), small.bytes.clone()),
        ("a checksum over the Ethernet header", claim(1, 0, 0, 0, 0, 16), small.bytes.clone()),
        ("a checksum that starts behind the frame", claim(1, 0, 0, 0, 200, 16), small.bytes.clone()),
        ("a checksum that lies behind the frame", claim(1, 0, 0, 0, 34, 119), small.bytes.clone()),
        ("a checksum at the end of all numbers", claim(1, 0, 0, 0, u16::MAX, u16::MAX), small.bytes.clone()),
        ("a checksum far behind headers", claim(1, 0, 0, 0, 400, 16), tcp.bytes[..1000].to_vec()),
        ("a large segment whose checksum starts elsewhere", claim(1, 1, 54, 1000, 35, 16), tcp.bytes.clone()),
        ("a tagged one whose offsets forget the tag", claim(1, 1, 54, 1000, 34, 16), tagged.bytes.clone()),
        ("three tags", claim(1, 1, 66, 1000, 46, 16), triple_tag),
        ("a fragment", tcp.claim(1000), changed(&tcp, tcp.network + 6, &[0x20, 0])),
        ("a later fragment", small.claim(0), changed(&small, small.network + 6, &[0, 9])),
        ("a fragment of IPv6", tcp6.claim(1000), changed(&tcp6, tcp6.network + 6, &[44])),
        ("IPv4 of version 5", tcp.claim(1000), changed(&tcp, tcp.network, &[0x55])),
        ("an IPv4 header of 16 bytes", tcp.claim(1000), changed(&tcp, tcp.network, &[0x44])),
        ("a packet longer than its frame", tcp.claim(1000), changed(&tcp, tcp.network + 2, &[0xff, 0xff])),
        ("a packet shorter than its frame", tcp.claim(1000), changed(&tcp, tcp.network + 2, &[0, 60])),
        ("an IPv6 packet of length 0", tcp6.claim(1000), changed(&tcp6, tcp6.network + 4, &[0, 0])),
        ("a TCP header of 16 bytes", tcp.claim(1000), changed(&tcp, tcp.transport + 12, &[0x40])),
        ("a TCP header longer than the frame", small.claim(90), small.bytes[..54].to_vec()),
        ("an extension header of 2 KiB", chained.claim(1000), endless),
        ("a chain of twelve extension headers", claim(1, 4, 0, 1000, 150, 16), loops),
        ("a routing header", chained.claim(1000), changed(&chained, chained.network + 6, &[43])),
        ("8,193 segments", tcp.claim(1), packet(FORMS[0], mac(2), &noise(9000)).bytes),
        ("only a virtio header", COMPLETE, vec![]),
        ("an Ethernet header that is cut off", COMPLETE, tcp.bytes[..13].to_vec()),
        ("a large segment of only Ethernet", tcp.claim(1000), tcp.bytes[..14].to_vec()),
        ("a large segment cut off within IPv4", tcp.claim(1000), tcp.bytes[..30].to_vec()),
        ("a large segment cut off within IPv6", tcp6.claim(1000), tcp6.bytes[..50].to_vec()),
    ];
    let mut nics = network(&[ALL, ALL]);
    nics[1].post(100, 1600);
    for (number, (name, header, frame)) in (1..).zip(cases) {
        nics[0].send(header, &frame);
        assert_eq!(nics[1].received().len(), 0, "{name}");
        assert_eq!(nics[0].driver.faults(), number, "{name}: a fault");
        let refused = nics[0].plug.port().expect("a port").snapshot().refused_frames();
        assert!(refused >= number && !nics[0].driver.needs_reset(), "{name}: counted");
    }
    nics[0].send(tcp.claim(1000), &tcp.bytes);
    assert_eq!(nics[1].received().len(), 1, "and an honest one passes");
}

#[test]
fn fields_that_mean_nothing_towards_the_device_are_not_looked_at() {
    let tcp = packet(FORMS[0], mac(2), &noise(3000));
    for (at, garbage) in [(2, [0xff, 0xff]), (2, [0, 0]), (10, [0xff, 0xff])] {
        let mut nics = network(&[ALL, ALL]);
        nics[1].post(3, 1600);
        let mut header = tcp.claim(1000);
        header[at..at + 2].copy_from_slice(&garbage);
        header[0] |= 0xfe;
        nics[0].send(header, &tcp.bytes);
        let got = nics[1].received();
        let mut expected = tcp.claim(1000);
        expected[10] = 2;
        assert_eq!((&got[0].0[..], &got[0].1), (&expected[..], &tcp.bytes));
    }
}

#[test]
fn headers_may_lie_in_any_number_of_descriptors() {
    for form in FORMS {
        let sent = packet(form, mac(2), &noise(3000));
        let pieces: [&[u32]; 4] = [&[1; 120], &[6, 6, 14, 3, 17, 1], &[11, 2, 50], &[]];
        for pieces in pieces {
            let mut nics = network(&[ALL, ALL]);
            nics[1].post(10, 512);
            nics[0].send_pieces(sent.claim(1000), &sent.bytes, pieces);
            assert_eq!(nics[1].received()[0].1, sent.bytes);
        }
    }
    let mut nics = network(&[ALL, ALL]);
    nics[1].post(10, 512);
    let sent = packet(FORMS[0], mac(2), &noise(180));
    nics[0].send_pieces(sent.claim(0), &sent.bytes, &[1; 246]);
    assert_eq!(nics[1].received()[0].1, sent.bytes, "a chain of single bytes");
}

#[test]
fn room_for_an_answer_or_headers_that_are_not_there_are_refused() {
    let mut nics = network(&[ALL, ALL]);
    nics[1].post(4, 1600);
    let bytes = [&COMPLETE[..], &frame(mac(2), mac(1), b"hello")].concat();
    nics[0].driver.put(0x1000, &bytes);
    let chains = [
        vec![readable(0x1000, bytes.len() as u32), writable(0x8000, 64)],
        vec![writable(0x1000, bytes.len() as u32)],
        vec![readable(0x1000, 0)],
        vec![readable(0x1000, 11)],
        vec![readable(0x1000, 12), readable(1 << 40, 100)],
        vec![readable(0x1000, 12), readable(0x100c, 10).then(0)],
    ];
    for (number, chain) in (1..).zip(&chains) {
        let head = nics[0].driver.offer(TX, chain);
        nics[0].driver.kick(TX);
        assert_eq!(nics[0].driver.used(TX), [(head, 0)], "{chain:?}");
        assert_eq!((nics[1].received().len(), nics[0].driver.faults()), (0, number), "{chain:?}");
    }
}

#[test]
fn receive_buffers_that_are_of_no_use_come_back_and_the_rest_serve() {
    let mut nics = network(&[ALL, ALL]);
    let sent = frame(mac(2), mac(1), &noise(200));
    let receiver = &mut nics[1].driver;
    // One frame takes them all, however small they are.
    let small: Vec<u16> = (0..16u64).map(|n| receiver.offer(RX, &[writable(0x4000 + n * 16, 16)])).collect();
    receiver.kick(RX);
    nics[0].send(COMPLETE, &sent);
    let used = nics[1].driver.used(RX);
    assert_eq!(used.iter().map(|(head, _)| *head).collect::<Vec<_>>(), small[..15]);
    assert_eq!(used.iter().map(|(_, len)| len).sum::<u32>(), 226);
    let got = nics[1].driver.bytes(0x4000, 226);
    assert_eq!((got[10], &got[12..]), (15, &sent[..]));

    // A broken one among them: those before it cannot be put back and come back empty; so do buffers that are read.
    let receiver = &mut nics[1].driver;
    let broken = receiver.offer(RX, &[writable(1 << 40, 100)]);
    let wrong = receiver.offer(RX, &[readable(0x4000, 100), writable(0x4000, 1600)]);
    let good = receiver.offer(RX, &[writable(0x5000, 1600)]);
    receiver.kick(RX);
    nics[0].send(COMPLETE, &sent);
    assert_eq!(nics[1].driver.used(RX), [(broken, 0), (small[15], 0), (wrong, 0), (good, 226)]);
    assert_eq!(nics[1].driver.faults(), 3);
}

#[test]
fn a_frame_hidden_in_more_descriptors_than_the_queue_has_is_refused() {
    let mut nics = network(&[ALL, ALL]);
    let receiver = &mut nics[1].driver;
    for place in 0..200u64 {
        let next = (place != 199).then_some(place as u16 + 1);
        receiver.put(0x1_0000 + place * 16, &writable(0x2_0000, 1).encode(next));
    }
    let heads: Vec<u16> = (0..4).map(|_| receiver.offer(RX, &[readable(0x1_0000, 200 * 16).indirect()])).collect();
    receiver.kick(RX);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), &noise(1400)));
    let empty: Vec<_> = heads.into_iter().map(|head| (head, 0)).collect();
    assert_eq!(nics[1].driver.used(RX), empty);
    assert_eq!((nics[1].driver.faults(), nics[1].driver.needs_reset()), (2, false));
}

#[test]
fn a_driver_that_merges_nothing_gets_large_frames_into_large_buffers_only() {
    let mut nics = network(&[ALL, ALL & !F_MRG_RXBUF]);
    let sent = packet(FORMS[0], mac(2), &noise(10_000));
    let receiver = &mut nics[1].driver;
    let small = receiver.offer(RX, &[writable(0x4_0000, 1600)]);
    let large = receiver.offer(RX, &[writable(0x5_0000, 66_000)]);
    receiver.kick(RX);
    nics[0].send(sent.claim(1400), &sent.bytes);
    assert_eq!(nics[1].driver.used(RX), [(small, 0), (large, 12 + sent.bytes.len() as u32)]);
    assert_eq!(nics[1].driver.bytes(0x5_000a, 2), [1, 0]);
}

/// Whoever looks for a neighbour, and who answers: over IPv4 (RFC 826), and over IPv6 (RFC 4861, 4.3 and 4.4). The answers say that an
/// address is at the hardware address `is_at`.
fn neighbours(from: [u8; 6], is_at: [u8; 6]) -> [(&'static str, Vec<u8>); 4] {
    let ether = |to: [u8; 6], kind: [u8; 2], payload: &[u8]| [&to[..], &from, &kind, payload].concat();
    let arp = |operation: u8| {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        [&head[..], &is_at, &[172, 16, 0, 2], &mac(2), &[172, 16, 0, 3]].concat()
    };
    let icmpv6 = |to_last: u8, kind: u8, option: u8| {
        let address = |last: u8| [0xfd, 0, 0, 0x16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let head = [0x60, 0, 0, 0, 0, 32, 58, 255];
        let message = [kind, 0, 0, 0, 0x60, 0, 0, 0];
        [&head[..], &address(2), &address(to_last), &message, &address(3), &[option, 1], &is_at].concat()
    };
    let group = [0x33, 0x33, 0xff, 0, 0, 3];
    [
        ("ARP asks", ether(BROADCAST, [8, 6], &arp(1))),
        ("ARP answers", ether(mac(2), [8, 6], &arp(2))),
        ("IPv6 asks", ether(group, [0x86, 0xdd], &icmpv6(3, 135, 1))),
        ("IPv6 answers", ether(mac(2), [0x86, 0xdd], &icmpv6(2, 136, 2))),
    ]
}

#[test]
fn neighbours_of_ipv6_are_found_and_feigned_as_those_of_ipv4_are() {
    let mut nics = network(&[ALL, ALL]);
    nics[1].post(32, 1600);
    // A frame that says itself that it comes from another is dropped, whatever its packet says.
    for (number, (name, frame)) in (1..).zip(neighbours(mac(2), mac(1))) {
        nics[0].send(COMPLETE, &frame);
        assert_eq!(nics[1].received().len(), 0, "{name}");
        assert_eq!(nics[0].count(Count::RefusedSource), number, "{name}");
    }
    // What the packet says is for who reads it: a network is one neighbourhood, and machines of it trust each other or do not.
    for is_at in [mac(1), mac(9)] {
        for (name, frame) in neighbours(mac(1), is_at) {
            nics[0].send(COMPLETE, &frame);
            assert_eq!(nics[1].received().iter().map(|(_, got)| got).collect::<Vec<_>>(), [&frame], "{name}");
        }
    }
}
