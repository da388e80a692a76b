//! What labs may take: refused with the numbers, given back when they stop.

use std::fs;

use super::host::Host;
use serde_json::{Value, json};

#[test]
fn labs_get_what_the_quota_has_and_not_more() {
    let host = Host::new();
    host.up("one", &["web", "db"]);
    let config = host.home().join("config.toml");
    fs::write(&config, "[user]\ncpus = 3\nmachines = 10\n[lab]\nmemory = \"100MiB\"\n").expect("writing");
    let (_, stderr) = host.expect(2, &["up", &host.manifest("two", &["a", "b"])]);
    let why = "2 vCPUs asked for, 2 in use by other labs: more than the 3 that all labs together may have (config.toml, user.cpus)";
    assert!(stderr.contains(why), "{stderr}");
    let (_, stderr) = host.expect(2, &["up", &host.manifest("two", &["a", "b", "c", "d"])]);
    assert!(stderr.contains("128MiB of memory asked for: more than the 100MiB that one lab may have"), "{stderr}");
    assert!(!host.lab("two").exists(), "nothing was made");
    host.up("two", &["a"]);
    host.expect(0, &["stop", "one/web"]);
    let told: Value = serde_json::from_str(&host.expect(0, &["quota", "--json"]).0).expect("one document");
    assert_eq!(told["used"], json!({ "cpus": 2, "memory_mib": 64, "disk_bytes": 3 << 20, "machines": 2 }));
    let (stdout, _) = host.expect(0, &["quota"]);
    assert!(stdout.contains("vCPUs") && stdout.contains("100MiB"), "{stdout}");
    // What a stopped machine gave back is somebody else's now.
    host.up("three", &["x"]);
    let (_, stderr) = host.expect(2, &["start", "one/web"]);
    assert!(stderr.contains("1 vCPUs asked for, 3 in use"), "{stderr}");
    host.expect(0, &["stop", "one"]);
    let (_, stderr) = host.expect(2, &["start", "one"]);
    assert!(stderr.contains("2 vCPUs asked for, 2 in use"), "{stderr}");
    assert_eq!(host.ps()["standing"], "stopped");
    host.expect(0, &["down", "two"]);
    host.expect(0, &["start", "one"]);
    fs::write(&config, "[user]\ncpu = 3\n").expect("writing");
    let (_, stderr) = host.expect(2, &["up", &host.manifest("four", &["a"])]);
    assert!(stderr.contains("config.toml") && stderr.contains("unknown field `cpu`"), "{stderr}");
    fs::write(&config, "[host]\nreserve_memory = \"64TiB\"\n").expect("writing");
    let (_, stderr) = host.expect(2, &["up", &host.manifest("four", &["a"])]);
    assert!(stderr.contains("96 MiB in use by other labs"), "{stderr}");
    host.expect(0, &["down", "--all"]);
    host.assert_clean();
}

/// A lab whose machine has a blank drive that can only be read.
fn with_a_blank(host: &Host, name: &str, size: &str) -> String {
    let path = host.manifest(name, &["web"]);
    let mut manifest: Value = serde_json::from_str(&fs::read_to_string(&path).expect("a manifest")).expect("JSON");
    let drives = manifest["playground"]["machines"][0]["drives"].as_array_mut().expect("drives");
    drives.push(json!({ "readOnly": true, "filesystem": "ext4", "size": size }));
    host.write_manifest(name, &manifest)
}

fn blanks(host: &Host) -> Vec<String> {
    let names = fs::read_dir(host.home().join("blanks")).expect("listing").flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name != ".lock").collect();
    names.sort();
    names
}

#[test]
fn a_blank_drive_counts_also_where_it_is_only_read() {
    let host = Host::new();
    fs::create_dir_all(host.home()).expect("a folder");
    fs::write(host.home().join("config.toml"), "[lab]\ndisk = \"40MiB\"\n[user]\ndisk = \"64MiB\"\n").expect("writing");
    let (_, stderr) = host.expect(2, &["up", &with_a_blank(&host, "lab", "64MiB")]);
    assert!(stderr.contains("65MiB of drives asked for: more than the 40MiB"), "{stderr}");
    assert_eq!(blanks(&host), [""; 0], "nothing was made");
    host.expect(0, &["up", &with_a_blank(&host, "lab", "32MiB")]);
    let told: Value = serde_json::from_str(&host.expect(0, &["quota", "--json"]).0).expect("one document");
    assert_eq!(told["used"]["disk_bytes"], 33 << 20);
    let (_, stderr) = host.expect(2, &["up", &with_a_blank(&host, "other", "32MiB")]);
    assert!(stderr.contains("33MiB of drives asked for, 33MiB in use by other labs"), "{stderr}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn blank_disks_that_no_lab_uses_are_pruned() {
    let host = Host::new();
    let prune =
        || -> Value { serde_json::from_str(&host.expect(0, &["image", "prune", "--json"]).0).expect("one document") };
    host.expect(0, &["up", &with_a_blank(&host, "lab", "8MiB")]);
    let used = blanks(&host);
    assert_eq!(used.len(), 1);
    assert_eq!(prune()["blanks"], json!([]));
    host.expect(0, &["stop", "lab"]);
    assert_eq!(prune()["blanks"], json!([]), "a stopped lab starts again");
    host.expect(0, &["start", "lab"]);
    host.expect(0, &["down"]);
    // What a killed command left.
    fs::write(host.home().join("blanks/.ext4-1-0-00000000"), "half").expect("writing");
    let lock = fs::File::open(host.home().join("blanks/.lock")).expect("the lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared).expect("flock");
    let (stdout, stderr) = host.expect(0, &["image", "prune", "--json"]);
    let told: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!((&told["blanks"], blanks(&host).len()), (&json!([]), 2), "somebody is about to use one");
    assert!(stderr.contains("blank disks stay: a lab is on its way up"), "{stderr}");
    drop(lock);
    let (stdout, _) = host.expect(0, &["image", "prune", "--dry-run"]);
    assert!(stdout.contains(&format!("blank disk {}: would go", used[0])), "{stdout}");
    assert_eq!(prune()["blanks"], json!([".ext4-1-0-00000000", used[0]]));
    assert_eq!(blanks(&host), [""; 0]);
    host.expect(0, &["up", &with_a_blank(&host, "lab", "8MiB")]);
    host.expect(0, &["down"]);
    host.assert_clean();
}
