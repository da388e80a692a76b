//! A machine that begins from what was saved of another.
//!
//! The state comes from a file that was read as a claim. What it says of the machine's shape is held against the machine before
//! anything is built ([`Restored::check`]); what it says of registers is KVM's to refuse, and of devices theirs.
//!
//! Order matters: local APICs and routes are there before a device signals, so that no interrupt gets lost; the clock is set when
//! the TSCs are. The machine is built paused, and is let go on when all others are there.

use std::fs::File;
use std::sync::{Arc, PoisonError};

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;
use labyard_devices::Memory;
use labyard_devices::irq::Line;
use labyard_devices::legacy::{ged, serial};
use labyard_devices::virtio::device::StateError;

use super::{Parts, Running};
use crate::arch::x86_64::cpuid;
use crate::kvm::KvmError;
use crate::snapshot::{self, SavedRun, SnapshotError};

/// A saved machine that cannot go on here.
#[derive(Debug, thiserror::Error)]
pub enum TakeBackError {
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] SnapshotError),
    /// KVM refuses a register.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// CPUID leaves that KVM refuses.
    #[error("saved CPUID of vCPU {0}")]
    Cpuid(u32, #[source] kvm_ioctls::Error),
    /// It has another number of something.
    #[error("it has {saved} {what}, the machine {has}")]
    Shape {
        /// Of what.
        what: &'static str,
        /// Saved.
        saved: usize,
        /// Asked for.
        has: usize,
    },
    /// Processors of a newer kind.
    #[error("it was saved on another kind of processor: {0}")]
    Processor(String),
    /// A device.
    #[error("saved device {place}, {name}")]
    Device {
        /// In the order in which the guest finds them.
        place: usize,
        /// In messages.
        name: String,
        /// Why not.
        source: StateError,
    },
    /// The serial port.
    #[error(transparent)]
    Serial(#[from] serial::FullFifo),
    /// The I/O APIC.
    #[error("saved interrupt controller: another number of lines")]
    IoApic,
}

/// A saved machine, read.
pub struct Restored {
    /// Its state.
    pub state: Box<SavedRun>,
    /// Its memory.
    pub memory: Arc<File>,
}

impl Restored {
    /// Whether the state is of a machine of this shape, and what its guest saw of processors is there.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, parts: &Parts, supported: &CpuId) -> Result<(), TakeBackError> {
        let SavedRun { vcpus, cpuid, transports, .. } = &*self.state;
        let has = parts.processors.count as usize;
        for (what, saved, has) in [
            ("vCPUs", vcpus.len(), has),
            ("lists of CPUID leaves", cpuid.len(), has),
            ("devices", transports.len(), parts.devices.len()),
        ] {
            if saved != has {
                return Err(TakeBackError::Shape { what, saved, has });
            }
        }
        for (place, (state, device)) in transports.iter().zip(&parts.devices).enumerate() {
            let (expected, found) = (device.info().device_type, state.device().device_type);
            if expected != found {
                let source = StateError::Foreign { expected, found, version: state.device().version };
                return Err(TakeBackError::Device { place, name: device.faults().device().to_owned(), source });
            }
        }
        match cpuid.iter().find_map(|leaves| cpuid::lacking(leaves, supported.as_slice())) {
            Some(lacking) => Err(TakeBackError::Processor(lacking)),
            None => Ok(()),
        }
    }

    /// Fills fresh memory.
    pub(super) fn fill(&self, mem: &Memory) -> Result<(), TakeBackError> {
        Ok(snapshot::memory::restore(mem, &self.memory)?)
    }

    /// Gives a new vCPU its state; what it says about itself.
    pub(super) fn set_vcpu(&self, index: u32, vcpu: &VcpuFd) -> Result<CpuId, TakeBackError> {
        let place = index as usize;
        let missing = || TakeBackError::Shape { what: "vCPUs", saved: self.state.vcpus.len(), has: place + 1 };
        let (Some(state), Some(leaves)) = (self.state.vcpus.get(place), self.state.cpuid.get(place)) else {
            return Err(missing());
        };
        let failed = |error| TakeBackError::Cpuid(index, error);
        let leaves = CpuId::from_entries(leaves).map_err(|_| failed(kvm_ioctls::Error::new(libc::E2BIG)))?;
        vcpu.set_cpuid2(&leaves).map_err(failed)?;
        state.restore(vcpu)?;
        Ok(leaves)
    }
}

impl Running {
    /// Everything but vCPUs and memory takes its state back, and the guest will hear that it is a copy. `line` is the serial port's.
    pub(super) fn take_back(
        &mut self,
        restored: &Restored,
        parts: &Parts,
        line: Arc<dyn Line>,
    ) -> Result<(), TakeBackError> {
        let state = &restored.state;
        if !self.io_apic.lock().unwrap_or_else(PoisonError::into_inner).restore(&state.io_apic) {
            return Err(TakeBackError::IoApic);
        }
        state.clock.restore(&self.vm)?;
        let serial = serial::SerialPort::restore(&state.serial, line, parts.console.output())?;
        *self.serial.lock().unwrap_or_else(PoisonError::into_inner) = serial;
        for (place, (transport, saved)) in self.transports.iter().zip(&state.transports).enumerate() {
            let mut transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
            transport.hold();
            let name = transport.faults().device().to_owned();
            transport.restore(saved).map_err(|source| TakeBackError::Device { place, name, source })?;
        }
        parts.hello.store(state.greeted, std::sync::atomic::Ordering::SeqCst);
        parts.events.restore(state.events);
        parts.events.raise(ged::Event::Generation);
        Ok(())
    }
}
