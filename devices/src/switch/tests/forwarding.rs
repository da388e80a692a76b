//! Who gets a frame, what happens to it when nobody can, and that it is counted.

use super::*;
use crate::switch::port::{MAX_BACKLOG_BYTES, WAITING_BYTES};
use crate::virtio::net::F_MRG_RXBUF;

/// Every kick and every signal is seen.
const ALL: u64 = !feature::EVENT_IDX;

fn post(nic: &mut Nic, at: u64) -> u16 {
    let head = nic.driver.offer(RX, &two_buffers(at));
    nic.driver.kick(RX);
    head
}

fn bytes_at(nic: &Nic, at: u64, len: u32) -> Vec<u8> {
    let first = nic.driver.bytes(at, 100.min(len as usize));
    [first, nic.driver.bytes(at + 0x800, (len as usize).saturating_sub(100))].concat()
}

#[test]
fn a_frame_reaches_the_one_it_is_for_and_nobody_else() {
    let mut nics = network(&[ALL; 3]);
    let heads: Vec<_> = nics.iter_mut().map(|nic| post(nic, 0x4000)).collect();
    let payload: Vec<u8> = (0..600u32).map(|n| n as u8).collect();
    let sent = frame(mac(2), mac(1), &payload);
    nics[0].send(COMPLETE, &sent);
    let used = nics[1].driver.used(RX);
    assert_eq!(used, [(heads[1], 12 + sent.len() as u32)]);
    let got = bytes_at(&nics[1], 0x4000, used[0].1);
    assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(got[12..], sent);
    assert_eq!((nics[0].driver.used(RX), nics[2].driver.used(RX)), (vec![], vec![]));
    assert_eq!(nics[1].driver.interrupts(), 1);
    assert_eq!(nics[1].count(Count::ReceivedFrames), 1);
    assert_eq!((nics[0].count(Count::SentBytes), nics[1].count(Count::ReceivedBytes)), (614, 614));
}

#[test]
fn a_broadcast_reaches_everybody_but_the_sender() {
    let mut nics = network(&[ALL; 3]);
    for nic in &mut nics {
        post(nic, 0x4000);
    }
    nics[0].send(COMPLETE, &frame(BROADCAST, mac(1), b"who has"));
    assert_eq!(nics.iter_mut().map(|nic| nic.driver.used(RX).len()).collect::<Vec<_>>(), [0, 1, 1]);
}

#[test]
fn a_frame_for_nobody_or_for_its_sender_is_counted() {
    let mut nics = network(&[ALL; 2]);
    nics[0].send(COMPLETE, &frame(mac(7), mac(1), b"anyone?"));
    nics[0].send(COMPLETE, &frame(mac(1), mac(1), b"me"));
    assert_eq!((nics[0].count(Count::SentToNobody), nics[0].count(Count::SentFrames)), (2, 2));
}

#[test]
fn a_frame_that_lies_about_its_source_or_its_length_is_dropped_and_counted() {
    let mut nics = network(&[ALL; 2]);
    post(&mut nics[1], 0x4000);
    nics[0].send(COMPLETE, &frame(mac(2), mac(9), b"spoofed"));
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), &[0; 1505]));
    nics[0].send(COMPLETE, &[1, 2, 3]);
    assert_eq!((nics[1].driver.used(RX), nics[0].driver.faults()), (vec![], 3));
    let counts = [Count::RefusedSource, Count::RefusedLength, Count::RefusedHeaders, Count::SentFrames];
    assert_eq!(counts.map(|count| nics[0].count(count)), [1, 1, 1, 0]);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), &[7; 1500]));
    assert_eq!(nics[1].driver.used(RX).len(), 1, "the longest frame passes");
    post(&mut nics[1], 0x4000);
    let tagged = [&mac(2)[..], &mac(1), &[0x81, 0x00, 0, 5], &[8, 0], &[7; 1500]].concat();
    nics[0].send(COMPLETE, &tagged);
    assert_eq!(nics[1].driver.used(RX).len(), 1, "with a tag, too");
}

#[test]
fn frames_wait_for_buffers_in_order_and_the_newest_is_dropped_when_too_many_wait() {
    let mut nics = network(&[ALL; 2]);
    let fit = (MAX_BACKLOG_BYTES / (1014 + WAITING_BYTES)) as usize;
    for number in 0..fit + 3 {
        let mut payload = [0; 1000];
        payload[..8].copy_from_slice(&(number as u64).to_le_bytes());
        nics[0].send(COMPLETE, &frame(mac(2), mac(1), &payload));
    }
    let snapshot = nics[1].plug.port().expect("a port").snapshot();
    assert_eq!((snapshot.get(Count::DroppedFull), snapshot.waiting_frames), (3, fit as u64));
    assert_eq!(snapshot.offered_frames(), nics[0].count(Count::SentFrames));
    for number in 0..fit {
        let head = post(&mut nics[1], 0x4000);
        assert_eq!(nics[1].driver.used(RX), [(head, 1026)]);
        assert_eq!(bytes_at(&nics[1], 0x4000, 1026)[26..34], (number as u64).to_le_bytes());
    }
    assert_eq!(nics[1].count(Count::ReceivedFrames), fit as u64);
}

#[test]
fn a_receiver_with_a_broken_ring_is_down_alone() {
    let mut nics = network(&[ALL; 3]);
    post(&mut nics[2], 0x4000);
    nics[1].driver.set_avail(RX, 9999);
    nics[0].send(COMPLETE, &frame(BROADCAST, mac(1), b"hello"));
    assert_eq!(nics[2].driver.used(RX).len(), 1);
    assert!(nics[1].driver.needs_reset());
    assert!(!nics[0].driver.needs_reset());
    nics[1].driver.kick(RX);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"still broken"));
    assert_eq!(nics[1].count(Count::DroppedBroken), 2);
    nics[1].driver.write(0x70, 0);
    nics[1].driver.set_up(ALL);
    post(&mut nics[1], 0x4000);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"again"));
    assert_eq!(nics[1].driver.used(RX).len(), 1, "a reset brings it back");
}

#[test]
fn buffers_that_are_too_small_come_back_empty() {
    let mut nics = network(&[ALL, ALL & !F_MRG_RXBUF]);
    let receiver = &mut nics[1].driver;
    let small = receiver.offer(RX, &[writable(0x4000, 20)]);
    let wrong = receiver.offer(RX, &[readable(0x4000, 64), writable(0x5000, 1600)]);
    let good = receiver.offer(RX, &[writable(0x4000, 1600)]);
    receiver.kick(RX);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"hello, this is long enough"));
    assert_eq!(nics[1].driver.used(RX), [(small, 0), (wrong, 0), (good, 52)]);
    assert_eq!(nics[1].driver.faults(), 2);
}

#[test]
fn a_reset_gives_the_receive_queue_back_and_drops_what_waited() {
    let mut nics = network(&[ALL; 2]);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"early"));
    nics[1].driver.write(0x70, 0);
    assert_eq!(nics[1].count(Count::DroppedUnplugged), 1);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"to nobody"));
    assert_eq!(nics[1].count(Count::DroppedUnplugged), 2);
    nics[1].driver.set_up(ALL);
    post(&mut nics[1], 0x4000);
    assert_eq!(nics[1].driver.used(RX), []);
}

#[test]
fn what_waits_stays_through_a_rest_for_a_snapshot() {
    let mut nics = network(&[ALL; 2]);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"waits"));
    assert!(nics[1].driver.transport().save().is_some());
    let head = post(&mut nics[1], 0x4000);
    assert_eq!(nics[1].driver.used(RX), [(head, 31)]);
    assert_eq!(nics[1].plug.port().expect("a port").snapshot().dropped_frames(), 0);
}

#[test]
fn what_comes_while_a_nic_is_held_waits_for_it_and_goes_with_a_reset() {
    let mut nics = network(&[ALL; 2]);
    let head = post(&mut nics[1], 0x4000);
    nics[1].driver.transport().hold();
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"waits"));
    assert_eq!(nics[1].driver.used(RX), []);
    nics[1].driver.transport().release();
    nics[1].driver.run();
    assert_eq!(nics[1].driver.used(RX), [(head, 31)]);
    nics[1].driver.transport().hold();
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"goes"));
    nics[1].driver.write(0x70, 0);
    nics[0].send(COMPLETE, &frame(mac(2), mac(1), b"to nobody"));
    assert_eq!(nics[1].count(Count::DroppedUnplugged), 2);
}

#[test]
fn one_burst_is_one_signal_for_each_receiver() {
    let mut nics = network(&[ALL; 3]);
    nics[1].post(40, 1600);
    nics[2].post(40, 1600);
    let bytes = [&COMPLETE[..], &frame(BROADCAST, mac(1), b"a burst")].concat();
    nics[0].driver.put(0x1000, &bytes);
    for _ in 0..30 {
        nics[0].driver.offer(TX, &[readable(0x1000, bytes.len() as u32)]);
    }
    nics[0].driver.kick(TX);
    assert_eq!(nics.iter().map(|nic| nic.driver.interrupts()).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!((nics[1].received().len(), nics[2].received().len()), (30, 30));
}

#[test]
fn a_burst_longer_than_a_turn_is_served_to_its_end() {
    let mut nics = network(&[ALL; 2]);
    let bytes = [&COMPLETE[..], &frame(mac(2), mac(1), b"long")].concat();
    nics[0].driver.put(0x1000, &bytes);
    for _ in 0..256 {
        nics[0].driver.offer(TX, &[readable(0x1000, bytes.len() as u32)]);
    }
    nics[0].driver.kick(TX);
    nics[0].driver.offer(TX, &[readable(0x1000, bytes.len() as u32)]);
    nics[0].driver.kick(TX);
    assert_eq!((nics[0].count(Count::SentFrames), nics[0].driver.used(TX).len()), (257, 257));
}
