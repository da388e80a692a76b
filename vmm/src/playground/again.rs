//! A machine that has ended starts anew, while the others run on.
//!
//! It is built from files that were passed anew, since those that it had were closed with its end. Only its places in the networks
//! are the same: a switch knows its ports from the start.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use labyard_devices::switch::Plug;
use labyard_spec::control::MachineState;
use labyard_spec::playground::{MachineSpec, NetworkSpec, PlaygroundSpec, Slot};

use super::{Handle, MachineRecord, Playground, Watcher, lock, unknown};
use crate::machine::{self, Witness};
use crate::{plan, runtime};

/// What outlives a machine.
#[derive(Default)]
pub(super) struct Wiring {
    pub(super) name: String,
    pub(super) networks: Vec<NetworkSpec>,
    /// By machine name and position of the interface.
    pub(super) plugs: HashMap<(String, usize), Plug>,
}

impl Playground {
    /// Builds and starts a machine that has ended. What it has may be different now, but for its interfaces.
    ///
    /// # Errors
    /// The machine is not there or runs, or what is wrong with the spec or its files; it has still ended then.
    pub fn start(self: &Arc<Self>, spec: &MachineSpec, mut passed: HashMap<Slot, OwnedFd>) -> Result<(), String> {
        let _turn = lock(&self.turn);
        let failed = |error: String| format!("machine {}: {error}", spec.name);
        let (index, before) = self.ended(&spec.name)?;
        if let Some(thread) = before {
            // Its files are closed once it is gone.
            let _ = thread.join(); // a panic was the machine's end, too
        }
        let wiring = lock(&self.wiring);
        let alone = PlaygroundSpec {
            name: wiring.name.clone(),
            networks: wiring.networks.clone(),
            machines: vec![spec.clone()],
        };
        let slots: HashSet<Slot> = passed.keys().copied().collect();
        plan::check(&alone, &slots, self.hypervisor.max_vcpus()).map_err(|error| error.to_string())?;
        let files: HashMap<Slot, Arc<File>> =
            passed.drain().map(|(slot, descriptor)| (slot, Arc::new(File::from(descriptor)))).collect();
        let mut plugs = HashMap::new();
        for (place, plug) in wiring.plugs.iter().filter(|((name, _), _)| *name == spec.name) {
            let asked = spec.interfaces.get(place.1);
            let same = asked.is_some_and(|asked| {
                asked.network == plug.network() && plug.port().is_some_and(|port| port.spec().mac == asked.mac.0)
            });
            if !same {
                return Err(failed(format!("interface {} is not the one that it was created with", place.1)));
            }
            if let Some(port) = plug.port() {
                port.forget();
            }
            plugs.insert(place.clone(), plug.clone());
        }
        let (parts, levers) = self.build(spec, &files, &mut plugs).map_err(failed)?;
        let (sender, signals) = mpsc::channel();
        if let Some(record) = lock(&self.record).machines.get_mut(index) {
            *record = MachineRecord {
                name: parts.name.clone(),
                state: MachineState::Running,
                paused: false,
                boot_us: Vec::new(),
                faults: parts.faults(),
                counters: parts.counters(),
                levers: levers.clone(),
                page_size: 0,
            };
        }
        let witness: Arc<dyn Witness> =
            Arc::new(Watcher { playground: Arc::clone(self), index, name: spec.name.clone() });
        let (hypervisor, own) = (Arc::clone(&self.hypervisor), sender.clone());
        match runtime::spawn(&spec.name, move || machine::run(parts, &hypervisor, signals, &own, &witness)) {
            Ok(thread) => {
                lock(&self.handles).insert(spec.name.clone(), Handle { signals: sender, levers, thread: Some(thread) });
                Ok(())
            }
            Err(error) => {
                let why = format!("starting its thread: {error}");
                self.end(index, &spec.name, MachineState::Failed(why.clone()));
                Err(failed(why))
            }
        }
    }

    /// Position of a machine that has ended, and its thread where nobody has joined that.
    fn ended(&self, machine: &str) -> Result<(usize, Option<std::thread::JoinHandle<()>>), String> {
        let mut handles = lock(&self.handles);
        let record = lock(&self.record);
        let position = record.machines.iter().position(|known| known.name == machine);
        let index = position.ok_or_else(|| unknown(machine))?;
        if record.machines.get(index).is_some_and(|known| known.state == MachineState::Running) {
            return Err(format!("machine {machine}: it runs"));
        }
        Ok((index, handles.get_mut(machine).and_then(|handle| handle.thread.take())))
    }
}
