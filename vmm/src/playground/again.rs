//! A machine that has ended starts anew, while the others run on.
//!
//! It is built from files that were passed anew, since those that it had were closed with its end. Only its places in the networks
//! are the same: a switch knows its ports from the start.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use labyard_spec::control::MachineState;
use labyard_spec::playground::{MachineSpec, Slot};

use super::{MachineRecord, Playground, lock, unknown};

impl Playground {
    /// Builds and starts a machine that has ended. What it has may be different now, but for its interfaces.
    ///
    /// # Errors
    /// The machine is not there or runs, or what is wrong with the spec or its files; it has still ended then.
    pub fn start(self: &Arc<Self>, spec: &MachineSpec, passed: HashMap<Slot, OwnedFd>) -> Result<(), String> {
        let _turn = lock(&self.turn);
        let failed = |error: String| format!("machine {}: {error}", spec.name);
        if let Some(thread) = self.ended(&spec.name)? {
            // Its files are closed once it is gone.
            let _ = thread.join(); // a panic was the machine's end, too
        }
        let wiring = lock(&self.wiring);
        let files = wiring.check(spec, passed, self.hypervisor.max_vcpus())?;
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
        if let Some(record) = lock(&self.record).machines.iter_mut().find(|known| known.name == spec.name) {
            *record = MachineRecord::of(&parts, &levers);
        }
        self.run(&mut lock(&self.handles), parts, levers).map_err(failed)
    }

    /// A machine that has ended: its thread, where nobody has joined that.
    pub(super) fn ended(&self, machine: &str) -> Result<Option<std::thread::JoinHandle<()>>, String> {
        let mut handles = lock(&self.handles);
        let record = lock(&self.record);
        let known = record.machines.iter().find(|known| known.name == machine).ok_or_else(|| unknown(machine))?;
        if known.state == MachineState::Running {
            return Err(format!("machine {machine}: it runs"));
        }
        Ok(handles.get_mut(machine).and_then(|handle| handle.thread.take()))
    }
}
