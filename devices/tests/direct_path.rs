//! The way of a frame from one guest's memory to another's allocates nothing, counted by an allocator that counts.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use labyard_devices::switch::counters::Count;
use labyard_devices::switch::{PortSpec, Switch};
use labyard_devices::testing::{GuestDriver, InlineHost, Watched, readable, writable};
use labyard_devices::virtio::feature;
use labyard_devices::virtio::net::{FEATURES, Net};
use labyard_sys::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

const RX: usize = 0;
const TX: usize = 1;
/// Frames for each kick.
const BURST: usize = 16;
/// VIRTIO_NET_F_GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6 and CTRL_GUEST_OFFLOADS (VIRTIO 1.2, §5.1.3).
const TAKES: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 54 | 1 << 55 | 1 << 2;

/// A virtio header and a TCP segment over IPv4 to everybody, cut into pieces of 1,448 bytes where it is longer.
fn segment(payload: usize) -> Vec<u8> {
    let mut bytes = vec![1, u8::from(payload > 1448), 54, 0, 0xa8, 0x05, 34, 0, 16, 0, 0, 0];
    bytes.extend([0xff; 6]);
    bytes.extend([2, 0, 0, 0, 0, 0, 8, 0]);
    bytes.extend([0x45, 0]);
    bytes.extend((40 + payload as u16).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 172, 16, 0, 1, 172, 16, 0, 255]);
    bytes.extend([0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    bytes.resize(bytes.len() + payload, 0x5a);
    bytes
}

#[test]
fn frames_of_every_size_go_from_driver_to_driver_without_an_allocation() {
    let before = ALLOCATOR.calls();
    drop(std::hint::black_box(Box::new(1)));
    assert_ne!(ALLOCATOR.calls(), before, "the allocator counts");

    let specs: Vec<_> = (0..3).map(|last| PortSpec { mac: [2, 0, 0, 0, 0, last], mtu: 1500 }).collect();
    let plugs = Switch::with_ports("local", &specs);
    let host = InlineHost::default();
    let (mut guests, allocations): (Vec<GuestDriver>, Vec<_>) = plugs
        .iter()
        .zip([!0, !0, !TAKES])
        .map(|(plug, mask)| {
            let net = Box::new(Net::new("eth0", plug.clone()));
            let (watched, allocations) = Watched::new(net, || ALLOCATOR.calls());
            let mut guest = GuestDriver::power_on_at(watched, host.clone());
            guest.set_up(mask & (FEATURES | feature::COMMON));
            (guest, allocations)
        })
        .unzip();
    for payload in [6, 1448, 64_000] {
        let bytes = segment(payload);
        let frames = payload.div_ceil(1448);
        let burst = if payload > 1448 { 4 } else { BURST };
        guests[0].put(0x1000, &bytes);
        for _ in 0..50 {
            for guest in &mut guests[1..] {
                for _ in 0..burst * frames {
                    guest.offer(RX, &[writable(0x10_0000, 1526)]);
                }
                guest.kick(RX);
            }
            for _ in 0..burst {
                guests[0].offer(TX, &[readable(0x1000, 66), readable(0x1000 + 66, bytes.len() as u32 - 66)]);
            }
            guests[0].kick(TX);
            assert_eq!(guests[0].used(TX).len(), burst, "{payload} bytes");
            for guest in &mut guests[1..] {
                assert!(!guest.used(RX).is_empty(), "{payload} bytes");
                guest.write(0x70, 0);
            }
            for (guest, mask) in guests[1..].iter_mut().zip([!0, !TAKES]) {
                guest.set_up(mask & (FEATURES | feature::COMMON));
            }
        }
    }
    let snapshots: Vec<_> = plugs.iter().map(|plug| plug.port().expect("a port").snapshot()).collect();
    let sent = snapshots[0].get(Count::SentFrames);
    assert_eq!(sent, 50 * (16 + 16 + 4 * 45));
    for snapshot in &snapshots[1..] {
        assert_eq!((snapshot.get(Count::ReceivedFrames), snapshot.dropped_frames()), (sent, 0));
    }
    let counts: Vec<_> = allocations.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(counts, [0; 3], "allocations while events were handled");
}
