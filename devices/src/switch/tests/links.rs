//! Links that delay, lose, limit and cut, as drivers see them, and captures as tcpdump sees them.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::offloads::{ALL, check_segments};
use super::packets::{FORMS, noise, packet};
use super::*;
use crate::switch::capture;
use crate::virtio::device::VirtioDevice;

const DELAY: LinkChange = LinkChange::Delay { delay_us: 60_000_000, jitter_us: 0 };
const MINUTE: Duration = Duration::from_secs(60);

fn pair() -> [Nic; 2] {
    let mut nics = network(&[ALL, ALL]);
    nics.iter_mut().for_each(|nic| nic.post(64, 1526));
    nics.try_into().ok().expect("two")
}

fn hello(from: u8, number: u8) -> Vec<u8> {
    frame(mac(3 - from), mac(from), &[number; 46])
}

/// Numbers of the frames that came.
fn numbers(nic: &mut Nic) -> Vec<u8> {
    nic.received().iter().map(|(_, frame)| frame[14]).collect()
}

fn waiting(nic: &Nic) -> u64 {
    nic.plug.port().expect("a port").snapshot().waiting_frames
}

#[test]
fn a_delayed_frame_arrives_when_its_time_has_come_and_not_before() {
    let [mut a, mut b] = pair();
    a.plug.change_link(Direction::Both, DELAY).expect("it can be");
    a.send(COMPLETE, &hello(1, 1));
    b.send(COMPLETE, &hello(2, 2));
    a.driver.run();
    assert_eq!((numbers(&mut a), numbers(&mut b), waiting(&a), waiting(&b)), (vec![], vec![], 1, 1));
    for nic in [&a, &b] {
        nic.plug.come_due(Instant::now() + MINUTE / 2);
        assert_eq!(waiting(nic), 1);
        nic.plug.come_due(Instant::now() + MINUTE);
    }
    assert_eq!((numbers(&mut a), numbers(&mut b)), (vec![2], vec![1]));
    assert!(a.driver.interrupts() > 0 && b.driver.interrupts() > 0, "both are told");
    assert_eq!((b.count(Count::ReceivedFrames), waiting(&b)), (1, 0));
}

#[test]
fn both_ends_of_a_network_may_be_slow_and_what_arrives_waits_for_the_other_end() {
    let [mut a, b] = pair();
    for nic in [&a, &b] {
        nic.plug.change_link(Direction::Both, DELAY).expect("it can be");
    }
    a.send(COMPLETE, &hello(1, 1));
    b.plug.come_due(Instant::now() + MINUTE);
    assert_eq!(waiting(&b), 1, "it has passed the first");
    b.plug.come_due(Instant::now() + 2 * MINUTE);
    assert_eq!((waiting(&b), b.count(Count::ReceivedFrames)), (0, 1));
}

#[test]
fn the_timer_of_a_port_wakes_its_own_worker() {
    let [mut a, mut b] = pair();
    a.plug.change_link(Direction::Sent, LinkChange::Delay { delay_us: 1000, jitter_us: 0 }).expect("it can be");
    a.send(COMPLETE, &hello(1, 1));
    let timer = b.plug.port().and_then(|port| port.timer()).expect("a timer");
    crate::worker::wait_readable(std::os::fd::AsRawFd::as_raw_fd(timer));
    b.driver.run();
    assert_eq!(numbers(&mut b), [1]);
}

#[test]
fn a_healed_link_brings_what_was_under_way_first_and_overtakes_nothing() {
    let [mut a, mut b] = pair();
    a.plug.change_link(Direction::Both, DELAY).expect("it can be");
    for number in 1..4 {
        a.send(COMPLETE, &hello(1, number));
    }
    a.plug.change_link(Direction::Both, LinkChange::Heal).expect("it can be");
    // The receiver's thread has not looked yet.
    a.send(COMPLETE, &hello(1, 4));
    b.driver.run();
    assert_eq!(numbers(&mut b), [1, 2, 3, 4]);
    a.send(COMPLETE, &hello(1, 5));
    assert_eq!(numbers(&mut b), [5], "the direct way is open again");

    // The same at the receiver's end.
    b.plug.change_link(Direction::Both, DELAY).expect("it can be");
    a.send(COMPLETE, &hello(1, 6));
    b.driver.run();
    assert_eq!((numbers(&mut b), waiting(&b)), (vec![], 1));
    b.plug.change_link(Direction::Both, LinkChange::Heal).expect("it can be");
    a.send(COMPLETE, &hello(1, 7));
    b.driver.run();
    assert_eq!(numbers(&mut b), [6, 7]);
}

#[test]
fn a_large_segment_on_a_slow_link_is_frames_of_the_mtu_with_finished_checksums() {
    for form in FORMS {
        let [mut a, mut b] = pair();
        a.plug.change_link(Direction::Sent, DELAY).expect("it can be");
        let sent = packet(form, mac(2), &noise(20_000));
        a.send(sent.claim(1400), &sent.bytes);
        assert_eq!((waiting(&b), a.count(Count::SentFrames)), (15, 15));
        b.plug.come_due(Instant::now() + MINUTE);
        check_segments(&sent, &b.received(), 1400, true);
    }
}

#[test]
fn what_links_lose_is_counted_by_who_lost_it_and_why() {
    let [mut a, mut b] = pair();
    let change = |nic: &Nic, direction, change| nic.plug.change_link(direction, change).expect("it can be");
    let hundred = |nic: &mut Nic, to: &mut Nic| {
        for number in 0..100 {
            nic.send(COMPLETE, &hello(1, number));
            to.driver.run();
            let came = to.received().len();
            to.post(came, 1526);
        }
    };
    change(&a, Direction::Sent, LinkChange::Loss { ppm: 500_000 });
    hundred(&mut a, &mut b);
    let lost = a.count(Count::LostSent);
    assert!((30..70).contains(&lost), "{lost}");
    assert_eq!((a.count(Count::SentFrames), b.count(Count::ReceivedFrames)), (100 - lost, 100 - lost));
    change(&a, Direction::Both, LinkChange::Heal);

    change(&b, Direction::Received, LinkChange::Loss { ppm: 1_000_000 });
    hundred(&mut a, &mut b);
    assert_eq!(b.count(Count::LostReceived), 100);
    change(&b, Direction::Both, LinkChange::Cut);
    hundred(&mut a, &mut b);
    assert_eq!((b.count(Count::CutReceived), b.count(Count::LostReceived)), (100, 100));
    b.send(COMPLETE, &hello(2, 1));
    assert_eq!((b.count(Count::CutSent), b.count(Count::SentFrames)), (1, 0));
    change(&b, Direction::Both, LinkChange::Heal);

    // A byte in 8 ms: 128 KiB wait, and the one that was let in.
    change(&a, Direction::Sent, LinkChange::Rate { bits_per_second: Some(1000) });
    for _ in 0..120 {
        a.send(COMPLETE, &frame(mac(2), mac(1), &[0; 1486]));
    }
    assert_eq!(waiting(&b) + a.count(Count::QueueSent), 120);
    assert!((80..95).contains(&waiting(&b)), "{}", waiting(&b));
    assert_eq!(a.driver.faults() + b.driver.faults(), 0, "no guest's fault");
}

#[test]
fn a_line_that_is_full_drops_the_newest_and_counts_it() {
    let [mut a, b] = pair();
    a.plug.change_link(Direction::Sent, DELAY).expect("it can be");
    let sent = packet(FORMS[0], mac(2), &noise(60_000));
    for _ in 0..100 {
        a.send(sent.claim(1400), &sent.bytes);
    }
    let (waits, dropped) = (waiting(&b), b.count(Count::LineFull));
    assert_eq!(waits + dropped, 100 * 43);
    assert!((2_500..3_000).contains(&waits), "{waits}");
}

#[test]
fn frames_under_way_stand_still_with_their_receiver_and_are_saved_with_it() {
    let [mut a, mut b] = pair();
    a.plug.change_link(Direction::Sent, DELAY).expect("it can be");
    b.plug.change_link(Direction::Received, LinkChange::Loss { ppm: 1 }).expect("it can be");
    a.send(COMPLETE, &hello(1, 1));
    let saved = b.driver.transport().save().expect("a device");
    b.plug.come_due(Instant::now() + MINUTE / 2);

    let specs = [1, 2].map(|last| PortSpec { mac: mac(last), mtu: 1500 });
    let elsewhere = Switch::with_ports("local", &specs).pop().expect("two");
    let mut net = Net::new("eth0", elsewhere.clone());
    net.restore(saved.device()).expect("its own state");
    assert_eq!(net.save(), *saved.device());
    let port = elsewhere.port().expect("a port");
    assert_eq!((port.snapshot().waiting_frames, port.link_faults().1.loss_ppm), (1, 1));
    elsewhere.come_due(Instant::now() + 2 * MINUTE);
    assert_eq!(port.snapshot().waiting_frames, 1, "it stands still until a driver goes on");

    b.driver.run();
    b.plug.come_due(Instant::now() + MINUTE);
    assert_eq!(numbers(&mut b), [1], "the one that was saved goes on, too");
    b.driver.write(0x70, 0);
    a.send(COMPLETE, &hello(1, 2));
    assert_eq!((waiting(&b), b.count(Count::DroppedUnplugged)), (0, 1), "nobody is there");
}

#[test]
fn what_was_under_way_to_a_guest_whose_ring_broke_is_not_saved() {
    let [mut a, mut b] = pair();
    a.plug.change_link(Direction::Sent, DELAY).expect("it can be");
    a.send(COMPLETE, &hello(1, 1));
    b.driver.set_avail(RX, 0x7000);
    b.driver.kick(RX);
    a.plug.change_link(Direction::Sent, LinkChange::Heal).expect("it can be");
    a.send(COMPLETE, &hello(1, 2));
    b.plug.come_due(Instant::now());
    assert!(b.driver.needs_reset());
    a.plug.change_link(Direction::Sent, DELAY).expect("it can be");
    a.send(COMPLETE, &hello(1, 3));
    assert_eq!(waiting(&b), 1, "its machine may yet reset it");

    let saved = b.driver.transport().save().expect("a device");
    let elsewhere = Switch::with_ports("local", &[PortSpec { mac: mac(2), mtu: 1500 }]).remove(0);
    Net::new("eth0", elsewhere).restore(saved.device()).expect("its own state");
    b.driver.write(0x70, 0);
    assert_eq!((waiting(&b), b.count(Count::DroppedUnplugged)), (0, 1));
}

#[test]
fn tcpdump_reads_what_was_captured_and_finds_checksums_right() {
    let [mut a, mut b] = pair();
    let all = a.plug.capture(true).expect("the first");
    let own = b.plug.capture(false).expect("the second");
    for form in FORMS {
        let sent = packet(form, mac(2), &noise(3_000));
        a.send(sent.claim(1400), &sent.bytes);
        let came = b.received().len();
        b.post(came, 1526);
    }
    b.send(COMPLETE, &hello(2, 1));
    b.plug.change_link(Direction::Received, LinkChange::Cut).expect("it can be");
    a.send(COMPLETE, &hello(1, 1));
    b.driver.run();
    let (all_frames, own_frames) = (all.take(Duration::ZERO), own.take(Duration::ZERO));
    assert_eq!((all_frames.len(), own_frames.len()), (6 * 3 + 2, 6 * 3 + 1), "a cut receiver sees nothing");
    a.plug.forget_capture(&all);
    b.plug.forget_capture(&own);
    b.plug.change_link(Direction::Both, LinkChange::Heal).expect("it can be");
    a.send(COMPLETE, &hello(1, 1));
    assert_eq!((all.take(Duration::ZERO).len(), all.missed()), (0, 0));

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("all.pcap");
    let whole: Vec<u8> = std::iter::once(capture::head()).chain(all_frames).flatten().collect();
    std::fs::write(&file, whole).expect("a file");
    let said = Command::new("tcpdump").arg("-nvvr").arg(&file).stdin(Stdio::null()).output();
    let said = said.expect("tcpdump is here: tools/setup");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let right = text.matches("(correct)").count() + text.matches("[udp sum ok]").count();
    assert_eq!((right, text.matches("incorrect").count() + text.matches("bad").count()), (18, 0), "{text}");
}

#[test]
fn a_capture_that_nobody_reads_is_bounded_and_there_are_only_so_many() {
    let [mut a, _b] = pair();
    let capture = a.plug.capture(true).expect("the first");
    let sent = packet(FORMS[0], mac(2), &noise(60_000));
    for _ in 0..200 {
        a.send(sent.claim(1400), &sent.bytes);
    }
    let frames = capture.take(Duration::ZERO);
    assert!(frames.iter().map(Vec::len).sum::<usize>() <= capture::MAX_WAITING_BYTES);
    assert_eq!(frames.len() as u64 + capture.missed(), 200 * 43);
    assert!(capture.missed() > 0);
    let more: Vec<_> = (1..MAX_CAPTURES).map(|_| a.plug.capture(false).expect("one more")).collect();
    assert!(a.plug.capture(false).is_err_and(|error| error.contains("16 captures")));
    more.iter().for_each(|capture| a.plug.forget_capture(capture));
    assert!(a.plug.capture(false).is_ok());
}
