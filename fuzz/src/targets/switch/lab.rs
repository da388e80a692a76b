//! A network with all that can be plugged into it, and the books that are kept about it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use labyard_devices::switch::capture::{self, Capture, MAX_CAPTURES};
use labyard_devices::switch::counters::Count;
use labyard_devices::switch::tap::Gateway;
use labyard_devices::switch::{Plug, PortSpec, Switch};
use labyard_devices::virtio::device::VirtioDevice;
use labyard_devices::virtio::net::Net;

use super::frames;
use super::nic::{self, Nic};
use crate::input::Input;

/// The gateway's address.
pub(super) const GATEWAY: u8 = 9;
/// Guests at most.
const MAX_NICS: usize = 5;
/// Bits of what drivers take beyond finished frames.
const OFFLOADS: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 54 | 1 << 55;

/// Large frames of a flood: more than a backlog, a line or a capture holds.
const FLOOD: usize = 150;
/// VIRTIO_NET_F_CSUM, GUEST_CSUM and CTRL_VQ (VIRTIO 1.2, §5.1.3.1).
const NEEDED: u64 = 1 | 1 << 1 | 1 << 17;

/// The network.
pub(super) struct Lab {
    switch: Arc<Switch>,
    /// The first two are honest and stay.
    pub(super) nics: Vec<Nic>,
    pub(super) tap: Option<Tap>,
    listeners: Vec<Listener>,
    /// What honest guests say next.
    number: u32,
}

/// The gateway, and the kernel's end of its tap: a socket pair keeps frames apart as a tap does.
pub(super) struct Tap {
    pub(super) gateway: Gateway,
    kernel: Option<UnixDatagram>,
}

/// Somebody who captures.
struct Listener {
    capture: Arc<Capture>,
    plug: Plug,
    of_network: bool,
    /// Records that came.
    heard: u64,
    /// Frames on wires that it should know of, of a network.
    said: u64,
}

/// Who sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Nic(usize),
    Tap,
}

impl Lab {
    /// Two honest guests and one that is not.
    pub(super) fn new(input: &mut Input<'_>) -> Self {
        let switch = Switch::new("fuzz");
        assert!(switch.is_empty());
        let plugs: Option<Vec<Plug>> = (0..3).map(|last| switch.add(spec(last, 1500))).collect();
        let masks = [!0, if input.one_in(4) { !OFFLOADS } else { !0 }, mask(input)];
        let nics = (0..)
            .zip(plugs.expect("free addresses"))
            .zip(masks)
            .map(|((number, plug), mask)| Nic::new(plug, number, number < 2, mask));
        Self { nics: nics.collect(), switch, tap: None, listeners: Vec::new(), number: 0 }
    }

    pub(super) fn plug(&self, of: Sender) -> Plug {
        match of {
            Sender::Nic(index) => self.nics[index].plug.clone(),
            Sender::Tap => self.tap.as_ref().expect("a gateway").gateway.plug().clone(),
        }
    }

    /// Any of those that are plugged in.
    pub(super) fn any(&self, input: &mut Input<'_>) -> Sender {
        match input.below(self.nics.len() + 1) {
            0 if self.tap.is_some() => Sender::Tap,
            0 => Sender::Nic(0),
            index => Sender::Nic(index - 1),
        }
    }

    /// An address of somebody, nobody or everybody.
    fn address(&self, input: &mut Input<'_>) -> [u8; 6] {
        match input.byte() % 8 {
            0 => [0xff; 6],
            1 => [1, 0, 0x5e, 0, 0, 1],
            2 => frames::mac(input.byte() % 16),
            3 | 4 => frames::mac(GATEWAY),
            _ => self.plug(self.any(input)).port().expect("a port").spec().mac,
        }
    }

    /// An honest guest says something to the other one, or to all.
    pub(super) fn say(&mut self, from: u8, to_all: bool) -> u32 {
        let to = if to_all { [0xff; 6] } else { frames::mac(1 - from) };
        self.number += 1;
        let number = self.number;
        let bytes = [&[0; 12][..], &frames::numbered(to, from, number)].concat();
        let index = usize::from(from);
        self.book(Sender::Nic(index), to_all, |lab| lab.nics[index].send(&bytes, &mut Input::new(&[])));
        number
    }

    /// A guest sends what it likes, from its own address or another's.
    pub(super) fn send(&mut self, index: usize, input: &mut Input<'_>) {
        if !self.nics[index].is_at_work() {
            return;
        }
        let own = frames::mac(self.nics[index].number);
        let from = if input.one_in(16) { self.address(input) } else { own };
        let bytes = frames::any(self.address(input), from, input);
        let to_all = bytes.get(12).is_some_and(|first| first & 1 != 0);
        let before = self.nics[index].counted();
        self.book(Sender::Nic(index), to_all, |lab| lab.nics[index].send(&bytes, input));
        let after = self.nics[index].counted();
        let sent = nic::went_in(&after) - nic::went_in(&before);
        let refused = after.refused_frames() - before.refused_frames();
        assert!(sent + refused > 0, "a frame was forwarded or refused");
        if bytes.get(18..24).is_some_and(|source| source != own) {
            assert_eq!(sent, 0, "it speaks with another's address");
        }
    }

    /// A guest sends more to somebody than can wait anywhere.
    pub(super) fn flood(&mut self, index: usize, input: &mut Input<'_>) {
        if self.nics[index].is_at_work() {
            let to = self.plug(self.any(input)).port().expect("a port").spec().mac;
            let bytes = frames::large(to, frames::mac(self.nics[index].number));
            self.book(Sender::Nic(index), false, |lab| {
                (0..FLOOD).for_each(|_| lab.nics[index].send(&bytes, &mut Input::new(&[])));
            });
        }
    }

    /// The kernel behind the tap reads what came, sends, or is gone.
    pub(super) fn kernel(&mut self, input: &mut Input<'_>) {
        let Some(tap) = &mut self.tap else { return };
        let Some(kernel) = &tap.kernel else { return };
        if input.one_in(2) {
            let mut buffer = vec![0; 70_000];
            while let Ok(len) = kernel.recv(&mut buffer) {
                assert!(len >= 12 + 14, "a frame of {len} bytes with its header");
                assert!(matches!(buffer[1], 0 | 1 | 4), "the kernel takes no large datagrams");
                let to = &buffer[12..18];
                assert!(to[0] & 1 != 0 || *to == frames::mac(GATEWAY), "a frame for somebody else");
            }
        }
        if input.one_in(32) {
            tap.kernel = None;
            return;
        }
        let from = frames::mac(if input.one_in(16) { input.byte() } else { GATEWAY });
        let bytes = frames::any(self.address(input), from, input);
        let to_all = bytes.get(12).is_some_and(|first| first & 1 != 0);
        let Some(kernel) = self.tap.as_ref().and_then(|tap| tap.kernel.as_ref()) else { return };
        if kernel.send(&bytes).is_ok() {
            self.book(Sender::Tap, to_all, |lab| {
                let readable = lab.tap.as_mut().expect("a gateway").gateway.on_event(0);
                assert!(readable.is_ok(), "the device is there");
            });
        }
    }

    /// The gateway comes or goes.
    pub(super) fn change_gateway(&mut self) {
        if let Some(tap) = self.tap.take() {
            tap.gateway.plug().leave();
            return;
        }
        let Some(plug) = self.switch.add(spec(GATEWAY, u16::MAX)) else { panic!("nobody has the gateway's address") };
        let (kernel, ours) = UnixDatagram::pair().expect("a pair");
        for socket in [&kernel, &ours] {
            socket.set_nonblocking(true).expect("a socket");
        }
        let gateway = Gateway::new(plug, File::from(OwnedFd::from(ours)));
        assert_eq!((gateway.sources().len(), gateway.network()), (2, "fuzz"));
        self.tap = Some(Tap { gateway, kernel: Some(kernel) });
    }

    /// What is due `after` from now comes out of the cable of each.
    pub(super) fn come_due(&mut self, after: Duration) {
        self.nics.iter_mut().for_each(|nic| nic.come_due(after));
        if let Some(Tap { gateway, .. }) = &mut self.tap {
            gateway.plug().come_due(std::time::Instant::now() + after);
            assert!(gateway.on_event(1).is_ok(), "its timer is not its device");
        }
    }

    /// Sends, and finds every frame that was sent at each port that it was for: received, dropped or waiting.
    fn book(&mut self, from: Sender, to_all: bool, send: impl FnOnce(&mut Self)) {
        let (plug, before, offered) = (self.plug(from), nic::counted(&self.plug(from)), self.offered());
        send(self);
        let after = nic::counted(&plug);
        let sent = after.get(Count::SentFrames) - before.get(Count::SentFrames);
        let to_nobody = after.get(Count::SentToNobody) - before.get(Count::SentToNobody);
        let others = (self.nics.len() + usize::from(self.tap.is_some()) - 1) as u64;
        let expected = if to_all { sent * others } else { sent - to_nobody };
        assert_eq!(self.offered() - offered, expected, "every frame is somewhere");
        let went_in = nic::went_in(&after) - nic::went_in(&before);
        self.listeners.iter_mut().for_each(|listener| listener.said += went_in);
        self.look();
    }

    /// All frames that any port was given.
    fn offered(&self) -> u64 {
        let plugs = self.nics.iter().map(|nic| &nic.plug).chain(self.tap.iter().map(|tap| tap.gateway.plug()));
        plugs.map(|plug| nic::counted(plug).offered_frames()).sum()
    }

    /// Guests take what came.
    pub(super) fn look(&mut self) {
        self.nics.iter_mut().for_each(Nic::receive);
    }

    /// Somebody comes, under an address that may be taken.
    pub(super) fn come(&mut self, input: &mut Input<'_>) {
        if self.nics.len() == MAX_NICS {
            return;
        }
        let number = input.byte() % 8;
        let plug = self.switch.add(spec(number, input.pick(&[1500, 1500, 68, 9000, u16::MAX])));
        assert_eq!(plug.is_none(), self.nics.iter().any(|nic| nic.number == number), "two of one address");
        if let Some(plug) = plug {
            self.nics.push(Nic::new(plug, number, false, mask(input)));
        }
    }

    /// Somebody leaves, at rest or from its work; whoever listened to it alone hears no more.
    pub(super) fn leave(&mut self, input: &mut Input<'_>) {
        if self.nics.len() < 3 {
            return;
        }
        let Nic { driver, plug, .. } = self.nics.remove(2 + input.below(self.nics.len() - 2));
        let driver = if input.one_in(2) { Some(driver) } else { driver.power_off().and(None) };
        plug.leave();
        plug.leave();
        drop(driver);
        assert_eq!(plug.port().expect("a port").snapshot().waiting_frames, 0, "nobody waits for who has left");
        for listener in &self.listeners {
            let is_its = !listener.of_network && is_same(&listener.plug, &plug);
            assert!(!is_its || listener.capture.is_over(), "its port has left");
        }
    }

    /// Somebody begins to listen.
    pub(super) fn listen(&mut self, input: &mut Input<'_>) {
        let of_network = input.one_in(2);
        for _ in 0..if input.one_in(8) { MAX_CAPTURES + 1 } else { 1 } {
            let plug = self.plug(self.any(input));
            let open = self.listeners.iter().filter(|listener| !listener.capture.is_over()).count();
            match plug.capture(of_network) {
                Ok(capture) => self.listeners.push(Listener { capture, plug, of_network, heard: 0, said: 0 }),
                Err(why) => assert_eq!(open, MAX_CAPTURES, "{why}"),
            }
        }
    }

    /// One of those who listen writes what it has heard, and may end.
    pub(super) fn hear(&mut self, input: &mut Input<'_>) {
        if self.listeners.is_empty() {
            return;
        }
        let place = input.below(self.listeners.len());
        self.listeners[place].hear();
        if input.one_in(2) {
            let Listener { capture, plug, .. } = self.listeners.remove(place);
            plug.forget_capture(&capture);
        }
    }

    /// What a guest's NIC would be in a snapshot; another one goes on with that, or with something like it.
    pub(super) fn save(&mut self, input: &mut Input<'_>) {
        let index = input.below(self.nics.len());
        let nic = &mut self.nics[index];
        let saved = nic.driver.transport().save().expect("the device");
        let elsewhere = Switch::with_ports("elsewhere", &[nic.plug.port().expect("a port").spec()]).remove(0);
        let mut net = Net::new("eth0", elsewhere.clone());
        let mut state = saved.device().clone();
        let is_spoilt = input.one_in(2);
        for _ in 0..if is_spoilt { input.below(4) + 1 } else { 0 } {
            let at = if input.one_in(2) { input.below(80) } else { input.below(state.bytes.len()) };
            if let Some(place) = state.bytes.get_mut(at) {
                *place = input.byte();
            }
        }
        let restored = net.restore(&state);
        if !is_spoilt {
            restored.expect("its own state");
            assert_eq!(net.save(), state, "what was restored is what was saved");
        }
        let mut other = Nic::with(net, elsewhere, nic.number, nic.is_honest && !is_spoilt, !0);
        other.has_heard_all(nic.heard());
        other.receive_all();
        if other.is_honest {
            assert_eq!(other.counted().waiting_frames, 0, "all that was under way arrives");
        }
    }

    /// Everything is made well, and then honest guests understand each other.
    pub(super) fn end(mut self, heal: impl Fn(&Plug)) {
        for nic in &mut self.nics {
            heal(&nic.plug);
            nic.link.set(true);
            nic.driver.transport().release();
            nic.is_held = false;
            nic.receive_all();
        }
        self.look();
        let listener = self.nics[0].plug.capture(true).ok();
        for nic in &self.nics[..2] {
            assert_eq!(nic.counted().waiting_frames, 0, "nothing waits for who has room");
        }
        for from in [0, 1] {
            let number = self.say(from, false);
            assert!(
                self.nics[usize::from(1 - from)].has_heard(from, number),
                "an honest guest does not hear the other"
            );
            assert_eq!(self.nics[usize::from(from)].driver.faults(), 0, "an honest guest is accused");
        }
        if let Some(capture) = listener {
            assert_eq!(capture.take(Duration::ZERO).len(), 2);
        }
        self.listeners.iter_mut().for_each(Listener::hear);
        let tap = self.tap.iter().map(|tap| tap.gateway.plug());
        self.nics.iter().map(|nic| &nic.plug).chain(tap).for_each(Plug::leave);
        assert!(self.switch.is_empty());
        assert!(self.listeners.iter().all(|listener| listener.of_network || listener.capture.is_over()));
    }
}

impl Listener {
    /// Each record is one frame of somebody who was there; of a network, none is missing but those that were told as missed.
    fn hear(&mut self) {
        assert_eq!(capture::head().len(), 24);
        for record in self.capture.take(Duration::ZERO) {
            let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("four bytes")) as usize;
            assert!(word(8) == record.len() - 16 && word(12) == word(8) && word(4) < 1_000_000_000);
            assert!(record.len() >= 16 + 14 && record[22..27] == frames::mac(0)[..5], "a frame of nobody");
            frames::check_piece(&record[16..]);
            self.heard += 1;
        }
        if self.of_network {
            assert_eq!(self.heard + self.capture.missed(), self.said, "what was sent was captured or missed");
        }
    }
}

fn spec(last: u8, mtu: u16) -> PortSpec {
    PortSpec { mac: frames::mac(last), mtu }
}

/// What a driver accepts; without those that others need, it is refused more often than not.
fn mask(input: &mut Input<'_>) -> u64 {
    match input.byte() % 4 {
        0 => !0,
        1 => input.long(),
        _ => input.long() | NEEDED,
    }
}

fn is_same(one: &Plug, other: &Plug) -> bool {
    match (one.port(), other.port()) {
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        _ => false,
    }
}
