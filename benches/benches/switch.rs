//! Frames from one guest's driver to another's through a switch, without guests: a burst of them for each kick.
//!
//! What the drivers of the test do, offering buffers and looking at what came, is in the figures.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use labyard_devices::switch::{PortSpec, Switch};
use labyard_devices::testing::{GuestDriver, InlineHost, readable, writable};
use labyard_devices::virtio::feature;
use labyard_devices::virtio::net::{FEATURES, Net};

const RX: usize = 0;
const TX: usize = 1;
/// Bytes of headers of TCP over IPv4 over Ethernet, and of payload in a segment.
const HEADERS: usize = 54;
const SEGMENT: usize = 1446;
/// VIRTIO_NET_F_GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6 and CTRL_GUEST_OFFLOADS (VIRTIO 1.2, §5.1.3).
const TAKES: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 54 | 1 << 55 | 1 << 2;

/// Two guests; the second takes what is in `mask`.
fn pair(mask: u64) -> [GuestDriver; 2] {
    let specs = [1, 2].map(|last| PortSpec { mac: [2, 0, 0, 0, 0, last], mtu: 1500 });
    let (plugs, host) = (Switch::with_ports("bench", &specs), InlineHost::default());
    let mut guests = plugs.into_iter().zip([!0, mask]).map(|(plug, mask)| {
        let mut guest = GuestDriver::power_on_at(Box::new(Net::new("eth0", plug)), host.clone());
        guest.set_up(mask & (FEATURES | feature::COMMON) & !feature::EVENT_IDX);
        guest
    });
    [guests.next().expect("one"), guests.next().expect("two")]
}

/// A virtio header and a TCP segment whose checksum is left undone, and whose cutting is where it is long.
fn frame(len: usize, undone: bool) -> Vec<u8> {
    let large = u8::from(len > HEADERS + SEGMENT);
    let size = (SEGMENT as u16).to_le_bytes();
    let mut bytes = vec![u8::from(undone), large, HEADERS as u8, 0, size[0], size[1], 34, 0, 16, 0, 0, 0];
    bytes.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]);
    bytes.extend(((len - 14) as u16).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 172, 16, 0, 1, 172, 16, 0, 2]);
    bytes.extend([0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.resize(12 + len, 0x5a);
    bytes
}

fn forward(criterion: &mut Criterion, name: &str, mask: u64, burst: usize, bytes: &[u8]) {
    let len = bytes.len() - 12;
    let frames = len.saturating_sub(HEADERS).div_ceil(SEGMENT).max(1);
    let [mut sender, mut receiver] = pair(mask);
    sender.put(0x1000, bytes);
    let (mut offered, mut used) = (0, 0);
    let mut round = || {
        // As many as the longest way needs; what is left over serves the next round.
        while offered - used < burst * frames {
            receiver.offer(RX, &[writable(0x10_0000 + (offered % 256) as u64 * 2048, 1526)]);
            offered += 1;
        }
        for _ in 0..burst {
            sender.offer(TX, &[readable(0x1000, bytes.len() as u32)]);
        }
        sender.kick(TX);
        assert_eq!(sender.used(TX).len(), burst, "the sender's buffers come back");
        let came = receiver.used(RX).len();
        assert!(came >= burst, "every frame arrives");
        used += came;
    };
    let mut group = criterion.benchmark_group("switch");
    group.throughput(Throughput::ElementsAndBytes { elements: burst as u64, bytes: (burst * len) as u64 });
    group.bench_function(name, |bencher| bencher.iter(&mut round));
    group.finish();
}

fn switch(criterion: &mut Criterion) {
    forward(criterion, "64 bytes", !0, 64, &frame(64, false));
    forward(criterion, "1,500 bytes", !0, 64, &frame(1500, false));
    forward(criterion, "1,500 bytes, checksum finished", !TAKES, 64, &frame(1500, true));
    forward(criterion, "64 KiB, whole", !0, 4, &frame(HEADERS + 44 * SEGMENT, true));
    forward(criterion, "64 KiB, cut", !TAKES, 4, &frame(HEADERS + 44 * SEGMENT, true));
}

criterion_group!(benches, switch);
criterion_main!(benches);
