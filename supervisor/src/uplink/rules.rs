//! What may pass, as nft(8) reads it.

use std::fmt::{Display, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use labyard_spec::net::{Ipv4Subnet, Ipv6Subnet};
use labyard_spec::uplink::UplinkNetwork;
use serde::{Deserialize, Serialize};

/// The device that leads out of the namespace.
pub(crate) const UP: &str = "up0";

/// Neighbours finding each other, which nobody passes on to others (RFC 4861, 7.1).
const NEIGHBOURS: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept";
/// What nobody reaches through the way out: loopback, IPv4 within IPv6 and translated addresses (RFC 4291, RFC 6052), which would lead
/// around the rules of IPv4, as would 6to4 (RFC 3056); addresses of one link or site; multicast.
const REFUSED6: &str = "::/8, 2002::/16, fe80::/10, fec0::/10, ff00::/8";

/// Addresses that begin alike, as many bits as are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Prefix<A> {
    pub(crate) first: A,
    pub(crate) bits: u8,
}

impl<A: Display> Display for Prefix<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl Prefix<Ipv4Addr> {
    /// Whether it shares an address with those that begin like this one.
    pub(crate) fn is_beside(&self, other: Ipv4Addr, bits: u8) -> bool {
        let apart = (self.first.to_bits() ^ other.to_bits()).leading_zeros();
        apart >= u32::from(self.bits.min(bits))
    }
}

impl Prefix<Ipv6Addr> {
    /// The same of IPv6.
    pub(crate) fn is_beside(&self, other: Ipv6Addr, bits: u8) -> bool {
        let apart = (self.first.to_bits() ^ other.to_bits()).leading_zeros();
        apart >= u32::from(self.bits.min(bits))
    }
}

/// The addresses at which the host answers: its interfaces' own, and whole prefixes that a route calls local.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) four: Vec<Prefix<Ipv4Addr>>,
    /// Where the lab has IPv6.
    pub(crate) six: Option<Vec<Prefix<Ipv6Addr>>>,
}

/// Subnets of the lab's other networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Others {
    pub(crate) four: Vec<Ipv4Subnet>,
    /// Where this network has IPv6.
    pub(crate) six: Option<Vec<Ipv6Subnet>>,
}

/// Name of the tap of network number `index`.
pub(crate) fn tap(index: usize) -> String {
    format!("lab{index}")
}

/// Inside: a tap's machines reach the outside and get replies, and their gateway's echo and resolver. Nothing else passes: not from tap
/// to tap, not to an address of the host, not in from outside.
pub(crate) fn inside(networks: &[UplinkNetwork], host: &Host) -> String {
    let mut rules = String::from("table inet labyard {\n set host { type ipv4_addr; flags interval; auto-merge; }\n");
    rules.push_str(" set others { type ipv4_addr; flags interval; }\n");
    if host.six.is_some() {
        rules.push_str(" set host6 { type ipv6_addr; flags interval; auto-merge; }\n set others6 { type ipv6_addr; flags interval; }\n");
    }
    rules.push_str(" chain entering {\n");
    rules.push_str("  type filter hook input priority 0; policy drop;\n  ct state established,related accept\n");
    for (network, index) in networks.iter().zip(0..) {
        let (tap, gateway) = (tap(index), network.gateway);
        let _ = writeln!(rules, "  iifname \"{tap}\" ip daddr {gateway} icmp type echo-request accept");
        let _ = writeln!(rules, "  iifname \"{tap}\" ip daddr {gateway} udp dport 53 accept");
        if let Some(six) = network.six {
            let (subnet, gateway) = (six.subnet, six.gateway);
            let _ = writeln!(rules, "  iifname \"{tap}\" ip6 saddr {{ {subnet}, fe80::/10 }} {NEIGHBOURS}");
            let _ = writeln!(rules, "  iifname \"{tap}\" ip6 daddr {gateway} icmpv6 type echo-request accept");
        }
    }
    if host.six.is_some() {
        let _ = writeln!(rules, "  iifname \"{UP}\" {NEIGHBOURS}");
    }
    rules.push_str("  iifname \"lab*\" reject with icmpx admin-prohibited\n }\n chain passing {\n");
    rules.push_str("  type filter hook forward priority 0; policy drop;\n");
    // Before what goes on: an address that was another's when a flow began may be the host's by now.
    rules.push_str("  iifname \"lab*\" ip daddr @host reject with icmpx admin-prohibited\n");
    if host.six.is_some() {
        rules.push_str("  iifname \"lab*\" ip6 daddr @host6 reject with icmpx admin-prohibited\n");
    }
    rules.push_str("  ct state established,related accept\n");
    for (network, index) in networks.iter().zip(0..) {
        // A machine speaks for its own network only.
        let _ = writeln!(rules, "  iifname \"{}\" ip saddr != {} drop", tap(index), network.subnet);
        if let Some(six) = network.six {
            let _ = writeln!(rules, "  iifname \"{}\" ip6 saddr != {} drop", tap(index), six.subnet);
        }
    }
    let refused = "127.0.0.0/8, 169.254.0.0/16, 0.0.0.0/8, 224.0.0.0/4, 240.0.0.0/4";
    let _ = writeln!(rules, "  iifname \"lab*\" ip daddr {{ {refused} }} reject with icmpx admin-prohibited");
    rules.push_str("  iifname \"lab*\" ip daddr @others reject with icmpx admin-prohibited\n");
    let _ = writeln!(rules, "  iifname \"lab*\" oifname \"{UP}\" meta nfproto ipv4 accept");
    if host.six.is_some() {
        let _ = writeln!(rules, "  iifname \"lab*\" ip6 daddr {{ {REFUSED6} }} reject with icmpx admin-prohibited");
        rules.push_str("  iifname \"lab*\" ip6 daddr @others6 reject with icmpx admin-prohibited\n");
    }
    for (six, index) in networks.iter().zip(0..).filter_map(|(network, index)| Some((network.six?, index))) {
        let _ = writeln!(rules, "  iifname \"{}\" oifname \"{UP}\" ip6 saddr {} accept", tap(index), six.subnet);
    }
    rules.push_str("  iifname \"lab*\" reject with icmpx admin-prohibited\n }\n chain leaving {\n");
    let _ = write!(rules, "  type nat hook postrouting priority 100;\n  oifname \"{UP}\" masquerade\n }}\n}}\n");
    rules.push_str(&addresses(host));
    rules
}

/// The host's own addresses, from now on.
pub(crate) fn addresses(host: &Host) -> String {
    let mut rules = elements("host", &host.four);
    if let Some(six) = &host.six {
        rules.push_str(&elements("host6", six));
    }
    rules
}

fn elements<T: ToString>(set: &str, addresses: &[T]) -> String {
    let mut rules = format!("flush set inet labyard {set}\n");
    if !addresses.is_empty() {
        let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let _ = writeln!(rules, "add element inet labyard {set} {{ {} }}", all.join(", "));
    }
    rules
}

/// The lab's other networks, from now on.
pub(crate) fn others(others: &Others) -> String {
    let mut rules = elements("others", &others.four);
    if let Some(six) = &others.six {
        rules.push_str(&elements("others6", six));
    }
    rules
}

/// In the host's own namespace, for a veth `device`: nothing of it is for the host, nothing of it goes to another lab or comes in, and what
/// leaves looks like the host's.
pub(crate) fn outside(table: &str, device: &str, inner: Ipv4Addr, inner6: Option<Ipv6Addr>) -> String {
    let [neighbours, leaving6] = match inner6 {
        None => Default::default(),
        Some(inner) => [
            format!("add rule inet {table} entering iifname \"{device}\" {NEIGHBOURS}\n"),
            format!("add rule inet {table} leaving ip6 saddr {inner} masquerade\n"),
        ],
    };
    format!(
        "add table inet {table} {{ flags owner; }}\n\
         add chain inet {table} entering {{ type filter hook input priority -5; policy accept; }}\n\
         {neighbours}\
         add rule inet {table} entering iifname \"{device}\" drop\n\
         add chain inet {table} passing {{ type filter hook forward priority -5; policy accept; }}\n\
         add rule inet {table} passing iifname \"{device}\" oifname \"ly-*\" drop\n\
         add rule inet {table} passing oifname \"{device}\" ct state established,related accept\n\
         add rule inet {table} passing oifname \"{device}\" drop\n\
         add chain inet {table} leaving {{ type nat hook postrouting priority 100; }}\n\
         {leaving6}\
         add rule inet {table} leaving ip saddr {inner} masquerade\n"
    )
}
