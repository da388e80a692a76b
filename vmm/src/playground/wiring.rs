//! Networks of a playground, and the machines' places in them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use labyard_devices::switch::{Plug, PortSpec, Switch};
use labyard_spec::net::Mac;
use labyard_spec::playground::{MachineSpec, NetworkSpec, PlaygroundSpec, Slot};

use super::links::WayOut;
use crate::plan;

/// The kernel keeps to the MTU that its device was given.
const MAX_MTU: u16 = u16::MAX;

/// What outlives a machine.
#[derive(Default)]
pub(super) struct Wiring {
    /// The playground's name.
    pub(super) name: String,
    pub(super) networks: Vec<NetworkSpec>,
    /// By network.
    pub(super) switches: HashMap<String, Arc<Switch>>,
    /// By machine name and position of the interface.
    pub(super) plugs: HashMap<(String, usize), Plug>,
    /// By network, where there is one.
    ways_out: HashMap<String, WayOut>,
}

impl Wiring {
    /// One switch for each network; and the plugs of gateways, each with its tap.
    ///
    /// Networks are kept without taps: those have another slot each time.
    pub(super) fn of(spec: &PlaygroundSpec) -> (Self, Vec<(Plug, Slot)>) {
        let mut wiring = Self {
            name: spec.name.clone(),
            networks: spec.networks.iter().map(without_tap).collect(),
            ..Self::default()
        };
        let mut gateways = Vec::new();
        for network in &spec.networks {
            let switch = Switch::new(&network.name);
            for machine in &spec.machines {
                for (position, interface) in machine.interfaces.iter().enumerate() {
                    let port = PortSpec { mac: interface.mac.0, mtu: interface.mtu };
                    // Addresses that are there twice were refused before.
                    if interface.network == network.name
                        && let Some(plug) = switch.add(port)
                    {
                        wiring.plugs.insert((machine.name.clone(), position), plug);
                    }
                }
            }
            if let Some(tap) = network.tap {
                gateways.extend(switch.add(gateway(&network.name)).map(|plug| (plug, tap)));
            }
            wiring.switches.insert(network.name.clone(), switch);
        }
        (wiring, gateways)
    }

    /// Checks one more machine, or one anew, as it would be checked in a playground of its own; its files.
    pub(super) fn check(
        &self,
        machine: &MachineSpec,
        mut passed: HashMap<Slot, OwnedFd>,
        max_vcpus: u32,
    ) -> Result<HashMap<Slot, Arc<File>>, String> {
        let (name, networks) = (self.name.clone(), self.networks.clone());
        let alone = PlaygroundSpec { name, networks, machines: vec![machine.clone()] };
        let slots: HashSet<Slot> = passed.keys().copied().collect();
        plan::check(&alone, &slots, max_vcpus).map_err(|error| error.to_string())?;
        Ok(passed.drain().map(|(slot, descriptor)| (slot, Arc::new(File::from(descriptor)))).collect())
    }

    /// Opens the ways out that a playground begins with.
    pub(super) fn open_ways_out(
        &mut self,
        gateways: Vec<(Plug, Slot)>,
        files: &HashMap<Slot, Arc<File>>,
    ) -> Result<(), String> {
        for (plug, tap) in gateways {
            let network = plug.network().to_owned();
            let failed = |error: std::io::Error| format!("network {network}: its gateway: {error}");
            let device = files.get(&tap).ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
            let device = device.try_clone().map_err(failed)?;
            self.ways_out.insert(network.clone(), WayOut::open(plug, device)?);
        }
        Ok(())
    }

    /// One more network, or another way out for one that is there.
    pub(super) fn add_network(&mut self, spec: &NetworkSpec, tap: Option<OwnedFd>) -> Result<(), String> {
        let failed = |why: &str| format!("network {}: {why}", spec.name);
        if spec.private && tap.is_some() {
            return Err(failed("a private one has no way out"));
        }
        let known = self.networks.iter().find(|known| known.name == spec.name);
        if known.is_some_and(|known| *known != without_tap(spec)) {
            return Err(failed("there is another of this name"));
        }
        let is_new = known.is_none();
        if is_new {
            self.networks.push(without_tap(spec));
            self.switches.insert(spec.name.clone(), Switch::new(&spec.name));
        }
        let Some(tap) = tap else { return Ok(()) };
        if let Some(before) = self.ways_out.remove(&spec.name) {
            before.close();
        }
        let plug = self.switches.get(&spec.name).and_then(|switch| switch.add(gateway(&spec.name)));
        let plug = plug.ok_or_else(|| failed("a machine has the gateway's hardware address"));
        match plug.and_then(|plug| WayOut::open(plug, File::from(tap))) {
            Ok(way_out) => {
                self.ways_out.insert(spec.name.clone(), way_out);
                Ok(())
            }
            Err(why) => {
                if is_new {
                    self.forget(&spec.name);
                }
                Err(why)
            }
        }
    }

    /// Forgets a network that no machine is on.
    pub(super) fn remove_network(&mut self, network: &str) -> Result<(), String> {
        if self.plugs.values().any(|plug| plug.network() == network) {
            return Err(format!("network {network}: a machine is plugged in"));
        }
        if let Some(way_out) = self.ways_out.remove(network) {
            way_out.close();
        }
        self.forget(network);
        Ok(())
    }

    fn forget(&mut self, network: &str) {
        self.switches.remove(network);
        self.networks.retain(|known| known.name != network);
    }
}

fn without_tap(network: &NetworkSpec) -> NetworkSpec {
    NetworkSpec { tap: None, ..network.clone() }
}

/// The port of a network's gateway.
fn gateway(network: &str) -> PortSpec {
    PortSpec { mac: Mac::gateway(network).0, mtu: MAX_MTU }
}
