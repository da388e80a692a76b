//! Machines of a playground that stand still together, are saved and restored together, and go on together.
//!
//! Each step ([`Step`]) is taken by all machines before the next begins: drives drain while every guest still runs, then all vCPUs
//! halt, then all devices rest. So a frame that one machine has sent is in another's memory or waits at its port, and nothing is
//! in between. Going on is the same backwards: all devices work before the first vCPU runs.
//!
//! A machine may reset or end at any time, which is its own thread's affair: a reset is a machine that takes the next step, an
//! end is one that nobody waits for.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use labyard_spec::control::{Happening, MachineState, RestoreSpec, SavedFiles};
use labyard_spec::playground::Slot;

use super::{MachineRecord, Playground, lock, unknown};
use crate::machine::hold::{Order, Outcome, Step};
use crate::machine::restore::Restored;
use crate::runtime;
use crate::snapshot::{Life, Saved, SavedMachine, SavedRun};
use crate::vcpu::Signal;

/// A machine that has not ended, as far as is known.
struct Chosen {
    name: String,
    signals: Sender<Signal>,
    /// Somebody has paused it.
    held: bool,
    /// It waits for room on the host's disk, or has just found it.
    full: bool,
}

impl Playground {
    /// Lets one machine, or all, stand still. Done twice, the second time changes nothing.
    ///
    /// # Errors
    /// The machine is not there or does not run, or one of them cannot stand still now; those that ran run on then.
    pub fn pause(&self, machine: Option<&str>) -> Result<(), String> {
        let _turn = lock(&self.turn);
        let chosen = self.chosen(machine)?;
        self.hold(&chosen, false)
    }

    /// Lets one machine, or all, go on. Where what waits for room on the host's disk finds none, the machine stands still until it does.
    ///
    /// # Errors
    /// The machine is not there or does not run, or the host's disk has no room; others have gone on then.
    pub fn resume(&self, machine: Option<&str>) -> Result<(), String> {
        // Those that wait for room now: when they have answered an order, they have gone on.
        let waited: Vec<_> = self.chosen(machine)?.into_iter().filter(|machine| machine.full).collect();
        // Before its turn: who pauses or saves may be waiting for the same room.
        let tried = self.retry_drives(machine);
        let _turn = lock(&self.turn);
        let chosen = self.chosen(machine)?;
        let waited = |machine: &Chosen| waited.iter().any(|waited| waited.name == machine.name);
        self.release(chosen.iter().filter(|machine| machine.held || waited(machine)))?;
        tried
    }

    /// Pauses all machines and writes them to files; they stay paused. `passed` has the files.
    ///
    /// # Errors
    /// What is wrong with the files, or why a machine cannot be saved. Those that ran run on then.
    pub fn save(&self, files: &SavedFiles, mut passed: HashMap<Slot, OwnedFd>) -> Result<(), String> {
        let mut file = |slot: Slot| {
            passed.remove(&slot).map(File::from).ok_or_else(|| format!("descriptor {slot:?} was not passed"))
        };
        let state = file(files.state)?;
        let memory = files.memory.iter().map(|slot| file(*slot)).collect::<Result<Vec<_>, _>>()?;
        let _turn = lock(&self.turn);
        let names: Vec<String> = lock(&self.record).machines.iter().map(|machine| machine.name.clone()).collect();
        if names.is_empty() || names.len() != memory.len() {
            return Err(format!("{} files for the memory of {} machines", memory.len(), names.len()));
        }
        let chosen = self.chosen(None)?;
        self.hold(&chosen, true)?;
        let saved = self.take(&names, &chosen, memory);
        let written = saved.and_then(|saved| saved.write(&state).map_err(|error| runtime::chain(&error)));
        if written.is_err() {
            // Nothing came of it: they go on as if nobody had asked.
            self.release(chosen.iter().filter(|machine| !machine.held))?;
        }
        written
    }

    /// Builds all machines as they were saved, paused. `passed` has their files and what was saved.
    ///
    /// # Errors
    /// What does not fit together, or why a machine does not come to be; all of them have ended then.
    pub fn restore(self: &Arc<Self>, spec: &RestoreSpec, mut passed: HashMap<Slot, OwnedFd>) -> Result<(), String> {
        let _turn = lock(&self.turn);
        let mut file = |slot: Slot| {
            passed.remove(&slot).map(File::from).ok_or_else(|| format!("descriptor {slot:?} was not passed"))
        };
        let state = file(spec.saved.state)?;
        let memory = spec.saved.memory.iter().map(|slot| file(*slot)).collect::<Result<Vec<_>, _>>()?;
        let saved = Saved::read(&state).map_err(|error| runtime::chain(&error))?;
        self.begin(&spec.playground, passed, |machines| {
            let counts = (saved.machines.len(), memory.len(), machines.len());
            if counts.0 != counts.2 || counts.1 != counts.2 {
                let (saved, files, asked) = counts;
                return Err(format!(
                    "{saved} machines were saved, {files} files of memory passed, {asked} machines asked for"
                ));
            }
            let mut ended = HashMap::new();
            for ((parts, saved), memory) in machines.iter_mut().zip(saved.machines).zip(memory) {
                let SavedMachine { name, memory_bytes, life } = saved;
                if name != parts.name || memory_bytes != parts.memory_bytes {
                    let (asked, bytes) = (&parts.name, parts.memory_bytes);
                    return Err(format!(
                        "machine {asked} of {bytes} bytes: in its place was saved {name} of {memory_bytes}"
                    ));
                }
                let restored = match life {
                    Life::Ran(state) => Restored { state, memory: Arc::new(memory) },
                    Life::Ended(state) => {
                        ended.insert(name, state);
                        continue;
                    }
                };
                let fits = restored.check(parts, self.hypervisor.cpuid());
                fits.map_err(|error| format!("machine {name}: {}", runtime::chain(&error)))?;
                parts.saved = Some(restored);
            }
            Ok(ended)
        })?;
        self.settle_in()
    }

    /// Waits until all restored machines are there.
    fn settle_in(&self) -> Result<(), String> {
        let chosen = self.chosen(None)?;
        let there = self.all(&chosen, || Step::HoldDevices);
        let failed = lock(&self.record).machines.iter().find_map(|machine| match &machine.state {
            MachineState::Failed(why) => Some(format!("machine {}: {why}", machine.name)),
            _ => None,
        });
        let outcome = match failed {
            Some(failed) => Err(failed),
            None => there,
        };
        if outcome.is_err() {
            self.kill(None)?;
        }
        outcome
    }

    /// The machine of this name, or all that have not ended.
    fn chosen(&self, machine: Option<&str>) -> Result<Vec<Chosen>, String> {
        let (handles, record) = (lock(&self.handles), lock(&self.record));
        let mut chosen = Vec::new();
        for known in record.machines.iter().filter(|known| machine.is_none_or(|name| name == known.name)) {
            match handles.get(&known.name) {
                Some(handle) if known.state == MachineState::Running => {
                    let (name, signals) = (known.name.clone(), handle.signals.clone());
                    let full = known.out_of_room || !known.full_drives.is_empty();
                    chosen.push(Chosen { name, signals, held: known.held, full });
                }
                _ if machine.is_some() => return Err(format!("machine {}: it does not run", known.name)),
                _ => {}
            }
        }
        match machine {
            Some(name) if chosen.is_empty() => Err(unknown(name)),
            _ => Ok(chosen),
        }
    }

    fn hold(&self, chosen: &[Chosen], durable: bool) -> Result<(), String> {
        let steps: [fn(bool) -> Step; 3] =
            [|durable| Step::Drain { durable }, |_| Step::HaltVcpus, |_| Step::HoldDevices];
        for step in steps {
            if let Err(error) = self.all(chosen, || step(durable)) {
                self.release(chosen.iter().filter(|machine| !machine.held))?;
                return Err(error);
            }
        }
        self.mark(chosen, true);
        Ok(())
    }

    fn release<'a>(&self, chosen: impl Iterator<Item = &'a Chosen>) -> Result<(), String> {
        let chosen: Vec<_> = chosen.collect();
        self.all(chosen.iter().copied(), || Step::ReleaseDevices)?;
        self.all(chosen.iter().copied(), || Step::RunVcpus)?;
        self.mark(chosen, false);
        Ok(())
    }

    /// All take a step; who has ended is left alone.
    fn all<'a>(&self, chosen: impl IntoIterator<Item = &'a Chosen>, step: impl Fn() -> Step) -> Result<(), String> {
        let asked: Vec<_> = chosen.into_iter().map(|machine| (&machine.name, order(machine, step()))).collect();
        let mut outcome = Ok(());
        for (name, answered) in asked {
            if let Ok(Err(error)) = answered.recv() {
                outcome = Err(format!("machine {name}: {error}"));
            }
        }
        outcome
    }

    /// The state of all machines, which are paused; their memory goes to files.
    fn take(&self, names: &[String], chosen: &[Chosen], memory: Vec<File>) -> Result<Saved, String> {
        let mut asked = Vec::new();
        for (name, memory) in names.iter().zip(memory) {
            let runs = chosen.iter().find(|machine| machine.name == *name);
            asked.push((name, runs.map(|machine| order(machine, Step::Save(memory)))));
        }
        let mut lives: HashMap<&String, Box<SavedRun>> = HashMap::new();
        let mut failed = None;
        for (name, answered) in asked {
            match answered.map(|answered| answered.recv()) {
                Some(Ok(Ok(Outcome::Saved(run)))) => drop(lives.insert(name, run)),
                Some(Ok(Err(error))) => failed = Some(format!("machine {name}: {error}")),
                // It has ended; the record knows how.
                _ => {}
            }
        }
        if let Some(failed) = failed {
            return Err(failed);
        }
        let record = lock(&self.record);
        let mut machines = Vec::new();
        for machine in &record.machines {
            let life = match lives.remove(&machine.name) {
                Some(run) => Life::Ran(run),
                None if machine.state == MachineState::Running => {
                    return Err(format!("machine {}: it did not answer", machine.name));
                }
                None => Life::Ended(machine.state.clone()),
            };
            let memory_bytes = machine.levers.memory_mib << 20;
            machines.push(SavedMachine { name: machine.name.clone(), memory_bytes, life });
        }
        Ok(Saved { machines })
    }

    /// Writes down that machines were paused or resumed.
    fn mark<'a>(&self, chosen: impl IntoIterator<Item = &'a Chosen>, held: bool) {
        for Chosen { name, .. } in chosen {
            self.note_pause(name, |known| known.held = held);
        }
    }

    /// Changes why a machine stands still, and tells whoever looks where it does so only now, or does not any more.
    pub(super) fn note_pause(&self, machine: &str, change: impl FnOnce(&mut MachineRecord)) {
        let changed = {
            let mut record = lock(&self.record);
            let known = record.machines.iter_mut().find(|known| known.name == machine);
            let Some(known) = known.filter(|known| known.state == MachineState::Running) else { return };
            let was_paused = known.is_paused();
            change(known);
            (known.is_paused() != was_paused).then_some(known.is_paused())
        };
        match changed {
            Some(true) => drop(self.event(machine, Happening::Paused, None)),
            Some(false) => drop(self.event(machine, Happening::Resumed, None)),
            None => {}
        }
    }
}

/// Sends an order; its outcome comes where the machine has not ended.
fn order(machine: &Chosen, step: Step) -> mpsc::Receiver<Result<Outcome, String>> {
    let (answer, answered) = mpsc::sync_channel(1);
    let _ = machine.signals.send(Signal::Order(Order { step, answer })); // one that has ended answers nobody
    answered
}
