//! For programs that run machines themselves: files that become slots, and a playground over `/dev/kvm`.
//!
//! A playground is shared ([`Arc`]) by its own threads, which end with its machines: [`Playground::kill`] cuts the power and
//! returns when they have ended, and a program that drops its last handle without that leaves them running. Any number of playgrounds
//! live in one process; they share nothing but the handler of one real-time signal, which does nothing but wake vCPUs.
//! Errors are told by the call that caused them; what befalls a machine later is an event and its state.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use labyard_spec::playground::Slot;

use crate::kvm::{Hypervisor, KvmError};
use crate::playground::Playground;

/// A playground could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device is not there, or not for this user.
    #[error("/dev/kvm: opening it")]
    Device(#[source] io::Error),
    /// It is not what is needed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Its signal or its last words.
    #[error("setting up this process")]
    Process(#[source] io::Error),
}

/// An empty playground over `/dev/kvm`, whose times count from now.
///
/// # Errors
/// Where KVM is missing or too old.
pub fn playground() -> Result<Arc<Playground>, OpenError> {
    let since = Instant::now();
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(OpenError::Device)?;
    let nowhere = OpenOptions::new().write(true).open("/dev/null").map_err(OpenError::Process)?;
    Playground::new(Hypervisor::new(device.into())?, nowhere, since).map_err(OpenError::Process)
}

/// Files for a playground, by slot: [`Playground::create`] takes them.
#[derive(Debug, Default)]
pub struct Files {
    by_slot: HashMap<Slot, OwnedFd>,
}

impl Files {
    /// A file for reading: a kernel, an initramfs, a drive that is read only.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn read(&mut self, path: impl AsRef<Path>) -> io::Result<Slot> {
        File::open(path).map(|file| self.add(file))
    }

    /// A file for reading and writing: a drive.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn write(&mut self, path: impl AsRef<Path>) -> io::Result<Slot> {
        OpenOptions::new().read(true).write(true).open(path).map(|file| self.add(file))
    }

    /// A file that is open already, such as a console's log.
    pub fn add(&mut self, file: impl Into<OwnedFd>) -> Slot {
        let slot = Slot(u32::try_from(self.by_slot.len()).unwrap_or(u32::MAX));
        self.by_slot.insert(slot, file.into());
        slot
    }

    /// All of them.
    pub fn into_slots(self) -> HashMap<Slot, OwnedFd> {
        self.by_slot
    }
}
