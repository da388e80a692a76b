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
