//! A device that is held still, saved, and taken back.
//!
//! ```text
//!   at work ── hold ──▶ held: at rest whatever the driver does ── release ──▶ at work, if its driver has set it up
//!                         settle, save, restore
//! ```
//!
//! Vcpus may run while a device is held: kicks wait in their eventfds, and a driver that sets it up meets a device that is slow.
//! A [`State`] comes from a file. All that the transport relies on is looked at before anything is taken over.

use std::io;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{MmioTransport, Place, Registers, status};
use crate::virtio::chain::VirtQueue;
use crate::virtio::device::{DeviceState, StateError};
use crate::virtio::feature;

/// [`State::version`].
const STATE_VERSION: u32 = 1;

/// What a snapshot keeps of a transport and its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub(super) version: u32,
    pub(super) registers: Registers,
    config_generation: u32,
    interrupt_status: u32,
    needs_reset: bool,
    pub(super) device: DeviceState,
}

impl State {
    /// The device's part.
    pub fn device(&self) -> &DeviceState {
        &self.device
    }
}

impl MmioTransport {
    /// The device comes to rest and stays there until [`Self::release`]: nothing is in flight when this returns.
    pub fn hold(&mut self) {
        self.held = true;
        self.stop();
    }

    /// The device may work again, and does if its driver has set it up.
    pub fn release(&mut self) {
        self.held = false;
        let is_set_up = self.registers.status & status::DRIVER_OK != 0;
        if is_set_up && !self.irq.needs_reset.load(Ordering::SeqCst) {
            self.start();
        }
    }

    /// Makes durable what the driver believes to be written, flushed or not, so that a saved driver finds it. The device is held.
    ///
    /// # Errors
    /// What its backend says.
    pub fn settle(&mut self) -> io::Result<()> {
        match &mut self.place {
            Place::Rest(device) => device.settle(),
            Place::Work(_) => Err(io::ErrorKind::ResourceBusy.into()),
            Place::Lost => Ok(()),
        }
    }

    /// What a snapshot keeps. A device that is not held stops for it and goes on afterwards. `None` where it was lost.
    pub fn save(&mut self) -> Option<State> {
        let was_held = std::mem::replace(&mut self.held, true);
        self.stop();
        let state = match &self.place {
            Place::Rest(device) => Some(State {
                version: STATE_VERSION,
                registers: self.registers.clone(),
                config_generation: self.info.config.generation(),
                interrupt_status: self.irq.status.load(Ordering::SeqCst),
                needs_reset: self.irq.needs_reset.load(Ordering::SeqCst),
                device: device.save(),
            }),
            Place::Work(_) | Place::Lost => None,
        };
        if !was_held {
            self.release();
        }
        state
    }

    /// Takes back what `save` gave, into a transport that no driver has touched.
    ///
    /// # Errors
    /// It is another device's, or nothing that a driver can have brought about. The transport is not to be used then.
    pub fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let kind = self.info.device_type;
        self.check(state).map_err(|damage| StateError::Damaged(kind, damage))?;
        let Place::Rest(device) = &mut self.place else {
            return Err(StateError::Damaged(kind, "the device is already at work"));
        };
        device.restore(&state.device)?;
        self.registers = state.registers.clone();
        self.info.config.go_on_from(state.config_generation);
        self.irq.status.store(state.interrupt_status, Ordering::SeqCst);
        self.irq.needs_reset.store(state.needs_reset, Ordering::SeqCst);
        if state.interrupt_status != 0 {
            // It may have been on its way to a vCPU. A driver that finds nothing new takes no harm.
            self.irq.line.raise();
        }
        if !self.held {
            self.release();
        }
        Ok(())
    }

    fn check(&self, state: &State) -> Result<(), &'static str> {
        let State { version, registers, .. } = state;
        if *version != STATE_VERSION || registers.queues.len() != self.info.queue_sizes.len() {
            return Err("another version or another number of queues");
        }
        let sizes_fit = registers.queues.iter().zip(&self.info.queue_sizes);
        if !sizes_fit.clone().all(|(ring, most)| ring.size.is_power_of_two() && ring.size <= *most) {
            return Err("a size that the queue cannot have");
        }
        if registers.status & !status::OF_DRIVERS != 0 {
            return Err("an unknown bit of the status");
        }
        if registers.status & status::DRIVER_OK == 0 || state.needs_reset {
            return Ok(());
        }
        let offered = self.info.features | feature::COMMON;
        let accepted = registers.driver_features;
        let agreed = registers.status & status::FEATURES_OK != 0 && accepted & !offered == 0;
        if !agreed || accepted & feature::VERSION_1 == 0 {
            return Err("features that this device does not offer");
        }
        if let Place::Rest(device) = &self.place {
            device.accepts(accepted)?;
        }
        for ((index, ring), most) in (0..).zip(&registers.queues).zip(&self.info.queue_sizes) {
            VirtQueue::new(index, *most, *ring, accepted, &self.mem).map_err(|_| "a ring that is not in memory")?;
        }
        Ok(())
    }
}
