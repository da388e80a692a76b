//! Interfaces: found by hardware address, given their addresses, brought up. Nothing of the image takes part.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use labyard_spec::guest::{Interface, Interface6};
use labyard_spec::net::Mac;

use super::netlink::{self, Netlink};
use super::wait;

const SYS_NET: &str = "/sys/class/net";
/// A folder for each interface, where the kernel has IPv6.
const CONF6: &str = "/proc/sys/net/ipv6/conf";

#[derive(Debug, thiserror::Error)]
pub(super) enum NetworkError {
    #[error("opening a routing socket")]
    Open { source: io::Error },
    #[error("no interface has the address {mac}; there are {seen}: the kernel may lack the module virtio_net")]
    Missing { mac: Mac, seen: String },
    #[error("interface {name}: this kernel has no IPv6 ({CONF6}/{name}): take one that has, or leave `subnet6` out")]
    NoSix { name: String },
    #[error("interface {name}: {what}")]
    Set { name: String, what: String, source: io::Error },
}

/// Brings up loopback and all interfaces of the machine.
pub(super) fn configure(interfaces: &[Interface]) -> Result<(), NetworkError> {
    let netlink = Netlink::open().map_err(|source| NetworkError::Open { source })?;
    if let Some(index) = index_of(Path::new(SYS_NET), "lo") {
        ask(&netlink, "lo", "bringing it up", &netlink::link_up(index, None))?;
    }
    let mut seen = HashMap::new();
    for interface in interfaces {
        let found = wait::until(|| {
            seen = present(Path::new(SYS_NET));
            seen.get(&interface.mac).cloned()
        });
        let (name, index) = found.ok_or_else(|| {
            let seen: Vec<_> = seen.iter().map(|(mac, (name, _))| format!("{name} {mac}")).collect();
            let seen = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
            NetworkError::Missing { mac: interface.mac, seen }
        })?;
        let Interface { address, prefix, gateway, mtu, .. } = interface;
        if interface.six.is_some() {
            prepare6(Path::new(CONF6), &name)?;
        }
        let up = netlink::link_up(index, Some(u32::from(*mtu)));
        ask(&netlink, &name, &format!("bringing it up with mtu {mtu}"), &up)?;
        let set = netlink::address(index, *address, *prefix);
        ask(&netlink, &name, &format!("setting the address {address}/{prefix}"), &set)?;
        if let Some(gateway) = gateway {
            let route = netlink::default_route(index, *gateway);
            ask(&netlink, &name, &format!("setting the default route through {gateway}"), &route)?;
        }
        if let Some(six) = &interface.six {
            configure6(&netlink, &name, index, six)?;
        }
    }
    Ok(())
}

/// Before the interface is up: its addresses are the lab's alone, its link-local one is made of a hardware address that nobody shares, so
/// nothing waits until that is found out; and routes are the manifest's, whoever advertises others.
fn prepare6(conf: &Path, name: &str) -> Result<(), NetworkError> {
    let conf = conf.join(name);
    if !conf.is_dir() {
        return Err(NetworkError::NoSix { name: name.to_owned() });
    }
    for setting in ["accept_dad", "accept_ra", "autoconf"] {
        let set = std::fs::write(conf.join(setting), "0");
        set.map_err(|source| NetworkError::Set { name: name.to_owned(), what: format!("{setting} to 0"), source })?;
    }
    Ok(())
}

fn configure6(netlink: &Netlink, name: &str, index: u32, six: &Interface6) -> Result<(), NetworkError> {
    let Interface6 { address, prefix, gateway } = six;
    let set = netlink::address6(index, *address, *prefix);
    ask(netlink, name, &format!("setting the address {address}/{prefix}"), &set)?;
    if let Some(gateway) = gateway {
        let route = netlink::default_route6(index, *gateway);
        ask(netlink, name, &format!("setting the default route through {gateway}"), &route)?;
    }
    Ok(())
}

fn ask(netlink: &Netlink, name: &str, what: &str, request: &[u8]) -> Result<(), NetworkError> {
    let fail = |source| NetworkError::Set { name: name.to_owned(), what: what.to_owned(), source };
    netlink.ask(request).map_err(fail)
}

/// Name and number of every interface with a hardware address.
fn present(sys_net: &Path) -> HashMap<Mac, (String, u32)> {
    let Ok(entries) = std::fs::read_dir(sys_net) else { return HashMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mac = std::fs::read_to_string(entry.path().join("address")).ok()?.trim().parse().ok()?;
            Some((mac, (name.clone(), index_of(sys_net, &name)?)))
        })
        .collect()
}

fn index_of(sys_net: &Path, name: &str) -> Option<u32> {
    std::fs::read_to_string(sys_net.join(name).join("ifindex")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_waits_for_no_duplicate_and_hears_no_router() {
        let conf = tempfile::tempdir().expect("a folder");
        let error = prepare6(conf.path(), "eth0").expect_err("a kernel without IPv6");
        assert!(error.to_string().contains("eth0") && error.to_string().contains("subnet6"), "{error}");
        std::fs::create_dir(conf.path().join("eth0")).expect("an interface");
        prepare6(conf.path(), "eth0").expect("set");
        for setting in ["accept_dad", "accept_ra", "autoconf"] {
            let set = std::fs::read_to_string(conf.path().join("eth0").join(setting)).expect(setting);
            assert_eq!(set, "0", "{setting}");
        }
    }

    #[test]
    fn interfaces_are_known_by_hardware_address() {
        let sys = tempfile::tempdir().expect("a folder");
        for (name, address, index) in
            [("eth1", "02:00:00:00:00:0a\n", "3\n"), ("eth0", "02:00:00:00:00:0B", "2"), ("sit0", "0.0.0.0", "4")]
        {
            std::fs::create_dir(sys.path().join(name)).expect("interface");
            std::fs::write(sys.path().join(name).join("address"), address).expect("address");
            std::fs::write(sys.path().join(name).join("ifindex"), index).expect("index");
        }
        let present = present(sys.path());
        assert_eq!(present.len(), 2);
        assert_eq!(present.get(&Mac([2, 0, 0, 0, 0, 10])), Some(&("eth1".to_owned(), 3)));
        assert_eq!(present.get(&Mac([2, 0, 0, 0, 0, 11])), Some(&("eth0".to_owned(), 2)));
    }
}
