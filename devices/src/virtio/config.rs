//! Device configuration space (VIRTIO 1.2, §2.5): bytes that a driver reads, and the few that it may write.
//!
//! A handle: the transport reads from one clone on a vCPU's thread, the device changes it from its own thread, so that a
//! drive can grow or a link go down while the guest runs. Every change raises the generation, by which a driver knows that
//! a field of several words was read in one piece (§2.5.1).

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The space. Clones are the same space.
#[derive(Clone)]
pub struct ConfigSpace(Arc<Shared>);

struct Shared {
    /// Held for a copy of a few bytes only, no other lock is taken under it.
    bytes: Mutex<Vec<u8>>,
    generation: AtomicU32,
    writable: Option<Writable>,
}

struct Writable {
    range: Range<usize>,
    /// Raised when the driver has written.
    written: EventFd,
}

impl ConfigSpace {
    /// A space that a driver only reads.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Shared { bytes: Mutex::new(bytes), generation: AtomicU32::new(0), writable: None }))
    }

    /// A space of which a driver may write `range`; each write raises [`ConfigSpace::written`].
    ///
    /// # Errors
    /// No eventfd was to be had.
    pub fn with_writable(bytes: Vec<u8>, range: Range<usize>) -> std::io::Result<Self> {
        let writable = Some(Writable { range, written: EventFd::new(EFD_NONBLOCK)? });
        Ok(Self(Arc::new(Shared { bytes: Mutex::new(bytes), generation: AtomicU32::new(0), writable })))
    }

    /// Fills `data` from `offset`; what lies behind the space reads as zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let bytes = self.lock();
        let space = usize::try_from(offset).ok().and_then(|from| bytes.get(from..)).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(space) {
            *to = *from;
        }
    }

    /// The driver writes; `false` where it may not.
    #[must_use]
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        let Some(Writable { range, written }) = &self.0.writable else { return false };
        let Ok(start) = usize::try_from(offset) else { return false };
        let Some(end) = start.checked_add(data.len()) else { return false };
        if start < range.start || end > range.end {
            return false;
        }
        match self.lock().get_mut(start..end) {
            Some(place) => place.copy_from_slice(data),
            None => return false,
        }
        // The counter could only be full after 2^64 - 2 writes that the device did not look at.
        written.write(1).is_ok()
    }

    /// The device changes bytes from `offset`; it signals the change itself ([`crate::irq::Interrupt::signal_config`]).
    pub fn update(&self, offset: usize, data: &[u8]) {
        let mut bytes = self.lock();
        let place = bytes.get_mut(offset..).unwrap_or_default();
        for (to, from) in place.iter_mut().zip(data) {
            *to = *from;
        }
        self.0.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Raised with every change by the device (VIRTIO 1.2, §4.2.2, ConfigGeneration).
    pub fn generation(&self) -> u32 {
        self.0.generation.load(Ordering::SeqCst)
    }

    /// The space of a saved machine was at this generation: what is read from now on is of a later one.
    pub fn go_on_from(&self, generation: u32) {
        self.0.generation.store(generation.wrapping_add(1), Ordering::SeqCst);
    }

    /// What a device waits on to see the driver's writes; `None` for a space that is only read.
    pub fn written(&self) -> Option<&EventFd> {
        self.0.writable.as_ref().map(|writable| &writable.written)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ConfigSpace").field(&*self.lock()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_by_every_clone_and_raises_the_generation() {
        let space = ConfigSpace::new(vec![1, 2, 3]);
        let transport = space.clone();
        space.update(1, &[9, 8, 7]);
        let mut data = [0xff; 5];
        transport.read(0, &mut data);
        assert_eq!((data, transport.generation()), ([1, 9, 8, 0, 0], 1));
        transport.read(u64::MAX, &mut data);
        assert_eq!(data, [0; 5]);
    }

    #[test]
    fn a_driver_writes_its_range_and_nothing_else() {
        let space = ConfigSpace::with_writable(vec![0; 8], 4..8).expect("an eventfd");
        assert!(space.write(4, &[1, 2, 3, 4]));
        assert_eq!(space.written().expect("writable").read().expect("raised"), 1);
        for (offset, len) in [(0, 4), (3, 2), (6, 4), (8, 1), (u64::MAX, 4)] {
            assert!(!space.write(offset, &vec![0xee; len]), "{len} bytes at {offset}");
        }
        assert!(!ConfigSpace::new(vec![0; 8]).write(4, &[1]), "only read");
        let mut data = [0; 8];
        space.read(0, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 1, 2, 3, 4]);
    }
}
