//! What may pass, as nft(8) reads it.

use std::fmt::Write;
use std::net::Ipv4Addr;

use labyard_spec::net::Ipv4Subnet;
use labyard_spec::uplink::UplinkNetwork;

/// The device that leads out of the namespace.
pub(crate) const UP: &str = "up0";

/// Name of the tap of network number `index`.
pub(crate) fn tap(index: usize) -> String {
    format!("lab{index}")
}

/// Inside: a tap's machines reach the outside and get replies, and their gateway's echo and resolver. Nothing else passes: not from tap
/// to tap, not to an address of the host, not in from outside.
pub(crate) fn inside(networks: &[UplinkNetwork], host: &[Ipv4Addr]) -> String {
    let mut rules = String::from("table inet labyard {\n set host { type ipv4_addr; }\n");
    rules.push_str(" set others { type ipv4_addr; flags interval; }\n chain entering {\n");
    rules.push_str("  type filter hook input priority 0; policy drop;\n  ct state established,related accept\n");
    for (network, index) in networks.iter().zip(0..) {
        let (tap, gateway) = (tap(index), network.gateway);
        let _ = writeln!(rules, "  iifname \"{tap}\" ip daddr {gateway} icmp type echo-request accept");
        let _ = writeln!(rules, "  iifname \"{tap}\" ip daddr {gateway} udp dport 53 accept");
    }
    rules.push_str("  iifname \"lab*\" reject with icmpx admin-prohibited\n }\n chain passing {\n");
    rules.push_str("  type filter hook forward priority 0; policy drop;\n  ct state established,related accept\n");
    for (network, index) in networks.iter().zip(0..) {
        // A machine speaks for its own network only.
        let _ = writeln!(rules, "  iifname \"{}\" ip saddr != {} drop", tap(index), network.subnet);
    }
    let refused = "127.0.0.0/8, 169.254.0.0/16, 0.0.0.0/8, 224.0.0.0/4, 240.0.0.0/4";
    let _ = writeln!(rules, "  iifname \"lab*\" ip daddr {{ {refused} }} reject with icmpx admin-prohibited");
    rules.push_str("  iifname \"lab*\" ip daddr @host reject with icmpx admin-prohibited\n");
    rules.push_str("  iifname \"lab*\" ip daddr @others reject with icmpx admin-prohibited\n");
    let _ = writeln!(rules, "  iifname \"lab*\" oifname \"{UP}\" meta nfproto ipv4 accept");
    rules.push_str("  iifname \"lab*\" reject with icmpx admin-prohibited\n }\n chain leaving {\n");
    let _ = write!(rules, "  type nat hook postrouting priority 100;\n  oifname \"{UP}\" masquerade\n }}\n}}\n");
    rules.push_str(&addresses(host));
    rules
}

/// The host's own addresses, from now on.
pub(crate) fn addresses(host: &[Ipv4Addr]) -> String {
    let mut rules = String::from("flush set inet labyard host\n");
    if !host.is_empty() {
        let all: Vec<_> = host.iter().map(ToString::to_string).collect();
        let _ = writeln!(rules, "add element inet labyard host {{ {} }}", all.join(", "));
    }
    rules
}

/// The lab's other networks, from now on.
pub(crate) fn others(others: &[Ipv4Subnet]) -> String {
    let mut rules = String::from("flush set inet labyard others\n");
    if !others.is_empty() {
        let all: Vec<_> = others.iter().map(ToString::to_string).collect();
        let _ = writeln!(rules, "add element inet labyard others {{ {} }}", all.join(", "));
    }
    rules
}

/// In the host's own namespace, for a veth `device`: nothing of it is for the host, nothing of it goes to another lab or comes in, and what
/// leaves looks like the host's.
pub(crate) fn outside(table: &str, device: &str, inner: Ipv4Addr) -> String {
    format!(
        "add table inet {table} {{ flags owner; }}\n\
         add chain inet {table} entering {{ type filter hook input priority -5; policy accept; }}\n\
         add rule inet {table} entering iifname \"{device}\" ct state established,related accept\n\
         add rule inet {table} entering iifname \"{device}\" drop\n\
         add chain inet {table} passing {{ type filter hook forward priority -5; policy accept; }}\n\
         add rule inet {table} passing iifname \"{device}\" oifname \"ly-*\" drop\n\
         add rule inet {table} passing oifname \"{device}\" ct state established,related accept\n\
         add rule inet {table} passing oifname \"{device}\" drop\n\
         add chain inet {table} leaving {{ type nat hook postrouting priority 100; }}\n\
         add rule inet {table} leaving ip saddr {inner} masquerade\n"
    )
}
