//! Ports of the host that lead into machines, and how they are written on a command line.
//!
//! `ports.json` in a lab's folder has those that are published: written by who holds the lock before there is a supervisor, and by the
//! supervisor from then on. They last as long as the lab has a folder.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use labyard_spec::agent::Protocol;
use labyard_spec::manifest::check_name;
use serde::{Deserialize, Serialize};

use crate::home::{Folder, HomeError};

/// The file in a lab's folder.
pub const PORTS: &str = "ports.json";
/// Ports that one lab can publish.
pub const MAX_PORTS: usize = 1024;

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Over what.
    pub protocol: Protocol,
    /// The host's address.
    pub bind: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// Where it leads.
    pub machine: String,
    /// The machine's port.
    pub port: u16,
}

impl Port {
    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.host_port)
    }

    /// Whether both would listen at one place.
    pub fn is_at(&self, other: &Self) -> bool {
        (self.protocol, self.address()) == (other.protocol, other.address())
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} -> {}:{}", self.address(), self.protocol.name(), self.machine, self.port)
    }
}

/// The published ports of a lab.
///
/// # Errors
/// What the file system says.
pub fn read(folder: &Folder) -> Result<Vec<Port>, HomeError> {
    let Some(bytes) = folder.read(PORTS)? else { return Ok(Vec::new()) };
    serde_json::from_slice(&bytes).map_err(|error| HomeError::File {
        path: folder.file(PORTS),
        doing: "understanding it",
        source: error.into(),
    })
}

/// Writes them down.
///
/// # Errors
/// What the file system says.
pub fn write(folder: &Folder, ports: &[Port]) -> Result<(), HomeError> {
    folder.write(PORTS, &serde_json::to_vec_pretty(ports).expect("plain data has a JSON form"))
}

/// Parts between colons; an address in brackets is one.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let end = match rest.strip_prefix('[').and_then(|inner| inner.find(']')) {
            Some(close) => rest.get(close + 2..).and_then(|after| after.find(':')).map(|colon| close + 2 + colon),
            None => rest.find(':'),
        };
        match end {
            Some(end) => {
                parts.push(rest.get(..end).unwrap_or_default());
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            None => {
                parts.push(rest);
                return parts;
            }
        }
    }
}

fn protocol(text: &str) -> Result<(&str, Protocol), String> {
    match text.split_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((text, "tcp")) => Ok((text, Protocol::Tcp)),
        Some((text, "udp")) => Ok((text, Protocol::Udp)),
        Some((_, other)) => Err(format!("`{other}` is no protocol: tcp and udp are")),
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("`{text}` is no port: give 1 to 65535"))
}

fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare {
        "localhost" | "" => Ok(Ipv4Addr::LOCALHOST.into()),
        "*" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        text => text.parse().map_err(|_| format!("`{text}` is no address of this host")),
    }
}

/// `[BIND:]PORT[:PORT][/udp]`: a port of the host, and one of a machine that is named elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Over what.
    pub protocol: Protocol,
    /// The host's address.
    pub bind: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The machine's.
    pub port: u16,
}

impl Mapping {
    /// The same into this machine.
    pub fn into_machine(self, machine: &str) -> Port {
        let Self { protocol, bind, host_port, port } = self;
        Port { protocol, bind, host_port, machine: machine.to_owned(), port }
    }
}

impl FromStr for Mapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, protocol) = protocol(text)?;
        let (bind, host_port, inner) = match parts(text).as_slice() {
            [both] => ("", *both, *both),
            [host, inner] => ("", *host, *inner),
            [bind, host, inner] => (*bind, *host, *inner),
            _ => return Err("give [BIND:]PORT:PORT, such as 8080:80".to_owned()),
        };
        Ok(Self { protocol, bind: address(bind)?, host_port: port(host_port)?, port: port(inner)? })
    }
}

impl FromStr for Port {
    type Err = String;

    /// `[BIND:]PORT:MACHINE:PORT[/udp]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (text, protocol) = protocol(text)?;
        let (bind, host_port, machine, inner) = match parts(text).as_slice() {
            [host, machine, inner] => ("", *host, *machine, *inner),
            [bind, host, machine, inner] => (*bind, *host, *machine, *inner),
            _ => return Err("give [BIND:]PORT:MACHINE:PORT, such as 8080:web:80".to_owned()),
        };
        check_name(machine).map_err(|error| format!("machine {error}"))?;
        let machine = machine.to_owned();
        Ok(Self { protocol, bind: address(bind)?, host_port: port(host_port)?, machine, port: port(inner)? })
    }
}

/// `[BIND:]PORT:HOST:PORT[/udp]`, `PORT:PORT` or `PORT`, as ssh(1) has it for `-L` and `-R`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Over what.
    pub protocol: Protocol,
    /// Where it listens, as written; empty is loopback.
    pub bind: String,
    /// The port that listens.
    pub port: u16,
    /// Where it leads.
    pub host: String,
    /// And to which port.
    pub host_port: u16,
}

impl Forward {
    /// The address that it listens at on this host.
    ///
    /// # Errors
    /// Where it is none.
    pub fn local(&self) -> Result<SocketAddr, String> {
        Ok(SocketAddr::new(address(&self.bind)?, self.port))
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, protocol) = protocol(text)?;
        let (bind, listening, host, host_port) = match parts(text).as_slice() {
            [both] => ("", *both, "localhost", *both),
            [listening, inner] => ("", *listening, "localhost", *inner),
            [listening, host, inner] => ("", *listening, *host, *inner),
            [bind, listening, host, inner] => (*bind, *listening, *host, *inner),
            _ => return Err("give [BIND:]PORT:HOST:PORT, such as 8080:localhost:80".to_owned()),
        };
        let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').to_owned();
        let (port, host_port) = (port(listening)?, port(host_port)?);
        if host.is_empty() {
            return Err("the host between the ports is missing".to_owned());
        }
        Ok(Self { protocol, bind: bare(bind), port, host: bare(host), host_port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_others_write_them() {
        let shown = |text: &str| text.parse::<Port>().map(|port| port.to_string());
        assert_eq!(shown("8080:web:80").as_deref(), Ok("127.0.0.1:8080/tcp -> web:80"));
        assert_eq!(shown("0.0.0.0:53:dns:53/udp").as_deref(), Ok("0.0.0.0:53/udp -> dns:53"));
        assert_eq!(shown("[::1]:8080:web:80").as_deref(), Ok("[::1]:8080/tcp -> web:80"));
        assert_eq!(shown("*:8080:web:80").as_deref(), Ok("0.0.0.0:8080/tcp -> web:80"));
        for bad in [
            "8080",
            "8080:80",
            "0:web:80",
            "x:web:80",
            "8080:-web:80",
            "8080:web:80/sctp",
            "a:8080:web:80",
            "1:2:3:4:5",
        ] {
            assert!(shown(bad).is_err(), "{bad}");
        }
        let mapped = |text: &str| text.parse::<Mapping>().map(|mapping| mapping.into_machine("web").to_string());
        assert_eq!(mapped("8080:80").as_deref(), Ok("127.0.0.1:8080/tcp -> web:80"));
        assert_eq!(mapped("80").as_deref(), Ok("127.0.0.1:80/tcp -> web:80"));
        assert_eq!(mapped("[::]:8080:80/udp").as_deref(), Ok("[::]:8080/udp -> web:80"));
        let forward =
            |text: &str| text.parse::<Forward>().map(|f| (f.local().map(|at| at.to_string()), f.host, f.host_port));
        let at = |text: &str| Ok(text.to_owned());
        assert_eq!(forward("8080:db:5432"), Ok((at("127.0.0.1:8080"), "db".into(), 5432)));
        assert_eq!(forward("5432"), Ok((at("127.0.0.1:5432"), "localhost".into(), 5432)));
        assert_eq!(forward("0.0.0.0:1:[fd00::3]:2"), Ok((at("0.0.0.0:1"), "fd00::3".into(), 2)));
        for bad in ["", "a", "1:2:3:4:5", "1::2", "1:h:70000"] {
            assert!(forward(bad).is_err(), "{bad}");
        }
    }
}
