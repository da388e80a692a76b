//! `up` of a lab that is there already: nothing changed, what is shown, machines that come and go, and what would lose a drive.

use super::host::Host;
use serde_json::{Value, json};

/// A manifest with one machine for each name and memory.
fn manifest(host: &Host, title: &str, machines: &[(&str, &str)]) -> String {
    let machine = |(name, memory): &(&str, &str)| {
        json!({
            "name": name,
            "drives": [{ "source": "debian", "mount": "/", "size": "1MiB" }],
            "network": { "interfaces": [{ "network": "local" }] },
            "resources": { "ramSize": memory },
        })
    };
    let machines: Vec<_> = machines.iter().map(machine).collect();
    let network = json!({ "name": "local", "subnet": "172.16.0.0/24", "private": true });
    host.write_manifest(
        "lab",
        &json!({ "kind": "playground", "name": "lab", "title": title, "playground": { "networks": [network], "machines": machines } }),
    )
}

fn machines(host: &Host) -> Vec<String> {
    let ps = host.ps();
    let machines = ps["machines"].as_array().expect("machines");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    machines
        .iter()
        .map(|machine| format!("{} {} {}", text(&machine["name"]), machine["memory_mib"], text(&machine["state"])))
        .collect()
}

#[test]
fn up_twice_is_up_once() {
    let host = Host::new();
    let file = manifest(&host, "A lab", &[("web", "32MiB"), ("db", "32MiB")]);
    host.expect(0, &["up", &file]);
    let before = host.ps();
    let (stdout, _) = host.expect(0, &["up", &file]);
    assert!(stdout.contains("lab lab runs already: nothing has changed"), "{stdout}");
    assert_eq!(host.ps()["vmm_pid"], before["vmm_pid"]);
    host.expect(0, &["stop", "lab/web"]);
    let (stdout, _) = host.expect(0, &["up", &file]);
    assert!(stdout.contains("web starts again") && stdout.contains("web: Ready"), "{stdout}");
    host.expect(0, &["stop", "lab"]);
    let (stdout, _) = host.expect(0, &["up", &file, "--json"]);
    let state: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!(state["name"], "lab");
    assert_eq!(machines(&host), ["web 32 ready", "db 32 ready"]);
    let (stdout, _) = host.expect(0, &["up", &manifest(&host, "Another title", &[("web", "32MiB"), ("db", "32MiB")])]);
    assert!(stdout.contains("what is shown of it is kept"), "{stdout}");
    let (stdout, _) = host.expect(0, &["up", &manifest(&host, "Another title", &[("web", "32MiB"), ("db", "32MiB")])]);
    assert!(stdout.contains("nothing has changed"), "{stdout}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_changed_manifest_is_applied_on_the_drives_that_are_there() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, "A lab", &[("web", "32MiB"), ("db", "32MiB")])]);
    let layer = |machine: &str| host.lab("lab").join("machines").join(machine).join("d00.overlay");
    std::fs::write(layer("web"), b"writtenkept").expect("writing");
    let changed = manifest(&host, "A lab", &[("web", "64MiB"), ("mail", "32MiB")]);
    let (_, stderr) = host.expect(2, &["up", &changed]);
    for part in [
        "machines[db] is gone",
        "machines[mail] is new",
        "machines[web].resources.ramSize was 32MiB, is 64MiB",
        "--restart",
    ] {
        assert!(stderr.contains(part), "{part}\n{stderr}");
    }
    assert_eq!(machines(&host), ["web 32 ready", "db 32 ready"], "nothing was done");
    let (stdout, _) = host.expect(0, &["up", &changed, "--restart"]);
    assert!(stdout.contains("db: gone, with its drives"), "{stdout}");
    assert_eq!(machines(&host), ["web 64 ready", "mail 32 ready"]);
    assert_eq!(std::fs::read(layer("web")).expect("the layer"), b"writtenkept");
    assert!(!host.lab("lab").join("machines/db").exists());
    host.expect(0, &["stop", "lab"]);
    host.expect(0, &["up", &manifest(&host, "A lab", &[("web", "64MiB")])]);
    assert_eq!(machines(&host), ["web 64 ready"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_drive_that_would_be_lost_is_refused_and_so_is_an_image_that_is_not_there() {
    let host = Host::new();
    let file = manifest(&host, "A lab", &[("web", "32MiB")]);
    host.expect(0, &["up", &file]);
    let text = std::fs::read_to_string(&file).expect("a manifest");
    std::fs::write(&file, text.replace("1MiB", "2MiB")).expect("writing");
    for _ in 0..2 {
        let (_, stderr) = host.expect(2, &["up", &file, "--restart"]);
        assert!(stderr.contains("drive d00 of machine `web` cannot be changed into another"), "{stderr}");
        assert!(stderr.contains("drives[0].size was 1MiB, is 2MiB"), "{stderr}");
        host.expect(0, &["stop", "lab"]);
    }
    let second = text.replace(r#""name":"web""#, r#""name":"bad""#).replace("debian", "bad");
    std::fs::write(&file, second).expect("writing");
    let (_, stderr) = host.expect(2, &["up", &file]);
    assert!(stderr.contains("no image `bad`"), "{stderr}");
    let lab = host.ps();
    assert_eq!(lab["standing"], "stopped");
    assert!(lab["end"].as_str().expect("a reason").contains("changing it failed"), "{lab}");
    std::fs::write(&file, text).expect("writing");
    host.expect(0, &["up", &file]);
    assert_eq!(machines(&host), ["web 32 ready"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}
