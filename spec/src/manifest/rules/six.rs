//! IPv6 of networks and the addresses on them, by the rules of IPv4 (`networks.rs`): the sections `labyard` of a network and of an
//! interface (`docs/adr/0008`). A network without `subnet6` has none.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use super::super::document::{At, Network as Written, Playground};
use super::super::kept::Kept;
use super::super::lab::{Interface6, Machine, Network};
use super::super::place::{Broken, broken};
use super::networks;
use crate::net::{Ipv6Subnet, Network6};

const EXAMPLE: &str = "fd00:10::/64";

/// A network whose gateway may still be open.
struct Draft {
    subnet: Ipv6Subnet,
    gateway: Option<Ipv6Addr>,
    taken: Taken,
}

/// An address that is taken, and by whom.
type Taken = BTreeMap<Ipv6Addr, String>;

/// What one interface asks for.
#[derive(Clone, Copy, Default)]
struct Wish {
    address: Option<Ipv6Addr>,
    prefix: Option<u8>,
}

/// Gives networks and interfaces, which have their IPv4 already, what they ask for.
pub(super) fn assign(
    playground: &Playground,
    networks: &mut [Network],
    machines: &mut [Machine],
    kept: &Kept,
    notes: &mut Vec<String>,
) -> Result<(), Box<Broken>> {
    let written = playground.networks.as_ref().map(|list| list.value.as_slice()).unwrap_or_default();
    let mut drafts: Vec<Option<Draft>> = Vec::new();
    for (position, network) in written.iter().enumerate() {
        let draft = draft(&network.value, &drafts, written, &format!("networks[{position}].labyard"))?;
        drafts.push(draft);
    }
    drafts.resize_with(networks.len(), || None); // the network of a lab that names none
    let wishes = wishes(playground, networks, &mut drafts)?;
    let full = |path: &str, network: &Network, subnet: Ipv6Subnet, who: &str| {
        let message =
            format!("no address of {subnet} of network `{}` is left for {who}: take a shorter prefix", network.name);
        broken(&playground.machines, path, message)
    };
    for (network, draft) in networks.iter_mut().zip(&mut drafts) {
        let Some(Draft { subnet, gateway, taken }) = draft else { continue };
        let known = kept.gateways6.get(&network.name).copied();
        let known = known.filter(|address| subnet.has_host(*address) && !taken.contains_key(address));
        let found = gateway.or(known).or_else(|| free(*subnet, taken));
        let gateway = found.ok_or_else(|| full("networks", network, *subnet, "its gateway"))?;
        taken.entry(gateway).or_insert_with(|| "the gateway".to_owned());
        network.six = Some(Network6 { subnet: *subnet, gateway });
    }
    let mut wishes = wishes;
    let lost = keep(networks, &mut drafts, machines, kept, &mut wishes);
    for ((machine, wishes), position) in machines.iter_mut().zip(wishes).zip(0..) {
        let mut routed = false;
        for ((nic, wish), number) in machine.interfaces.iter_mut().zip(wishes).zip(0..) {
            let of = networks.iter().zip(&mut drafts).find(|(network, _)| network.name == nic.network);
            let Some((network, Some(Draft { subnet, taken, .. }))) = of else { continue };
            let path = format!("machines[{position}].network.interfaces[{number}]");
            let found = wish.address.or_else(|| free(*subnet, taken));
            let address = found.ok_or_else(|| full(&path, network, *subnet, &machine.name))?;
            if wish.address.is_none() {
                let lost = lost.get(&(machine.name.clone(), number));
                notes.extend(networks::moved(&machine.name, &network.name, lost, address));
            }
            taken.entry(address).or_insert_with(|| format!("machine `{}`", machine.name));
            let gateway = network.six.filter(|_| !network.private && !routed).map(|six| six.gateway);
            routed |= gateway.is_some();
            nic.six = Some(Interface6 { address, prefix: wish.prefix.unwrap_or(subnet.prefix()), gateway });
        }
    }
    Ok(())
}

/// Who is there keeps its addresses, where the manifest neither names others nor gives them to somebody else: that is what it returns, by
/// machine and number of the interface.
fn keep(
    networks: &[Network],
    drafts: &mut [Option<Draft>],
    machines: &[Machine],
    kept: &Kept,
    wishes: &mut [Vec<Wish>],
) -> BTreeMap<(String, usize), (Ipv6Addr, String)> {
    let mut lost = BTreeMap::new();
    for (machine, wishes) in machines.iter().zip(wishes) {
        for (number, (nic, wish)) in machine.interfaces.iter().zip(wishes).enumerate() {
            let of = networks.iter().zip(&mut *drafts).find(|(network, _)| network.name == nic.network);
            let Some((_, Some(Draft { subnet, taken, .. }))) = of.filter(|_| wish.address.is_none()) else { continue };
            let before = machine.interfaces.iter().take(number);
            let nth = before.filter(|other| other.network == nic.network).count();
            let known = kept.address6(&machine.name, &nic.network, nth).filter(|address| subnet.has_host(*address));
            let Some(address) = known else { continue };
            match taken.get(&address) {
                Some(owner) => {
                    lost.insert((machine.name.clone(), number), (address, owner.clone()));
                }
                None => {
                    taken.insert(address, format!("machine `{}`", machine.name));
                    wish.address = Some(address);
                }
            }
        }
    }
    lost
}

/// What a network asks for.
fn draft(
    network: &Written,
    before: &[Option<Draft>],
    written: &[At<Written>],
    path: &str,
) -> Result<Option<Draft>, Box<Broken>> {
    let Some(own) = &network.labyard else { return Ok(None) };
    let Some(asked) = &own.subnet6 else {
        return match &own.gateway6 {
            None => Ok(None),
            Some(gateway) => {
                let message = format!("a gateway of a network without `subnet6`: give it one such as {EXAMPLE}");
                Err(broken(gateway, &format!("{path}.gateway6"), message))
            }
        };
    };
    let at = format!("{path}.subnet6");
    let subnet: Ipv6Subnet = asked.value.parse().map_err(|error: String| broken(asked, &at, error))?;
    let others = before.iter().zip(written).filter_map(|(draft, network)| Some((draft.as_ref()?.subnet, network)));
    if let Some((other, network)) = others.into_iter().find(|(other, _)| other.overlaps(subnet)) {
        let name = &network.value.name.value;
        return Err(broken(asked, &at, format!("{subnet} shares addresses with {other} of network `{name}`")));
    }
    let (mut gateway, mut taken) = (None, Taken::new());
    if let Some(written) = &own.gateway6 {
        let at = format!("{path}.gateway6");
        let first = subnet.hosts().next().unwrap_or(subnet.network());
        let address: Ipv6Addr = written.value.parse().map_err(|_| {
            broken(written, &at, format!("`{}` is not an IPv6 address without a mask, such as {first}", written.value))
        })?;
        if !subnet.has_host(address) {
            return Err(broken(written, &at, format!("{address} is not a host of {subnet}")));
        }
        gateway = Some(address);
        // A private network has no way out, so a machine may be its gateway.
        if !network.private.unwrap_or(false) {
            taken.insert(address, "the gateway".to_owned());
        }
    }
    Ok(Some(Draft { subnet, gateway, taken }))
}

/// Reads every machine's interfaces, whose networks are known to be there, and takes the static addresses.
fn wishes(
    playground: &Playground,
    networks: &[Network],
    drafts: &mut [Option<Draft>],
) -> Result<Vec<Vec<Wish>>, Box<Broken>> {
    let mut all = Vec::new();
    for (machine, position) in playground.machines.value.iter().zip(0..) {
        let mut wishes = Vec::new();
        for (interface, number) in machine.value.network.value.interfaces.value.iter().zip(0..) {
            let mut wish = Wish::default();
            let name = interface.value.network.as_ref().map(|name| name.value.as_str()).unwrap_or_default();
            if let Some(written) = interface.value.labyard.as_ref().and_then(|own| own.address6.as_ref()) {
                let path = format!("machines[{position}].network.interfaces[{number}].labyard.address6");
                let of = networks.iter().zip(&mut *drafts).find(|(network, _)| network.name == name);
                let Some((_, Some(Draft { subnet, taken, .. }))) = of else {
                    let message = format!("network `{name}` has no IPv6: give it `labyard: {{subnet6: {EXAMPLE}}}`");
                    return Err(broken(written, &path, message));
                };
                let (host, prefix) = parse(&written.value).map_err(|message| broken(written, &path, message))?;
                if !subnet.has_host(host) {
                    let message = format!("{host} is not a host of {subnet} of network `{name}`");
                    return Err(broken(written, &path, message));
                }
                if let Some(other) = taken.insert(host, format!("machine `{}`", machine.value.name.value)) {
                    let message = format!("{host} on network `{name}` is the address of {other} already");
                    return Err(broken(written, &path, message));
                }
                wish = Wish { address: Some(host), prefix };
            }
            wishes.push(wish);
        }
        all.push(wishes);
    }
    Ok(all)
}

fn parse(text: &str) -> Result<(Ipv6Addr, Option<u8>), String> {
    let (host, prefix) = text.split_once('/').map_or((text, None), |(host, prefix)| (host, Some(prefix)));
    let host =
        host.parse().map_err(|_| format!("`{text}` is not an IPv6 address such as fd00:10::10 or fd00:10::10/64"))?;
    let prefix = prefix.map(|prefix| match prefix.parse() {
        Ok(bits @ 1..=128) => Ok(bits),
        _ => Err(format!("`{text}`: /{prefix} is not a prefix length")),
    });
    Ok((host, prefix.transpose()?))
}

fn free(subnet: Ipv6Subnet, taken: &Taken) -> Option<Ipv6Addr> {
    subnet.hosts().find(|host| !taken.contains_key(host))
}
