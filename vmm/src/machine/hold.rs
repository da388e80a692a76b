//! A machine that is halted, saved, and let go on: the steps, as its own thread takes them.
//!
//! ```text
//!            Drain           HaltVcpus        HoldDevices                ReleaseDevices    RunVcpus
//!   runs ──────────▶ ────────────────▶ ─────────────────▶ paused: Save ──────────────────▶ ────────▶ runs
//!        drives come to    vCPUs between     nothing of it
//!        rest, guest runs  two instructions  moves any more
//! ```
//!
//! The playground takes each step with all its machines before the next ([`crate::playground::hold`]). A step that was taken
//! already changes nothing, so a reset between two of them is of no matter. What a guest has asked of its power registers before it
//! was halted comes first: it goes on until that has been carried out, and the step is taken with what becomes of it.
//!
//! A machine for whose writes the host's disk has no room is halted, too, but nothing of it drains: what waits for room stays under way.
//! So its vCPUs run where nobody has ordered them to halt and the disk has room, and a pause of such a machine leaves its devices be.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use labyard_devices::virtio::device::DeviceType;
use labyard_devices::virtio::transport::mmio::MmioTransport;

use super::{PANIC_WITHIN, Parts, Running, Signals, Witness};
use crate::kvm::state::ClockState;
use crate::runtime;
use crate::snapshot::{self, SavedRun};
use crate::vcpu::{Signal, Vcpu};

/// A step of one machine.
#[derive(Debug)]
pub enum Step {
    /// Drives take no more requests and those in flight end, so that no disk is waited for while the guest stands still.
    Drain {
        /// What they were told to write is made durable.
        durable: bool,
    },
    /// vCPUs leave the guest.
    HaltVcpus,
    /// All devices come to rest.
    HoldDevices,
    /// State is taken, and memory is written to this file.
    Save(File),
    /// Devices work again.
    ReleaseDevices,
    /// vCPUs go on.
    RunVcpus,
}

impl Step {
    fn is_towards_a_pause(&self) -> bool {
        !matches!(self, Self::ReleaseDevices | Self::RunVcpus)
    }
}

/// What has become of a step.
#[derive(Debug)]
pub enum Outcome {
    /// It is taken.
    Done,
    /// [`Step::Save`]: the state.
    Saved(Box<SavedRun>),
}

/// A step to take, and who waits for its outcome. Nobody answers for a machine that has ended.
#[derive(Debug)]
pub struct Order {
    /// The step.
    pub step: Step,
    /// Gets its outcome.
    pub answer: SyncSender<Result<Outcome, String>>,
}

impl Order {
    fn answer(self, outcome: Result<Outcome, String>) {
        let _ = self.answer.send(outcome); // nobody waits any more, which is as good
    }
}

impl Running {
    /// Obeys orders until something ends this run of the machine. What that is, and whether its kernel has said before that it
    /// panics.
    pub(super) fn until_signal(
        &mut self,
        signals: &mut Signals,
        parts: &Parts,
        witness: &dyn Witness,
    ) -> (Signal, bool) {
        let mut panic_until = None;
        loop {
            // A guest that stands still prints no last words.
            match signals.next(panic_until.filter(|_| !self.no_room)) {
                None => return (Signal::Panic, true),
                Some(Signal::Panic) if panic_until.is_none() => panic_until = Some(Instant::now() + PANIC_WITHIN),
                Some(Signal::Order(order)) if panic_until.is_some() && order.step.is_towards_a_pause() => {
                    order.answer(Err("its kernel panics, and it is about to end".into()));
                }
                Some(Signal::Order(order)) => self.obey(order, signals, parts),
                Some(Signal::HostDisk { full }) => {
                    panic_until = panic_until.map(|_| Instant::now() + PANIC_WITHIN);
                    self.stand_for_room(full, witness);
                }
                Some(signal) => return (signal, panic_until.is_some()),
            }
        }
    }

    /// Stands still while the host's disk has no room. What the guest has asked of its power registers before is carried out all the same.
    fn stand_for_room(&mut self, full: bool, witness: &dyn Witness) {
        self.no_room = full;
        if full {
            self.halt_vcpus();
        } else if !self.held {
            self.run_vcpus(true);
        }
        witness.out_of_room(full);
    }

    fn obey(&mut self, order: Order, signals: &mut Signals, parts: &Parts) {
        let outcome = match &order.step {
            Step::Drain { durable: true } if self.no_room => {
                Err("it waits for room on the host's disk: free space there, and it can be saved".into())
            }
            // What waits would be waited for. Its vCPUs stand still.
            Step::Drain { .. } | Step::HoldDevices if self.no_room => Ok(Outcome::Done),
            Step::Drain { durable } => self.drain(*durable),
            Step::HaltVcpus => {
                let was_halted = self.halted;
                self.held = true;
                self.halt_vcpus();
                if !was_halted && signals.has_words_of_guest() {
                    self.held = false;
                    self.run_vcpus(false);
                    return signals.waiting.push_back(Signal::Order(order));
                }
                Ok(Outcome::Done)
            }
            Step::HoldDevices => {
                self.each_device(MmioTransport::hold);
                Ok(Outcome::Done)
            }
            Step::Save(_) if self.no_room => Err("it waits for room on the host's disk".into()),
            Step::Save(memory) if self.halted => self.save(memory, parts).map(|state| Outcome::Saved(Box::new(state))),
            Step::Save(_) => Err("it is not paused, so it cannot be saved".into()),
            Step::ReleaseDevices => {
                self.each_device(MmioTransport::release);
                Ok(Outcome::Done)
            }
            Step::RunVcpus => {
                self.held = false;
                if !self.no_room {
                    self.run_vcpus(true);
                }
                Ok(Outcome::Done)
            }
        };
        order.answer(outcome);
    }

    fn each_device(&self, mut act: impl FnMut(&mut MmioTransport)) {
        for transport in &self.transports {
            act(&mut transport.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn drain(&self, durable: bool) -> Result<Outcome, String> {
        let drives = self.transports.iter().map(|drive| drive.lock().unwrap_or_else(PoisonError::into_inner));
        for mut drive in drives.filter(|device| device.info().device_type == DeviceType::Block) {
            drive.hold();
            if durable {
                settle(&mut drive)?;
            }
        }
        Ok(Outcome::Done)
    }

    fn halt_vcpus(&mut self) {
        self.halted = true;
        self.shared.stop.store(true, Ordering::SeqCst);
        self.vcpus.iter().for_each(Vcpu::leave);
        self.vcpus.iter().for_each(Vcpu::wait);
    }

    /// Lets vCPUs go on; `paused` tells the guest that it has not run for a while.
    pub(super) fn run_vcpus(&mut self, paused: bool) {
        if std::mem::take(&mut self.halted) {
            self.shared.stop.store(false, Ordering::SeqCst);
            self.vcpus.iter().for_each(|vcpu| vcpu.run(paused));
        }
    }

    /// The state of a machine that is paused; its memory goes to a file. Devices come first: their last signals are in the local
    /// APICs then.
    fn save(&self, memory: &File, parts: &Parts) -> Result<SavedRun, String> {
        if parts.processors.nested {
            return Err(
                "its guest may run guests of its own (nested virtualization), whose state cannot be saved".into()
            );
        }
        let mut transports = Vec::with_capacity(self.transports.len());
        for transport in &self.transports {
            let mut transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
            settle(&mut transport)?;
            let lost = || format!("{}: the device was lost in a panic", transport.faults().device());
            let lost = lost();
            transports.push(transport.save().ok_or(lost)?);
        }
        let said = |error: crate::kvm::KvmError| runtime::chain(&error);
        let state = SavedRun {
            greeted: parts.hello.load(Ordering::SeqCst),
            cpuid: self.leaves.iter().map(|leaves| leaves.as_slice().to_vec()).collect(),
            vcpus: self.vcpus.iter().map(Vcpu::save).collect::<Result<_, _>>()?,
            clock: ClockState::save(&self.vm).map_err(said)?,
            io_apic: self.io_apic.lock().unwrap_or_else(PoisonError::into_inner).save(),
            serial: self.serial.lock().unwrap_or_else(PoisonError::into_inner).save(),
            events: parts.events.save(),
            transports,
        };
        snapshot::memory::save(&self.mem, memory).map_err(|error| runtime::chain(&error))?;
        Ok(state)
    }
}

fn settle(device: &mut MutexGuard<'_, MmioTransport>) -> Result<(), String> {
    let settled = device.settle();
    settled.map_err(|error| format!("{}: making durable what was written: {error}", device.faults().device()))
}
