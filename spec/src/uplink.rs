//! The supervisor's conversation with `labyard-uplink`: one spec, one answer with the taps beside it; then tables of names, from whoever
//! supervises by then.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::net::{Ipv4Subnet, Ipv6Subnet, Mac, Network6};

/// Descriptors of the uplink when it starts.
pub mod fd {
    /// The [`super::UplinkSpec`], until its end.
    pub const SPEC: i32 = 3;
    /// Fires when the vmm has ended.
    pub const VMM: i32 = 4;
    /// Where the [`super::Answer`] goes, as a message ([`crate::control`] says how those travel), one tap for each network beside it.
    pub const ANSWER: i32 = 5;
    /// A Unix stream socket that listens: each caller sends one [`super::Table`] as a message, and gets one [`super::Taken`].
    pub const TABLES: i32 = 6;
}

/// Bytes of an answer.
pub const MAX_ANSWER_BYTES: u32 = 64 << 10;
/// Bytes of a table; 64 machines need about a tenth.
pub const MAX_TABLE_BYTES: u32 = 64 << 10;

/// The networks of one lab that have a way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UplinkSpec {
    /// The lab's name, for messages and for the names of what the host sees.
    pub lab: String,
    /// In the order of the taps.
    pub networks: Vec<UplinkNetwork>,
    /// Subnets of the lab's networks that have a way out of another uplink: they are refused, as the host's addresses are.
    #[serde(default)]
    pub others: Vec<Ipv4Subnet>,
    /// The same of IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others6: Vec<Ipv6Subnet>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UplinkNetwork {
    /// Its name.
    pub name: String,
    /// Its subnet.
    pub subnet: Ipv4Subnet,
    /// The gateway's address.
    pub gateway: Ipv4Addr,
    /// The gateway's hardware address.
    pub mac: Mac,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Machines and their addresses there, which the gateway's resolver knows.
    pub names: Vec<(String, Ipv4Addr)>,
    /// Its IPv6, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub six: Option<Network6>,
    /// The machines' addresses of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names6: Vec<(String, Ipv6Addr)>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Frames that go into the taps find their way; the text says which.
    Up(String),
    /// They do not, and why. The process ends.
    Failed(String),
}

/// What is true of a network from now on, in place of what was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Its name.
    pub network: String,
    /// As [`UplinkNetwork::names`].
    pub names: Vec<(String, Ipv4Addr)>,
    /// As [`UplinkSpec::others`].
    pub others: Vec<Ipv4Subnet>,
    /// As [`UplinkNetwork::names6`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names6: Vec<(String, Ipv6Addr)>,
    /// As [`UplinkSpec::others6`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others6: Vec<Ipv6Subnet>,
}

/// The answer to a table: it counts, or why it does not.
pub type Taken = Result<(), String>;
