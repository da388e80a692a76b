//! From what is asked for to what is decided: a pure function, so that every refusal comes before anything is built.

use std::collections::{HashMap, HashSet};

use labyard_spec::net::Mac;
use labyard_spec::playground::{DriveSpec, MachineSpec, PlaygroundSpec, Slot};

use crate::arch::x86_64::layout;

/// Smallest memory that is worth starting: a kernel and an initramfs do not fit into less.
pub const MIN_MEMORY_MIB: u64 = 32;
/// Most memory of one machine: one slot of KVM's has less than 2^31 pages (KVM_MEM_MAX_NR_PAGES, include/linux/kvm_host.h).
pub const MAX_MEMORY_MIB: u64 = 1 << 22;

/// A spec that cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Two machines of one name.
    #[error("machine {0}: the name is taken by another machine")]
    SameName(String),
    /// Nothing to run.
    #[error("the playground has no machine")]
    NoMachine,
    /// Processors.
    #[error("machine {machine}: {asked} vCPUs, this host's KVM allows 1 to {most}")]
    Cpus {
        /// Whose.
        machine: String,
        /// How many.
        asked: u32,
        /// Limit.
        most: u32,
    },
    /// Memory.
    #[error("machine {machine}: {asked} MiB of memory, allowed are {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")]
    Memory {
        /// Whose.
        machine: String,
        /// How much.
        asked: u64,
    },
    /// Memory that ends within a huge page.
    #[error("machine {machine}: {asked} MiB of memory are not a whole number of huge pages of 2 MiB")]
    HugePages {
        /// Whose.
        machine: String,
        /// How much.
        asked: u64,
    },
    /// Too many drives and interfaces.
    #[error("machine {machine}: {asked} devices, there are {most} interrupt lines for them", most = layout::MAX_VIRTIO_DEVICES)]
    Devices {
        /// Whose.
        machine: String,
        /// How many.
        asked: usize,
    },
    /// An interface into nowhere.
    #[error("machine {machine}: network {network} does not exist")]
    Network {
        /// Whose.
        machine: String,
        /// Which.
        network: String,
    },
    /// A way out that was not passed.
    #[error("network {0}: the descriptor of its tap device was not passed, or is another network's, too")]
    Tap(String),
    /// Two interfaces of one address on one network.
    #[error("network {network}: the hardware address {mac} is there twice")]
    SameMac {
        /// Where.
        network: String,
        /// Which.
        mac: Mac,
    },
    /// A descriptor that was not passed.
    #[error("machine {machine}: descriptor {slot:?} for its {what} was not passed")]
    Descriptor {
        /// Whose.
        machine: String,
        /// For what.
        what: &'static str,
        /// Which.
        slot: Slot,
    },
    /// A drive that is none.
    #[error("machine {machine}: drive {serial} {why}")]
    Drive {
        /// Whose.
        machine: String,
        /// Which.
        serial: String,
        /// Why not.
        why: &'static str,
    },
    /// One file for two writers.
    #[error("machine {machine}: drive {serial} shares its file {slot:?} with another writer")]
    SharedDrive {
        /// Whose.
        machine: String,
        /// Which.
        serial: String,
        /// Its file.
        slot: Slot,
    },
}

/// Checks a spec against what was passed and what KVM can do.
pub fn check(spec: &PlaygroundSpec, passed: &HashSet<Slot>, max_vcpus: u32) -> Result<(), PlanError> {
    if spec.machines.is_empty() {
        return Err(PlanError::NoMachine);
    }
    let mut taps = HashSet::new();
    for network in &spec.networks {
        if network.tap.is_some_and(|tap| !passed.contains(&tap) || !taps.insert(tap)) {
            return Err(PlanError::Tap(network.name.clone()));
        }
    }
    let networks: HashSet<&str> = spec.networks.iter().map(|network| network.name.as_str()).collect();
    let (mut names, mut macs) = (HashSet::new(), HashSet::new());
    for machine in &spec.machines {
        let name = || machine.name.clone();
        if !names.insert(machine.name.as_str()) {
            return Err(PlanError::SameName(name()));
        }
        if !(1..=max_vcpus).contains(&machine.cpu_count) {
            return Err(PlanError::Cpus { machine: name(), asked: machine.cpu_count, most: max_vcpus });
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&machine.memory_mib) {
            return Err(PlanError::Memory { machine: name(), asked: machine.memory_mib });
        }
        if machine.huge_pages && machine.memory_mib % 2 != 0 {
            return Err(PlanError::HugePages { machine: name(), asked: machine.memory_mib });
        }
        if device_count(machine) > layout::MAX_VIRTIO_DEVICES {
            return Err(PlanError::Devices { machine: name(), asked: device_count(machine) });
        }
        for interface in &machine.interfaces {
            if !networks.contains(interface.network.as_str()) {
                return Err(PlanError::Network { machine: name(), network: interface.network.clone() });
            }
            if !macs.insert((interface.network.as_str(), interface.mac)) {
                return Err(PlanError::SameMac { network: interface.network.clone(), mac: interface.mac });
            }
        }
        for drive in &machine.drives {
            let why = match (&drive.base, &drive.overlay) {
                (None, None) => "has nothing behind it",
                (_, Some(_)) if drive.read_only => "is read only and has an overlay to write to",
                _ => continue,
            };
            return Err(PlanError::Drive { machine: name(), serial: drive.serial.clone(), why });
        }
        for (what, slot) in descriptors(machine) {
            if !passed.contains(&slot) {
                return Err(PlanError::Descriptor { machine: name(), what, slot });
            }
        }
    }
    check_writers(spec)
}

/// Drives, interfaces, and console, rng, balloon and vsock.
pub fn device_count(machine: &MachineSpec) -> usize {
    machine.drives.len() + machine.interfaces.len() + 4
}

/// No two drives have one file, unless both only read it.
fn check_writers(spec: &PlaygroundSpec) -> Result<(), PlanError> {
    let mut users: HashMap<Slot, bool> = HashMap::new();
    for machine in &spec.machines {
        for (DriveSpec { serial, .. }, (slot, writes)) in
            machine.drives.iter().flat_map(|drive| drive.files().map(move |file| (drive, file)))
        {
            let clash = users.get(&slot).is_some_and(|other_writes| *other_writes || writes);
            if clash {
                let (machine, serial) = (machine.name.clone(), serial.clone());
                return Err(PlanError::SharedDrive { machine, serial, slot });
            }
            users.insert(slot, writes);
        }
    }
    Ok(())
}

fn descriptors(machine: &MachineSpec) -> impl Iterator<Item = (&'static str, Slot)> {
    let boot = [("kernel", machine.boot.kernel), ("console log", machine.console_log)];
    let initrd = machine.boot.initrd.iter().map(|slot| ("initramfs", *slot));
    let drives = machine.drives.iter().flat_map(|drive| drive.files().map(|(slot, _)| ("drive", slot)));
    boot.into_iter().chain(initrd).chain(drives)
}

#[cfg(test)]
mod tests {
    use super::*;
    use labyard_spec::net::Ipv4Subnet;
    use labyard_spec::playground::{
        BaseSpec, BootSpec, Engine, Entry, InterfaceSpec, LayerSlots, NetworkSpec, OverlaySpec,
    };

    fn spec() -> PlaygroundSpec {
        let subnet = Ipv4Subnet::containing([172, 16, 0, 0].into(), 24).expect("a subnet");
        let network = NetworkSpec {
            name: "local".into(),
            subnet,
            gateway: [172, 16, 0, 1].into(),
            private: false,
            tap: None,
            six: None,
        };
        let machine = |name: &str, number: u32| MachineSpec {
            name: name.into(),
            cpu_count: 1,
            memory_mib: 128,
            boot: BootSpec { kernel: Slot(0), initrd: vec![Slot(1)], extra_cmdline: String::new(), entry: Entry::Auto },
            drives: vec![DriveSpec {
                serial: "d00".into(),
                read_only: false,
                base: Some(BaseSpec { file: Slot(3), name: "image".into() }),
                overlay: Some(OverlaySpec {
                    frozen: Vec::new(),
                    top: LayerSlots { data: Slot(10 + 2 * number), map: Slot(11 + 2 * number) },
                    capacity_bytes: 1 << 20,
                }),
                engine: Engine::Auto,
            }],
            interfaces: vec![InterfaceSpec { network: "local".into(), mac: Mac::derived("local", name, 0), mtu: 1500 }],
            cid: 3 + number,
            console_log: Slot(2),
            cpu_template: None,
            nested: false,
            huge_pages: false,
        };
        PlaygroundSpec {
            name: "lab".into(),
            networks: vec![network],
            machines: vec![machine("web", 0), machine("db", 1)],
        }
    }

    fn overlay(spec: &mut PlaygroundSpec, machine: usize) -> &mut OverlaySpec {
        spec.machines[machine].drives[0].overlay.as_mut().expect("an overlay")
    }

    fn passed() -> HashSet<Slot> {
        (0..20).map(Slot).collect()
    }

    #[test]
    fn a_sound_spec_passes() {
        assert_eq!(check(&spec(), &passed(), 8), Ok(()));
    }

    #[test]
    fn each_thing_that_cannot_be_is_refused_by_name() {
        type Change = fn(&mut PlaygroundSpec);
        let cases: &[(Change, &str)] = &[
            (|spec| spec.machines.clear(), "no machine"),
            (|spec| spec.machines[1].name = "web".into(), "machine web: the name is taken"),
            (|spec| spec.machines[1].cpu_count = 0, "machine db: 0 vCPUs, this host's KVM allows 1 to 8"),
            (|spec| spec.machines[1].cpu_count = 9, "9 vCPUs"),
            (|spec| spec.machines[0].memory_mib = 16, "machine web: 16 MiB"),
            (|spec| spec.machines[0].memory_mib = u64::MAX, "MiB of memory"),
            (
                |spec| (spec.machines[0].memory_mib, spec.machines[0].huge_pages) = (129, true),
                "machine web: 129 MiB of memory are not a whole number of huge pages",
            ),
            (|spec| spec.machines[0].interfaces[0].network = "lan".into(), "network lan does not exist"),
            (|spec| spec.machines[0].interfaces[0].mac = spec.machines[1].interfaces[0].mac, "is there twice"),
            (|spec| spec.machines[0].boot.kernel = Slot(99), "descriptor Slot(99) for its kernel was not passed"),
            (|spec| overlay(spec, 1).top.data = Slot(10), "machine db: drive d00 shares its file Slot(10)"),
            (|spec| overlay(spec, 1).top.map = Slot(3), "machine db: drive d00 shares its file Slot(3)"),
            (|spec| overlay(spec, 1).top.map = Slot(77), "descriptor Slot(77) for its drive was not passed"),
            (|spec| spec.machines[1].drives[0].overlay = None, "machine db: drive d00 shares its file Slot(3)"),
            (|spec| spec.machines[1].drives[0].read_only = true, "drive d00 is read only and has an overlay"),
            (
                |spec| {
                    let drive = &mut spec.machines[1].drives[0];
                    (drive.base, drive.overlay) = (None, None);
                },
                "drive d00 has nothing behind it",
            ),
            (
                |spec| {
                    let drive = spec.machines[0].drives[0].clone();
                    spec.machines[0].drives = vec![drive; 120];
                },
                "125 devices, there are 115",
            ),
        ];
        for (change, expected) in cases {
            let mut spec = spec();
            change(&mut spec);
            let error = check(&spec, &passed(), 8).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn readers_may_share_a_file() {
        let mut spec = spec();
        for machine in &mut spec.machines {
            let base = Some(BaseSpec { file: Slot(5), name: "modules".into() });
            machine.drives[0] =
                DriveSpec { serial: "modules".into(), read_only: true, base, overlay: None, engine: Engine::Auto };
        }
        assert_eq!(check(&spec, &passed(), 8), Ok(()));
    }
}
