//! What a manifest asks for, with every default and address filled in. Plain data.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{Place, Placed};
use crate::net::{Ipv4Subnet, Mac, Network6};
use crate::playground::{Engine, Entry};
use crate::source::Source;

/// Bytes of the largest packet on every network.
pub const MTU: u16 = 1500;

/// A playground as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lab {
    /// Its name, which is its id.
    pub name: String,
    /// What it is about; shown, never acted on.
    pub about: About,
    /// Networks in manifest order.
    pub networks: Vec<Network>,
    /// Machines in manifest order.
    pub machines: Vec<Machine>,
    /// Init tasks, ordered by name.
    pub tasks: Vec<Task>,
    /// Start-time parameters.
    pub conditions: Vec<InitCondition>,
    /// Tabs of a web console.
    pub tabs: Vec<Tab>,
    /// Saved forwards.
    pub port_forwards: Vec<PortForward>,
    /// `user:password` for the registry.
    pub registry_auth: Option<String>,
    /// Who may see, read and start it.
    pub access: AccessControl,
    /// Fields that are accepted and have no effect here, one line each.
    pub notes: Vec<String>,
}

/// What only people read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct About {
    /// The name where missing.
    pub title: String,
    /// A few lines.
    pub description: String,
    /// Topics.
    pub categories: Vec<String>,
    /// Address of an image.
    pub cover: Option<String>,
    /// The landing page.
    pub markdown: Option<String>,
    /// What it was derived from.
    pub base: Option<String>,
}

/// One network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Unique in the lab.
    pub name: String,
    /// Its addresses.
    pub subnet: Ipv4Subnet,
    /// The address of the way out, reserved also where there is none.
    pub gateway: Ipv4Addr,
    /// No way out, by wish.
    pub private: bool,
    /// Its IPv6, where it has any.
    pub six: Option<Network6>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Unique in the lab; also the host name.
    pub name: String,
    /// Series, version or id of the kernel; the store's default where missing.
    pub kernel: Option<Placed<String>>,
    /// Users, the one who logs in first.
    pub users: Vec<User>,
    /// Drives in manifest order; exactly one is mounted at `/`.
    pub drives: Vec<Drive>,
    /// Interfaces, `eth0` first.
    pub interfaces: Vec<Interface>,
    /// Number of vCPUs.
    pub cpu_count: u32,
    /// Memory.
    pub memory_mib: u64,
    /// Files written before the machine's own init starts.
    pub startup_files: Vec<StartupFile>,
    /// Nobody logs in from outside.
    pub no_ssh: bool,
    /// vsock context id.
    pub cid: u32,
    /// How its kernel is entered.
    pub entry: Entry,
    /// The template of its processors; `host` where missing.
    pub cpu_template: Option<String>,
    /// It can run virtual machines of its own.
    pub nested: bool,
    /// Where it asks for memory in huge pages that the host has set aside, if it does.
    pub huge_pages: Option<Place>,
}

/// Someone who may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Must exist in the image.
    pub name: String,
    /// Greeting; the image's own where missing, none where it is `-`.
    pub welcome: Option<String>,
}

/// One drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// `dNN`, its position.
    pub serial: String,
    /// The image that it starts as; blank where missing.
    pub source: Option<Placed<Source>>,
    /// Where it is mounted.
    pub mount: Option<String>,
    /// Its size.
    pub size_bytes: Placed<u64>,
    /// What a blank drive is formatted with, or what its image is written as; raw where missing.
    pub filesystem: Option<Filesystem>,
    /// The machine may not write.
    pub read_only: bool,
    /// Meant to be kept when the lab is stopped.
    pub persistent: bool,
    /// How its bytes reach the host's files; `labyard.engine`.
    pub engine: Engine,
}

/// File systems of drives; the last one is for images that are only ever read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Filesystem {
    Ext4,
    Ext3,
    Ext2,
    Xfs,
    Btrfs,
    Erofs,
}

impl Filesystem {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Ext4, Self::Ext3, Self::Ext2, Self::Xfs, Self::Btrfs, Self::Erofs];

    /// As `mount -t` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Ext3 => "ext3",
            Self::Ext2 => "ext2",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Erofs => "erofs",
        }
    }
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The network that it is plugged into.
    pub network: String,
    /// Its hardware address.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// Prefix length as the guest sees it.
    pub prefix: u8,
    /// The default route: on the first interface whose network is not private.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6, where its network has any.
    pub six: Option<Interface6>,
}

/// The IPv6 side of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface6 {
    /// Its address.
    pub address: Ipv6Addr,
    /// Prefix length as the guest sees it.
    pub prefix: u8,
    /// The default route: on the first interface whose network is not private and has IPv6.
    pub gateway: Option<Ipv6Addr>,
}

/// A file written before the machine's own init starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupFile {
    /// Absolute.
    pub path: String,
    /// Bytes to write.
    pub content: String,
    /// Behind what is there.
    pub append: bool,
    /// `user`, `user:group`, `uid[:gid]`; root, or kept when appending.
    pub owner: Option<String>,
    /// Permission bits; 0644, or kept when appending.
    pub mode: Option<u32>,
}

/// Something to run once, when the lab first starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Unique in the lab.
    pub name: String,
    /// Where it runs.
    pub machine: String,
    /// Who runs it.
    pub user: String,
    /// A bash script.
    pub run: String,
    /// Tasks that must have completed.
    pub needs: Vec<String>,
    /// How long it may take.
    pub timeout_seconds: u32,
    /// Key and value: all must be chosen, else the task is dropped.
    pub conditions: Vec<(String, String)>,
}

/// A start-time parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitCondition {
    /// Unique in the lab.
    pub key: String,
    /// Taken where nothing is chosen.
    pub default: Option<String>,
    /// What may be chosen; anything where empty.
    pub options: Vec<String>,
    /// May be left empty.
    pub nullable: bool,
    /// Shown in an empty field.
    pub placeholder: Option<String>,
    /// Checked by clients.
    pub validation_regex: Option<String>,
}

/// A tab of a web console.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "kept as written")]
pub struct Tab {
    pub id: String,
    pub kind: String,
    pub name: Option<String>,
    pub machine: String,
    pub number: Option<u16>,
    pub access: Option<String>,
    pub tls: bool,
    pub host_rewrite: Option<String>,
    pub path_rewrite: Option<String>,
    pub url: Option<String>,
    pub pane: Option<String>,
}

/// A saved forward.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "kept as written")]
pub struct PortForward {
    pub kind: String,
    pub machine: String,
    pub local_host: Option<String>,
    pub local_port: Option<u16>,
    pub remote_host: Option<String>,
    pub remote_port: Option<u16>,
}

/// Who may do what; the owner where nothing is said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct AccessControl {
    pub can_list: Vec<String>,
    pub can_read: Vec<String>,
    pub can_start: Vec<String>,
}
