//! How a long step is told to stop, and tells how far it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Hears how far a step is: its name, what is done, and of how much (0 where nobody knows).
pub type Report = Box<dyn Fn(&str, u64, u64)>;

/// Handed down to everything that takes longer than a moment.
pub struct Watch {
    cancelled: Arc<AtomicBool>,
    report: Report,
}

/// Somebody asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Watch {
    /// Stops once `cancelled` is set.
    pub fn new(cancelled: Arc<AtomicBool>, report: Report) -> Self {
        Self { cancelled, report }
    }

    /// Nobody watches and nobody interrupts.
    pub fn unattended() -> Self {
        Self::new(Arc::default(), Box::new(|_, _, _| {}))
    }

    /// Set once the end was asked for.
    pub(crate) fn cancelled(&self) -> &AtomicBool {
        &self.cancelled
    }

    /// Fails once the end was asked for.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// Says how far `step` is, and fails once the end was asked for.
    pub fn at(&self, step: &str, done: u64, of: u64) -> Result<(), Interrupted> {
        self.check()?;
        (self.report)(step, done, of);
        Ok(())
    }
}
