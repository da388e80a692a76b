//! Control groups: a lab's process is limited as far as the host lets us, and leaves no group behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::host::{Host, kill, until};
use rustix::process::Signal;

/// The groups of ours that a process is in, by what they limit; one of version 2 limits all.
fn groups(pid: i64) -> BTreeMap<String, PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    let mut groups = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains("/labyard-")) {
        let fields: Vec<_> = line.splitn(3, ':').collect();
        let controllers: Vec<_> = fields[1].split(',').filter(|name| !name.is_empty()).collect();
        let mount = mounts.lines().find(|line| {
            let (_, kind) = line.split_once(" - ").expect("a mount");
            match controllers.first() {
                None => kind.starts_with("cgroup2 "),
                Some(one) => kind.starts_with("cgroup ") && kind.rsplit([' ', ',']).any(|name| name == *one),
            }
        });
        let point = mount.expect("it is mounted").split(' ').nth(4).expect("a place");
        let group = PathBuf::from(point).join(fields[2].trim_start_matches('/'));
        let controllers = if controllers.is_empty() { vec!["cpu", "memory", "pids"] } else { controllers };
        groups.extend(controllers.into_iter().map(|name| (name.to_owned(), group.clone())));
    }
    groups
}

fn pid(host: &Host) -> i64 {
    host.ps()["vmm_pid"].as_i64().expect("a pid")
}

/// Whether this process may make groups of this kind: else a lab comes up without, and says so.
fn told_unlimited(host: &Host) -> bool {
    let journal = fs::read_to_string(host.lab("lab").join("events.jsonl")).expect("a journal");
    journal.contains("not limited, for this host's control groups do not let us")
}

fn number(path: PathBuf) -> u64 {
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().parse().unwrap_or_else(|_| panic!("{}: {text}", path.display()))
}

#[test]
fn a_lab_is_limited_to_what_its_machines_need_or_says_that_it_is_not() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let groups = groups(pid(&host));
    if let Some(group) = groups.get("pids") {
        // 4096 for the vmm, 16 and a vCPU for the machine, 64 for its drive.
        assert_eq!(number(group.join("pids.max")), 4096 + 16 + 1 + 64);
    }
    let memory = |group: &PathBuf| {
        let file =
            ["memory.max", "memory.limit_in_bytes"].map(|name| group.join(name)).into_iter().find(|file| file.exists());
        number(file.expect("a limit"))
    };
    if let Some(group) = groups.get("memory") {
        assert_eq!(memory(group), (32 + 8 + 512 + 64) << 20);
        let swap = ["memory.swap.max", "memory.memsw.limit_in_bytes"].map(|name| group.join(name));
        let most = [0, memory(group)];
        for (file, most) in swap.into_iter().zip(most).filter(|(file, _)| file.exists()) {
            assert_eq!(number(file), most, "no swap beside it");
        }
        host.expect(0, &["up", &host.manifest("lab", &["web", "db"])]);
        assert_eq!(memory(group), (64 + 16 + 512 + 128) << 20, "who comes brings room along");
    }
    assert!(groups.contains_key("pids") && groups.contains_key("memory") || told_unlimited(&host));
    host.expect(0, &["down"]);
    host.assert_clean();
    assert!(groups.values().all(|group| !group.exists()), "{groups:?}");
}

#[test]
fn groups_go_whoever_died_and_are_made_anew_with_what_is_asked_for() {
    let host = Host::new();
    let manifest = host.manifest("lab", &["web"]);
    host.expect(0, &["up", &manifest, "--limit-cpus", "1.5", "--allow-unlimited"]);
    let first = groups(pid(&host));
    if let Some(group) = first.get("cpu") {
        let quota = fs::read_to_string(group.join("cpu.max")).map(|text| text.trim().to_owned());
        let quota = quota.unwrap_or_else(|_| format!("{} 100000", number(group.join("cpu.cfs_quota_us"))));
        assert_eq!(quota, "150000 100000");
    }
    let lab = host.ps();
    for who in ["supervisor_pid", "vmm_pid"] {
        kill(i32::try_from(lab[who].as_i64().expect("a pid")).expect("a pid"), Signal::KILL);
    }
    until("both are gone", || host.processes().is_empty());
    let (stdout, _) = host.expect(0, &["up", &manifest, "--limit-cpus", "2", "--allow-unlimited"]);
    assert!(stdout.contains("starts again"), "{stdout}");
    assert!(first.values().all(|group| !group.exists()), "{first:?}");
    let second = groups(pid(&host));
    if let Some(group) = second.get("cpu").filter(|group| group.join("cpu.cfs_quota_us").exists()) {
        assert_eq!(number(group.join("cpu.cfs_quota_us")), 200_000);
    }
    let (stdout, _) = host.expect(0, &["up", &manifest, "--limit-cpus", "3"]);
    assert!(stdout.contains("is chosen when it starts"), "{stdout}");
    host.expect(0, &["down"]);
    host.assert_clean();
    assert!(second.values().all(|group| !group.exists()), "{second:?}");
}

#[test]
fn a_limit_that_is_asked_for_and_cannot_be_set_is_an_error_unless_that_is_allowed() {
    // A file system in memory lies on no disk.
    let host = Host::within(tempfile::tempdir_in("/dev/shm").expect("a folder"));
    let manifest = host.manifest("lab", &["web"]);
    let (_, stderr) = host.expect(1, &["up", &manifest, "--limit-io", "1MiB"]);
    assert!(
        stderr.contains("limiting 1024 KiB of disk in a second") && stderr.contains("--allow-unlimited"),
        "{stderr}"
    );
    host.expect(0, &["down"]);
    host.expect(0, &["up", &manifest, "--limit-io", "1MiB", "--allow-unlimited"]);
    assert!(told_unlimited(&host));
    host.expect(2, &["up", &manifest, "--limit-cpus", "none"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}
