//! Who runs workers: threads in production, the test itself in tests.

use crate::worker::{Rest, Worker};

/// Runs workers. A transport starts and stops them from a vCPU thread, on behalf of the driver.
pub trait Host: Send + Sync {
    /// Runs the worker until it is stopped.
    fn start(&self, worker: Box<dyn Worker>, gave_up: GaveUp) -> Box<dyn Running>;
}

/// Called with the reason when a worker failed or panicked; it is not run any more, but can be stopped for its device.
pub type GaveUp = Box<dyn Fn(&str) + Send + Sync>;

/// A worker that somebody runs.
pub trait Running: Send {
    /// Returns when no event is being handled and none will be. `None` where the worker was lost in a panic.
    fn stop(self: Box<Self>) -> Option<Rest>;
}
