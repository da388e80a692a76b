//! What the link of a port does to frames, and what is on its way to the port.
//!
//! Locks, in this order, of one port at a time: the line, then the inbox. The sending way is locked alone.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use labyard_spec::link::{Direction, LinkChange, LinkFaults};
use labyard_sys::timer::Timer;

use super::super::claim::BadClaim;
use super::super::counters::Count;
use super::super::frame::{Frame, Kept};
use super::super::line::{Due, Line, SavedFrame};
use super::super::link::{Lost, Way};
use super::{Place, Port};

/// Its sending way has faults.
const SENDS: u32 = 1;
/// Its receiving way has faults.
const RECEIVES: u32 = 2;
/// Frames are on their way to it, which others must not overtake.
const UNDER_WAY: u32 = 4;
/// Somebody looks at what it sends.
pub(in crate::switch) const TAPPED_SENT: u32 = 8;
/// Somebody looks at what it receives.
pub(in crate::switch) const TAPPED_RECEIVED: u32 = 16;

/// The link of a port.
pub(super) struct Cable {
    /// All that keeps a frame from the direct way. [`UNDER_WAY`] changes under the lock of the line.
    flags: AtomicU32,
    sending: Mutex<Way>,
    line: Mutex<Line>,
    /// Fires when the next frame is due; none was to be had where it is missing.
    timer: Option<Timer>,
}

/// What a snapshot keeps of a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedCable {
    /// What it does to frames that the port sends.
    pub sent: LinkFaults,
    /// What it does to frames for it.
    pub received: LinkFaults,
    /// What is on its way to the port, in order.
    pub under_way: Vec<SavedFrame>,
}

impl Cable {
    pub(super) fn new(mac: [u8; 6]) -> Self {
        let [_, _, a, b, c, d] = mac;
        let (seed, now) = (u64::from(u32::from_be_bytes([a, b, c, d])), Instant::now());
        let timer = Timer::new().map_err(|error| log::error!("a timer for frames under way: {error}")).ok();
        let line = Line::new(Way::new(!seed, now));
        Self { flags: AtomicU32::new(0), sending: Mutex::new(Way::new(seed, now)), line: Mutex::new(line), timer }
    }
}

impl Port {
    /// Whether a frame that it sends goes the direct way, as far as it is concerned.
    pub(in crate::switch) fn is_calm(&self) -> bool {
        !self.has(SENDS | TAPPED_SENT)
    }

    pub(in crate::switch) fn sends_with_faults(&self) -> bool {
        self.has(SENDS)
    }

    pub(in crate::switch) fn receives_with_faults(&self) -> bool {
        self.has(RECEIVES | UNDER_WAY)
    }

    pub(in crate::switch) fn has(&self, flags: u32) -> bool {
        self.cable.flags.load(Ordering::Relaxed) & flags != 0
    }

    pub(in crate::switch) fn set(&self, flags: u32, on: bool) {
        match on {
            true => self.cable.flags.fetch_or(flags, Ordering::Relaxed),
            false => self.cable.flags.fetch_and(!flags, Ordering::Relaxed),
        };
    }

    /// What fires when something is due.
    pub fn timer(&self) -> Option<&Timer> {
        self.cable.timer.as_ref()
    }

    /// What the link does: to what is sent, and to what is received.
    pub fn link_faults(&self) -> (LinkFaults, LinkFaults) {
        let sent = self.sending().faults();
        (sent, self.line().receiving.faults())
    }

    pub(super) fn frames_under_way(&self) -> u64 {
        self.line().frames()
    }

    pub(in crate::switch) fn change_link(&self, direction: Direction, change: LinkChange) -> Result<(), String> {
        if self.cable.timer.is_none() {
            return Err("it was given no timer when it was made, so nothing can wait on its way to it".into());
        }
        let (sent, received) = self.link_faults();
        let (sent, received) = (
            if direction.has_sent() { sent.changed(change)? } else { sent },
            if direction.has_received() { received.changed(change)? } else { received },
        );
        self.set_faults(sent, received);
        if change == LinkChange::Heal {
            let now = Instant::now();
            if direction.has_sent() {
                self.sending().clear(now);
            }
            if direction.has_received() {
                let mut line = self.line();
                line.hurry_received(now);
                self.wake_for(&line, now);
            }
        }
        Ok(())
    }

    fn set_faults(&self, sent: LinkFaults, received: LinkFaults) {
        let mut sending = self.sending();
        sending.set(sent);
        self.set(SENDS, sent != LinkFaults::default());
        drop(sending);
        let mut line = self.line();
        line.receiving.set(received);
        self.set(RECEIVES, received != LinkFaults::default());
    }

    /// A frame goes into the link from the port's side: when it comes out at the switch, or what it is counted as.
    pub(in crate::switch) fn pass_sent(&self, bytes: u64, now: Instant) -> Result<Instant, Count> {
        self.sending().pass(bytes, now).map_err(|lost| match lost {
            Lost::Chance => Count::LostSent,
            Lost::Queue => Count::QueueSent,
            Lost::Cut => Count::CutSent,
        })
    }

    /// A frame for the port comes to the switch at `out`, or now. Called by the sender's thread.
    pub(in crate::switch) fn put_on_line(&self, frame: &Frame<'_>, out: Option<Instant>, from: usize) {
        let segments = frame.segments();
        // Whoever is not there gets nothing, however late.
        if matches!(self.lock().place, Place::Unplugged) {
            return self.counters.add(Count::DroppedUnplugged, segments.into());
        }
        let frames = (0..segments).map(|number| frame.on_wire(number));
        let frames: Vec<Option<Kept>> = frames.collect();
        let mut line = self.line();
        let now = Instant::now();
        let before = line.next_due();
        for frame in frames {
            if !frame.is_some_and(|frame| line.push(frame, out.unwrap_or(now), from, now)) {
                self.counters.add(Count::LineFull, 1);
            }
        }
        self.set(UNDER_WAY, !line.is_empty());
        if line.next_due() != before {
            self.wake_for(&line, now);
        }
    }

    /// What comes out of the cable of port `from`, which was healed, arrives now.
    pub(in crate::switch) fn hurry_from(&self, from: usize) {
        let mut line = self.line();
        let now = Instant::now();
        line.hurry_from(from, now);
        self.wake_for(&line, now);
    }

    /// Delivers what is due; `look` sees each frame first.
    pub(in crate::switch) fn come_due(&self, now: Instant, look: impl Fn(&Frame<'_>)) {
        if let Some(timer) = &self.cable.timer {
            timer.take();
        }
        let mut line = self.line();
        while let Some(due) = line.pop(now) {
            match due {
                Due::Here(kept) => {
                    look(&kept.frame());
                    self.deliver(&kept.frame());
                }
                Due::Lost(lost) => self.counters.add(
                    match lost {
                        Lost::Chance => Count::LostReceived,
                        Lost::Queue => Count::QueueReceived,
                        Lost::Cut => Count::CutReceived,
                    },
                    1,
                ),
            }
        }
        self.set(UNDER_WAY, !line.is_empty());
        self.wake_for(&line, now);
        drop(line);
        self.signal();
    }

    fn wake_for(&self, line: &Line, now: Instant) {
        let (Some(due), Some(timer)) = (line.next_due(), &self.cable.timer) else { return };
        if let Err(error) = timer.set(due.saturating_duration_since(now)) {
            log::error!("setting a timer for frames under way: {error}");
        }
    }

    pub(super) fn cable_stands_still(&self) {
        let now = Instant::now();
        self.line().stand_still(now);
    }

    pub(super) fn cable_goes_on(&self) {
        let mut line = self.line();
        let now = Instant::now();
        line.go_on(now);
        self.wake_for(&line, now);
    }

    /// The driver is gone, and with it all that was on its way.
    pub(super) fn forget_cable(&self) {
        let mut line = self.line();
        let dropped = line.clear(Instant::now());
        self.counters.add(Count::DroppedUnplugged, dropped);
        self.set(UNDER_WAY, false);
    }

    /// What a snapshot keeps of the link.
    pub fn save_cable(&self) -> SavedCable {
        let (sent, received) = self.link_faults();
        SavedCable { sent, received, under_way: self.line().save(Instant::now()) }
    }

    /// Takes back what `save_cable` gave; it stands still until the NIC goes to work.
    ///
    /// # Errors
    /// A frame that no guest can have sent, or more than a line holds.
    pub fn restore_cable(&self, saved: &SavedCable) -> Result<(), BadClaim> {
        self.set_faults(saved.sent, saved.received);
        let mut line = self.line();
        let now = Instant::now();
        for frame in &saved.under_way {
            if !line.restore(Kept::decode(&frame.bytes)?, frame.arriving, frame.left_us, now) {
                return Err(BadClaim::Length);
            }
        }
        self.set(UNDER_WAY, !line.is_empty());
        Ok(())
    }

    fn sending(&self) -> MutexGuard<'_, Way> {
        self.cable.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.cable.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
