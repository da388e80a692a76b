//! Networks and the addresses on them: gateway first, what is static, what a lab has already, then the first free ones in manifest order.
//! IPv6 is `six.rs`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::Ipv4Addr;

use super::super::document::{Maybe, Playground};
use super::super::kept::Kept;
use super::super::lab::{Interface, Machine, Network};
use super::super::place::{Broken, broken};
use super::super::snippet::meant;
use super::super::{MAX_INTERFACES, MAX_NETWORKS};
use super::host_name;
use crate::net::{Ipv4Subnet, Mac};

/// A network whose gateway may still be open.
pub(super) struct Draft {
    name: String,
    subnet: Ipv4Subnet,
    gateway: Option<Ipv4Addr>,
    private: bool,
}

/// The networks as written; one called `local` where none is.
pub(super) fn check(playground: &Playground) -> Result<Vec<Draft>, Box<Broken>> {
    let Some(list) = &playground.networks else {
        let subnet = Ipv4Subnet::containing(Ipv4Addr::new(172, 16, 0, 0), 24).expect("24 bits are a fine prefix");
        return Ok(vec![Draft { name: "local".into(), subnet, gateway: None, private: true }]);
    };
    if list.value.is_empty() {
        return Err(broken(list, "networks", "at least one is needed; leave the field out for a network `local`"));
    }
    if list.value.len() > MAX_NETWORKS {
        return Err(broken(list, "networks", format!("{} networks, more than {MAX_NETWORKS}", list.value.len())));
    }
    let mut drafts: Vec<Draft> = Vec::new();
    for (position, network) in list.value.iter().enumerate() {
        let path = format!("networks[{position}]");
        let network = &network.value;
        host_name(&network.name, &format!("{path}.name"))?;
        if let Some(first) = drafts.iter().position(|other| other.name == network.name.value) {
            let message = format!("`{}` is the name of networks[{first}] already", network.name.value);
            return Err(broken(&network.name, &format!("{path}.name"), message));
        }
        let subnet: Ipv4Subnet = network
            .subnet
            .value
            .parse()
            .map_err(|error: String| broken(&network.subnet, &format!("{path}.subnet"), error))?;
        if let Some(other) = drafts.iter().find(|other| other.subnet.overlaps(subnet)) {
            let message = format!("{subnet} shares addresses with {} of network `{}`", other.subnet, other.name);
            return Err(broken(&network.subnet, &format!("{path}.subnet"), message));
        }
        let gateway = gateway(&network.gateway, subnet, &format!("{path}.gateway"))?;
        let private = network.private.unwrap_or(false);
        drafts.push(Draft { name: network.name.value.clone(), subnet, gateway, private });
    }
    Ok(drafts)
}

fn gateway(written: &Maybe<String>, subnet: Ipv4Subnet, path: &str) -> Result<Option<Ipv4Addr>, Box<Broken>> {
    let Some(gateway) = written else { return Ok(None) };
    let address: Ipv4Addr = gateway.value.parse().map_err(|_| {
        broken(
            gateway,
            path,
            format!("`{}` is not an IPv4 address without a mask, such as {}", gateway.value, first(subnet)),
        )
    })?;
    if !subnet.has_host(address) {
        return Err(broken(gateway, path, format!("{address} is not a host of {subnet}")));
    }
    Ok(Some(address))
}

fn first(subnet: Ipv4Subnet) -> Ipv4Addr {
    subnet.hosts().next().expect("no prefix is longer than 30 bits, so two hosts fit")
}

/// An address that is taken, and by whom.
type Taken = BTreeMap<Ipv4Addr, String>;

/// Gives every network its gateway and every interface its addresses.
pub(super) fn assign(
    drafts: &[Draft],
    playground: &Playground,
    machines: &mut [Machine],
    kept: &Kept,
    notes: &mut Vec<String>,
) -> Result<Vec<Network>, Box<Broken>> {
    let mut taken: Vec<Taken> = drafts
        .iter()
        .map(|draft| {
            // A private network has no way out, so a machine may be its gateway.
            draft
                .gateway
                .filter(|_| !draft.private)
                .map(|address| (address, "the gateway".to_owned()))
                .into_iter()
                .collect()
        })
        .collect();
    let mut wishes = wishes(drafts, playground, &mut taken)?;
    let gateways = keep(drafts, machines, kept, &mut wishes, &mut taken);
    let mut networks = Vec::new();
    for ((draft, kept), taken) in drafts.iter().zip(gateways).zip(&mut taken) {
        let gateway = match draft.gateway.or(kept) {
            Some(address) => address,
            None => free(draft.subnet, taken).ok_or_else(|| full(draft, playground, "networks", "its gateway"))?,
        };
        taken.entry(gateway).or_insert_with(|| "the gateway".to_owned());
        networks.push(Network {
            name: draft.name.clone(),
            subnet: draft.subnet,
            gateway,
            private: draft.private,
            six: None,
        });
    }
    for ((machine, wishes), position) in machines.iter_mut().zip(wishes).zip(0..) {
        let mut routed = false;
        for (wish, number) in wishes.into_iter().zip(0..) {
            let (Some(network), Some(taken)) = (networks.get(wish.network), taken.get_mut(wish.network)) else {
                continue;
            };
            let path = format!("machines[{position}].network.interfaces[{number}]");
            let address = match wish.address {
                Some(address) => address,
                None => {
                    let draft = &drafts[wish.network];
                    let address =
                        free(network.subnet, taken).ok_or_else(|| full(draft, playground, &path, &machine.name))?;
                    notes.extend(moved(&machine.name, &network.name, wish.lost.as_ref(), address));
                    taken.insert(address, format!("machine `{}`", machine.name));
                    address
                }
            };
            let gateway = (!network.private && !routed).then_some(network.gateway);
            routed |= gateway.is_some();
            machine.interfaces.push(Interface {
                network: network.name.clone(),
                mac: Mac::derived(&network.name, &machine.name, number),
                address,
                prefix: wish.prefix,
                gateway,
                six: None,
            });
        }
    }
    Ok(networks)
}

/// What is there keeps its addresses, where the manifest neither names others nor gives them to somebody else; the gateways of networks.
fn keep(
    drafts: &[Draft],
    machines: &[Machine],
    kept: &Kept,
    wishes: &mut [Vec<Wish>],
    taken: &mut [Taken],
) -> Vec<Option<Ipv4Addr>> {
    let mut gateways = Vec::new();
    for (draft, taken) in drafts.iter().zip(&mut *taken) {
        let known = kept.gateways.get(&draft.name).filter(|_| draft.gateway.is_none()).copied();
        let known = known.filter(|address| draft.subnet.has_host(*address) && !taken.contains_key(address));
        taken.extend(known.map(|address| (address, "the gateway".to_owned())));
        gateways.push(known);
    }
    for (machine, wishes) in machines.iter().zip(wishes) {
        for number in 0..wishes.len() {
            let (before, rest) = wishes.split_at_mut(number);
            let Some(wish) = rest.first_mut().filter(|wish| wish.address.is_none()) else { continue };
            let (Some(draft), Some(taken)) = (drafts.get(wish.network), taken.get_mut(wish.network)) else { continue };
            let nth = before.iter().filter(|other| other.network == wish.network).count();
            let Some(address) = kept.address(&machine.name, &draft.name, nth) else { continue };
            if !draft.subnet.has_host(address) {
                continue; // another subnet has other addresses
            }
            match taken.get(&address) {
                Some(owner) => wish.lost = Some((address, owner.clone())),
                None => {
                    taken.insert(address, format!("machine `{}`", machine.name));
                    wish.address = Some(address);
                }
            }
        }
    }
    gateways
}

/// A machine that could not keep its address.
pub(super) fn moved<A: Display>(machine: &str, network: &str, lost: Option<&(A, String)>, now: A) -> Option<String> {
    let (address, owner) = lost?;
    Some(format!(
        "machine `{machine}` had {address} on network `{network}`, which is the address of {owner} now: it gets {now}; \
         give `{machine}` an address, or the other another one"
    ))
}

fn free(subnet: Ipv4Subnet, taken: &Taken) -> Option<Ipv4Addr> {
    subnet.hosts().find(|host| !taken.contains_key(host))
}

fn full(draft: &Draft, playground: &Playground, path: &str, who: &str) -> Box<Broken> {
    let message =
        format!("no address of {} of network `{}` is left for {who}: take a shorter prefix", draft.subnet, draft.name);
    broken(&playground.machines, path, message)
}

/// What one interface asks for.
struct Wish {
    /// Position of the network.
    network: usize,
    address: Option<Ipv4Addr>,
    prefix: u8,
    /// What it had, and who has that now.
    lost: Option<(Ipv4Addr, String)>,
}

/// Reads every machine's interfaces and takes the static addresses.
fn wishes(drafts: &[Draft], playground: &Playground, taken: &mut [Taken]) -> Result<Vec<Vec<Wish>>, Box<Broken>> {
    let mut all = Vec::new();
    for (machine, position) in playground.machines.value.iter().zip(0..) {
        let list = &machine.value.network.value.interfaces;
        let path = format!("machines[{position}].network.interfaces");
        if list.value.is_empty() {
            return Err(broken(list, &path, "at least one is needed"));
        }
        if list.value.len() > MAX_INTERFACES {
            let message = format!("{} interfaces, more than {MAX_INTERFACES}", list.value.len());
            return Err(broken(list, &path, message));
        }
        let mut wishes = Vec::new();
        for (interface, number) in list.value.iter().zip(0..) {
            let path = format!("{path}[{number}]");
            let Some(name) = &interface.value.network else {
                return Err(broken(interface, &format!("{path}.network"), "the name of a network is missing"));
            };
            let Some(network) = drafts.iter().position(|draft| draft.name == name.value) else {
                let there: Vec<_> = drafts.iter().map(|draft| draft.name.as_str()).collect();
                let meant = meant(&name.value, there.iter().copied());
                let message = format!("no network `{}`: there is {}{meant}", name.value, there.join(", "));
                return Err(broken(name, &format!("{path}.network"), message));
            };
            let draft = &drafts[network];
            let (mut address, mut prefix) = (None, draft.subnet.prefix());
            if let Some(written) = &interface.value.address {
                let path = format!("{path}.address");
                let (host, own_prefix) =
                    parse_address(&written.value).map_err(|message| broken(written, &path, message))?;
                prefix = own_prefix.unwrap_or(prefix);
                if !draft.subnet.has_host(host) {
                    let message = format!("{host} is not a host of {} of network `{}`", draft.subnet, draft.name);
                    return Err(broken(written, &path, message));
                }
                let owner = format!("machine `{}`", machine.value.name.value);
                if let Some(other) = taken[network].insert(host, owner) {
                    let message = format!("{host} on network `{}` is the address of {other} already", draft.name);
                    return Err(broken(written, &path, message));
                }
                address = Some(host);
            }
            wishes.push(Wish { network, address, prefix, lost: None });
        }
        all.push(wishes);
    }
    Ok(all)
}

fn parse_address(text: &str) -> Result<(Ipv4Addr, Option<u8>), String> {
    let (host, prefix) = text.split_once('/').map_or((text, None), |(host, prefix)| (host, Some(prefix)));
    let host =
        host.parse().map_err(|_| format!("`{text}` is not an IPv4 address such as 172.16.0.10 or 172.16.0.10/24"))?;
    let prefix = prefix.map(|prefix| match prefix.parse() {
        Ok(bits @ 1..=32) => Ok(bits),
        _ => Err(format!("`{text}`: /{prefix} is not a prefix length")),
    });
    Ok((host, prefix.transpose()?))
}
