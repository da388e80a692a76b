//! Networks of a playground, and the machines' places in them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use labyard_devices::switch::{Plug, PortSpec, Switch};
use labyard_spec::net::Mac;
use labyard_spec::playground::{MachineSpec, NetworkSpec, PlaygroundSpec, Slot};

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
}

impl Wiring {
    /// One switch for each network; and the plugs of gateways, each with its tap.
    pub(super) fn of(spec: &PlaygroundSpec) -> (Self, Vec<(Plug, Slot)>) {
        let mut wiring = Self { name: spec.name.clone(), networks: spec.networks.clone(), ..Self::default() };
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
                let port = PortSpec { mac: Mac::gateway(&network.name).0, mtu: MAX_MTU };
                gateways.extend(switch.add(port).map(|plug| (plug, tap)));
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
        // Taps were passed long ago.
        let networks = networks.into_iter().map(|network| NetworkSpec { tap: None, ..network }).collect();
        let alone = PlaygroundSpec { name, networks, machines: vec![machine.clone()] };
        let slots: HashSet<Slot> = passed.keys().copied().collect();
        plan::check(&alone, &slots, max_vcpus).map_err(|error| error.to_string())?;
        Ok(passed.drain().map(|(slot, descriptor)| (slot, Arc::new(File::from(descriptor)))).collect())
    }
}
