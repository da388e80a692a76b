//! A guest on the switch: an honest one, whose buffers are what they should be, or one that does what it likes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use labyard_devices::switch::Plug;
use labyard_devices::switch::counters::{Count, Snapshot};
use labyard_devices::testing::{GuestDriver, InlineHost, readable, writable};
use labyard_devices::virtio::feature;
use labyard_devices::virtio::net::{FEATURES, Link, Net};

use super::frames;
use crate::input::Input;

pub(super) const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
/// Where frames are sent from, and where they are received.
const SENT: u64 = 0x1000;
const RECEIVED: u64 = 0x10_0000;
/// Of an honest guest's receive buffers: how many, how long each is, and how far apart they lie.
const BUFFERS: usize = 128;
const BUFFER_BYTES: u32 = 1526;
const BUFFER_STEP: u64 = 0x800;
/// VIRTIO_NET_F_GUEST_CSUM, and the features of each gso_type (VIRTIO 1.2, §5.1.3).
const GUEST_CSUM: u64 = 1 << 1;
const LARGE: [(u8, u64); 3] = [(1, 1 << 7), (4, 1 << 8), (5, 1 << 54 | 1 << 55)];
/// Later than anything can be under way: a minute, and two queues that are full in front of the slowest rate.
const LATER: Duration = Duration::from_secs(3 * 3600);

/// A guest.
pub(super) struct Nic {
    pub(super) driver: GuestDriver,
    pub(super) plug: Plug,
    pub(super) link: Link,
    /// The last byte of its address.
    pub(super) number: u8,
    pub(super) is_honest: bool,
    /// Its machine stands still.
    pub(super) is_held: bool,
    mask: u64,
    /// Buffers that the device has, of an honest guest.
    offered: usize,
    /// What each honest guest said last.
    heard: HashMap<u8, u32>,
}

impl Nic {
    /// Powers a guest on behind its plug.
    pub(super) fn new(plug: Plug, number: u8, is_honest: bool, mask: u64) -> Self {
        Self::with(Net::new("eth0", plug.clone()), plug, number, is_honest, mask)
    }

    /// One behind a NIC that may have a past.
    pub(super) fn with(net: Net, plug: Plug, number: u8, is_honest: bool, mask: u64) -> Self {
        let link = net.link();
        let driver = GuestDriver::power_on_at(Box::new(net), InlineHost::default());
        let (is_held, offered, heard) = (false, 0, HashMap::new());
        let mut nic = Self { driver, plug, link, number, is_honest, is_held, mask, offered, heard };
        nic.set_up();
        nic
    }

    fn set_up(&mut self) {
        self.driver.set_up(self.mask & FEATURES | feature::COMMON & !feature::EVENT_IDX);
        self.post();
    }

    /// The driver begins anew.
    pub(super) fn again(&mut self) {
        self.driver.write(0x70, 0);
        self.offered = 0;
        self.set_up();
    }

    /// Whether the device took its driver's features, has not given up, and its machine does not stand still.
    pub(super) fn is_at_work(&mut self) -> bool {
        self.driver.read(0x70) == 0xf && !self.is_held
    }

    /// What the port has counted.
    pub(super) fn counted(&self) -> Snapshot {
        counted(&self.plug)
    }

    /// Sends a virtio header and what is behind it.
    pub(super) fn send(&mut self, bytes: &[u8], input: &mut Input<'_>) {
        self.driver.put(SENT, bytes);
        let len = bytes.len() as u32;
        let cut = (input.below(bytes.len()) as u32).max(1);
        let mut pieces = vec![readable(SENT, cut)];
        if cut < len {
            pieces.push(readable(SENT + u64::from(cut), len - cut));
        }
        if !self.is_honest && input.one_in(64) {
            pieces.push(writable(RECEIVED, 1));
        }
        let head = self.driver.offer(TX, &pieces);
        self.driver.kick(TX);
        assert_eq!(self.driver.used(TX), [(head, 0)], "the sender's buffers come back");
    }

    /// Turns offloads on and off.
    pub(super) fn command(&mut self, input: &mut Input<'_>) {
        self.driver.put(SENT, &[&[5, 0][..], &input.array::<8>()].concat());
        self.driver.offer(CONTROL, &[readable(SENT, 10), writable(0x800, 1)]);
        self.driver.kick(CONTROL);
        self.driver.used(CONTROL);
    }

    /// Offers buffers of any size, all at one place.
    pub(super) fn post_any(&mut self, input: &mut Input<'_>) {
        for _ in 0..input.below(24) {
            let len = input.pick(&[1526u32, 1526, 2048, 66_000, 100, 12, 1]);
            self.driver.offer(RX, &[writable(RECEIVED, len)]);
        }
        self.driver.kick(RX);
    }

    /// What an honest guest has taken it offers again.
    fn post(&mut self) {
        if !self.is_honest || self.offered == BUFFERS {
            return;
        }
        for _ in self.offered..BUFFERS {
            // A buffer is one descriptor, so its place follows from its number: `offer` counts them round the queue.
            let place = self.driver.avail_index(RX) % 256;
            self.driver.offer(RX, &[writable(RECEIVED + u64::from(place) * BUFFER_STEP, BUFFER_BYTES)]);
        }
        self.offered = BUFFERS;
        self.driver.kick(RX);
    }

    /// What is due `after` from now arrives.
    pub(super) fn come_due(&mut self, after: Duration) {
        self.plug.come_due(Instant::now() + after);
        self.receive();
    }

    /// Takes what has come, and looks whether it may have.
    pub(super) fn receive(&mut self) {
        self.driver.run();
        let used = self.driver.used(RX);
        if !self.is_honest {
            // All buffers are at one place, so only the last frame can be looked at, if it came in one buffer.
            let Some((_, len)) = used.last().filter(|(_, len)| *len > 12) else { return };
            let bytes = self.driver.bytes(RECEIVED, *len as usize);
            if used.len() == 1 && bytes[10..12] == [1, 0] {
                self.check(&bytes);
            }
            return;
        }
        self.offered -= used.len();
        let mut used = used.into_iter();
        while let Some(first) = used.next() {
            let mut bytes = self.buffer(first);
            assert!(bytes.len() > 12, "a buffer without a header");
            for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
                let next = used.next().expect("all buffers of a frame come back at once");
                bytes.extend(self.buffer(next));
            }
            self.check(&bytes);
            if bytes[..2] == [0, 0] {
                frames::check_piece(&bytes[12..]);
            }
            self.hear(&bytes[12..]);
        }
        if !self.is_held {
            self.post();
        }
    }

    fn buffer(&self, (head, len): (u16, u32)) -> Vec<u8> {
        self.driver.bytes(RECEIVED + u64::from(head) * BUFFER_STEP, len as usize)
    }

    /// A receiver gets what it agreed to.
    fn check(&self, bytes: &[u8]) {
        let agreed = self.mask & FEATURES;
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

    /// What comes from an honest guest's address is what that guest said, in the order in which it said it.
    fn hear(&mut self, frame: &[u8]) {
        let (to, from) = (&frame[..6], &frame[6..12]);
        let own = frames::mac(self.number);
        assert!(to[0] & 1 != 0 || *to == own, "a frame for somebody else");
        assert_ne!(*from, own, "a frame of its own");
        let Some(from) = (0..2).find(|number| *from == frames::mac(*number)) else { return };
        let number = frames::number_of(frame).expect("nobody speaks with an honest guest's address");
        let said = frames::numbered(to.first_chunk().copied().expect("six bytes"), from, number);
        assert!(*frame == said, "a frame was changed on its way");
        let last = self.heard.insert(from, number);
        assert!(last.is_none_or(|last| last < number), "{number} of guest {from} came after {last:?}");
    }

    /// Whether it has heard this of honest guest `from`, as the last thing.
    pub(super) fn has_heard(&self, from: u8, number: u32) -> bool {
        self.heard.get(&from) == Some(&number)
    }

    /// What it has heard so far is known to another, in whose place it goes on.
    pub(super) fn heard(&self) -> &HashMap<u8, u32> {
        &self.heard
    }

    /// Goes on where another was.
    pub(super) fn has_heard_all(&mut self, heard: &HashMap<u8, u32>) {
        self.heard.clone_from(heard);
    }

    /// Takes all that will ever come.
    pub(super) fn receive_all(&mut self) {
        for _ in 0..200 {
            let before = self.counted().waiting_frames;
            self.come_due(LATER);
            if self.counted().waiting_frames == before {
                break;
            }
        }
    }
}

/// What the port of a plug has counted.
pub(super) fn counted(plug: &Plug) -> Snapshot {
    let counted = plug.port().expect("a port").snapshot();
    let told: u64 = counted.list().iter().filter(|(name, _)| is_refusal(name)).map(|(_, value)| value).sum();
    assert_eq!(told, counted.refused_frames(), "what is told is what is counted");
    counted
}

fn is_refusal(name: &str) -> bool {
    name.starts_with("refused") || name.starts_with("lost_sent")
}

/// Frames that a port let its guest send, whatever became of them on its cable.
pub(super) fn went_in(counted: &Snapshot) -> u64 {
    [Count::SentFrames, Count::LostSent, Count::QueueSent, Count::CutSent].map(|count| counted.get(count)).iter().sum()
}
