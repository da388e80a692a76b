//! Whatever guests do, no frame vanishes: what a driver sent is what other drivers got and what counters explain.

use std::time::Duration;

use proptest::prelude::*;

use super::packets::{FORMS, noise, packet};
use super::*;
use crate::switch::counters::Snapshot;
use crate::switch::offload::GUEST_OFFLOADS;
use crate::virtio::net::{F_CTRL_GUEST_OFFLOADS, F_MRG_RXBUF};

/// What drivers agree to: everything; large buffers; nothing; nothing, but event indices.
const MASKS: [u64; 4] = [
    !feature::EVENT_IDX,
    !feature::EVENT_IDX & !F_MRG_RXBUF,
    !feature::EVENT_IDX & !GUEST_OFFLOADS & !F_CTRL_GUEST_OFFLOADS & !F_MRG_RXBUF,
    !GUEST_OFFLOADS & !F_CTRL_GUEST_OFFLOADS,
];

/// Something that happens on the network.
#[derive(Debug, Clone)]
enum Doing {
    /// A guest sends to one (3: to nobody, 4: to all) a packet of a form with a payload, to be cut into segments of a size.
    Send {
        from: usize,
        to: usize,
        form: usize,
        payload: usize,
        size: u16,
    },
    /// A guest offers receive buffers.
    Post {
        guest: usize,
        count: usize,
        len: u32,
    },
    Reset {
        guest: usize,
    },
    Link {
        guest: usize,
        up: bool,
    },
    /// A guest's link is asked to lose frames, or no longer.
    Disturb {
        guest: usize,
        direction: Direction,
        change: LinkChange,
    },
    /// So many milliseconds pass on the way to a guest.
    Later {
        guest: usize,
        ms: u64,
    },
    /// A guest's receive ring makes no sense from now on.
    Break {
        guest: usize,
    },
}

fn doing() -> impl Strategy<Value = Doing> {
    let guest = 0usize..3;
    let size = prop_oneof![Just(0u16), Just(1), Just(1000), Just(1400), Just(9000)];
    let payload = prop_oneof![0usize..1600, 0usize..60_000];
    // At least the headers, by which frames are counted here, lie in one buffer.
    let len = prop_oneof![Just(1526u32), Just(66_000), Just(100)];
    prop_oneof![
        8 => (guest.clone(), 0usize..5, 0..FORMS.len(), payload, size)
            .prop_map(|(from, to, form, payload, size)| Doing::Send { from, to, form, payload, size }),
        4 => (guest.clone(), 1usize..20, len).prop_map(|(guest, count, len)| Doing::Post { guest, count, len }),
        1 => guest.clone().prop_map(|guest| Doing::Reset { guest }),
        1 => (guest.clone(), any::<bool>()).prop_map(|(guest, up)| Doing::Link { guest, up }),
        1 => guest.clone().prop_map(|guest| Doing::Break { guest }),
        2 => (guest.clone(), direction(), change())
            .prop_map(|(guest, direction, change)| Doing::Disturb { guest, direction, change }),
        2 => (guest, 0u64..200).prop_map(|(guest, ms)| Doing::Later { guest, ms }),
    ]
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Both), Just(Direction::Sent), Just(Direction::Received)]
}

fn change() -> impl Strategy<Value = LinkChange> {
    prop_oneof![
        3 => (0u64..100_000).prop_map(|delay_us| LinkChange::Delay { delay_us, jitter_us: delay_us / 3 }),
        3 => (0u32..1_000_000).prop_map(|ppm| LinkChange::Loss { ppm }),
        3 => (1_000u64..10_000_000).prop_map(|rate| LinkChange::Rate { bits_per_second: Some(rate) }),
        1 => Just(LinkChange::Cut),
        4 => Just(LinkChange::Heal),
    ]
}

/// Offers receive buffers, each with a place of its own, so that what is in it stays until it is looked at.
fn post(nic: &mut Nic, count: usize, len: u32) {
    const PLACE: u64 = 0x1_1000;
    let places = ((0x30_0000 - BUFFERS) / PLACE) as usize;
    for _ in 0..count.min(places.saturating_sub(nic.offered)) {
        let at = nic.next;
        nic.next = if at + 2 * PLACE > 0x30_0000 { BUFFERS } else { at + PLACE };
        let head = nic.driver.offer(RX, &[writable(at, len)]);
        nic.posted.insert(head, at);
        nic.offered += 1;
    }
    nic.driver.kick(RX);
}

/// Frames on a wire that a driver has got since the last look: a large one counts as those that it stands for.
fn got(nic: &mut Nic) -> u64 {
    let (mut frames, mut more) = (0, 0);
    for (head, len) in nic.driver.used(RX) {
        nic.offered -= 1;
        if more > 0 {
            more -= 1; // a further buffer of a frame
            continue;
        }
        if len == 0 {
            continue; // a buffer that is of no use
        }
        let header = nic.driver.bytes(nic.posted[&head], 12);
        let word = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        more = word(10) - 1;
        frames += match word(4) {
            0 => 1,
            size => payload(nic, nic.posted[&head], word(2)).div_ceil(size),
        };
    }
    assert_eq!(more, 0, "all buffers of a frame come back at once");
    frames
}

/// Bytes of a large frame's payload: of the packet by its own account, without its headers.
fn payload(nic: &Nic, at: u64, headers: u64) -> u64 {
    let frame = nic.driver.bytes(at + 12, 60);
    let network = if frame[12..14] == [0x81, 0] { 18 } else { 14 };
    let word = |at: usize| u64::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let packet = if frame[network] >> 4 == 6 { 40 + word(network + 4) } else { word(network + 2) };
    network as u64 + packet - headers
}

fn snapshots(nics: &[Nic]) -> Vec<Snapshot> {
    nics.iter().map(|nic| nic.plug.port().expect("a port").snapshot()).collect()
}

fn offered(snapshots: &[Snapshot]) -> Vec<u64> {
    snapshots.iter().map(Snapshot::offered_frames).collect()
}

/// A frame is sent, and every copy of it is somewhere.
fn send(nics: &mut [Nic], from: usize, to: usize, form: usize, payload: usize, size: u16) {
    let destination = [mac(1), mac(2), mac(3), mac(9), BROADCAST][to];
    let mut sent = packet(FORMS[form], destination, &noise(payload));
    sent.bytes[6..12].copy_from_slice(&mac(from as u8 + 1));
    let before = snapshots(nics);
    nics[from].send(sent.claim(size), &sent.bytes);
    let after = snapshots(nics);
    let segments = if size == 0 { 1 } else { (payload as u64).div_ceil(size.into()) };
    let grown = |count| after[from].get(count) - before[from].get(count);
    let (forwarded, refused) = (grown(Count::SentFrames), after[from].refused_frames() - before[from].refused_frames());
    // What is wrong with a claim is wrong with one frame.
    let taken = if grown(Count::RefusedHeaders) == 1 { (0, 1) } else { (segments, 0) };
    let lost = |of: &Snapshot| {
        [Count::LostSent, Count::QueueSent, Count::CutSent].into_iter().map(|count| of.get(count)).sum::<u64>()
    };
    let lost = lost(&after[from]) - lost(&before[from]);
    assert!(
        taken == (forwarded + lost, refused - lost) || (0, segments) == (forwarded, refused),
        "{forwarded} and {refused} of {segments}"
    );
    let copies: Vec<u64> = offered(&after).iter().zip(offered(&before)).map(|(after, before)| after - before).collect();
    let expected = |nic: usize| if nic != from && (to == 4 || to == nic) { forwarded } else { 0 };
    assert_eq!(copies, (0..3).map(expected).collect::<Vec<_>>(), "who was offered it");
    let to_nobody = if to == 3 || to == from { forwarded } else { 0 };
    assert_eq!(grown(Count::SentToNobody), to_nobody);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_frame_that_a_driver_misses_is_explained_by_a_counter(
        masks in proptest::array::uniform3(0usize..4), doings in proptest::collection::vec(doing(), 1..60),
    ) {
        let masks = masks.map(|mask| MASKS[mask]);
        let mut nics = network(&masks);
        let links: Vec<_> = nics.iter().map(|nic| Net::new("the cable's end", nic.plug.clone()).link()).collect();
        let mut total = [0; 3];
        for doing in doings {
            let before = offered(&snapshots(&nics));
            match doing {
                Doing::Send { from, to, form, payload, size } => send(&mut nics, from, to, form, payload, size),
                other => {
                    match other {
                        Doing::Post { guest, count, len } => {
                            post(&mut nics[guest], count, len);
                        }
                        Doing::Reset { guest } => {
                            total[guest] += got(&mut nics[guest]);
                            nics[guest].driver.write(0x70, 0);
                            nics[guest].driver.set_up(masks[guest]);
                            nics[guest].posted.clear();
                            nics[guest].offered = 0;
                        }
                        Doing::Link { guest, up } => links[guest].set(up),
                        Doing::Disturb { guest, direction, change } => {
                            nics[guest].plug.change_link(direction, change).expect("it can be");
                        }
                        Doing::Later { guest, ms } => {
                            nics[guest].plug.come_due(Instant::now() + Duration::from_millis(ms));
                        }
                        Doing::Break { guest } => nics[guest].driver.set_avail(RX, 0x7000),
                        Doing::Send { .. } => unreachable!("it was taken above"),
                    }
                    prop_assert_eq!(offered(&snapshots(&nics)), before, "a frame from nowhere, or one that is gone");
                }
            }
            for (nic, total) in nics.iter_mut().zip(&mut total) {
                *total += got(nic);
            }
        }
        let told: Vec<u64> = snapshots(&nics).iter().map(|snapshot| snapshot.get(Count::ReceivedFrames)).collect();
        prop_assert_eq!(total.to_vec(), told, "what drivers got is what was counted");
    }
}
