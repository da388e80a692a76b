//! Host name, `/etc/hosts` (hosts(5)) and `/etc/resolv.conf` (resolv.conf(5)) of the machine.

use std::fmt::Write;
use std::io;

use labyard_spec::guest::{HostEntry, MachineConfig};

use crate::below::Below;

#[derive(Debug, thiserror::Error)]
#[error("writing {path} in the root")]
pub(super) struct FileError {
    pub(super) path: String,
    pub(super) source: io::Error,
}

/// Gives the machine its name and writes the files.
pub(super) fn write(root: &Below, config: &MachineConfig) -> Result<(), FileError> {
    let name =
        |source: rustix::io::Errno| FileError { path: "the kernel's host name".to_owned(), source: source.into() };
    rustix::system::sethostname(config.hostname.as_bytes()).map_err(name)?;
    let put = |path: &str, contents: &str| {
        root.put_file(path, contents).map_err(|source| FileError { path: path.to_owned(), source })
    };
    put("/etc/hostname", &format!("{}\n", config.hostname))?;
    put("/etc/hosts", &hosts(&config.hostname, &config.hosts))?;
    if config.nameservers.is_empty() {
        return Ok(());
    }
    put(
        "/etc/resolv.conf",
        &config.nameservers.iter().map(|address| format!("nameserver {address}\n")).collect::<String>(),
    )
}

fn hosts(hostname: &str, entries: &[HostEntry]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for entry in entries {
        let _ = writeln!(text, "{} {}", entry.address, entry.names.join(" "));
    }
    // A machine finds itself also where it is on no network (Debian policy: 127.0.1.1).
    if !entries.iter().flat_map(|entry| &entry.names).any(|name| name == hostname) {
        let _ = writeln!(text, "127.0.1.1 {hostname}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: [u8; 4], names: &[&str]) -> HostEntry {
        HostEntry { address: address.into(), names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn hosts_names_localhost_and_every_machine() {
        let text = hosts("web", &[entry([172, 16, 0, 2], &["web"]), entry([172, 16, 0, 3], &["db", "db.local"])]);
        let expected = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
            172.16.0.2 web\n172.16.0.3 db db.local\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_machine_has_a_line_for_each_of_its_addresses() {
        let six = HostEntry { address: "fd00:10::2".parse().expect("an address"), names: vec!["web".into()] };
        let text = hosts("web", &[entry([172, 16, 0, 2], &["web"]), six]);
        assert!(text.ends_with("172.16.0.2 web\nfd00:10::2 web\n"), "{text}");
    }

    #[test]
    fn a_machine_on_no_network_still_finds_itself() {
        assert!(hosts("alone", &[]).ends_with("127.0.1.1 alone\n"));
    }
}
