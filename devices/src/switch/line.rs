//! Frames that are on their way to a port, and when they arrive.
//!
//! A frame first arrives at the receiver's cable, when it comes out of its sender's; then it passes that cable as well. Each is one
//! frame on a wire: cut, checksums finished. Most frames never get here: they go straight into the receiver's memory.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::frame::Kept;
use super::link::{Lost, Way};

/// Bytes of frames that are on their way to one port at most, with what keeps each: 160 ms of 200 Mbit/s.
pub const MAX_LINE_BYTES: u64 = 4 << 20;
/// What keeping one frame takes beside its bytes.
const FRAME_BYTES: u64 = (size_of::<Under>() + size_of::<Kept>()) as u64;

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// On its sender's cable.
    Sent,
    /// On the receiver's.
    Arriving,
}

/// A frame under way. Those with the same time arrive in the order in which they were sent.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Under {
    due: Instant,
    number: u64,
    stage: Stage,
    /// The port that sent it; of restored ones nobody knows.
    from: Option<usize>,
    frame: Place,
}

/// A frame that takes no part in the order.
struct Place(Kept);

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// A frame as a snapshot keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedFrame {
    /// It has left its sender's cable.
    pub arriving: bool,
    /// Microseconds until it is where it goes next.
    pub left_us: u64,
    /// As [`Kept::encode`] writes it.
    pub bytes: Vec<u8>,
}

/// What came of a frame whose time has come.
pub(super) enum Due {
    /// It is there.
    Here(Kept),
    /// It got lost on the last part of its way.
    Lost(Lost),
}

/// All that is on its way to one port.
pub(super) struct Line {
    /// The receiver's own cable.
    pub(super) receiving: Way,
    under: BinaryHeap<Reverse<Under>>,
    bytes: u64,
    next: u64,
    /// By port, when the last frame that it sent comes out of its cable; no later one comes before that, however long this line
    /// stood still and the sender's cable did not.
    ends: Vec<(usize, Instant)>,
    /// Since when nothing moves: the receiver stands still.
    still: Option<Instant>,
}

impl Line {
    pub(super) fn new(receiving: Way) -> Self {
        Self { receiving, under: BinaryHeap::new(), bytes: 0, next: 0, ends: Vec::new(), still: None }
    }

    pub(super) fn frames(&self) -> u64 {
        self.under.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under.is_empty()
    }

    /// When the next frame is due; never while everything stands still.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.under.peek().filter(|_| self.still.is_none()).map(|Reverse(under)| under.due)
    }

    /// A frame that comes out of the cable of port `from` at `due`. `false` where there is no room for it.
    pub(super) fn push(&mut self, frame: Kept, due: Instant, from: usize, now: Instant) -> bool {
        // While everything stands still, so does the time that it is counted in.
        let due = match self.still {
            Some(since) => since.checked_add(due.saturating_duration_since(now)).unwrap_or(since),
            None => due,
        };
        let place = self.ends.iter().position(|(port, _)| *port == from);
        let due = place.and_then(|place| self.ends.get(place)).map_or(due, |(_, end)| due.max(*end));
        if !self.insert(frame, due, Stage::Sent, Some(from)) {
            return false;
        }
        match place.and_then(|place| self.ends.get_mut(place)) {
            Some((_, end)) => *end = due,
            None => self.ends.push((from, due)),
        }
        true
    }

    fn insert(&mut self, frame: Kept, due: Instant, stage: Stage, from: Option<usize>) -> bool {
        let after = self.bytes.saturating_add(cost(&frame));
        if after > MAX_LINE_BYTES {
            return false;
        }
        self.bytes = after;
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.under.push(Reverse(Under { due, number, stage, from, frame: Place(frame) }));
        true
    }

    /// The next frame whose time has come. One that has come as far as the receiver's cable passes that first.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Due> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse(Under { due, stage, from, frame: Place(frame), .. }) = self.under.pop()?;
            self.bytes = self.bytes.saturating_sub(cost(&frame));
            if stage == Stage::Arriving {
                return Some(Due::Here(frame));
            }
            // From when it was there, not from when somebody looked.
            match self.receiving.pass(frame.frame().len(), due) {
                Err(lost) => return Some(Due::Lost(lost)),
                Ok(out) if out <= now && self.none_arrives_before(out) => return Some(Due::Here(frame)),
                // It was there before, so there is room.
                Ok(out) => drop(self.insert(frame, out, Stage::Arriving, from)),
            }
        }
        None
    }

    fn none_arrives_before(&self, out: Instant) -> bool {
        self.under.peek().is_none_or(|Reverse(under)| under.due > out)
    }

    /// Whatever `is_meant` says is due at once, in the order in which it would have been.
    fn hurry(&mut self, now: Instant, is_meant: impl Fn(&Under) -> bool) {
        let mut frames = std::mem::take(&mut self.under).into_sorted_vec();
        // Sorted by Reverse: the last one is the next.
        frames.reverse();
        for (Reverse(under), number) in frames.iter_mut().zip(self.next..) {
            under.number = number;
            if is_meant(under) {
                under.due = under.due.min(now);
            }
        }
        self.next = self.next.wrapping_add(frames.len() as u64);
        self.under = frames.into();
    }

    /// The cable of port `from` was healed: what is on it arrives now.
    pub(super) fn hurry_from(&mut self, from: usize, now: Instant) {
        let now = self.still.unwrap_or(now);
        self.forget_sender(from);
        self.hurry(now, |under| under.stage == Stage::Sent && under.from == Some(from));
    }

    /// The receiver's cable was healed.
    pub(super) fn hurry_received(&mut self, now: Instant) {
        let now = self.still.unwrap_or(now);
        self.receiving.clear(now);
        self.hurry(now, |under| under.stage == Stage::Arriving);
    }

    /// What comes from port `from` next need not wait for what came before: it is another's, or that arrives now.
    pub(super) fn forget_sender(&mut self, from: usize) {
        self.ends.retain(|(port, _)| *port != from);
    }

    /// Nothing moves from now on.
    pub(super) fn stand_still(&mut self, now: Instant) {
        self.still.get_or_insert(now);
    }

    /// Everything goes on where it was.
    pub(super) fn go_on(&mut self, now: Instant) {
        let Some(since) = self.still.take() else { return };
        let time = now.saturating_duration_since(since);
        self.receiving.stood_still(time);
        let mut frames = std::mem::take(&mut self.under).into_vec();
        for Reverse(under) in &mut frames {
            under.due = under.due.checked_add(time).unwrap_or(under.due);
        }
        self.under = frames.into();
        for (_, end) in &mut self.ends {
            *end = end.checked_add(time).unwrap_or(*end);
        }
    }

    /// Drops everything; how many frames that were.
    pub(super) fn clear(&mut self, now: Instant) -> u64 {
        let frames = self.frames();
        self.under.clear();
        self.ends.clear();
        (self.bytes, self.still) = (0, None);
        self.receiving.clear(now);
        frames
    }

    /// All frames in their order.
    pub(super) fn save(&self, now: Instant) -> Vec<SavedFrame> {
        let now = self.still.unwrap_or(now);
        let mut under: Vec<_> = self.under.iter().map(|Reverse(under)| under).collect();
        under.sort_unstable();
        let saved = under.into_iter().map(|under| SavedFrame {
            arriving: under.stage == Stage::Arriving,
            left_us: u64::try_from(under.due.saturating_duration_since(now).as_micros()).unwrap_or(u64::MAX),
            bytes: under.frame.0.encode(),
        });
        saved.collect()
    }

    /// One frame as it was saved; the line stands still. `false` where there is no room for it.
    pub(super) fn restore(&mut self, frame: Kept, arriving: bool, left_us: u64, now: Instant) -> bool {
        let since = *self.still.get_or_insert(now);
        let due = since.checked_add(Duration::from_micros(left_us)).unwrap_or(since);
        if arriving {
            self.receiving.not_before(due);
        }
        self.insert(frame, due, if arriving { Stage::Arriving } else { Stage::Sent }, None)
    }
}

fn cost(frame: &Kept) -> u64 {
    frame.frame().len().saturating_add(FRAME_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u8) -> Kept {
        Kept::decode(&[&[0; 12][..], &[number; 60]].concat()).expect("a frame")
    }

    /// Numbers of the frames that are there at a time.
    fn there(line: &mut Line, at: Instant) -> Vec<u8> {
        let here = |due| if let Due::Here(kept) = due { kept.bytes().first().copied() } else { None };
        std::iter::from_fn(|| line.pop(at)).filter_map(here).collect()
    }

    fn line() -> (Line, impl Fn(u64) -> Instant) {
        let now = Instant::now();
        (Line::new(Way::new(7, now)), move |seconds| now + Duration::from_secs(seconds))
    }

    #[test]
    fn what_comes_while_everything_stands_still_overtakes_nothing() {
        let (mut line, at) = line();
        // The sender's cable lets one out at 70, and so the next one not before.
        assert!(line.push(frame(1), at(70), 0, at(0)));
        line.stand_still(at(10));
        assert!(line.push(frame(2), at(70), 0, at(20)));
        assert!(line.push(frame(3), at(21), 1, at(20)), "another's waits for nobody");
        line.go_on(at(40));
        assert!(line.push(frame(4), at(71), 0, at(45)), "that cable did not stand still");
        assert_eq!(there(&mut line, at(50)), [3]);
        assert!(there(&mut line, at(99)).is_empty());
        assert_eq!(there(&mut line, at(100)), [1, 2, 4]);
    }

    #[test]
    fn a_cable_that_is_healed_while_everything_stands_still_is_empty_afterwards() {
        let (mut line, at) = line();
        line.receiving.set(labyard_spec::link::LinkFaults { delay_us: 60_000_000, ..Default::default() });
        assert!(line.push(frame(1), at(0), 0, at(0)));
        assert!(there(&mut line, at(1)).is_empty(), "on the receiver's cable");
        assert!(line.push(frame(2), at(90), 1, at(1)));
        line.stand_still(at(10));
        line.receiving.set(Default::default());
        line.hurry_received(at(20));
        line.hurry_from(1, at(20));
        assert!(line.push(frame(3), at(21), 1, at(21)));
        line.go_on(at(30));
        assert_eq!(there(&mut line, at(30)), [1, 2, 3]);
    }

    #[test]
    fn what_was_saved_on_two_cables_arrives_in_its_order() {
        let (mut line, at) = line();
        line.receiving.set(labyard_spec::link::LinkFaults { delay_us: 60_000_000, ..Default::default() });
        assert!(line.push(frame(1), at(0), 0, at(0)));
        assert!(there(&mut line, at(1)).is_empty(), "on the receiver's cable");
        assert!(line.push(frame(2), at(3), 0, at(1)));
        let mut other = Line::new(Way::new(7, at(0)));
        for SavedFrame { arriving, left_us, bytes } in line.save(at(2)) {
            assert!(other.restore(Kept::decode(&bytes).expect("a frame"), arriving, left_us, at(100)));
        }
        other.go_on(at(200));
        assert!(there(&mut other, at(257)).is_empty());
        assert_eq!(there(&mut other, at(258)), [1, 2]);
    }

    #[test]
    fn who_comes_in_the_place_of_one_who_left_does_not_wait_for_what_that_one_sent() {
        let (mut line, at) = line();
        assert!(line.push(frame(1), at(70), 0, at(0)));
        line.forget_sender(0);
        assert!(line.push(frame(2), at(1), 0, at(1)));
        assert_eq!(there(&mut line, at(1)), [2]);
    }
}
