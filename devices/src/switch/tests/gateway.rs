//! A tap device on a port, as the kernel behind it sees it: a socket pair that keeps frames apart stands in for it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;

use super::offloads::{ALL, check_segments};
use super::packets::{FORMS, noise, packet};
use super::*;
use crate::switch::tap::Gateway;

const GATEWAY: u8 = 2;

/// A guest, the gateway beside it, and the kernel's end of the tap.
fn network() -> (Nic, Gateway, UnixDatagram) {
    let specs = [PortSpec { mac: mac(1), mtu: 1500 }, PortSpec { mac: mac(GATEWAY), mtu: u16::MAX }];
    let mut plugs = Switch::with_ports("edge", &specs);
    let (kernel, ours) = UnixDatagram::pair().expect("a pair");
    for socket in [&kernel, &ours] {
        socket.set_nonblocking(true).expect("a socket");
    }
    let gateway = Gateway::new(plugs.pop().expect("two"), File::from(OwnedFd::from(ours)));
    let plug = plugs.pop().expect("one");
    let mut driver = GuestDriver::power_on_at(Box::new(Net::new("eth0", plug.clone())), InlineHost::default());
    driver.set_up(ALL);
    let mut guest = Nic { driver, plug, posted: HashMap::new(), next: BUFFERS, offered: 0 };
    guest.post(64, 1526);
    (guest, gateway, kernel)
}

fn taken(kernel: &UnixDatagram) -> Vec<Received> {
    let mut buffer = vec![0; 70_000];
    let mut frames = Vec::new();
    while let Ok(len) = kernel.recv(&mut buffer) {
        frames.push((buffer[..12].to_vec(), buffer[12..len].to_vec()));
    }
    frames
}

#[test]
fn the_kernel_gets_what_it_takes_whole_and_the_rest_cut() {
    for form in FORMS {
        let (mut guest, _gateway, kernel) = network();
        let sent = packet(form, mac(GATEWAY), &noise(20_000));
        guest.send(sent.claim(1400), &sent.bytes);
        let frames = taken(&kernel);
        if form.udp {
            check_segments(&sent, &frames, 1400, false);
            continue;
        }
        let [(header, bytes)] = frames.as_slice() else { panic!("{} frames", frames.len()) };
        assert_eq!((bytes, &header[..10]), (&sent.bytes, &sent.claim(1400)[..10]));
    }
}

#[test]
fn frames_of_the_kernel_reach_the_guest_as_those_of_a_guest_do() {
    let (mut guest, mut gateway, kernel) = network();
    for form in FORMS.into_iter().filter(|form| !form.udp) {
        let mut sent = packet(form, mac(1), &noise(20_000));
        sent.bytes[6..12].copy_from_slice(&mac(GATEWAY));
        kernel.send(&[&sent.claim(1400)[..], &sent.bytes].concat()).expect("room");
        gateway.on_event(0).expect("a device");
        let received = guest.received();
        let [(header, bytes)] = received.as_slice() else { panic!("{} frames", received.len()) };
        assert_eq!((bytes, header[1]), (&sent.bytes, sent.claim(1400)[1]));
        guest.post(32, 1526);
    }
    assert!(guest.driver.interrupts() > 0);
}

#[test]
fn a_device_that_is_full_drops_and_what_it_dropped_is_counted() {
    let (mut guest, gateway, kernel) = network();
    for _ in 0..1000 {
        guest.send(COMPLETE, &frame(mac(GATEWAY), mac(1), &[0; 1400]));
    }
    let there = taken(&kernel).len() as u64;
    let port = gateway.plug().port().expect("a port").snapshot();
    assert!(there < 1000);
    assert_eq!((port.get(Count::ReceivedFrames), port.get(Count::DroppedFull)), (there, 1000 - there));
}

#[test]
fn a_delayed_frame_for_the_gateway_waits_for_its_own_thread() {
    let (mut guest, mut gateway, kernel) = network();
    let delay = LinkChange::Delay { delay_us: 1000, jitter_us: 0 };
    guest.plug.change_link(Direction::Both, delay).expect("it can be");
    guest.send(COMPLETE, &frame(mac(GATEWAY), mac(1), &[7; 46]));
    assert!(taken(&kernel).is_empty());
    let due = gateway.sources().into_iter().find(|source| source.token != 0).expect("a timer");
    crate::worker::wait_readable(due.fd);
    gateway.on_event(due.token).expect("a device");
    assert_eq!(taken(&kernel).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn whatever_the_device_says_nothing_breaks(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (mut guest, mut gateway, kernel) = network();
        kernel.send(&bytes).expect("room");
        let answered = gateway.on_event(0);
        prop_assert!(answered.is_ok());
        guest.received();
        prop_assert!(!guest.driver.needs_reset());
    }
}

#[test]
fn a_gateway_that_leaves_closes_its_device_and_is_nobody_from_then_on() {
    let (mut guest, gateway, kernel) = network();
    let to_it = frame(mac(GATEWAY), mac(1), &[0; 100]);
    guest.send(COMPLETE, &to_it);
    assert_eq!(taken(&kernel).len(), 1);
    drop(gateway);
    // The sender's table is as old as its last frame, and keeps no device open.
    assert!(kernel.send(&[0]).is_err(), "its other end is open");
    guest.send(COMPLETE, &to_it);
    assert_eq!(guest.count(Count::SentToNobody), 1);
}
