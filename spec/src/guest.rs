//! `/machine.json` of the initramfs: what `labyard-init` is told about the machine that it prepares.
//!
//! Written by the supervisor into a small cpio archive that is loaded behind the initramfs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::net::Mac;

/// Path of the file in the initramfs.
pub const PATH: &str = "/machine.json";
/// vsock port of the agent in the guest.
pub const AGENT_PORT: u32 = 1024;
/// vsock port of the host (CID 2) that init reports to.
pub const READY_PORT: u32 = 1025;
/// Serial of the drive with the kernel's modules.
pub const MODULES_SERIAL: &str = "modules";

/// Everything that init needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Host name.
    pub hostname: String,
    /// Lines of `/etc/hosts` beside localhost: every machine of every network that this one is on.
    pub hosts: Vec<HostEntry>,
    /// Interfaces, `eth0` first.
    pub interfaces: Vec<Interface>,
    /// Resolvers for `/etc/resolv.conf`; the image's file stays where this is empty.
    pub nameservers: Vec<Ipv4Addr>,
    /// Drives in manifest order; the first whose `mount` is `/` is the root.
    pub drives: Vec<Drive>,
    /// What to run where the image has no init of its own.
    pub entrypoint: Option<Entrypoint>,
    /// Kernel modules to load before the root is sought, by file name in `/modules` of the initramfs, in order.
    /// Empty for kernels that have everything built in.
    pub early_modules: Vec<String>,
    /// Modules to load, by name, once the modules image is mounted (network, vsock).
    pub late_modules: Vec<String>,
    /// Files to write before the machine's own init starts, once.
    #[serde(default)]
    pub startup_files: Vec<StartupFile>,
    /// Who may log in, and how they are greeted.
    #[serde(default)]
    pub users: Vec<User>,
    /// Run nothing of the image: mount the drives for reading, and send what is on them to whoever asks the agent's port
    /// ([`crate::agent::Request::Bake`]).
    #[serde(default)]
    pub bake: bool,
    /// Write [`BOOT_MARKER`] to ttyS0 as the very first act (benches).
    pub boot_marker: bool,
}

/// The line that ends "exec to guest init" in every bench.
pub const BOOT_MARKER: &str = "labyard-init: reached user space";

/// One line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// Address.
    pub address: IpAddr,
    /// Names, the canonical one first.
    pub names: Vec<String>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// By which it is found; names are the kernel's.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// Default route, on at most one interface.
    pub gateway: Option<Ipv4Addr>,
    /// Bytes.
    pub mtu: u16,
    /// Its IPv6, where its network has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub six: Option<Interface6>,
}

/// The IPv6 side of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface6 {
    /// Its address.
    pub address: Ipv6Addr,
    /// Length of the subnet's prefix.
    pub prefix: u8,
    /// Default route, on at most one interface.
    pub gateway: Option<Ipv6Addr>,
}

/// One drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// `dNN`, its position in the manifest; the virtio-blk serial.
    pub serial: String,
    /// Where it is mounted.
    pub mount: Option<String>,
    /// File system type, as `mount -t` names it.
    pub filesystem: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// A file to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartupFile {
    /// Absolute.
    pub path: String,
    /// What is written.
    pub content: String,
    /// Behind what is there.
    pub append: bool,
    /// `user`, `uid`, either with `:group` or `:gid`; root where missing, or who owns what is appended to.
    pub owner: Option<String>,
    /// Permission bits; 0644 where missing, or those of what is appended to.
    pub mode: Option<u32>,
}

/// Somebody who may log in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// A user of the image.
    pub name: String,
    /// Greeting; the image's own where missing, none where it is `-`.
    pub welcome: Option<String>,
}

/// The entrypoint of an OCI image (image-spec, config.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entrypoint {
    /// Entrypoint and Cmd, joined.
    pub argv: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// `User` of the config: name or uid, with an optional group.
    pub user: String,
    /// Where it starts.
    pub working_dir: String,
    /// Signal number or name that asks it to stop.
    pub stop_signal: Option<String>,
}

/// What init and the agent report on [`READY_PORT`]: one JSON line each, over one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hello {
    /// Init has mounted the root and is about to hand over.
    InitDone {
        /// `uname -r`.
        kernel: String,
    },
    /// The agent listens on [`AGENT_PORT`].
    AgentReady,
    /// Init could not prepare the machine; it powers off after this.
    InitFailed {
        /// What failed, with the value and the way out.
        error: String,
    },
}
