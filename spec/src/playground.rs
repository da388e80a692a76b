//! What the supervisor asks of the vmm: machines, drives, networks, with descriptors named by slot.

use serde::{Deserialize, Serialize};

use crate::net::{Ipv4Subnet, Mac};

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
}

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
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveSpec {
    /// The serial that the guest reads (VIRTIO_BLK_T_GET_ID): `dNN` for manifest drives, `modules` for the modules image.
    pub serial: String,
    /// The file behind it.
    pub file: Slot,
    /// The guest may not write.
    pub read_only: bool,
    /// How bytes reach the file.
    #[serde(default)]
    pub engine: Engine,
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
