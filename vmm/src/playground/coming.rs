//! Machines and networks that come and go while others run on.
//!
//! A machine that comes is built as any is; only its places in the networks are made then, and are gone with it. A network comes and
//! goes without anybody on it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use labyard_devices::switch::{Plug, PortSpec};
use labyard_spec::playground::{MachineSpec, NetworkSpec, Slot};

use super::{MachineRecord, Playground, lock};

impl Playground {
    /// Builds and starts a machine that is not there yet.
    ///
    /// # Errors
    /// There is one of this name, or what is wrong with the spec or its files; nothing of it is left then.
    pub fn add(self: &Arc<Self>, spec: &MachineSpec, passed: HashMap<Slot, OwnedFd>) -> Result<(), String> {
        let _turn = lock(&self.turn);
        let failed = |error: String| format!("machine {}: {error}", spec.name);
        if lock(&self.record).machines.iter().any(|known| known.name == spec.name) {
            return Err(failed("there is one of this name".into()));
        }
        let mut wiring = lock(&self.wiring);
        let files = wiring.check(spec, passed, self.hypervisor.max_vcpus())?;
        let (mut plugs, mut places) = (HashMap::new(), Places::default());
        for (position, interface) in spec.interfaces.iter().enumerate() {
            let port = PortSpec { mac: interface.mac.0, mtu: interface.mtu };
            let network = &interface.network;
            let plug = wiring.switches.get(network).and_then(|switch| switch.add(port)).ok_or_else(|| {
                failed(format!("network {network}: the hardware address {} is there already", interface.mac))
            })?;
            places.0.push(plug.clone());
            plugs.insert((spec.name.clone(), position), plug);
        }
        let (parts, levers) = self.build(spec, &files, &mut plugs.clone()).map_err(failed)?;
        lock(&self.record).machines.push(MachineRecord::of(&parts, &levers));
        if let Err(why) = self.run(&mut lock(&self.handles), parts, levers) {
            lock(&self.record).machines.retain(|known| known.name != spec.name);
            return Err(failed(why));
        }
        places.0.clear();
        wiring.plugs.extend(plugs);
        Ok(())
    }

    /// Forgets a machine that has ended; what it had is free. Done twice, the second time changes nothing.
    ///
    /// # Errors
    /// The machine runs.
    pub fn remove(&self, machine: &str) -> Result<(), String> {
        let _turn = lock(&self.turn);
        if lock(&self.record).machines.iter().all(|known| known.name != machine) {
            return Ok(());
        }
        if let Some(thread) = self.ended(machine)? {
            // Its devices leave their ports before the ports go.
            let _ = thread.join(); // a panic was the machine's end, too
        }
        let mut wiring = lock(&self.wiring);
        wiring.plugs.retain(|(name, _), plug| {
            let stays = name != machine;
            if !stays {
                plug.leave();
            }
            stays
        });
        lock(&self.handles).remove(machine);
        lock(&self.record).machines.retain(|known| known.name != machine);
        Ok(())
    }

    /// One more network; with a tap, the network or the one that is there of this name gets it as its way out, in place of any. Done twice,
    /// the second time changes nothing but that.
    ///
    /// # Errors
    /// There is another of this name, its tap was not passed, or it is private and has one.
    pub fn add_network(&self, spec: &NetworkSpec, mut passed: HashMap<Slot, OwnedFd>) -> Result<(), String> {
        let tap = spec.tap.map(|tap| {
            let tap = passed.remove(&tap);
            tap.ok_or_else(|| format!("network {}: the descriptor of its tap device was not passed", spec.name))
        });
        lock(&self.wiring).add_network(spec, tap.transpose()?)
    }

    /// Forgets a network that no machine is on; its way out is let go of. Done twice, the second time changes nothing.
    ///
    /// # Errors
    /// A machine is on it.
    pub fn remove_network(&self, network: &str) -> Result<(), String> {
        lock(&self.wiring).remove_network(network)
    }
}

/// Places of a machine that may not come to be: those that are left in here are given up.
#[derive(Default)]
struct Places(Vec<Plug>);

impl Drop for Places {
    fn drop(&mut self) {
        self.0.iter().for_each(Plug::leave);
    }
}
