//! What one direction of a link does to frames: each is lost, or comes out at a time.
//!
//! ```text
//!   cut? ─▶ lost by chance? ─▶ a queue in front of the rate ─▶ delay and jitter ─▶ out
//! ```
//!
//! Frames come out in the order in which they went in, however the delay varies: a cable does not shuffle. Chance is a sequence of
//! numbers that depends on the NIC alone, so a lab that does the same twice loses the same frames.

use std::time::{Duration, Instant};

use labyard_spec::link::{ALL_PPM, LinkFaults};

/// Bytes that wait in front of a rate at most: 100 ms of 10 Mbit/s, a second of 1 Mbit/s.
pub const MAX_QUEUE_BYTES: u64 = 128 << 10;
const NANOS: u128 = 1_000_000_000;

/// Why a frame does not come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The link is cut.
    Cut,
    /// By chance.
    Chance,
    /// The queue in front of the rate is full.
    Queue,
}

/// One direction.
#[derive(Debug, Clone)]
pub struct Way {
    faults: LinkFaults,
    /// Where the sequence of numbers stands.
    chance: u64,
    /// When the rate has let through what went in so far.
    free: Instant,
    /// When the last frame comes out.
    last: Instant,
}

impl Way {
    /// One that lets everything through at once.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self { faults: LinkFaults::default(), chance: seed, free: now, last: now }
    }

    /// What it does.
    pub fn faults(&self) -> LinkFaults {
        self.faults
    }

    /// Other faults from now on; what went in before comes out as it would have.
    pub fn set(&mut self, faults: LinkFaults) {
        self.faults = faults;
    }

    /// Forgets what went in.
    pub fn clear(&mut self, now: Instant) {
        (self.free, self.last) = (now, now);
    }

    /// Something that went in before, elsewhere, comes out at `out`: nothing else does before that.
    pub fn not_before(&mut self, out: Instant) {
        self.last = self.last.max(out);
    }

    /// Stood still for so long: nothing came closer to its end.
    pub fn stood_still(&mut self, time: Duration) {
        self.free = later(self.free, time);
        self.last = later(self.last, time);
    }

    /// A frame of `bytes` goes in: when it comes out.
    ///
    /// # Errors
    /// It does not.
    pub fn pass(&mut self, bytes: u64, now: Instant) -> Result<Instant, Lost> {
        let LinkFaults { delay_us, jitter_us, loss_ppm, bits_per_second, cut } = self.faults;
        if cut {
            return Err(Lost::Cut);
        }
        if loss_ppm != 0 && self.below(ALL_PPM.into()) < loss_ppm.into() {
            return Err(Lost::Chance);
        }
        let mut out = now;
        if let Some(rate) = bits_per_second {
            let begin = self.free.max(now);
            let waiting = begin.saturating_duration_since(now).as_nanos().saturating_mul(rate.into()) / 8 / NANOS;
            if waiting > MAX_QUEUE_BYTES.into() {
                return Err(Lost::Queue);
            }
            let bits = u128::from(bytes).saturating_mul(8);
            let takes = bits.saturating_mul(NANOS).checked_div(rate.into()).unwrap_or(u128::MAX);
            self.free = later(begin, Duration::from_nanos(u64::try_from(takes).unwrap_or(u64::MAX)));
            out = self.free;
        }
        let mut delay_us = delay_us;
        if jitter_us != 0 {
            let most = jitter_us.saturating_mul(2).saturating_add(1);
            delay_us = delay_us.saturating_sub(jitter_us).saturating_add(self.below(most));
        }
        self.last = self.last.max(later(out, Duration::from_micros(delay_us)));
        Ok(self.last)
    }

    /// The next number of the sequence, below `most`, which is not 0 (splitmix64).
    fn below(&mut self, most: u64) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.chance;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^= number >> 31;
        number.checked_rem(most).unwrap_or(0)
    }
}

/// A time that is not representable is as good as the one before it.
fn later(from: Instant, by: Duration) -> Instant {
    from.checked_add(by).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn way(faults: LinkFaults) -> (Way, Instant) {
        let now = Instant::now();
        let mut way = Way::new(7, now);
        way.set(faults);
        (way, now)
    }

    #[test]
    fn a_rate_spaces_frames_and_its_queue_drops_the_newest() {
        let (mut way, now) = way(LinkFaults { bits_per_second: Some(8_000_000), ..LinkFaults::default() });
        // A byte in a microsecond.
        let out = |way: &mut Way| way.pass(1000, now).map(|at| at.duration_since(now).as_micros());
        assert_eq!([out(&mut way), out(&mut way)], [Ok(1000), Ok(2000)]);
        let passed = (0..1000).filter(|_| out(&mut way).is_ok()).count();
        assert_eq!(passed, 130, "131,072 bytes wait, and the one that was just let in");
        assert_eq!(out(&mut way), Err(Lost::Queue));
        assert!(way.pass(1000, now + Duration::from_millis(2)).is_ok(), "two went out meanwhile");
    }

    #[test]
    fn loss_is_what_was_asked_for_and_the_same_each_time() {
        let lost = |ppm| {
            let (mut way, now) = way(LinkFaults { loss_ppm: ppm, ..LinkFaults::default() });
            (0..100_000).map(|_| way.pass(60, now).is_err()).collect::<Vec<_>>()
        };
        let count = |ppm| lost(ppm).into_iter().filter(|lost| *lost).count();
        assert_eq!((count(0), count(1_000_000)), (0, 100_000));
        assert!((1_800..2_200).contains(&count(20_000)), "{}", count(20_000));
        assert_eq!(lost(20_000), lost(20_000));
    }

    #[test]
    fn nothing_passes_a_cut_and_everything_does_once_it_is_healed() {
        let (mut way, now) = way(LinkFaults { cut: true, ..LinkFaults::default() });
        assert_eq!(way.pass(60, now), Err(Lost::Cut));
        way.set(LinkFaults::default());
        assert_eq!(way.pass(60, now), Ok(now));
    }

    proptest! {
        #[test]
        fn frames_come_out_in_order_and_not_before_their_time(
            delay_us in 0u64..100_000, jitter in 0u64..100, rate in proptest::option::of(1_000_000u64..1_000_000_000),
            gaps in proptest::collection::vec(0u64..5_000, 1..60),
        ) {
            let jitter_us = delay_us * jitter / 100;
            let faults = LinkFaults { delay_us, jitter_us, bits_per_second: rate, ..LinkFaults::default() };
            let (mut way, mut now) = way(faults);
            let mut last = now;
            for gap in gaps {
                now += Duration::from_micros(gap);
                if let Ok(out) = way.pass(1514, now) {
                    prop_assert!(out >= last && out >= now + Duration::from_micros(delay_us - jitter_us));
                    if rate.is_none() {
                        prop_assert!(out <= last.max(now + Duration::from_micros(delay_us + jitter_us)));
                    }
                    last = out;
                }
            }
        }
    }
}
