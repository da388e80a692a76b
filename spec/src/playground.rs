//! What the supervisor asks of the vmm: machines, drives, networks, with descriptors named by slot.

use serde::{Deserialize, Serialize};

use crate::net::{Ipv4Subnet, Mac, Network6};

/// The place of a descriptor in the table that was passed to the vmm before the spec (see [`crate::control`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u32);

/// A group of machines with their networks, run by one vmm process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaygroundSpec {
    /// The playground's name, used in messages and thread names only.
    pub name: String,
    /// Networks, each one switch. Interfaces name them.
    pub networks: Vec<NetworkSpec>,
    /// Machines in manifest order.
    pub machines: Vec<MachineSpec>,
}

/// One L2 network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Unique in the playground.
    pub name: String,
    /// The subnet that its machines' addresses come from.
    pub subnet: Ipv4Subnet,
    /// The address of the way out; also reserved where there is none.
    pub gateway: std::net::Ipv4Addr,
    /// No way out exists.
    pub private: bool,
    /// The tap device that is the gateway's, where there is a way out.
    #[serde(default)]
    pub tap: Option<Slot>,
    /// Its IPv6, where it has any; the vmm looks at neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub six: Option<Network6>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// Unique in the playground.
    pub name: String,
    /// Number of vCPUs, at least 1.
    pub cpu_count: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// What is loaded and started.
    pub boot: BootSpec,
    /// Drives in the order in which the guest sees them (`/dev/vda` first).
    pub drives: Vec<DriveSpec>,
    /// Network interfaces, `eth0` first.
    pub interfaces: Vec<InterfaceSpec>,
    /// The guest's vsock context id: 3 + position in the manifest.
    pub cid: u32,
    /// Where console output is appended.
    pub console_log: Slot,
    /// Name of the template that its processors' CPUID is cut by; `host` where missing.
    #[serde(default)]
    pub cpu_template: Option<String>,
    /// Its processors can run virtual machines of their own.
    #[serde(default)]
    pub nested: bool,
    /// Its memory is in 2 MiB huge pages, which the host has set aside (`vm.nr_hugepages`).
    #[serde(default)]
    pub huge_pages: bool,
}

impl MachineSpec {
    /// A machine of one vCPU and 512 MiB with no drive and no interface.
    pub fn new(name: &str, boot: BootSpec, console_log: Slot) -> Self {
        Self {
            name: name.into(),
            cpu_count: 1,
            memory_mib: 512,
            boot,
            drives: Vec::new(),
            interfaces: Vec::new(),
            cid: FIRST_CID,
            console_log,
            cpu_template: None,
            nested: false,
            huge_pages: false,
        }
    }

    /// Slot of every file that it has.
    pub fn slots(&self) -> Vec<Slot> {
        let boot = [self.boot.kernel, self.console_log];
        let initrd = self.boot.initrd.iter().copied();
        let drives = self.drives.iter().flat_map(|drive| drive.files().map(|(slot, _)| slot));
        boot.into_iter().chain(initrd).chain(drives).collect()
    }
}

/// vsock context id of the first machine; smaller ones mean the host and everybody (VIRTIO 1.2, §5.10.4).
pub const FIRST_CID: u32 = 3;

/// A direct kernel boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSpec {
    /// An ELF kernel image.
    pub kernel: Slot,
    /// Initramfs parts, loaded one after another, each starting at a multiple of four bytes.
    pub initrd: Vec<Slot>,
    /// Words added to the command line that the vmm builds.
    pub extra_cmdline: String,
    /// How the kernel is entered.
    #[serde(default)]
    pub entry: Entry,
}

/// The way into a kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// By PVH where the kernel has that entry point, else the 64-bit one.
    #[default]
    Auto,
    /// The 32-bit entry point of the PVH boot protocol, which a note of the ELF image names.
    Pvh,
    /// The 64-bit entry point of the Linux boot protocol, the one of the ELF image.
    Linux64,
}

impl Entry {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Pvh, Self::Linux64];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Pvh => "pvh",
            Self::Linux64 => "linux64",
        }
    }
}

/// Names of the templates that a machine's CPUID can be cut by; the first cuts nothing more than every machine's is.
pub const CPU_TEMPLATES: [&str; 3] = ["host", "x86-64-v2", "x86-64-v3"];

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveSpec {
    /// The serial that the guest reads (VIRTIO_BLK_T_GET_ID): `dNN` for manifest drives, `modules` for the modules image.
    pub serial: String,
    /// The guest may not write.
    pub read_only: bool,
    /// What it starts as; zeros where missing. Without an overlay it is the drive itself.
    pub base: Option<BaseSpec>,
    /// Where writes go, so that the base stays as it is; none for a drive that is read only.
    pub overlay: Option<OverlaySpec>,
    /// How bytes reach the files.
    #[serde(default)]
    pub engine: Engine,
}

/// A plain file below all layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseSpec {
    /// The file.
    pub file: Slot,
    /// The name under which layers remember it.
    pub name: String,
}

/// Layers on a base (`docs/formats.md`, "Overlay layer").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlaySpec {
    /// Layers that are not written any more, lowest first.
    pub frozen: Vec<LayerSlots>,
    /// The layer that is written; made by the vmm where its map is empty.
    pub top: LayerSlots,
    /// Bytes that the guest sees.
    pub capacity_bytes: u64,
}

/// The files of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSlots {
    /// Its blocks.
    pub data: Slot,
    /// Which blocks it has.
    pub map: Slot,
}

impl DriveSpec {
    /// Every file behind it, and whether it is written.
    pub fn files(&self) -> impl Iterator<Item = (Slot, bool)> {
        let base_is_written = !self.read_only && self.overlay.is_none();
        let base = self.base.iter().map(move |base| (base.file, base_is_written));
        let layers = self.overlay.iter().flat_map(|overlay| {
            let frozen = overlay.frozen.iter().map(|layer| (layer, false));
            frozen.chain(std::iter::once((&overlay.top, true)))
        });
        base.chain(layers.flat_map(|(layer, written)| [(layer.data, written), (layer.map, written)]))
    }
}

/// How a drive's bytes reach its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// io_uring where the host has and allows it, else system calls.
    #[default]
    Auto,
    /// System calls of the machine's device thread.
    Sync,
    /// io_uring, or the drive is refused.
    Uring,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceSpec {
    /// The network that it is plugged into.
    pub network: String,
    /// Its hardware address; frames with another source are dropped.
    pub mac: Mac,
    /// Largest packet in bytes (the frame without its Ethernet header).
    pub mtu: u16,
}
