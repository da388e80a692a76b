//! What one drive has done: counters that its worker adds to and anybody reads at any time.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::counters::Snapshot;

/// Counters of a drive. `discards` counts write-zeroes, too; `errors` are the backend's, not a guest's mistakes; `throttled` requests
/// have waited for a limit. Each is exact and only grows; together they are not one instant.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) reads: Count,
    pub(super) read_bytes: Count,
    pub(super) writes: Count,
    pub(super) written_bytes: Count,
    pub(super) flushes: Count,
    pub(super) discards: Count,
    pub(super) errors: Count,
    pub(super) throttled: Count,
}

impl Snapshot for Counters {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        [
            ("reads", &self.reads),
            ("read_bytes", &self.read_bytes),
            ("writes", &self.writes),
            ("written_bytes", &self.written_bytes),
            ("flushes", &self.flushes),
            ("discards", &self.discards),
            ("errors", &self.errors),
            ("throttled", &self.throttled),
        ]
        .map(|(name, count)| (name, count.0.load(Ordering::Relaxed)))
        .into()
    }
}

/// One counter.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Adds; the value afterwards.
    pub(super) fn add(&self, amount: u64) -> u64 {
        self.0.fetch_add(amount, Ordering::Relaxed).wrapping_add(amount)
    }
}
