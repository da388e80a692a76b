//! Tables of names that the supervisor gives an uplink that runs, by a socket that listened before the uplink was sealed: whoever
//! supervises by then finds it in the lab's folder.
//!
//! The caller is the same user (peer credentials), or root. What it says is bounded and checked, and can open nothing: which names lead to
//! which addresses of the network itself, and which addresses are refused beside the host's.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use labyard_spec::manifest::{MAX_MACHINES, MAX_NETWORKS, check_name};
use labyard_spec::net::{Ipv4Subnet, Ipv6Subnet};
use labyard_spec::uplink::{MAX_TABLE_BYTES, Table, Taken, UplinkSpec};
use labyard_sys::message;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Uid, geteuid};

/// How long a caller may be silent, or not hear the answer: the host's addresses wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// Machines of one network by name, in lower case; the resolver's thread reads it.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(Arc<Mutex<Addresses>>);

/// An address of each kind; not every machine has one of IPv6.
type Addresses = BTreeMap<String, (Ipv4Addr, Option<Ipv6Addr>)>;

impl Known {
    /// These, whatever case they are written in.
    pub(super) fn new(names: &[(String, Ipv4Addr)], names6: &[(String, Ipv6Addr)]) -> Self {
        let six = |name: &str| names6.iter().find(|(other, _)| other == name).map(|(_, six)| *six);
        let names = names.iter().map(|(name, address)| (name.to_ascii_lowercase(), (*address, six(name))));
        Self(Arc::new(Mutex::new(names.collect())))
    }

    /// The addresses of a machine.
    pub(super) fn get(&self, name: &str) -> Option<(Ipv4Addr, Option<Ipv6Addr>)> {
        self.lock().get(name).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        // A table is put in whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of one network.
#[derive(Debug, Clone, Copy)]
struct Subnets {
    four: Ipv4Subnet,
    six: Option<Ipv6Subnet>,
}

/// The socket, and what can be told there.
pub(super) struct Tables {
    listener: UnixListener,
    networks: Vec<(String, Subnets, Known)>,
    /// Who may, beside root.
    own: Uid,
}

impl Tables {
    /// `known` has what the resolver knows of each network.
    pub(super) fn new(listener: UnixListener, spec: &UplinkSpec, known: &[Known]) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let networks = spec.networks.iter().zip(known);
        let networks = networks.map(|(network, known)| {
            let subnets = Subnets { four: network.subnet, six: network.six.map(|six| six.subnet) };
            (network.name.clone(), subnets, known.clone())
        });
        Ok(Self { listener, networks: networks.collect(), own: geteuid() })
    }

    /// What can be read when somebody comes.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Hears one caller out. `refuse` gets the subnets that are refused from now on; whoever says nothing in time, or nonsense, is hung up on.
    pub(super) fn hear(&self, refuse: impl FnOnce(&[Ipv4Subnet], &[Ipv6Subnet]) -> Result<(), String>) {
        // It may have gone again.
        let Ok((stream, _)) = self.listener.accept() else { return };
        if let Err(error) = self.converse(&stream, refuse) {
            eprintln!("error: uplink: a table of names: {error}");
        }
    }

    fn converse(
        &self,
        stream: &UnixStream,
        refuse: impl FnOnce(&[Ipv4Subnet], &[Ipv6Subnet]) -> Result<(), String>,
    ) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        let peer = socket_peercred(stream).map_err(|error| failed(error.into()))?.uid;
        if peer != self.own && !peer.is_root() {
            return Err(format!("user {} may not change it", peer.as_raw()));
        }
        stream.set_nonblocking(false).map_err(failed)?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(failed)?;
        let Some((body, _)) = message::recv(stream, MAX_TABLE_BYTES).map_err(failed)? else { return Ok(()) };
        let taken: Taken = self.take(&body, refuse);
        let answer = serde_json::to_vec(&taken).map_err(|error| error.to_string())?;
        message::send(stream.as_fd(), &answer, &[]).map_err(failed)
    }

    /// All of it, or nothing.
    fn take(&self, body: &[u8], refuse: impl FnOnce(&[Ipv4Subnet], &[Ipv6Subnet]) -> Result<(), String>) -> Taken {
        let table: Table = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let known = self.networks.iter().find(|(name, ..)| *name == table.network);
        let (_, subnets, known) = known.ok_or_else(|| format!("no network `{}` is served here", table.network))?;
        let names = checked(&table, *subnets)?;
        refuse(&table.others, &table.others6)?;
        *known.lock() = names;
        Ok(())
    }
}

fn checked(table: &Table, subnets: Subnets) -> Result<Addresses, String> {
    let machines = table.names.len().max(table.names6.len());
    let networks = table.others.len().max(table.others6.len());
    if machines > MAX_MACHINES {
        return Err(format!("{machines} names, more than {MAX_MACHINES}"));
    }
    if networks > MAX_NETWORKS {
        return Err(format!("{networks} other networks, more than {MAX_NETWORKS}"));
    }
    apart(Some(subnets.four), &table.others, |one, other| one.overlaps(*other))?;
    apart(subnets.six, &table.others6, |one, other| one.overlaps(*other))?;
    let mut names = Addresses::new();
    for (name, address) in &table.names {
        check_name(name)?;
        if !subnets.four.has_host(*address) {
            return Err(format!("{address} of `{name}` is not a host of {}", subnets.four));
        }
        if names.insert(name.clone(), (*address, None)).is_some() {
            return Err(format!("`{name}` is there twice"));
        }
    }
    for (name, address) in &table.names6 {
        let Some(six) = subnets.six else { return Err(format!("{address} of `{name}`: the network has no IPv6")) };
        if !six.has_host(*address) {
            return Err(format!("{address} of `{name}` is not a host of {six}"));
        }
        match names.get_mut(name) {
            Some((_, none @ None)) => *none = Some(*address),
            Some(_) => return Err(format!("`{name}` is there twice")),
            None => return Err(format!("{address} of `{name}`, which has no address of IPv4")),
        }
    }
    Ok(names)
}

/// Whether no two of these share addresses.
fn apart<T: Copy + Display>(own: Option<T>, others: &[T], overlap: impl Fn(&T, &T) -> bool) -> Result<(), String> {
    let mut all: Vec<T> = own.into_iter().collect();
    for other in others {
        if let Some(first) = all.iter().find(|first| overlap(first, other)) {
            return Err(format!("another network's {other} shares addresses with {first}"));
        }
        all.push(*other);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const WEB: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 10);
    const DB: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 11);

    fn tables() -> (Tables, Known) {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("sock")).expect("a socket");
        let known = Known::new(&[("web".to_owned(), WEB)], &[]);
        let four = "172.16.0.0/24".parse().expect("a subnet");
        let six = Some("fd00:16::/64".parse().expect("a subnet"));
        let networks = vec![("lan".to_owned(), Subnets { four, six }, known.clone())];
        (Tables { listener, networks, own: geteuid() }, known)
    }

    #[test]
    fn a_table_takes_the_place_of_the_one_before_and_says_what_is_refused() {
        let (tables, known) = tables();
        let (mut refused, mut refused6) = (Vec::new(), Vec::new());
        let body = json!({ "network": "lan", "names": [["db", DB], ["old", "172.16.0.12"]], "others": ["10.0.0.0/24"],
            "names6": [["db", "fd00:16::11"]], "others6": ["fd00:17::/64"] });
        let taken = tables.take(body.to_string().as_bytes(), |others, others6| {
            refused.extend_from_slice(others);
            refused6.extend_from_slice(others6);
            Ok(())
        });
        let six = Ipv6Addr::new(0xfd00, 0x16, 0, 0, 0, 0, 0, 0x11);
        assert_eq!((taken, known.get("db"), known.get("web")), (Ok(()), Some((DB, Some(six))), None));
        assert_eq!(known.get("old"), Some((Ipv4Addr::new(172, 16, 0, 12), None)));
        assert_eq!(refused, ["10.0.0.0/24".parse::<Ipv4Subnet>().expect("a subnet")]);
        assert_eq!(refused6, ["fd00:17::/64".parse::<Ipv6Subnet>().expect("a subnet")]);
    }

    #[test]
    fn what_is_no_table_changes_nothing_and_says_why() {
        let names = |count: u8| (0..count).map(|at| json!([format!("m{at}"), "172.16.0.11"])).collect::<Vec<_>>();
        let one = json!([["db", "172.16.0.11"]]);
        let others = |count: u8| (0..count).map(|at| format!("10.0.{at}.0/24")).collect::<Vec<_>>();
        let six = |names6: serde_json::Value| json!({ "network": "lan", "names": one, "others": [], "names6": names6 });
        for (body, why) in [
            (json!({ "network": "other", "names": one, "others": [] }), "no network `other`"),
            (json!({ "network": "lan", "names": names(65), "others": [] }), "65 names, more than 64"),
            (json!({ "network": "lan", "names": one, "others": others(33) }), "33 other networks, more than 32"),
            (json!({ "network": "lan", "names": [["a.b", "172.16.0.11"]], "others": [] }), "`a.b` is not a name"),
            (json!({ "network": "lan", "names": [["", "172.16.0.11"]], "others": [] }), "`` is not a name"),
            (json!({ "network": "lan", "names": [["x".repeat(64), "172.16.0.11"]], "others": [] }), "is not a name"),
            (json!({ "network": "lan", "names": [["db", "10.0.0.1"]], "others": [] }), "10.0.0.1 of `db`"),
            (json!({ "network": "lan", "names": [["db", "172.16.0.255"]], "others": [] }), "is not a host of"),
            (json!({ "network": "lan", "names": [["db", "::1"]], "others": [] }), "invalid IPv4"),
            (json!({ "network": "lan", "names": [one[0], one[0]], "others": [] }), "`db` is there twice"),
            (
                json!({ "network": "lan", "names": one, "others": ["172.16.0.128/25"] }),
                "shares addresses with 172.16.0.0/24",
            ),
            (json!({ "network": "lan", "names": one, "others": ["10.0.0.0/8", "10.1.0.0/16"] }), "shares addresses"),
            (six(json!([["db", "fd00:17::11"]])), "fd00:17::11 of `db`"),
            (six(json!([["web", "fd00:16::11"]])), "which has no address of IPv4"),
            (six(json!([["db", "fd00:16::11"], ["db", "fd00:16::12"]])), "`db` is there twice"),
            (six(json!([["db", "172.16.0.11"]])), "invalid IPv6"),
            (
                json!({ "network": "lan", "names": one, "others": [], "others6": ["fd00:16::/60"] }),
                "shares addresses with fd00:16::/64",
            ),
            (json!({ "network": "lan", "names": one, "others": [], "more": 1 }), "unknown field"),
            (json!({ "network": "lan" }), "missing field"),
            (json!("end"), "invalid type"),
        ] {
            let (tables, known) = tables();
            let taken = tables.take(body.to_string().as_bytes(), |_, _| panic!("nothing is refused"));
            assert!(taken.as_ref().is_err_and(|said| said.contains(why)), "{body}: {taken:?}");
            assert_eq!(known.get("web"), Some((WEB, None)), "{body}");
        }
        for text in [&b""[..], b"{", b"\xff\xfe", &[b'['; 10_000]] {
            let (tables, _) = tables();
            assert!(tables.take(text, |_, _| panic!("nothing is refused")).is_err());
        }
        // Rules that could not be changed leave the names as they were, too.
        let (tables, known) = tables();
        let body = json!({ "network": "lan", "names": one, "others": [] });
        assert_eq!(tables.take(body.to_string().as_bytes(), |_, _| Err("no".into())), Err("no".into()));
        assert_eq!(known.get("db"), None);
    }
}
