//! `/etc/hosts` while the machine runs: machines that have come to its networks, and those that have gone.
//!
//! Init writes the whole file at each boot (`init/files.rs`). Here only lines of the same form are taken out and put in; what somebody has
//! written into the file stays.

use std::path::Path;
use std::sync::PoisonError;

use labyard_spec::agent::Hosts;
use labyard_spec::guest::HostEntry;

use super::Agent;
use crate::below::Below;

/// Puts the change into the file.
pub(super) fn change(agent: &Agent, change: &Hosts) -> Result<(), String> {
    let _alone = agent.state.hosts.lock().unwrap_or_else(PoisonError::into_inner);
    put(&agent.root, change)
}

fn put(root: &Path, change: &Hosts) -> Result<(), String> {
    let names = change.gone.iter().chain(change.here.iter().flat_map(|entry| &entry.names));
    if names.into_iter().any(|name| name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '#')) {
        return Err("a name for /etc/hosts is empty, or has a space in it".to_owned());
    }
    let failed = |error: std::io::Error| format!("/etc/hosts: {error}");
    let root = Below::open(root).map_err(failed)?;
    let before = root.read("/etc/hosts").map_err(failed)?.unwrap_or_default();
    let before = String::from_utf8(before).map_err(|error| format!("/etc/hosts: {error}"))?;
    let after = changed(&before, change);
    if after == before { Ok(()) } else { root.put_file("/etc/hosts", &after).map_err(failed) }
}

fn changed(before: &str, change: &Hosts) -> String {
    let line = |entry: &HostEntry| format!("{} {}", entry.address, entry.names.join(" "));
    let here: Vec<String> = change.here.iter().map(line).collect();
    // A line of ours that is not true any more: of a machine that is gone, or of one that is here, at another address than before.
    let is_old = |text: &str| match text.split_whitespace().collect::<Vec<_>>().as_slice() {
        [address, name] if !address.starts_with('#') => {
            let gone = change.gone.iter().any(|gone| gone == name);
            gone && !here.iter().any(|line| line == text)
        }
        _ => false,
    };
    let mut after: String = before.split_inclusive('\n').filter(|text| !is_old(text.trim_end())).collect();
    for line in &here {
        if !before.lines().any(|other| other.trim_end() == line) {
            if !after.is_empty() && !after.ends_with('\n') {
                after.push('\n');
            }
            after.push_str(line);
            after.push('\n');
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(last: u8, name: &str) -> HostEntry {
        HostEntry { address: [172, 16, 0, last].into(), names: vec![name.to_owned()] }
    }

    #[test]
    fn machines_come_and_go_and_what_others_wrote_stays() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(root.path().join("etc")).expect("a folder");
        let path = root.path().join("etc/hosts");
        std::fs::write(&path, "127.0.0.1 localhost\n172.16.0.2 web\n# mine\n10.0.0.1 db printer\n172.16.0.3 db")
            .expect("a file");
        let come = Hosts { here: vec![entry(2, "web"), entry(3, "db"), entry(4, "mail")], gone: vec![] };
        let text = || std::fs::read_to_string(&path).expect("text");
        for _ in 0..2 {
            put(root.path(), &come).expect("changed");
            assert_eq!(
                text(),
                "127.0.0.1 localhost\n172.16.0.2 web\n# mine\n10.0.0.1 db printer\n172.16.0.3 db\n172.16.0.4 mail\n"
            );
        }
        let go = Hosts { here: vec![entry(2, "web"), entry(5, "mail")], gone: vec!["db".into(), "mail".into()] };
        put(root.path(), &go).expect("changed");
        assert_eq!(text(), "127.0.0.1 localhost\n172.16.0.2 web\n# mine\n10.0.0.1 db printer\n172.16.0.5 mail\n");
        assert!(put(root.path(), &Hosts { here: vec![], gone: vec!["a b".into()] }).is_err());
    }

    #[test]
    fn a_machine_comes_and_goes_with_all_its_addresses() {
        let six = |last: u16| HostEntry {
            address: std::net::Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, last).into(),
            names: vec!["db".to_owned()],
        };
        let before = "127.0.0.1 localhost\n::1 localhost\n";
        let come = changed(before, &Hosts { here: vec![entry(3, "db"), six(3)], gone: vec![] });
        assert_eq!(come, format!("{before}172.16.0.3 db\nfd00:10::3 db\n"));
        let moved = changed(&come, &Hosts { here: vec![entry(3, "db"), six(4)], gone: vec!["db".into()] });
        assert_eq!(moved, format!("{before}172.16.0.3 db\nfd00:10::4 db\n"));
        assert_eq!(changed(&moved, &Hosts { here: vec![], gone: vec!["db".into()] }), before);
    }

    #[test]
    fn a_machine_without_the_file_gets_one() {
        let root = tempfile::tempdir().expect("a folder");
        put(root.path(), &Hosts { here: vec![entry(4, "mail")], gone: vec![] }).expect("made");
        assert_eq!(std::fs::read_to_string(root.path().join("etc/hosts")).expect("text"), "172.16.0.4 mail\n");
    }
}
