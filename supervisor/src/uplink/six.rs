//! IPv6 of the uplink, beside its IPv4: for labs with a network that has any. Where the host cannot lead it out, the lab has a way out for
//! IPv4 alone, and says so.

use std::fs::File;
use std::io::{Read, Seek};
use std::net::Ipv6Addr;
use std::path::Path;

use labyard_spec::net::Ipv6Subnet;
use labyard_spec::uplink::UplinkSpec;

use super::rules::{Prefix, UP};

/// Between the namespace and the host: of 65,536 networks of local addresses (RFC 4193), one is taken at a time.
const BETWEEN: Ipv6Addr = Ipv6Addr::new(0xfd6c, 0x6162, 0x7961, 0, 0, 0, 0, 0);
const BLOCKS: u32 = 1 << 16;
/// Bits of one of them; what pasta configures.
pub(super) const PREFIX: u8 = 64;
/// A folder for each of the host's interfaces.
const CONF: &str = "/proc/sys/net/ipv6/conf";
pub(super) const ROUTES: &str = "/proc/net/ipv6_route";
/// Addresses of the host's interfaces, with their prefixes.
pub(super) const ADDRESSES: &str = "/proc/net/if_inet6";

/// Two addresses between the namespace and the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) host: Ipv6Addr,
    pub(super) inner: Ipv6Addr,
}

/// Whether a network of the lab has it.
pub(super) fn is_asked(spec: &UplinkSpec) -> bool {
    spec.networks.iter().any(|network| network.six.is_some())
}

/// Whether the kernel has it.
pub(super) fn is_there() -> bool {
    Path::new(CONF).join("all").is_dir()
}

/// The same lab for a kernel without it.
pub(super) fn without(spec: &UplinkSpec) -> UplinkSpec {
    let mut spec = spec.clone();
    for network in &mut spec.networks {
        network.six = None;
        network.names6.clear();
    }
    spec
}

/// Settings of the namespace, before anything is up in it: name below `/proc/sys/net`, and value.
///
/// A network that has none keeps none. Nobody shares an address with a gateway, so none waits until that is found out, and nobody's
/// advertisements are heard.
pub(super) fn settings(spec: &UplinkSpec, leads_out: bool) -> Vec<(String, &'static str)> {
    let mut settings = Vec::new();
    let mut set = |device: &str, name: &str, value| settings.push((format!("ipv6/conf/{device}/{name}"), value));
    for (network, index) in spec.networks.iter().zip(0..) {
        let tap = super::rules::tap(index);
        match network.six {
            None => set(&tap, "disable_ipv6", "1"),
            // A namespace may begin with what the host has (net.core.devconf_inherit_init_net).
            Some(_) => ["disable_ipv6", "accept_dad", "accept_ra"].iter().for_each(|name| set(&tap, name, "0")),
        }
    }
    // What comes later is `up0`.
    ["accept_dad", "accept_ra"].iter().for_each(|name| set("default", name, "0"));
    set("default", "disable_ipv6", if leads_out { "0" } else { "1" });
    set("all", "forwarding", "1");
    settings
}

/// Whether pasta could lead it out: it takes the interface of the default route.
pub(super) fn has_route() -> Result<(), String> {
    let routes = std::fs::read_to_string(ROUTES).unwrap_or_default();
    match has_default_route(&routes) {
        true => Ok(()),
        false => Err("the host has no default route of IPv6".to_owned()),
    }
}

fn has_default_route(routes: &str) -> bool {
    // Destination and its prefix, source and its prefix, next hop, metric, two counters, flags, device. RTF_UP, and not RTF_REJECT
    // (linux/route.h, linux/ipv6_route.h).
    routes.lines().any(|line| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        [to, "00", _, "00", _, _, _, _, flags, device] => {
            let flags = u32::from_str_radix(flags, 16).unwrap_or_default();
            to.bytes().all(|digit| digit == b'0') && flags & 0x201 == 1 && *device != "lo"
        }
        _ => false,
    })
}

/// Has the host pass packets on from one interface to another, as a veth needs it.
///
/// A host that does hears no router advertisements any more, and forgets the routes that it had by them, unless an interface is told to go
/// on (accept_ra 2, Documentation/networking/ip-sysctl.rst). So those that hear them are told first.
pub(super) fn have_host_forward() -> Result<(), String> {
    have_forward(Path::new(CONF))
}

fn have_forward(conf: &Path) -> Result<(), String> {
    let read = |path: &Path| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let write =
        |path: &Path, value: &str| std::fs::write(path, value).map_err(|error| format!("{}: {error}", path.display()));
    if read(&conf.join("all/disable_ipv6")) != "0" {
        return Err("the host has IPv6 switched off (net.ipv6.conf.all.disable_ipv6)".to_owned());
    }
    let forwarding = conf.join("all/forwarding");
    if read(&forwarding) == "1" {
        return Ok(());
    }
    let interfaces = std::fs::read_dir(conf).map_err(|error| format!("{}: {error}", conf.display()))?;
    for interface in interfaces.flatten().map(|entry| entry.path()) {
        let hears = interface.join("accept_ra");
        // `all` is no interface, and nothing follows it.
        if !interface.ends_with("all") && read(&hears) == "1" && read(&interface.join("forwarding")) == "0" {
            write(&hears, "2")?;
        }
    }
    write(&forwarding, "1")
}

/// The host's end of a veth is there, whatever new interfaces are told.
pub(super) fn open_device(device: &str) -> Result<(), String> {
    for (name, value) in [("disable_ipv6", "0"), ("accept_ra", "0")] {
        let path = Path::new(CONF).join(device).join(name);
        std::fs::write(&path, value).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Addresses for the veth: what ip(8) does on the host, and in the namespace.
pub(super) fn veth(Block { host, inner }: &Block, device: &str) -> [String; 2] {
    [
        format!("addr add {host}/{PREFIX} dev {device} nodad\n"),
        format!("addr add {inner}/{PREFIX} dev {UP} nodad\nroute add default via {host} dev {UP}\n"),
    ]
}

/// A block that neither the lab nor the host has a use for.
pub(super) fn free_block(spec: &UplinkSpec, host: &[Prefix<Ipv6Addr>]) -> Result<Block, String> {
    let begin = std::process::id();
    let block = (0..BLOCKS).find_map(|step| {
        let number = u128::from(begin.wrapping_add(step) % BLOCKS);
        let first = BETWEEN.to_bits() | number << (128 - u32::from(PREFIX));
        let subnet = Ipv6Subnet::containing(Ipv6Addr::from_bits(first), PREFIX)?;
        let of_lab = spec.networks.iter().filter_map(|network| network.six);
        let free = !of_lab.into_iter().any(|six| six.subnet.overlaps(subnet))
            && !host.iter().any(|own| own.is_beside(subnet.network(), PREFIX));
        let address = |number| Ipv6Addr::from_bits(first + number);
        free.then(|| Block { host: address(1), inner: address(2) })
    });
    block.ok_or_else(|| format!("no network is free in {BETWEEN}/48"))
}

/// All addresses at which the host answers. The first of a prefix is one as soon as the host is a router (RFC 4291, 2.6.1).
pub(super) fn host_addresses([own, routes]: &[File; 2]) -> Result<Vec<Prefix<Ipv6Addr>>, String> {
    let mut found: Vec<_> =
        addresses(&text_of(own, ADDRESSES)?).into_iter().map(|first| Prefix { first, bits: 128 }).collect();
    found.extend(local_routes(&text_of(routes, ROUTES)?));
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn text_of(mut file: &File, path: &str) -> Result<String, String> {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    read.map(|_| text).map_err(|error| format!("{path}: {error}"))
}

/// Whole prefixes at which the host answers: routes that are called local (RTF_LOCAL, linux/ipv6_route.h).
fn local_routes(routes: &str) -> Vec<Prefix<Ipv6Addr>> {
    const LOCAL: u32 = 0x8000_0000;
    let local = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [to, bits, _, _, _, _, _, _, flags, _] = words.as_slice() else { return None };
        let is_local = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & LOCAL != 0);
        let first = u128::from_str_radix(to, 16).ok().filter(|_| is_local)?;
        Some(Prefix { first: Ipv6Addr::from_bits(first), bits: u8::from_str_radix(bits, 16).ok()? })
    };
    routes.lines().filter_map(local).collect()
}

fn addresses(text: &str) -> Vec<Ipv6Addr> {
    let mut found = Vec::new();
    for line in text.lines() {
        // Address, index, prefix, scope, flags, device.
        let mut words = line.split_whitespace();
        let address = words.next().and_then(|word| u128::from_str_radix(word, 16).ok()).map(Ipv6Addr::from_bits);
        let prefix = words.nth(1).and_then(|word| u8::from_str_radix(word, 16).ok());
        found.extend(address);
        if let (Some(address), Some(prefix)) = (address, prefix) {
            found.extend(Ipv6Subnet::containing(address, prefix).map(Ipv6Subnet::network));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests;
