use labyard_spec::link::{Direction, LinkChange};

use super::*;
use crate::switch::counters::Count;
use crate::switch::{PortSpec, Switch};
use crate::testing::{GuestDriver, InlineHost, readable, writable};
use crate::virtio::feature;
use crate::virtio::transport::mmio::MmioTransport;

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
/// Every kick and every signal is seen.
const ALL: u64 = !feature::EVENT_IDX;
const STATUS_REGISTER: u32 = 0x70;
const FEATURES_OK: u32 = 8;

fn pair(mask: u64) -> ([GuestDriver; 2], [Link; 2], [Plug; 2]) {
    let spec = |last| PortSpec { mac: [2, 0, 0, 0, 0, last], mtu: 1500 };
    let plugs = Switch::with_ports("local", &[spec(1), spec(2)]);
    let host = InlineHost::default();
    let attach = |plug: &Plug| {
        let net = Net::new("eth0", plug.clone());
        let link = net.link();
        let mut guest = GuestDriver::power_on_at(Box::new(net), host.clone());
        guest.set_up(mask);
        (guest, link)
    };
    let ((a, a_link), (b, b_link)) = (attach(&plugs[0]), attach(&plugs[1]));
    ([a, b], [a_link, b_link], plugs.try_into().ok().expect("two plugs"))
}

/// Puts a complete frame for guest 2 where it can be offered from.
fn put_frame(guest: &GuestDriver) -> u32 {
    let frame = [&[0; 12][..], &[2, 0, 0, 0, 0, 2], &[2, 0, 0, 0, 0, 1], &[8, 0], b"hello"].concat();
    guest.put(0x1000, &frame);
    frame.len() as u32
}

fn send(guest: &mut GuestDriver) {
    let len = put_frame(guest);
    guest.offer(TX, &[readable(0x1000, len)]);
    guest.kick(TX);
    assert_eq!(guest.used(TX).len(), 1);
}

fn command(guest: &mut GuestDriver, bytes: &[u8]) -> (u32, u8) {
    guest.put(0x1000, bytes);
    guest.put(0x2000, &[0xee]);
    guest.offer(CONTROL, &[readable(0x1000, bytes.len() as u32), writable(0x2000, 1)]);
    guest.kick(CONTROL);
    let [(_, written)] = guest.used(CONTROL)[..] else { panic!("a command comes back") };
    (written, guest.bytes(0x2000, 1)[0])
}

fn set_offloads(guest: &mut GuestDriver, offloads: u64) -> (u32, u8) {
    command(guest, &[&[5, 0][..], &offloads.to_le_bytes()].concat())
}

#[test]
fn the_configuration_tells_address_link_and_mtu() {
    let ([mut guest, _], ..) = pair(ALL);
    assert_eq!(guest.config(0, 12), [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 0x05]);
    assert_eq!(guest.transport().info().features, FEATURES);
}

#[test]
fn features_that_need_another_are_refused_without_it() {
    for (feature, needed, why) in NEEDS {
        let mut guest = GuestDriver::power_on(Box::new(sample()));
        guest.negotiate(feature | feature::COMMON);
        assert_eq!(guest.read(STATUS_REGISTER) & FEATURES_OK, 0, "{why}");
        assert_eq!(guest.faults(), 1, "{why}");
        guest.write(STATUS_REGISTER, 0);
        guest.negotiate(feature | needed | feature::COMMON);
        assert_eq!(guest.read(STATUS_REGISTER) & FEATURES_OK, FEATURES_OK, "{why}");
    }
}

#[test]
fn a_driver_without_control_queue_does_not_set_it_up() {
    let mut guest = GuestDriver::power_on(Box::new(sample()));
    guest.negotiate(!(F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS | F_GUEST_ANNOUNCE));
    guest.set_up_queue(RX);
    guest.set_up_queue(TX);
    guest.write(STATUS_REGISTER, 0xf);
    guest.run();
    assert!(!guest.needs_reset());
    let len = put_frame(&guest);
    guest.offer(TX, &[readable(0x1000, len)]);
    guest.kick(TX);
    assert_eq!(guest.used(TX).len(), 1);
    guest.write(STATUS_REGISTER, 0);
    guest.negotiate(!0);
    guest.set_up_queue(TX);
    guest.write(STATUS_REGISTER, 0xf);
    assert!(guest.needs_reset(), "the receive queue is not left out");
}

#[test]
fn a_control_queue_that_was_not_accepted_is_not_served() {
    let ([mut guest, _], ..) = pair(ALL & !(F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS | F_GUEST_ANNOUNCE));
    guest.offer(CONTROL, &[readable(0x1000, 10), writable(0x2000, 1)]);
    guest.write(0x50, CONTROL as u32);
    guest.run();
    assert_eq!(guest.used(CONTROL), []);
}

#[test]
fn the_driver_turns_offloads_off_and_on_while_it_works() {
    let ([mut a, mut b], ..) = pair(ALL);
    // A UDP datagram of 1 byte whose checksum is left undone.
    let mut frame = vec![1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([172, 16, 0, 1, 172, 16, 0, 2, 0, 9, 0, 9, 0, 9, 0x58, 0x33, 0x61]);
    a.put(0x1000, &frame);
    let mut flags = |b: &mut GuestDriver| {
        b.offer(RX, &[writable(0x4000, 1600)]);
        b.kick(RX);
        a.offer(TX, &[readable(0x1000, frame.len() as u32)]);
        a.kick(TX);
        assert_eq!(b.used(RX).len(), 1);
        b.bytes(0x4000, 1)[0]
    };
    assert_eq!(flags(&mut b), 1, "left undone");
    assert_eq!(set_offloads(&mut b, 0), (1, 0));
    assert_eq!(flags(&mut b), 0, "finished");
    assert!(b.transport().save().is_some());
    assert_eq!(flags(&mut b), 0, "a rest for a snapshot changes nothing");
    assert_eq!(set_offloads(&mut b, F_GUEST_CSUM), (1, 0));
    assert_eq!(flags(&mut b), 1);
    set_offloads(&mut b, 0);
    b.write(STATUS_REGISTER, 0);
    b.set_up(ALL);
    assert_eq!(flags(&mut b), 1, "a reset forgets");
}

#[test]
fn commands_that_make_no_sense_are_answered_with_an_error() {
    let ([mut guest, _], ..) = pair(ALL & !F_GUEST_USO4);
    let set = |offloads: u64| [&[5, 0][..], &offloads.to_le_bytes()].concat();
    let cases = [
        ("nothing", vec![]),
        ("half a header", vec![5]),
        ("a header alone", vec![5, 0]),
        ("nine bytes", set(0)[..9].to_vec()),
        ("eleven bytes", [set(0), vec![0]].concat()),
        ("promiscuous mode, which was not offered", vec![0, 0, 1]),
        ("another hardware address", vec![1, 1, 2, 0, 0, 0, 0, 9]),
        ("several queues", vec![4, 0, 2, 0]),
        ("an unknown command", [vec![5, 1], vec![0; 8]].concat()),
        ("an unknown class", vec![0xff, 0xff]),
        ("an offload of the other direction", set(F_HOST_TSO4)),
        ("an offload that was not accepted", set(F_GUEST_CSUM | F_GUEST_USO4)),
        ("all offloads", set(u64::MAX)),
    ];
    for (number, (name, bytes)) in (1..).zip(cases) {
        assert_eq!(command(&mut guest, &bytes), (1, 1), "{name}");
        assert_eq!(guest.faults(), number, "{name}");
    }
    guest.put(0x1000, &set(0));
    let head = guest.offer(CONTROL, &[readable(0x1000, 10)]);
    guest.kick(CONTROL);
    assert_eq!(guest.used(CONTROL), [(head, 0)], "no room for an answer");
    assert_eq!(set_offloads(&mut guest, F_GUEST_CSUM), (1, 0), "it still listens");
}

#[test]
fn a_command_cut_into_bytes_is_read() {
    let ([mut guest, _], ..) = pair(ALL);
    guest.put(0x1000, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let mut buffers: Vec<_> = (0..10).map(|at| readable(0x1000 + at, 1)).collect();
    buffers.push(writable(0x2000, 1));
    guest.put(0x2000, &[0xee]);
    guest.offer(CONTROL, &buffers);
    guest.kick(CONTROL);
    assert_eq!((guest.used(CONTROL).len(), guest.bytes(0x2000, 1)), (1, vec![0]));
}

#[test]
fn a_pulled_cable_is_told_to_the_guest_and_stops_frames_both_ways() {
    let ([mut a, mut b], links, plugs) = pair(ALL);
    let status = |guest: &mut GuestDriver| guest.config(6, 2);
    for head in 0..4 {
        b.offer(RX, &[writable(0x4000 + head * 0x800, 1600)]);
    }
    b.kick(RX);
    links[1].set(false);
    assert_eq!((status(&mut b), b.interrupts(), b.read(0x60)), (vec![0, 0], 1, 2), "a configuration interrupt");
    assert_eq!(b.read(0xfc), 1, "another generation");
    links[1].set(false);
    assert_eq!(b.interrupts(), 1, "it was down already");
    send(&mut a);
    links[0].set(false);
    send(&mut a);
    let counts = |plug: &Plug| plug.port().map(|port| port.snapshot()).expect("a port");
    assert_eq!((b.used(RX), counts(&plugs[1]).get(Count::DroppedLink)), (vec![], 1));
    assert_eq!((counts(&plugs[0]).get(Count::RefusedLink), counts(&plugs[0]).get(Count::SentFrames)), (1, 1));
    b.write(STATUS_REGISTER, 0);
    b.set_up(ALL);
    assert_eq!(status(&mut b), [0, 0], "a reset does not plug cables");
    b.offer(RX, &[writable(0x4000, 1600)]);
    b.kick(RX);
    links.iter().for_each(|link| link.set(true));
    assert_eq!(status(&mut b), [1, 0]);
    send(&mut a);
    assert_eq!(b.used(RX).len(), 1);
    assert_eq!(a.faults(), 0, "a pulled cable is not the guest's fault");
}

#[test]
fn saved_offloads_and_links_come_back() {
    let ([mut guest, _], [link, _], _) = pair(ALL);
    set_offloads(&mut guest, F_GUEST_CSUM);
    link.set(false);
    let state = guest.transport().save().expect("a device").device().clone();
    let mut net = sample();
    net.restore(&state).expect("its own state");
    assert_eq!((net.offloads, net.plug.port().map(|port| port.is_link_up())), (Some(F_GUEST_CSUM), Some(false)));
    assert_eq!(net.save(), state);
    // Offloads, a link that is up, a driver that goes on, links without faults; and a frame that waits.
    let head = |up: u8, goes_on: u8| [&[0; 8][..], &[up, goes_on], &[0; 58]].concat();
    let frame = |kind: u8, next: u32, len: u32, bytes: &[u8]| {
        [&[kind][..], &next.to_le_bytes(), &[0; 8], &len.to_le_bytes(), bytes].concat()
    };
    let whole = [0; 30];
    for kind in 0..3 {
        let bytes = [head(1, 1), frame(kind, 0, 30, &whole)].concat();
        assert!(sample().restore(&DeviceState { bytes, ..state.clone() }).is_ok());
    }
    for bytes in [
        vec![],
        vec![0; 8],
        head(2, 0),
        head(1, 2),
        head(1, 1)[..67].to_vec(),
        [&head(1, 1)[..67], &[2]].concat(), // neither cut nor not
        [head(1, 1), vec![0]].concat(),
        [head(1, 1), frame(0, 0, 30, &[])].concat(),
        [head(1, 1), frame(0, 1, 30, &whole)].concat(), // its first segment is behind the last
        [head(1, 1), frame(0, 0, 30, &[0xff; 30])].concat(),
        [head(1, 1), frame(1, 0, 30, &[0xff; 30])].concat(),
        [head(1, 1), frame(3, 0, 30, &whole)].concat(),
        [head(1, 0), frame(0, 0, 30, &whole)].concat(),
        [head(1, 0), frame(2, 0, 30, &whole)].concat(),
        [head(1, 1), frame(0, 0, u32::MAX, &whole)].concat(),
    ] {
        let refused = sample().restore(&DeviceState { bytes: bytes.clone(), ..state.clone() });
        assert!(refused.is_err(), "{bytes:?}");
    }
    assert!(net.restore(&DeviceState { version: 1, ..state }).is_err());
}

#[test]
fn what_is_on_its_way_to_a_driver_whose_ring_is_broken_is_not_saved() {
    let ([mut a, mut b], _, [_, plug]) = pair(ALL);
    send(&mut a); // it waits for a buffer
    let change = LinkChange::Delay { delay_us: 60_000_000, jitter_us: 0 };
    plug.change_link(Direction::Received, change).expect("a minute can be");
    send(&mut a);
    b.set_avail(RX, 0x7000);
    b.kick(RX);
    assert!(b.needs_reset());
    let state = b.transport().save().expect("a device").device().clone();
    sample().restore(&state).expect("its own state");
}

#[test]
fn a_driver_that_goes_on_elsewhere_is_asked_once_to_tell_its_network() {
    let ([_, mut b], ..) = pair(ALL);
    assert_eq!(command(&mut b, &[3, 0]), (1, 0), "nobody asked");
    let state = b.transport().save().expect("a device");
    assert_eq!(b.config(6, 2), [1, 0], "it has not moved");
    let elsewhere = |mask| {
        let mut guest = GuestDriver::power_on(Box::new(sample()));
        guest.set_up(mask);
        let state = if mask == ALL { &state } else { &guest.transport().save().expect("a device") };
        let line = crate::testing::Recorder::default();
        let host = Arc::new(InlineHost::default());
        let mut restored = MmioTransport::new(Box::new(sample()), guest.memory().clone(), Box::new(line.clone()), host)
            .expect("eventfds");
        restored.restore(state).expect("its own state");
        let mut status = [0; 2];
        restored.info().config.read(6, &mut status);
        (status, line.edges() > 0)
    };
    assert_eq!(elsewhere(ALL), ([3, 0], true));
    assert_eq!(elsewhere(ALL & !F_GUEST_ANNOUNCE), ([1, 0], false));

    let mut asked = sample();
    asked.restore(state.device()).expect("its own state");
    let mut guest = GuestDriver::attach(Box::new(asked));
    assert_eq!(guest.config(6, 2), [3, 0]);
    assert_eq!(command(&mut guest, &[3, 0, 0]).1, 1);
    assert_eq!(command(&mut guest, &[3, 0]), (1, 0));
    assert_eq!(guest.config(6, 2), [1, 0]);
}

/// A driver with VIRTIO_F_EVENT_IDX kicks and is signalled exactly when the indices say so.
#[test]
fn event_indices_save_kicks_and_signals_and_lose_none() {
    let ([mut a, mut b], ..) = pair(!0);
    let len = put_frame(&a);
    for round in 0..1000u16 {
        let (burst, wanted) = (round % 7 + 1, round % 3);
        // The receiver wants to be signalled when frame number `wanted` of this burst, counted from 0, is there.
        for _ in 0..burst {
            b.offer(RX, &[writable(0x4000, 1600)]);
        }
        b.kick(RX);
        let before = b.avail_index(RX).wrapping_sub(burst);
        b.set_used_event(RX, before.wrapping_add(wanted));
        a.set_used_event(TX, before.wrapping_add(wanted));
        let edges = (a.interrupts(), b.interrupts());
        let sent = a.avail_index(TX);
        for _ in 0..burst {
            a.offer(TX, &[readable(0x1000, len)]);
        }
        assert_eq!(a.avail_event(TX), sent, "the device sleeps and wants to hear of the next frame");
        a.kick(TX);
        let signalled = u64::from(wanted < burst);
        assert_eq!((a.interrupts() - edges.0, b.interrupts() - edges.1), (signalled, signalled), "round {round}");
        assert_eq!((a.used(TX).len(), b.used(RX).len()), (burst.into(), burst.into()));
    }
}

#[test]
fn flags_save_signals_without_event_indices() {
    let ([mut a, mut b], ..) = pair(ALL);
    b.offer(RX, &[writable(0x4000, 1600)]);
    b.kick(RX);
    a.set_avail_flags(TX, 1);
    b.set_avail_flags(RX, 1);
    send(&mut a);
    assert_eq!((a.interrupts(), b.interrupts(), b.used(RX).len()), (0, 0, 1));
}

#[test]
fn a_limited_nic_holds_frames_back_in_their_order_until_the_limit_lets_them_through() {
    use crate::limiter::{Bucket, Limiter, Limits, Rate};
    let spec = |last| PortSpec { mac: [2, 0, 0, 0, 0, last], mtu: 1500 };
    let plugs = Switch::with_ports("local", &[spec(1), spec(2)]);
    // A byte a second: the third frame waits for longer than any machine is slow.
    let bucket = Bucket::new(Limits { bytes: Some(Rate { per_second: 1, burst: 31 }), ..Limits::default() });
    let net = Net::new("eth0", plugs[0].clone()).limited_by(Limiter::new(vec![bucket.clone()]).expect("a timer"));
    let mut guest = GuestDriver::power_on_at(Box::new(net), InlineHost::default());
    guest.set_up(ALL);
    let len = put_frame(&guest);
    let heads = [0; 4].map(|_| guest.offer(TX, &[readable(0x1000, len)]));
    guest.kick(TX);
    assert_eq!(guest.used(TX), [(heads[0], 0), (heads[1], 0)], "the burst, and one over it");
    guest.kick(TX);
    assert_eq!(guest.used(TX), []);
    // A reset gives the frame that waits back to the ring; one that stops to be saved finds it there again.
    let state = guest.transport().save().expect("the device is there");
    let text = serde_json::to_string(&state).expect("state");
    assert!(text.contains(r#""next_avail":2"#), "{text}");
    guest.run();
    assert_eq!(guest.used(TX), []);
    bucket.change(Limits::default());
    guest.run();
    assert_eq!(guest.used(TX), [(heads[2], 0), (heads[3], 0)]);
    assert_eq!(guest.faults(), 0);
}
