//! Two NICs on a switch: claims about frames, and the frames, are anything; so are the buffers that they are received into.
//!
//! Rules: the sender's buffers come back; what a receiver gets is what it agreed to and within its buffers; and every frame that
//! was forwarded was received, dropped, waits, or was for nobody.

use labyard_devices::switch::counters::Count;
use labyard_devices::switch::{PortSpec, Switch};
use labyard_devices::testing::{GuestDriver, InlineHost, readable, writable};
use labyard_devices::virtio::feature;
use labyard_devices::virtio::net::{FEATURES, Net};

use crate::input::Input;

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
/// Where frames are sent from, and where they are received.
const SENT: u64 = 0x1000;
const RECEIVED: u64 = 0x4_0000;
/// VIRTIO_NET_F_GUEST_CSUM, and the features of each gso_type (VIRTIO 1.2, §5.1.3).
const GUEST_CSUM: u64 = 1 << 1;
const LARGE: [(u8, u64); 3] = [(1, 1 << 7), (4, 1 << 8), (5, 1 << 54 | 1 << 55)];

/// Headers that make sense, for the bytes to spoil: TCP over IPv4 and IPv6, UDP over IPv4.
const TCP4: [u8; 40] = [
    0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 172, 16, 0, 1, 172, 16, 0, 2, 0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50,
    0x18, 1, 0, 0, 0, 0, 0,
];
const TCP6: [u8; 60] = {
    let mut header = [0xfd; 60];
    [header[0], header[1], header[2], header[3], header[4], header[5], header[6], header[7]] =
        [0x60, 0, 0, 0, 0, 0, 6, 64];
    header[52] = 0x50;
    header
};
const UDP4: [u8; 28] =
    [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0, 172, 16, 0, 1, 172, 16, 0, 2, 0, 9, 0, 9, 0, 0, 0, 0];

/// Reads the bytes as what two drivers do.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let specs = [1, 2].map(|last| PortSpec { mac: [2, 0, 0, 0, 0, last], mtu: 1500 });
    let (plugs, host) = (Switch::with_ports("fuzz", &specs), InlineHost::default());
    let masks = [!0, if input.one_in(4) { !0 } else { input.long() }];
    let mut guests: Vec<GuestDriver> = plugs
        .iter()
        .zip(masks)
        .map(|(plug, mask)| {
            let mut guest = GuestDriver::power_on_at(Box::new(Net::new("eth0", plug.clone())), host.clone());
            guest.set_up(mask & FEATURES | feature::COMMON & !feature::EVENT_IDX);
            guest
        })
        .collect();
    let agreed = masks[1] & FEATURES;
    let link = Net::new("the cable's end", plugs[1].clone()).link();
    let mut sent = 0;
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        match input.byte() % 4 {
            0 => {
                for _ in 0..input.below(24) {
                    let len = input.pick(&[1526u32, 1526, 2048, 66_000, 100, 12, 1]);
                    guests[1].offer(RX, &[writable(RECEIVED, len)]);
                }
                guests[1].kick(RX);
            }
            1 if input.one_in(4) => {
                guests[1].put(SENT, &[&[5, 0][..], &input.array::<8>()].concat());
                guests[1].offer(CONTROL, &[readable(SENT, 10), writable(0x2000, 1)]);
                guests[1].kick(CONTROL);
                guests[1].used(CONTROL);
            }
            2 if input.one_in(8) => match input.byte() % 4 {
                0 => link.set(false),
                1 => link.set(true),
                // A ring that makes no sense, until the driver begins anew.
                2 => guests[1].set_avail(RX, 0x7000),
                _ => drop(guests[1].transport().save()),
            },
            3 if input.one_in(8) => again(&mut guests[1], masks[1]),
            _ => {
                send(&mut guests[0], &mut input);
                sent += 1;
            }
        }
        receive(&mut guests[1], agreed);
        if guests[1].needs_reset() && input.one_in(4) {
            again(&mut guests[1], masks[1]); // its ring was broken, or it has offered more buffers than that is long
        }
    }
    let [a, b] = [&plugs[0], &plugs[1]].map(|plug| plug.port().expect("a port").snapshot());
    assert_eq!(a.get(Count::SentFrames), a.get(Count::SentToNobody) + b.offered_frames(), "every frame is somewhere");
    let told: u64 = a.list().iter().filter(|(name, _)| name.starts_with("refused")).map(|(_, value)| value).sum();
    assert_eq!(told, a.refused_frames(), "what is told is what is counted");
    assert!(a.get(Count::SentFrames) + told >= sent, "every frame was forwarded or refused");
}

fn again(guest: &mut GuestDriver, mask: u64) {
    guest.write(0x70, 0);
    guest.set_up(mask & FEATURES | feature::COMMON & !feature::EVENT_IDX);
}

fn send(guest: &mut GuestDriver, input: &mut Input<'_>) {
    let (kind, headers): (u16, &[u8]) =
        input.pick(&[(0x0800, &TCP4[..]), (0x86dd, &TCP6[..]), (0x0800, &UDP4[..]), (0x0806, &[0; 28][..])]);
    let to = if input.one_in(4) { 0xff } else { 2 };
    let mut frame = [&[to, 0, 0, 0, 0, 2], &[2, 0, 0, 0, 0, 1], &kind.to_be_bytes()[..], headers].concat();
    let payload = match input.byte() % 2 {
        0 => input.pick(&[0usize, 1, 100, 1400, 3000, 20_000, 60_000]),
        _ => usize::from(input.short()) % 4200,
    };
    frame.resize(frame.len() + payload, 0x5a);
    let len = (frame.len() - 14) as u16;
    match kind {
        0x0800 => frame[16..18].copy_from_slice(&len.to_be_bytes()),
        0x86dd => frame[18..20].copy_from_slice(&(len - 40).to_be_bytes()),
        _ => {}
    }
    let (gso, start, offset) = match (kind, headers.len()) {
        (0x0800, 40) => (1, 34u16, 16u16),
        (0x86dd, _) => (4, 54, 16),
        _ => (5, 34, 6),
    };
    let large = u8::from(payload > 1400 || input.one_in(4));
    let mut header = [1, gso * large, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[4..6].copy_from_slice(&input.pick(&[1000u16, 1400, 536, 8, 1, 0, 9000]).to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&offset.to_le_bytes());
    // Some of it is spoilt.
    for _ in 0..input.below(4) {
        let (at, byte) = (input.below(12 + 80), input.byte());
        match at.checked_sub(12) {
            None => header[at] = byte,
            Some(at) if at < frame.len() => frame[at] = byte,
            Some(_) => {}
        }
    }
    let bytes = [&header[..], &frame].concat();
    guest.put(SENT, &bytes);
    let cut = (input.below(bytes.len()) as u32).max(1);
    let head = guest.offer(TX, &[readable(SENT, cut), readable(SENT + u64::from(cut), bytes.len() as u32 - cut)]);
    guest.kick(TX);
    assert_eq!(guest.used(TX), [(head, 0)], "the sender's buffers come back");
}

/// All buffers are at one place, so only the last frame can be looked at: its header, if it came in one buffer.
fn receive(guest: &mut GuestDriver, agreed: u64) {
    let used = guest.used(RX);
    let Some((_, len)) = used.last().filter(|(_, len)| *len > 12) else { return };
    let bytes = guest.bytes(RECEIVED, *len as usize);
    if used.len() > 1 || bytes[10..12] != [1, 0] {
        return;
    }
    let word = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    if bytes[0] & 1 != 0 {
        assert_ne!(agreed & GUEST_CSUM, 0, "a checksum is left to a driver that finishes none");
        assert!(word(6) + word(8) + 2 <= bytes.len() - 12, "a checksum behind the frame");
    }
    if bytes[1] != 0 {
        let feature = LARGE.iter().find(|(kind, _)| *kind == bytes[1]).expect("a type that was offered").1;
        assert_ne!(agreed & feature, 0, "a large segment for a driver that takes none");
        assert!(word(4) != 0 && bytes[0] & 1 != 0);
    }
}
