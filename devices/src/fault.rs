//! Mistakes of a guest: counted, and logged at a limited rate.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::counters::Snapshot;

/// The counter of one device. Clones count together.
#[derive(Debug, Clone)]
pub struct Faults {
    device: Arc<str>,
    count: Arc<AtomicU64>,
}

impl Faults {
    /// A counter at zero.
    pub fn new(device: &str) -> Self {
        Self { device: device.into(), count: Arc::default() }
    }

    /// Counts one mistake; the 1st, 2nd, 4th, 8th, … is logged, so a guest cannot fill a log.
    pub fn note(&self, fault: impl Display) {
        let count = self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count.is_power_of_two() {
            log::warn!("{}: guest fault {count}: {fault}", self.device);
        }
    }

    /// How many so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whose they are.
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl Snapshot for Faults {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        vec![("faults", self.count())]
    }
}
