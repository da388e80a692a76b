//! Names to addresses as the guest knows them: itself, `/etc/hosts`, and whatever else the image's `getent` asks.
//!
//! The C library's own look-up wants files of the image that a static program cannot use, so a program of the image is asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::launch::DEFAULT_PATH;

/// Addresses that are tried for one name.
const MAX_ADDRESSES: usize = 8;

/// The addresses of `host`, at least one; or why there are none.
pub(super) fn addresses(root: &Path, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let at = |address| SocketAddr::new(address, port);
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(vec![at(address)]);
    }
    if host.is_empty() || host == "localhost" {
        return Ok(vec![at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into())]);
    }
    if host.len() > 253 || host.starts_with('-') || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("`{}` is no host name", host.escape_debug()));
    }
    let hosts = std::fs::read(root.join("etc/hosts")).unwrap_or_default();
    let mut found = of_hosts(&String::from_utf8_lossy(&hosts), host);
    if found.is_empty() {
        found = asked(host);
    }
    if found.is_empty() {
        return Err(format!("host `{host}`: the machine knows no address of it"));
    }
    found.truncate(MAX_ADDRESSES);
    Ok(found.into_iter().map(at).collect())
}

fn of_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let of_line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    lines.filter_map(of_line).collect()
}

fn asked(host: &str) -> Vec<IpAddr> {
    let output = Command::new("getent")
        .args(["ahosts", host])
        .env("PATH", DEFAULT_PATH)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    // One line for each kind of socket.
    for address in text.lines().filter_map(|line| line.split_ascii_whitespace().next()?.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_hosts_and_addresses_are_themselves() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(root.path().join("etc")).expect("a folder");
        let text = "# 10.0.0.9 db\n172.16.0.3 db db.local # the base\nbroken db\nfd00::3 DB\n";
        std::fs::write(root.path().join("etc/hosts"), text).expect("a file");
        let of = |host: &str| {
            let found = addresses(root.path(), host, 80)?;
            Ok::<_, String>(found.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(of("db"), Ok(vec!["172.16.0.3:80".to_owned(), "[fd00::3]:80".to_owned()]));
        assert_eq!(of("10.1.2.3"), Ok(vec!["10.1.2.3:80".to_owned()]));
        assert_eq!(of("[::1]"), Ok(vec!["[::1]:80".to_owned()]));
        assert_eq!(of("localhost").map(|found| found.len()), Ok(2));
        for bad in ["no such name", "-x", "a\nb", "nobody.invalid"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
