//! A drive as the host sees it while the guest uses it: its counters, and its size.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::counters::Counters;
use super::sectors;
use crate::backend::block::{GrowError, NoRoom, Remote};
use crate::irq::Interrupt;
use crate::virtio::config::ConfigSpace;

/// A handle of one drive, for any thread. Clones are of the same drive.
#[derive(Clone)]
pub struct Handle(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) counters: Arc<Counters>,
    pub(super) config: ConfigSpace,
    pub(super) remote: Option<Box<dyn Remote>>,
    /// The power is being cut. Set once.
    pub(super) given_up: AtomicBool,
    /// Held while the size changes, so that one change follows the other; before `driver`.
    pub(super) resizing: Mutex<()>,
    /// How to signal the driver, while there is one.
    pub(super) driver: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Handle {
    /// What the drive has done so far.
    pub fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The drive has `bytes` from now on, and its driver hears of it (VIRTIO 1.2, §5.2.5.2).
    ///
    /// # Errors
    /// The size is smaller than the drive's, or not to be had.
    pub fn resize(&self, bytes: u64) -> Result<(), GrowError> {
        let _resizing = self.0.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.remote.as_ref().ok_or(GrowError::Fixed)?.grow(bytes)?;
        // `capacity` is the first field, §5.2.4.
        self.0.config.update(0, &sectors(bytes));
        if let Some(irq) = &*self.0.driver.lock().unwrap_or_else(PoisonError::into_inner) {
            irq.signal_config();
        }
        Ok(())
    }

    /// The host's disk may have room again: what waits for it is tried now, and this returns what has become of it.
    ///
    /// # Errors
    /// There is none.
    pub fn retry(&self) -> Result<(), NoRoom> {
        self.0.remote.as_ref().map_or(Ok(()), |remote| remote.retry())
    }

    /// The machine's power is cut, and nothing waits for room on the host's disk any more. What waited is never answered: to the guest
    /// it is as if the power had gone before.
    pub fn give_up(&self) {
        self.0.given_up.store(true, Ordering::SeqCst);
        if let Some(remote) = &self.0.remote {
            remote.give_up();
        }
    }

    pub(super) fn has_given_up(&self) -> bool {
        self.0.given_up.load(Ordering::SeqCst)
    }

    /// Who is told of changes; nobody while the drive is at rest.
    pub(super) fn set_driver(&self, irq: Option<Arc<dyn Interrupt>>) {
        *self.0.driver.lock().unwrap_or_else(PoisonError::into_inner) = irq;
    }
}
