//! Networks with IPv6: what is told of them, and machines that come to them.

use super::host::Host;
use serde_json::{Value, json};

fn manifest(host: &Host, machines: &[&str], subnet6: &str) -> String {
    let machine = |name: &&str| {
        json!({
            "name": name,
            "drives": [{ "source": "debian", "mount": "/", "size": "1MiB" }],
            "network": { "interfaces": [{ "network": "local" }, { "network": "old" }] },
            "resources": { "ramSize": "32MiB" },
        })
    };
    let networks = json!([
        { "name": "local", "subnet": "172.16.0.0/24", "private": true, "labyard": { "subnet6": subnet6 } },
        { "name": "old", "subnet": "172.17.0.0/24", "private": true },
    ]);
    let machines: Vec<_> = machines.iter().map(machine).collect();
    host.write_manifest(
        "lab",
        &json!({ "kind": "playground", "name": "lab", "playground": { "networks": networks, "machines": machines } }),
    )
}

#[test]
fn addresses_of_both_kinds_are_told_and_known_to_machines_that_run() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, &["web"], "fd00:16::/64")]);
    let lab = host.ps();
    assert_eq!(lab["machines"][0]["addresses6"], json!([{ "network": "local", "address": "fd00:16::2" }]));
    assert!(host.expect(0, &["ps"]).0.contains("local=172.16.0.2 old=172.17.0.2 local=fd00:16::2"));
    let status: Value = serde_json::from_str(&host.expect(0, &["status", "--json"]).0).expect("one document");
    let networks = ["subnet6", "gateway6"].map(|field| [&status["networks"][0][field], &status["networks"][1][field]]);
    assert_eq!(networks, [[&json!("fd00:16::/64"), &Value::Null], [&json!("fd00:16::1"), &Value::Null]]);
    let nics = [&status["nics"][0]["address6"], &status["nics"][1]["address6"]];
    assert_eq!(nics, [&json!("fd00:16::2"), &Value::Null]);
    let shown = host.expect(0, &["status"]).0;
    assert!(shown.contains("eth0  172.16.0.2 and fd00:16::2 on local"), "{shown}");
    assert!(
        shown.contains("eth1  172.17.0.2 on old") && shown.contains("  fd00:16::/64, gateway fd00:16::1\n"),
        "{shown}"
    );

    host.expect(0, &["up", &manifest(&host, &["web", "db"], "fd00:16::/64")]);
    let log = std::fs::read_to_string(host.lab("lab").join("vmm.log")).expect("the vmm's log");
    let told = log.lines().rev().find(|line| line.starts_with("hosts of web: ")).expect("it was told");
    for address in ["172.16.0.3", "172.17.0.3", "fd00:16::3"] {
        let line = json!({ "address": address, "names": ["db"] }).to_string();
        assert!(told.contains(&line), "{line}\n{told}");
    }
    let (_, stderr) = host.expect(2, &["up", &manifest(&host, &["web", "db"], "fd00:17::/64")]);
    assert!(stderr.contains("networks[local].labyard.subnet6") && stderr.contains("--restart"), "{stderr}");
    host.expect(0, &["down"]);
    host.assert_clean();
}
