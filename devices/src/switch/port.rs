//! A NIC's place in a switch. It owns the NIC's receive queue.
//!
//! ```text
//!             plug(receiver)            the receiver's ring is broken
//!   Unplugged ─────────────▶ Up ───────────────────────────────────▶ Broken
//!       ▲                   │  ▲                                        │
//!       │            unplug ▼  │ plug                                   │
//!       ├─── forget ───── Resting                                       │
//!       └─────────────────────────────── unplug ────────────────────────┘
//! ```
//!
//! Without buffers from the guest, frames wait in a backlog that is counted in bytes; a full one drops the newest. They wait, and
//! more may come, while the device rests because all machines stand still or are saved; they go with its reset. The link is up or
//! down whatever the place is.
//!
//! What the link does to frames is in `port/cable.rs`.

mod cable;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PortSpec;
use super::claim::BadClaim;
use super::counters::{Count, Counters, Snapshot};
use super::frame::{Frame, Kept};
use super::receiver::{Delivery, Receiver};
use super::tap::Tap;
use crate::virtio::chain::RingFault;
pub use cable::SavedCable;
pub(super) use cable::{TAPPED_RECEIVED, TAPPED_SENT};

/// Bytes of frames that wait for a guest at most, with what keeps each: 16 large segments.
pub const MAX_BACKLOG_BYTES: u64 = 1 << 20;

/// What keeping one frame takes beside its bytes.
pub(super) const WAITING_BYTES: u64 = size_of::<Waiting>() as u64;

enum Place {
    Unplugged,
    /// The NIC will go on where it was.
    Resting,
    Up(Receiver),
    Broken(Receiver),
    /// No guest, but a tap device of the host's; it has no buffers to wait for and never rests.
    Tap(Tap),
}

/// A frame that waits for buffers, or the rest of one.
struct Waiting {
    frame: Kept,
    /// Its first segment that the guest has not got.
    next: u32,
}

/// What the lock of a port guards.
struct Inbox {
    place: Place,
    backlog: VecDeque<Waiting>,
    backlog_bytes: u64,
}

/// A port.
pub struct Port {
    spec: PortSpec,
    counters: Counters,
    /// Read without the lock, by senders for their own port.
    link_up: AtomicBool,
    /// The receive queue and what waits for it. Under it only that of the configuration space is taken, by `set_link`.
    inbox: Mutex<Inbox>,
    /// What its link does to frames.
    cable: cable::Cable,
}

impl Port {
    pub(super) fn new(spec: PortSpec) -> Self {
        let inbox = Inbox { place: Place::Unplugged, backlog: VecDeque::new(), backlog_bytes: 0 };
        let (link_up, cable) = (AtomicBool::new(true), cable::Cable::new(spec.mac));
        Self { spec, counters: Counters::default(), link_up, inbox: Mutex::new(inbox), cable }
    }

    /// What the switch knows of the NIC.
    pub fn spec(&self) -> PortSpec {
        self.spec
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Its counters as they are now.
    pub fn snapshot(&self) -> Snapshot {
        let under_way = self.frames_under_way();
        let inbox = self.lock();
        let waiting =
            inbox.backlog.iter().map(|waiting| u64::from(waiting.left())).fold(under_way, u64::saturating_add);
        Snapshot::of(&self.counters, waiting)
    }

    /// The NIC goes to work.
    pub fn plug(&self, receiver: Receiver) {
        self.lock().place = Place::Up(receiver);
        self.cable_goes_on();
    }

    /// The NIC goes back to rest. Its guest is told of what it was given first: its signal may not have been sent yet.
    pub fn unplug(&self) -> Option<Receiver> {
        self.cable_stands_still();
        let mut inbox = self.lock();
        match std::mem::replace(&mut inbox.place, Place::Unplugged) {
            Place::Up(mut receiver) => {
                inbox.place = Place::Resting;
                if let Err(fault) = receiver.queue.ring.signal_if_needed(&receiver.mem, &*receiver.irq) {
                    receiver.faults.note(fault);
                }
                Some(receiver)
            }
            Place::Broken(receiver) => Some(receiver),
            Place::Resting => {
                inbox.place = Place::Resting;
                None
            }
            Place::Unplugged => None,
            Place::Tap(tap) => {
                inbox.place = Place::Tap(tap);
                None
            }
        }
    }

    /// A tap device takes the place of a guest.
    pub(super) fn plug_tap(&self, tap: Tap) {
        self.lock().place = Place::Tap(tap);
    }

    /// The tap device is let go of, for good: what is sent here finds nobody.
    pub(super) fn unplug_tap(&self) {
        let mut inbox = self.lock();
        if matches!(inbox.place, Place::Tap(_)) {
            inbox.place = Place::Unplugged;
        }
    }

    /// Drops what waits for the guest: its driver is gone.
    pub fn forget(&self) {
        self.forget_cable();
        let mut inbox = self.lock();
        inbox.backlog_bytes = 0;
        if matches!(inbox.place, Place::Resting) {
            inbox.place = Place::Unplugged;
        }
        for waiting in std::mem::take(&mut inbox.backlog) {
            self.counters.add(Count::DroppedUnplugged, waiting.left().into());
        }
    }

    /// What a snapshot keeps: frames that wait, each with its first segment that the guest has not got; nothing where no driver
    /// is to go on.
    pub fn save(&self) -> Option<Vec<(u32, Vec<u8>)>> {
        let inbox = self.lock();
        let frames = || inbox.backlog.iter().map(|waiting| (waiting.next, waiting.frame.encode())).collect();
        (!matches!(inbox.place, Place::Unplugged)).then(frames)
    }

    /// Takes back what `save` gave. The NIC is at rest.
    ///
    /// # Errors
    /// A frame that no guest can have sent, or more than a backlog holds.
    pub fn restore(&self, frames: &[(u32, Vec<u8>)]) -> Result<(), BadClaim> {
        let mut inbox = self.lock();
        inbox.place = Place::Resting;
        for (next, bytes) in frames {
            let waiting = Waiting { frame: Kept::decode(bytes)?, next: *next };
            let after = inbox.backlog_bytes.saturating_add(cost(&waiting.frame.frame()));
            if waiting.left() == 0 || after > MAX_BACKLOG_BYTES {
                return Err(BadClaim::Length);
            }
            inbox.backlog_bytes = after;
            inbox.backlog.push_back(waiting);
        }
        Ok(())
    }

    /// The driver has turned offloads on or off.
    pub fn set_offloads(&self, offloads: u64) {
        if let Place::Up(receiver) = &mut self.lock().place {
            receiver.set_offloads(offloads);
        }
    }

    /// Whether a cable is in, so to say.
    pub fn is_link_up(&self) -> bool {
        self.link_up.load(Ordering::Relaxed)
    }

    /// Plugs the cable or pulls it. `tell` puts it into the configuration space; then the guest is signalled. What waits for
    /// the guest is on its side of the cable and stays.
    pub fn set_link(&self, up: bool, tell: impl FnOnce()) {
        let inbox = self.lock();
        if self.link_up.swap(up, Ordering::Relaxed) == up {
            return;
        }
        tell();
        if let Place::Up(receiver) | Place::Broken(receiver) = &inbox.place {
            receiver.irq.signal_config();
        }
    }

    /// Delivers a frame; `true` where the guest has something new to look at. Called by the sender's thread.
    pub(super) fn deliver(&self, frame: &Frame<'_>) -> bool {
        // A panic here would be the receiver's, not the sender's.
        catch_unwind(AssertUnwindSafe(|| self.try_deliver(frame))).unwrap_or_else(|_| {
            self.break_down(&mut self.lock(), "a panic while delivering");
            self.counters.add(Count::DroppedBroken, frame.segments().into());
            false
        })
    }

    fn try_deliver(&self, frame: &Frame<'_>) -> bool {
        let mut inbox = self.lock();
        let Inbox { place, backlog, backlog_bytes } = &mut *inbox;
        let segments = frame.segments();
        let drop_all = |why| {
            self.counters.add(why, segments.into());
            false
        };
        let receiver = match place {
            _ if !self.is_link_up() => return drop_all(Count::DroppedLink),
            Place::Up(receiver) => Some(receiver),
            Place::Resting => None,
            Place::Tap(tap) => {
                let sent = tap.send(frame);
                self.received(frame, 0, sent);
                if sent < segments {
                    self.counters.add(Count::DroppedFull, segments.saturating_sub(sent).into());
                }
                return false;
            }
            Place::Broken(_) => return drop_all(Count::DroppedBroken),
            Place::Unplugged => return drop_all(Count::DroppedUnplugged),
        };
        let mut next = 0;
        if let Some(receiver) = receiver
            && backlog.is_empty()
        {
            let given = receiver.give(frame, &mut next);
            self.received(frame, 0, next);
            match given {
                Ok(Delivery::Done) => return true,
                Ok(Delivery::NoBuffer) => {}
                Err(fault) => {
                    self.counters.add(Count::DroppedBroken, segments.saturating_sub(next).into());
                    self.break_down(&mut inbox, &fault.to_string());
                    return false;
                }
            }
        }
        let cost = cost(frame);
        if backlog_bytes.saturating_add(cost) > MAX_BACKLOG_BYTES {
            self.counters.add(Count::DroppedFull, segments.saturating_sub(next).into());
        } else {
            *backlog_bytes = backlog_bytes.saturating_add(cost);
            backlog.push_back(Waiting { frame: frame.keep(), next });
        }
        next != 0
    }

    /// The guest has added buffers: what waits is delivered. Called by the receiver's own thread.
    pub fn kicked(&self) {
        let mut inbox = self.lock();
        if let Err(fault) = self.empty_backlog(&mut inbox) {
            self.break_down(&mut inbox, &fault.to_string());
        }
    }

    fn empty_backlog(&self, inbox: &mut Inbox) -> Result<(), RingFault> {
        let Inbox { place, backlog, backlog_bytes } = inbox;
        let receiver = match place {
            Place::Up(receiver) => receiver,
            Place::Broken(receiver) => {
                receiver.queue.take_kick();
                return Ok(());
            }
            Place::Unplugged | Place::Resting | Place::Tap(_) => return Ok(()),
        };
        receiver.queue.take_kick();
        while let Some(Waiting { frame, next }) = backlog.front_mut() {
            let (frame, had) = (frame.frame(), *next);
            let given = receiver.give(&frame, next);
            self.received(&frame, had, *next);
            if given? == Delivery::NoBuffer {
                break;
            }
            *backlog_bytes = backlog_bytes.saturating_sub(cost(&frame));
            backlog.pop_front();
        }
        if backlog.is_empty() {
            receiver.queue.ring.disable_kicks(&receiver.mem)?;
        }
        receiver.queue.ring.signal_if_needed(&receiver.mem, &*receiver.irq)
    }

    /// Counts the segments from `from` up to `to` as received.
    fn received(&self, frame: &Frame<'_>, from: u32, to: u32) {
        let segments = to.saturating_sub(from);
        if segments != 0 {
            self.counters.add(Count::ReceivedFrames, segments.into());
            self.counters.add(Count::ReceivedBytes, frame.wire_bytes(from, segments));
        }
    }

    /// Signals the guest, if it wants to be.
    pub(super) fn signal(&self) {
        let mut inbox = self.lock();
        let Place::Up(receiver) = &mut inbox.place else { return };
        if let Err(fault) = receiver.queue.ring.signal_if_needed(&receiver.mem, &*receiver.irq) {
            self.break_down(&mut inbox, &fault.to_string());
        }
    }

    /// The receiver's ring cannot be used any more: its device says so, and what waited is dropped.
    fn break_down(&self, inbox: &mut Inbox, why: &str) {
        inbox.backlog_bytes = 0;
        for waiting in std::mem::take(&mut inbox.backlog) {
            self.counters.add(Count::DroppedBroken, waiting.left().into());
        }
        if let Place::Up(receiver) = std::mem::replace(&mut inbox.place, Place::Unplugged) {
            receiver.faults.note(why);
            receiver.irq.needs_reset();
            inbox.place = Place::Broken(receiver);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Segments that the guest has not got.
    fn left(&self) -> u32 {
        self.frame.frame().segments().saturating_sub(self.next)
    }
}

/// What a waiting frame counts for: its bytes, and what keeps them.
fn cost(frame: &Frame<'_>) -> u64 {
    frame.len().saturating_add(WAITING_BYTES)
}
