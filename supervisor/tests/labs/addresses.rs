//! Addresses that nobody wrote down stay with whom they are while the lab is there.

use super::host::{Host, kill};
use serde_json::{Value, json};

/// A lab of these machines on one network, each with what its interface says beside the network.
fn manifest(host: &Host, machines: &[(&str, Option<&str>)]) -> String {
    let machine = |(name, address): &(&str, Option<&str>)| {
        let mut interface = json!({ "network": "local" });
        if let Some(address) = address {
            interface["address"] = json!(address);
        }
        json!({
            "name": name,
            "drives": [{ "source": "debian", "mount": "/", "size": "1MiB" }],
            "network": { "interfaces": [interface] },
            "resources": { "ramSize": "32MiB" },
        })
    };
    let machines: Vec<_> = machines.iter().map(machine).collect();
    let networks = json!([{ "name": "local", "subnet": "172.16.0.0/24", "private": true }]);
    let playground = json!({ "networks": networks, "machines": machines });
    host.write_manifest("lab", &json!({ "kind": "playground", "name": "lab", "playground": playground }))
}

/// Last numbers of addresses, by machine.
fn numbers(host: &Host) -> Vec<String> {
    let ps = host.ps();
    let one = |machine: &Value| {
        let address = machine["addresses"][0]["address"].as_str().expect("an address");
        format!("{} {}", machine["name"].as_str().expect("a name"), address.rsplit('.').next().expect("a number"))
    };
    ps["machines"].as_array().expect("machines").iter().map(one).collect()
}

/// What the guest of a machine is told its address is.
fn told(host: &Host, machine: &str, address: &str) -> bool {
    let archive = std::fs::read(host.lab("lab").join("machines").join(machine).join("machine.cpio")).expect("reading");
    String::from_utf8_lossy(&archive).contains(&format!("\"address\":\"{address}\",\"prefix\""))
}

#[test]
fn a_machine_that_leaves_from_the_middle_moves_nobody() {
    let host = Host::new();
    let all = manifest(&host, &[("web", None), ("db", None), ("mail", None)]);
    host.expect(0, &["up", &all]);
    let vmm = host.ps()["vmm_pid"].clone();
    let two = manifest(&host, &[("web", None), ("mail", None)]);
    // What it comes to is known before.
    let (stdout, _) = host.expect(1, &["manifest", "diff", "lab", &two]);
    assert!(stdout.contains("machines[db]") && !stdout.contains("mail"), "{stdout}");
    host.expect(0, &["up", &two]);
    assert_eq!((numbers(&host), &host.ps()["vmm_pid"]), (vec!["web 2".to_owned(), "mail 4".to_owned()], &vmm));
    let (stdout, _) = host.expect(0, &["manifest", "show", "lab"]);
    assert!(stdout.contains("172.16.0.4/24") && !stdout.contains("172.16.0.3/24"), "{stdout}");
    host.expect(0, &["manifest", "diff", "lab", &two]);

    // Nor does another `up`, a start, or whoever comes in front.
    let (stdout, _) = host.expect(0, &["up", &two]);
    assert!(stdout.contains("nothing has changed"), "{stdout}");
    host.expect(0, &["restart", "lab"]);
    host.expect(0, &["stop", "lab"]);
    host.expect(0, &["up", &two]);
    assert_eq!(numbers(&host), ["web 2", "mail 4"]);
    kill(host.ps()["supervisor_pid"].as_i64().expect("a pid") as i32, rustix::process::Signal::KILL);
    host.expect(0, &["up", &manifest(&host, &[("new", None), ("web", None), ("mail", None)])]);
    assert_eq!(numbers(&host), ["web 2", "mail 4", "new 3"]);
    assert!(told(&host, "mail", "172.16.0.4") && told(&host, "new", "172.16.0.3"));

    // Not in a lab that is changed while it is stopped either.
    host.expect(0, &["stop", "lab"]);
    host.expect(0, &["up", &manifest(&host, &[("mail", None), ("last", None)])]);
    assert_eq!(numbers(&host), ["mail 4", "last 2"]);
    assert!(told(&host, "mail", "172.16.0.4"));
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn an_address_that_another_is_given_is_told_of_before_anything_moves() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, &[("web", None), ("db", None)])]);
    let taken = manifest(&host, &[("web", None), ("db", None), ("new", Some("172.16.0.3"))]);
    let (stdout, stderr) = host.expect(2, &["up", &taken]);
    let note =
        "machine `db` had 172.16.0.3 on network `local`, which is the address of machine `new` now: it gets 172.16.0.4";
    assert!(stdout.contains(note), "{stdout}");
    let moved = "machines[db].network.interfaces[0].address was 172.16.0.3/24, is 172.16.0.4/24";
    assert!(stderr.contains(moved) && stderr.contains("--restart"), "{stderr}");
    assert_eq!(numbers(&host), ["web 2", "db 3"]);
    host.expect(0, &["up", &taken, "--restart"]);
    assert_eq!(numbers(&host), ["web 2", "db 4", "new 3"]);
    // What was written down stays, too, when it is not any more.
    host.expect(0, &["up", &manifest(&host, &[("web", None), ("db", None), ("new", None)])]);
    assert_eq!(numbers(&host), ["web 2", "db 4", "new 3"]);
    host.expect(0, &["down"]);
    // A lab that is made anew begins anew.
    host.expect(0, &["up", &manifest(&host, &[("web", None), ("db", None), ("new", None)])]);
    assert_eq!(numbers(&host), ["web 2", "db 3", "new 4"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}
