//! Limits on what devices move: bytes and operations per second, with bursts.
//!
//! A [`Bucket`] is one limit. Handles of it are shared: by all that it limits together (a device, a machine's devices, a
//! playground's), and by whoever changes it while they work. A [`Limiter`] is one device's way through all its buckets:
//!
//! ```text
//!   limiter.admit(bytes) ── true ─▶ carry the request out
//!        ▲       └─ false ─▶ hold the request back, take no other
//!        └─ admit the same again ◀─ limiter.woken() ◀─ limiter.source() can be read
//! ```
//!
//! A request draws a ticket from each bucket and goes when all its tickets are due, so those who share a bucket go in the order
//! in which they asked, one request of a device at a time, and nobody starves. Tickets count units, not time: a changed rate
//! holds at once, for those who wait as well. In any span of time a bucket lets through its rate, its burst and one request,
//! however large. Without a limit a request costs one atomic load for each bucket.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use labyard_sys::timer::Timer;

/// How many units a second, and how many beyond that at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units in a second; 0 counts as 1.
    pub per_second: u64,
    /// Units that may go at once after a rest.
    pub burst: u64,
}

/// The limits of one bucket; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Of bytes.
    pub bytes: Option<Rate>,
    /// Of operations: requests, packets.
    pub operations: Option<Rate>,
}

/// Places in two meters: bytes and operations.
type Ticket = [u64; 2];

/// A limit that any number of devices share. Clones are the same bucket.
#[derive(Clone)]
pub struct Bucket(Arc<Shared>);

struct Shared {
    /// Whether there is anything to ask the meters.
    limited: AtomicBool,
    /// Held for a few operations; no other lock is taken under it.
    meters: Mutex<[Meter; 2]>,
    /// Raised by each change before those who wait are woken.
    changes: AtomicU64,
    /// Timers of limiters, to wake them; no other lock is taken under it.
    timers: Mutex<Vec<Weak<Timer>>>,
}

impl Bucket {
    /// A bucket with these limits.
    pub fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let meters = Mutex::new([limits.bytes, limits.operations].map(|rate| Meter::new(rate, now)));
        let limited = AtomicBool::new(limits != Limits::default());
        Self(Arc::new(Shared { limited, meters, changes: AtomicU64::new(0), timers: Mutex::default() }))
    }

    /// Other limits from now on, from any thread. Who waits is looked at again.
    pub fn change(&self, limits: Limits) {
        let now = Instant::now();
        for (meter, rate) in lock(&self.0.meters).iter_mut().zip([limits.bytes, limits.operations]) {
            meter.change(rate, now);
        }
        self.0.limited.store(limits != Limits::default(), Ordering::SeqCst);
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        for timer in lock(&self.0.timers).iter().filter_map(Weak::upgrade) {
            wake_after(&timer, Duration::ZERO);
        }
    }

    fn is_limited(&self) -> bool {
        self.0.limited.load(Ordering::Relaxed)
    }

    fn draw(&self, amounts: [u64; 2], now: Instant) -> Ticket {
        let mut ticket = [0; 2];
        for ((place, meter), amount) in ticket.iter_mut().zip(lock(&self.0.meters).iter_mut()).zip(amounts) {
            *place = meter.draw(amount, now);
        }
        ticket
    }

    fn until_due(&self, ticket: Ticket, now: Instant) -> Duration {
        let meters = lock(&self.0.meters);
        meters.iter().zip(ticket).map(|(meter, place)| meter.until_due(place, now)).max().unwrap_or_default()
    }
}

/// Units of one kind. They become available at the rate; each request takes the next ones, whether they are there yet or not.
struct Meter {
    rate: Option<Rate>,
    /// Available until `since`, from the beginning of all.
    available: u64,
    since: Instant,
    /// Taken, from the beginning of all.
    taken: u64,
}

impl Meter {
    fn new(rate: Option<Rate>, since: Instant) -> Self {
        Self { rate, available: 0, since, taken: 0 }
    }

    fn available(&self, now: Instant) -> u64 {
        let Some(rate) = self.rate else { return self.available };
        let passed = now.saturating_duration_since(self.since).as_nanos();
        let units = passed.saturating_mul(rate.per_second.max(1).into()) / NANOS;
        self.available.saturating_add(u64::try_from(units).unwrap_or(u64::MAX))
    }

    /// Takes units; the place of the first of them.
    fn draw(&mut self, amount: u64, now: Instant) -> u64 {
        // What was not taken is gone, but for the burst, which `until_due` grants.
        let place = self.taken.max(self.available(now));
        self.taken = place.saturating_add(amount);
        place
    }

    fn until_due(&self, place: u64, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let missing = place.saturating_sub(rate.burst).saturating_sub(self.available(now));
        let nanos = u128::from(missing).saturating_mul(NANOS).div_ceil(rate.per_second.max(1).into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn change(&mut self, rate: Option<Rate>, now: Instant) {
        self.available = self.available(now);
        self.since = now;
        if self.rate.is_none() || rate.is_none() {
            // What went while nothing was limited is not held against anybody.
            self.taken = self.available;
        }
        self.rate = rate;
    }
}

const NANOS: u128 = 1_000_000_000;

/// One device's way through its buckets.
pub struct Limiter {
    buckets: Vec<(Bucket, Ticket)>,
    timer: Arc<Timer>,
    /// Tickets are drawn and not all are due.
    waiting: bool,
}

impl Limiter {
    /// The way through these buckets, each of which a request has to pass.
    ///
    /// # Errors
    /// No timer was to be had.
    pub fn new(buckets: Vec<Bucket>) -> io::Result<Self> {
        let timer = Arc::new(Timer::new()?);
        for bucket in &buckets {
            let mut timers = lock(&bucket.0.timers);
            timers.retain(|timer| timer.strong_count() > 0);
            timers.push(Arc::downgrade(&timer));
        }
        let buckets = buckets.into_iter().map(|bucket| (bucket, [0; 2])).collect();
        Ok(Self { buckets, timer, waiting: false })
    }

    /// May one operation of so many bytes go now? If not, the source can be read when it is worth asking again, and until then
    /// the answer is about that same operation, whatever `bytes` is.
    pub fn admit(&mut self, bytes: u64) -> bool {
        if !self.waiting {
            if !self.buckets.iter().any(|(bucket, _)| bucket.is_limited()) {
                return true;
            }
            let now = Instant::now();
            for (bucket, ticket) in &mut self.buckets {
                *ticket = bucket.draw([bytes, 1], now);
            }
            self.waiting = true;
        }
        loop {
            let (changes, now) = (self.changes(), Instant::now());
            let wait = self.buckets.iter().map(|(bucket, ticket)| bucket.until_due(*ticket, now)).max();
            match wait.filter(|wait| !wait.is_zero()) {
                None => {
                    self.waiting = false;
                    return true;
                }
                Some(wait) => wake_after(&self.timer, wait),
            }
            // A change in between has set the timer before us: look again.
            if self.changes() == changes {
                return false;
            }
        }
    }

    /// Can be read when `admit` is worth asking again.
    pub fn source(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// The source was ready: takes that back.
    pub fn woken(&self) {
        self.timer.take();
    }

    /// The operation that waits will not come again.
    pub fn forget(&mut self) {
        self.waiting = false;
    }

    fn changes(&self) -> u64 {
        let changes = self.buckets.iter().map(|(bucket, _)| bucket.0.changes.load(Ordering::SeqCst));
        changes.fold(0, u64::wrapping_add)
    }
}

fn wake_after(timer: &Timer, after: Duration) {
    if let Err(error) = timer.set(after) {
        log::error!("setting the timer of a limit: {error}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    fn is_ready(limiter: &Limiter) -> bool {
        use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
        let epoll = Epoll::new().expect("epoll");
        epoll.ctl(ControlOperation::Add, limiter.source(), EpollEvent::new(EventSet::IN, 0)).expect("a timer");
        epoll.wait(0, &mut [EpollEvent::default()]).expect("epoll") > 0
    }

    #[test]
    fn a_burst_goes_at_once_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut meter = Meter::new(rate(100, 50), start);
        let due = |meter: &mut Meter, amount, after_ms| {
            let now = start + Duration::from_millis(after_ms);
            let place = meter.draw(amount, now);
            meter.until_due(place, now).as_millis()
        };
        assert_eq!(due(&mut meter, 50, 0), 0);
        assert_eq!(due(&mut meter, 10, 0), 0, "the last one of a burst may be over it");
        assert_eq!(due(&mut meter, 10, 0), 100);
        assert_eq!(due(&mut meter, 10, 0), 200);
        assert_eq!(due(&mut meter, 10, 10_000), 0, "after a rest");
        assert_eq!(due(&mut meter, 1_000_000, 10_000), 0, "any size goes, and is paid for afterwards");
        assert_eq!(due(&mut meter, 1, 10_000), (1_000_010 - 50) * 10);
    }

    #[test]
    fn a_change_holds_for_those_who_wait() {
        let start = Instant::now();
        let mut meter = Meter::new(rate(1, 0), start);
        meter.draw(1000, start);
        let place = meter.draw(1, start);
        assert_eq!(meter.until_due(place, start).as_secs(), 1000);
        let later = start + Duration::from_secs(500);
        meter.change(rate(100, 0), later);
        assert_eq!(meter.until_due(place, later).as_secs(), 5);
        meter.change(None, later);
        assert!(meter.until_due(place, later).is_zero());
        meter.change(rate(1, 0), later);
        let place = meter.draw(1, later);
        assert!(meter.until_due(place, later).is_zero(), "old debts are forgotten");
    }

    #[test]
    fn a_limiter_waits_for_every_bucket_and_is_woken_by_a_change() {
        let (own, shared) = (Bucket::new(Limits::default()), Bucket::new(Limits::default()));
        let mut limiter = Limiter::new(vec![own.clone(), shared.clone()]).expect("a timer");
        assert!((0..1000).all(|_| limiter.admit(u64::MAX)), "no limit");
        shared.change(Limits { operations: rate(1, 0), ..Limits::default() });
        limiter.woken();
        assert!(limiter.admit(1));
        assert!(!limiter.admit(1), "the second within a second");
        assert!(!is_ready(&limiter));
        // A limit of a bucket beside does not let it go, and no limit any more does.
        let changer = std::thread::spawn(move || {
            own.change(Limits { bytes: rate(1 << 30, 1 << 30), ..Limits::default() });
            shared.change(Limits::default());
        });
        crate::worker::wait_readable(limiter.source());
        changer.join().expect("changed");
        limiter.woken();
        assert!(limiter.admit(1));
    }

    #[test]
    fn those_who_share_a_bucket_take_turns() {
        let bucket = Bucket::new(Limits { operations: rate(1000, 0), ..Limits::default() });
        let mut limiters: Vec<_> = (0..4).map(|_| Limiter::new(vec![bucket.clone()]).expect("a timer")).collect();
        let mut went = [0u32; 4];
        // The first is always asked first, and would take everything if it could.
        while went.iter().sum::<u32>() < 80 {
            for (limiter, went) in limiters.iter_mut().zip(&mut went) {
                while limiter.admit(1) {
                    *went += 1;
                }
            }
            crate::worker::wait_readable(limiters[1].source());
            for limiter in &limiters {
                limiter.woken();
            }
        }
        // A thread that wakes late finds units that nobody has drawn yet: they go to the first who asks, and it is one more.
        assert!(went.iter().all(|went| (10..=40).contains(went)), "{went:?}");
    }

    proptest! {
        #[test]
        fn no_span_of_time_sees_more_than_rate_burst_and_one_request(
            per_second in 1u64..10_000, burst in 0u64..10_000, amounts in proptest::collection::vec((1u64..500, 0u64..50), 1..100)
        ) {
            let start = Instant::now();
            let mut meter = Meter::new(rate(per_second, burst), start);
            let (mut now, mut total) = (start, 0);
            for (amount, rest_ms) in amounts {
                now += Duration::from_millis(rest_ms);
                let place = meter.draw(amount, now);
                now += meter.until_due(place, now);
                let allowed = (now - start).as_nanos() * u128::from(per_second) / NANOS + u128::from(burst);
                prop_assert!(u128::from(total) <= allowed, "{total} of {allowed} before a request of {amount}");
                total += amount;
            }
        }
    }
}
