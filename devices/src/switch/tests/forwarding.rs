use super::port::MAX_BACKLOG_BYTES;
use super::*;
use crate::testing::{GuestDriver, InlineHost, readable, writable};
use crate::virtio::feature;
use crate::virtio::net::Net;

const RX: usize = 0;
const TX: usize = 1;
const BROADCAST: [u8; 6] = [0xff; 6];

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

fn network(count: u8) -> (Vec<GuestDriver>, Vec<Plug>) {
    let specs: Vec<_> = (1..=count).map(|n| PortSpec { mac: mac(n), mtu: 1500 }).collect();
    let plugs = Switch::with_ports("local", &specs);
    let host = InlineHost::default();
    let guests = plugs
        .iter()
        .map(|plug| {
            let mut guest = GuestDriver::power_on_at(Box::new(Net::new("eth0", plug.clone())), host.clone());
            guest.set_up(!feature::EVENT_IDX);
            guest
        })
        .collect();
    (guests, plugs)
}

fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[0x08, 0x00], payload].concat()
}

fn send(guest: &mut GuestDriver, frame: &[u8]) {
    guest.put(0x1000, &[0; 12]);
    guest.put(0x100c, frame);
    let half = frame.len() as u32 / 2;
    let head = guest.offer(
        TX,
        &[readable(0x1000, 12), readable(0x100c, half), readable(0x100c + u64::from(half), frame.len() as u32 - half)],
    );
    guest.kick(TX);
    assert_eq!(guest.used(TX), [(head, 0)], "the sender's buffer always comes back");
}

fn post(guest: &mut GuestDriver, at: u64) -> u16 {
    let head = guest.offer(RX, &[writable(at, 100), writable(at + 0x800, 1500)]);
    guest.kick(RX);
    head
}

fn received(guest: &GuestDriver, at: u64, len: u32) -> Vec<u8> {
    let first = guest.bytes(at, 100.min(len as usize));
    [first, guest.bytes(at + 0x800, (len as usize).saturating_sub(100))].concat()
}

#[test]
fn a_frame_reaches_the_one_it_is_for_and_nobody_else() {
    let (mut guests, plugs) = network(3);
    let heads: Vec<_> = guests.iter_mut().map(|guest| post(guest, 0x4000)).collect();
    let payload: Vec<u8> = (0..600u32).map(|n| n as u8).collect();
    let sent = frame(mac(2), mac(1), &payload);
    send(&mut guests[0], &sent);
    let used = guests[1].used(RX);
    assert_eq!(used, [(heads[1], 12 + sent.len() as u32)]);
    let got = received(&guests[1], 0x4000, used[0].1);
    assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(got[12..], sent);
    assert_eq!((guests[0].used(RX), guests[2].used(RX)), (vec![], vec![]));
    assert_eq!(guests[1].interrupts(), 1);
    assert_eq!(plugs[1].port().map(|port| port.counters().received_frames()), Some(1));
}

#[test]
fn a_broadcast_reaches_everybody_but_the_sender() {
    let (mut guests, _) = network(3);
    for guest in &mut guests {
        post(guest, 0x4000);
    }
    send(&mut guests[0], &frame(BROADCAST, mac(1), b"who has"));
    assert_eq!(guests.iter_mut().map(|guest| guest.used(RX).len()).collect::<Vec<_>>(), [0, 1, 1]);
}

#[test]
fn a_frame_that_lies_about_its_source_or_its_length_is_dropped_and_counted() {
    let (mut guests, _) = network(2);
    post(&mut guests[1], 0x4000);
    send(&mut guests[0], &frame(mac(2), mac(9), b"spoofed"));
    send(&mut guests[0], &frame(mac(2), mac(1), &[0; 1505]));
    send(&mut guests[0], &[1, 2, 3]);
    assert_eq!((guests[1].used(RX), guests[0].faults()), (vec![], 3));
    send(&mut guests[0], &frame(mac(2), mac(1), &[7; 1500]));
    assert_eq!(guests[1].used(RX).len(), 1, "the longest frame passes");
}

#[test]
fn frames_wait_for_buffers_in_order_and_the_newest_is_dropped_when_too_many_wait() {
    let (mut guests, plugs) = network(2);
    let fit = MAX_BACKLOG_BYTES / 1014;
    for number in 0..fit + 3 {
        let mut payload = [0; 1000];
        payload[..8].copy_from_slice(&(number as u64).to_le_bytes());
        send(&mut guests[0], &frame(mac(2), mac(1), &payload));
    }
    let port = plugs[1].port().expect("a port");
    assert_eq!(port.counters().dropped_frames(), 3);
    for number in 0..fit {
        let head = post(&mut guests[1], 0x4000);
        assert_eq!(guests[1].used(RX), [(head, 1026)]);
        assert_eq!(received(&guests[1], 0x4000, 1026)[26..34], (number as u64).to_le_bytes());
    }
    assert_eq!(port.counters().received_frames(), fit as u64);
}

#[test]
fn a_receiver_with_a_broken_ring_is_down_alone() {
    let (mut guests, plugs) = network(3);
    post(&mut guests[2], 0x4000);
    guests[1].set_avail(RX, 9999);
    send(&mut guests[0], &frame(BROADCAST, mac(1), b"hello"));
    assert_eq!(guests[2].used(RX).len(), 1);
    assert!(guests[1].needs_reset());
    assert!(!guests[0].needs_reset());
    assert_eq!(plugs[1].port().map(|port| port.counters().dropped_frames()), Some(1));
    guests[1].write(0x70, 0);
    guests[1].set_up(!feature::EVENT_IDX);
    post(&mut guests[1], 0x4000);
    send(&mut guests[0], &frame(mac(2), mac(1), b"again"));
    assert_eq!(guests[1].used(RX).len(), 1, "a reset brings it back");
}

#[test]
fn buffers_that_are_too_small_come_back_empty() {
    let (mut guests, _) = network(2);
    let small = guests[1].offer(RX, &[writable(0x4000, 20)]);
    let wrong = guests[1].offer(RX, &[readable(0x4000, 64), writable(0x5000, 1600)]);
    let good = guests[1].offer(RX, &[writable(0x4000, 1600)]);
    guests[1].kick(RX);
    send(&mut guests[0], &frame(mac(2), mac(1), b"hello, this is long enough"));
    assert_eq!(guests[1].used(RX), [(small, 0), (wrong, 0), (good, 52)]);
    assert_eq!(guests[1].faults(), 2);
}

#[test]
fn a_reset_gives_the_receive_queue_back_and_drops_what_waited() {
    let (mut guests, plugs) = network(2);
    send(&mut guests[0], &frame(mac(2), mac(1), b"early"));
    guests[1].write(0x70, 0);
    assert_eq!(plugs[1].port().map(|port| port.counters().dropped_frames()), Some(1));
    send(&mut guests[0], &frame(mac(2), mac(1), b"to nobody"));
    guests[1].set_up(!feature::EVENT_IDX);
    post(&mut guests[1], 0x4000);
    assert_eq!(guests[1].used(RX), []);
}
