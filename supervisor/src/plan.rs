//! From what a manifest asks for to what the vmm is told: pure. Every file that the vmm gets has a slot, and all are counted.

use std::path::PathBuf;

use labyard_rootfs_builder::store::{ImageRecord, KernelRecord};
use labyard_spec::guest::{self, HostEntry, MachineConfig};
use labyard_spec::manifest::lab::{self, Lab, MTU};
use labyard_spec::net::Mac;
use labyard_spec::playground::{
    BaseSpec, BootSpec, DriveSpec, Engine, InterfaceSpec, LayerSlots, MachineSpec, NetworkSpec, OverlaySpec,
    PlaygroundSpec, Slot,
};
use labyard_spec::uplink::{UplinkNetwork, UplinkSpec};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Controller, Limit, Limits};
use crate::home::{Folder, names};

/// What the supervisor starts the vmm with; kept as `plan.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What the vmm is told.
    pub spec: PlaygroundSpec,
    /// The file of each slot, in order.
    pub files: Vec<PlannedFile>,
    /// How many descriptors the vmm may have open.
    pub max_descriptors: u64,
    /// The networks with a way out.
    #[serde(default)]
    pub uplink: Option<UplinkSpec>,
    /// What was asked for of the host's control groups.
    #[serde(default)]
    pub limits: Limits,
}

/// A file that the supervisor opens for the vmm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Where it is.
    pub path: PathBuf,
    /// What the vmm may do with it.
    pub access: FileAccess,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileAccess {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
    /// Appending; made where it is missing.
    Append,
}

/// A machine's kernel, found.
#[derive(Debug, Clone)]
pub struct FoundKernel {
    /// Its record.
    pub record: KernelRecord,
    /// The ELF image.
    pub vmlinux: PathBuf,
    /// The initramfs with our init.
    pub initramfs: PathBuf,
    /// The modules image, where the kernel has one.
    pub modules: Option<PathBuf>,
}

/// What was found for one machine.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its kernel.
    pub kernel: FoundKernel,
    /// The image of its root.
    pub root: ImageRecord,
    /// What each of its drives lies on; nothing where it starts as zeros.
    pub bases: Vec<Option<FoundBase>>,
}

/// A file that drives lie on and nobody writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundBase {
    /// Where it is.
    pub path: PathBuf,
    /// The name under which layers remember it.
    pub name: String,
}

/// Rings of io_uring for drives of machines that come while others run; each drive takes one, and whoever finds none does with system
/// calls. They are made at the start, for the vmm gives up making them before it hears of any drive (docs/adr/0007).
const SPARE_RINGS: u64 = 16;

/// Descriptors that the vmm has beside the slots' files: for itself, for each machine, and for each device of it.
const OWN_DESCRIPTORS: u64 = 128 + 2 * SPARE_RINGS;
const PER_MACHINE: u64 = 64;
const PER_CPU: u64 = 4;
const PER_DEVICE: u64 = 10;
/// The timer of its port.
const PER_NIC: u64 = PER_DEVICE + 1;
/// A tap, what waits for it, and a few captures.
const PER_NETWORK: u64 = 8;

/// Descriptors beyond that for a machine's streams. A host that does not allow as many has room for fewer streams.
pub const STREAMS_PER_MACHINE: u64 = 4096 + 64;

/// Data and map of what a machine writes on a drive.
pub fn layer_paths(folder: &Folder, machine: &str, serial: &str) -> [PathBuf; 2] {
    ["overlay", "overlay.map"].map(|what| folder.machine(machine).join(format!("{serial}.{what}")))
}

/// Threads of the vmm: its own, with those of control connections; of each machine, and of each drive: the kernel's workers of a
/// ring (io_uring_register(2), IORING_REGISTER_IOWQ_MAX_WORKERS: four for a processor, or as many as the ring is long). Its own are
/// many, because machines come to a lab that runs, and a limit of a process cannot be raised from outside.
const OWN_THREADS: u64 = 4096;
const THREADS_PER_MACHINE: u64 = 16;
const THREADS_PER_DRIVE: u64 = 64;

/// Memory beside the machines' own: a share for the pages of KVM and of rings, and what the vmm and the host's cache of its files take.
const MEMORY_SHARE: u64 = 4;
const OWN_MEMORY: u64 = 512 << 20;
const MEMORY_PER_MACHINE: u64 = 64 << 20;

impl Plan {
    /// What the vmm may take of the host: what was asked for, and where nothing was, what no vmm in its right mind exceeds.
    pub fn host_limits(&self) -> Vec<Limit> {
        let machines: u64 = self.spec.machines.iter().map(|machine| machine.memory_mib << 20).sum();
        let own = machines / MEMORY_SHARE + OWN_MEMORY + MEMORY_PER_MACHINE * self.spec.machines.len() as u64;
        let asked = |controller, value: Option<u64>| value.map(|value| Limit { controller, value, asked: true });
        let memory = Limit { controller: Controller::Memory, value: machines + own, asked: false };
        let pids = Limit { controller: Controller::Pids, value: self.max_threads(), asked: false };
        [
            Some(asked(Controller::Memory, self.limits.memory_bytes).unwrap_or(memory)),
            Some(pids),
            asked(Controller::Cpu, self.limits.cpu_percent),
            asked(Controller::Io, self.limits.io_bytes),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// How many threads the vmm may have. Far more than it has: it is there for one that has been taken over.
    pub fn max_threads(&self) -> u64 {
        let machines = self.spec.machines.iter();
        OWN_THREADS
            + machines
                .map(|machine| {
                    THREADS_PER_MACHINE + u64::from(machine.cpu_count) + THREADS_PER_DRIVE * machine.drives.len() as u64
                })
                .sum::<u64>()
    }

    /// How many rings the vmm makes at its start.
    pub fn rings(&self) -> u64 {
        SPARE_RINGS + self.spec.machines.iter().map(|machine| machine.drives.len() as u64).sum::<u64>()
    }

    fn drive(&self, machine: &str, serial: &str) -> Option<&DriveSpec> {
        let machine = self.spec.machines.iter().find(|other| other.name == machine)?;
        machine.drives.iter().find(|drive| drive.serial == serial)
    }

    /// What a drive of it lies on; `None` where it has no such drive.
    pub fn base(&self, machine: &str, serial: &str) -> Option<Option<FoundBase>> {
        let drive = self.drive(machine, serial)?;
        let Some(base) = &drive.base else { return Some(None) };
        let path = self.files.get(usize::try_from(base.file.0).ok()?)?.path.clone();
        Some(Some(FoundBase { path, name: base.name.clone() }))
    }

    /// Drives do not shrink: one that was made larger while it was in use stays so.
    pub fn keep_sizes(&mut self, before: &Self) {
        for machine in &mut self.spec.machines {
            for drive in &mut machine.drives {
                let known = before.drive(&machine.name, &drive.serial).and_then(|known| known.overlay.as_ref());
                if let (Some(overlay), Some(known)) = (&mut drive.overlay, known) {
                    overlay.capacity_bytes = overlay.capacity_bytes.max(known.capacity_bytes);
                }
            }
        }
    }
}

/// The plan of a lab; `found` has one entry for each machine.
pub fn plan(lab: &Lab, found: &[Found], folder: &Folder) -> Plan {
    let mut files = Vec::new();
    let mut slot = |path: PathBuf, access| {
        let slot = Slot(u32::try_from(files.len()).unwrap_or(u32::MAX));
        files.push(PlannedFile { path, access });
        slot
    };
    let mut machines = Vec::new();
    let mut max_descriptors = OWN_DESCRIPTORS;
    for (machine, found) in lab.machines.iter().zip(found) {
        let own = folder.machine(&machine.name);
        let boot = BootSpec {
            kernel: slot(found.kernel.vmlinux.clone(), FileAccess::Read),
            initrd: vec![
                slot(found.kernel.initramfs.clone(), FileAccess::Read),
                slot(own.join(names::MACHINE_ARCHIVE), FileAccess::Read),
            ],
            extra_cmdline: String::new(),
            entry: machine.entry,
        };
        let mut drives = Vec::new();
        for (drive, base) in machine.drives.iter().zip(&found.bases) {
            let base = base.as_ref().map(|FoundBase { path, name }| BaseSpec {
                file: slot(path.clone(), FileAccess::Read),
                name: name.clone(),
            });
            let overlay = (!drive.read_only).then(|| {
                let [data, map] = layer_paths(folder, &machine.name, &drive.serial);
                let top = LayerSlots { data: slot(data, FileAccess::Write), map: slot(map, FileAccess::Write) };
                OverlaySpec { frozen: Vec::new(), top, capacity_bytes: drive.size_bytes.value }
            });
            drives.push(DriveSpec {
                serial: drive.serial.clone(),
                read_only: drive.read_only,
                base,
                overlay,
                engine: drive.engine,
            });
        }
        // Last, so that the manifest's drives keep their letters.
        if let Some(modules) = &found.kernel.modules {
            let file = slot(modules.clone(), FileAccess::Read);
            let base = Some(BaseSpec { file, name: found.kernel.record.id.clone() });
            let serial = guest::MODULES_SERIAL.to_owned();
            drives.push(DriveSpec { serial, read_only: true, base, overlay: None, engine: Engine::Auto });
        }
        let interfaces: Vec<_> = machine
            .interfaces
            .iter()
            .map(|nic| InterfaceSpec { network: nic.network.clone(), mac: nic.mac, mtu: MTU })
            .collect();
        max_descriptors += PER_MACHINE
            + PER_CPU * u64::from(machine.cpu_count)
            + PER_DEVICE * drives.len() as u64
            + PER_NIC * interfaces.len() as u64;
        machines.push(MachineSpec {
            name: machine.name.clone(),
            cpu_count: machine.cpu_count,
            memory_mib: machine.memory_mib,
            boot,
            drives,
            interfaces,
            cid: machine.cid,
            console_log: slot(own.join(names::CONSOLE_LOG), FileAccess::Append),
            cpu_template: machine.cpu_template.clone(),
            nested: machine.nested,
            huge_pages: machine.huge_pages.is_some(),
        });
    }
    let networks = lab
        .networks
        .iter()
        .map(|network| NetworkSpec {
            name: network.name.clone(),
            subnet: network.subnet,
            gateway: network.gateway,
            private: network.private,
            tap: None, // it is made anew with each vmm
            six: network.six,
        })
        .collect();
    max_descriptors += files.len() as u64 + PER_NETWORK * lab.networks.len() as u64;
    let spec = PlaygroundSpec { name: lab.name.clone(), networks, machines };
    Plan { spec, files, max_descriptors, uplink: uplink(lab), limits: Limits::default() }
}

/// What the uplink is told; nothing where all networks are private.
fn uplink(lab: &Lab) -> Option<UplinkSpec> {
    let networks = lab.networks.iter().filter(|network| !network.private).map(|network| {
        let addresses = |machine: &lab::Machine| {
            let own = machine.interfaces.iter().find(|nic| nic.network == network.name)?;
            Some((machine.name.clone(), own.address))
        };
        let addresses6 = |machine: &lab::Machine| {
            let own = machine.interfaces.iter().find(|nic| nic.network == network.name)?;
            Some((machine.name.clone(), own.six?.address))
        };
        UplinkNetwork {
            name: network.name.clone(),
            subnet: network.subnet,
            gateway: network.gateway,
            mac: Mac::gateway(&network.name),
            mtu: MTU,
            names: lab.machines.iter().filter_map(addresses).collect(),
            six: network.six,
            names6: lab.machines.iter().filter_map(addresses6).collect(),
        }
    });
    let networks: Vec<_> = networks.collect();
    (!networks.is_empty()).then(|| UplinkSpec { lab: lab.name.clone(), networks, others: vec![], others6: vec![] })
}

/// What a machine's init is told.
///
/// The default route leads through the first network with a way out, whose gateway answers questions about names, too.
pub fn machine_config(lab: &Lab, machine: &lab::Machine, found: &Found) -> MachineConfig {
    let shares = |other: &&lab::Interface| machine.interfaces.iter().any(|own| own.network == other.network);
    let hosts = lab.machines.iter().flat_map(|other| {
        let names = vec![other.name.clone()];
        let shared = || other.interfaces.iter().filter(shares);
        let six = shared().filter_map(|nic| nic.six).map(|six| six.address.into());
        let addresses = shared().map(|nic| nic.address.into()).chain(six);
        addresses.map(move |address| HostEntry { address, names: names.clone() }).collect::<Vec<_>>()
    });
    let interfaces = machine.interfaces.iter().map(|nic| guest::Interface {
        mac: nic.mac,
        address: nic.address,
        prefix: nic.prefix,
        gateway: nic.gateway,
        mtu: MTU,
        six: nic.six.map(|lab::Interface6 { address, prefix, gateway }| guest::Interface6 { address, prefix, gateway }),
    });
    let drives = machine.drives.iter().map(|drive| guest::Drive {
        serial: drive.serial.clone(),
        mount: drive.mount.clone(),
        filesystem: drive.filesystem.map(lab::Filesystem::name).unwrap_or_default().to_owned(),
        read_only: drive.read_only,
    });
    MachineConfig {
        hostname: machine.name.clone(),
        hosts: hosts.collect(),
        interfaces: interfaces.collect(),
        nameservers: machine.interfaces.iter().filter_map(|nic| nic.gateway).collect(),
        drives: drives.collect(),
        entrypoint: if found.root.init { None } else { found.root.entrypoint.clone() },
        early_modules: found.kernel.record.early_modules.clone(),
        late_modules: found.kernel.record.late_modules.clone(),
        startup_files: startup_files(machine),
        users: users(machine),
        bake: false,
        boot_marker: false,
    }
}

fn startup_files(machine: &lab::Machine) -> Vec<guest::StartupFile> {
    let file = |file: &lab::StartupFile| guest::StartupFile {
        path: file.path.clone(),
        content: file.content.clone(),
        append: file.append,
        owner: file.owner.clone(),
        mode: file.mode,
    };
    machine.startup_files.iter().map(file).collect()
}

fn users(machine: &lab::Machine) -> Vec<guest::User> {
    machine.users.iter().map(|user| guest::User { name: user.name.clone(), welcome: user.welcome.clone() }).collect()
}

#[cfg(test)]
mod tests;
