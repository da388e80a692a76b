//! `pause`, `resume`, `save` and `restore`: a lab stands still, ends with all that it was, and goes on; whoever dies on the way.

use super::host::Host;

fn states(host: &Host) -> Vec<String> {
    let ps = host.ps();
    let machines = ps["machines"].as_array().expect("machines");
    machines.iter().map(|machine| machine["state"].as_str().expect("a state").to_owned()).collect()
}

fn wait_for(host: &Host, expected: &[&str]) {
    let until = std::time::Instant::now() + super::host::PATIENCE;
    while states(host) != expected {
        assert!(std::time::Instant::now() < until, "{:?}, not {expected:?}", states(host));
        std::thread::yield_now();
    }
}

#[test]
fn a_lab_and_one_machine_of_it_are_paused_and_resumed() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    assert_eq!(host.expect(0, &["pause", "lab/web"]).0, "web: paused\n");
    wait_for(&host, &["paused", "ready"]);
    assert_eq!(host.expect(0, &["pause"]).0, "lab: paused\n");
    host.expect(0, &["pause", "lab"]);
    wait_for(&host, &["paused", "paused"]);
    host.expect(0, &["resume", "lab/db"]);
    wait_for(&host, &["paused", "ready"]);
    assert_eq!(host.expect(0, &["resume", "lab"]).0, "lab: resumed\n");
    wait_for(&host, &["ready", "ready"]);
    host.expect(0, &["stop", "lab/db"]);
    let (_, stderr) = host.expect(2, &["pause", "lab/db"]);
    assert!(stderr.contains("machine `db` does not run: powered off"), "{stderr}");
    host.expect(2, &["pause", "lab/x"]);
    host.expect(2, &["resume", "lan"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_lab_is_saved_and_goes_on() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    let (stdout, _) = host.expect(0, &["save", "lab", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!((&told["lab"], &told["memory_bytes"]), (&"lab".into(), &12.into()));
    let (stdout, _) = host.expect(0, &["ps"]);
    assert!(stdout.contains("lab: saved; `labyard restore lab` lets it go on"), "{stdout}");
    let (_, stderr) = host.expect(2, &["exec", "lab/web", "--", "true"]);
    assert!(stderr.contains("it was saved, and `labyard restore lab` lets it go on"), "{stderr}");
    host.expect(2, &["save", "lab"]);
    host.expect(2, &["pause", "lab"]);

    assert_eq!(host.expect(0, &["restore"]).0, "lab: goes on\n");
    assert_eq!(states(&host), ["ready", "ready"]);
    host.expect(0, &["exec", "lab/web", "--", "true"]);
    assert!(!host.lab("lab").join("saved").exists(), "it cannot be restored twice");
    let (_, stderr) = host.expect(2, &["restore", "lab"]);
    assert!(stderr.contains("lab `lab` is running and was not saved"), "{stderr}");
    let (stdout, _) = host.expect(0, &["save"]);
    assert!(stdout.starts_with("lab: saved, 0 MiB of memory"), "{stdout}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn what_cannot_be_saved_runs_on_and_what_cannot_be_restored_stays() {
    let host = Host::new();
    host.up("lab", &["unsavable"]);
    let (_, stderr) = host.expect(1, &["save"]);
    assert!(stderr.contains("machine unsavable: it cannot be saved"), "{stderr}");
    assert_eq!(states(&host), ["ready"]);
    assert!(!host.lab("lab").join(".saved").exists());
    host.expect(0, &["down"]);

    host.up("lab", &["lost"]);
    host.expect(0, &["save"]);
    for _ in 0..2 {
        let (_, stderr) = host.expect(1, &["restore"]);
        assert!(stderr.contains("machine lost: it was saved on another kind of processor"), "{stderr}");
        assert!(stderr.contains("what was saved is still there"), "{stderr}");
    }
    std::fs::remove_file(host.lab("lab").join("saved/lost.memory")).expect("removed");
    let (_, stderr) = host.expect(1, &["restore"]);
    assert!(stderr.contains("saved/lost.memory: opening"), "{stderr}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_vmm_that_lives_beside_what_was_saved_goes_on() {
    let host = Host::new();
    host.up("lab", &["web"]);
    for left in ["saved", ".saved"] {
        // As a supervisor leaves it that is killed before it has killed the vmm.
        host.expect(0, &["pause"]);
        wait_for(&host, &["paused"]);
        let supervisor = host.ps()["supervisor_pid"].as_i64().expect("a pid").to_string();
        std::fs::create_dir(host.lab("lab").join(left)).expect("a folder");
        let killed = std::process::Command::new("kill").args(["-KILL", &supervisor]).status().expect("kill");
        assert!(killed.success());
        wait_for(&host, &["ready"]);
        assert!(!host.lab("lab").join(left).exists(), "{left}");
    }
    let (stdout, _) = host.expect(0, &["events"]);
    assert!(stdout.contains("a save or a restore was interrupted: the machines go on"), "{stdout}");
    host.expect(0, &["down"]);
    host.assert_clean();
}
