//! Counters that are always on: relaxed atomics that their owner adds to and anybody reads at any time.
//!
//! An owner keeps a [`Set`], or a struct of its own that is a [`Snapshot`], and hands out [`Counters`]: a name and a way to
//! read. Values are each exact and only grow; together they are not one instant.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::Faults;

/// Something that can tell its counters.
pub trait Snapshot: Send + Sync {
    /// Each counter's name and value, always the same names in the same order.
    fn snapshot(&self) -> Vec<(&'static str, u64)>;
}

/// Counters by position, as an enum of the owner's names them.
pub struct Set<const N: usize> {
    names: [&'static str; N],
    values: [AtomicU64; N],
}

impl<const N: usize> Set<N> {
    /// All at zero.
    pub const fn new(names: [&'static str; N]) -> Self {
        Self { names, values: [const { AtomicU64::new(0) }; N] }
    }

    /// Adds to the counter at `position`; nothing where there is none.
    pub fn add(&self, position: usize, amount: u64) {
        if let Some(value) = self.values.get(position) {
            value.fetch_add(amount, Ordering::Relaxed);
        }
    }
}

impl<const N: usize> Snapshot for Set<N> {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let values = self.values.iter().map(|value| value.load(Ordering::Relaxed));
        self.names.into_iter().zip(values).collect()
    }
}

/// Counters of one owner, for reading.
#[derive(Clone)]
pub struct Counters {
    owner: Arc<str>,
    sources: Vec<Arc<dyn Snapshot>>,
}

impl Counters {
    /// Those of `owner`, the name in messages, beginning with what `source` tells.
    pub fn new(owner: &str, source: Arc<dyn Snapshot>) -> Self {
        Self { owner: owner.into(), sources: vec![source] }
    }

    /// The guest's mistakes, which every device counts.
    pub fn of_faults(faults: &Faults) -> Self {
        Self::new(faults.device(), Arc::new(faults.clone()))
    }

    /// Also what `source` tells.
    #[must_use]
    pub fn and(mut self, source: Arc<dyn Snapshot>) -> Self {
        self.sources.push(source);
        self
    }

    /// Whose they are.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// As they are now.
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        self.sources.iter().flat_map(|source| source.snapshot()).collect()
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").field("owner", &self.owner).field("values", &self.read()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_several_sources_are_read_in_order() {
        let (set, faults) = (Arc::new(Set::new(["reads", "writes"])), Faults::new("block d00"));
        let counters = Counters::of_faults(&faults).and(Arc::clone(&set) as _);
        set.add(1, 5);
        set.add(1, 2);
        set.add(2, 9);
        faults.note("a test");
        assert_eq!(counters.owner(), "block d00");
        assert_eq!(counters.read(), [("faults", 1), ("reads", 0), ("writes", 7)]);
    }
}
