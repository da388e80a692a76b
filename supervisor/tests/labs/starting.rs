//! `start` and `restart`: labs and machines that have ended come back on the drives that they left.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};

use super::host::{Host, Running, has_ended, kill, until};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What a guest would have written behind what the fake monitor writes.
fn leave_a_mark(host: &Host, machine: &str) {
    let path = host.lab("lab").join("machines").join(machine).join("d00.overlay");
    let mut layer = OpenOptions::new().write(true).open(path).expect("the layer");
    layer.seek(SeekFrom::Start(100)).expect("seeking");
    layer.write_all(b"kept").expect("writing");
}

fn has_mark(host: &Host, machine: &str) -> bool {
    let bytes = std::fs::read(host.lab("lab").join("machines").join(machine).join("d00.overlay")).expect("the layer");
    bytes.get(100..) == Some(b"kept")
}

fn states(host: &Host) -> Vec<String> {
    let ps = host.ps();
    let machines = ps["machines"].as_array().expect("machines");
    machines.iter().map(|machine| machine["state"].as_str().expect("a state").to_owned()).collect()
}

fn pid(lab: &Value, who: &str) -> i32 {
    i32::try_from(lab[who].as_i64().expect("a pid")).expect("a pid")
}

#[test]
fn a_stopped_lab_starts_again_on_its_drives() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    leave_a_mark(&host, "web");
    host.expect(0, &["stop", "lab"]);
    let (stdout, _) = host.expect(0, &["ps"]);
    assert!(stdout.contains("stopped"), "{stdout}");
    let (stdout, _) = host.expect(0, &["start", "lab"]);
    assert!(stdout.contains("starts again") && stdout.contains("Ready: every machine can be used"), "{stdout}");
    assert_eq!(states(&host), ["ready", "ready"]);
    assert!(has_mark(&host, "web"));
    host.expect(0, &["exec", "lab/db", "--", "true"]);
    let (_, stderr) = host.expect(0, &["start"]);
    assert!(stderr.contains("lab `lab` runs already: nothing to do"), "{stderr}");
    let conditions: Vec<_> =
        host.ps()["conditions"].as_array().expect("conditions").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(conditions, ["ImagesReady", "DisksReady", "Jailed", "Ready"], "each once");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_machine_of_a_running_lab_stops_and_starts_alone() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    let before = host.ps();
    host.expect(0, &["stop", "lab/web"]);
    leave_a_mark(&host, "web");
    assert_eq!(states(&host), ["powered off", "ready"]);
    let (stdout, _) = host.expect(0, &["start", "lab/web"]);
    assert!(stdout.contains("web: Ready"), "{stdout}");
    assert_eq!(states(&host), ["ready", "ready"]);
    assert!(has_mark(&host, "web"));
    assert_eq!(host.ps()["vmm_pid"], before["vmm_pid"], "the other machine ran on");
    host.expect(0, &["exec", "lab/web", "--", "true"]);
    host.expect(0, &["start", "lab/web"]);
    host.expect(0, &["restart", "lab/db"]);
    assert_eq!(states(&host), ["ready", "ready"]);
    // Whoever looks on by events alone sees the same, and so does a supervisor that comes later.
    kill(pid(&before, "supervisor_pid"), Signal::KILL);
    until("another supervisor has it", || host.ps()["supervisor_pid"] != before["supervisor_pid"]);
    assert_eq!(states(&host), ["ready", "ready"]);
    kill(pid(&host.ps(), "vmm_pid"), Signal::KILL);
    until("its end is written down", || host.ps()["standing"] == "stopped" && host.ps()["supervisor_pid"].is_null());
    assert!(!states(&host).contains(&"powered off".to_owned()), "an end that is over is not told again: {}", host.ps());
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_lab_whose_vmm_was_killed_or_whose_host_was_started_anew_starts_again() {
    let host = Host::new();
    host.up("lab", &["web"]);
    kill(pid(&host.ps(), "vmm_pid"), Signal::KILL);
    until("its end is written down", || host.ps()["standing"] == "stopped" && host.ps()["supervisor_pid"].is_null());
    host.expect(0, &["restart", "lab"]);
    assert_eq!(states(&host), ["ready"]);
    // As a power cut leaves it: nobody wrote down how it ended, and the pids are of another boot.
    let lab = host.ps();
    for who in ["supervisor_pid", "vmm_pid"] {
        kill(pid(&lab, who), Signal::KILL);
    }
    until("both are gone", || host.processes().is_empty());
    let path = host.lab("lab").join("state.json");
    let mut state: Value = serde_json::from_slice(&std::fs::read(&path).expect("a state")).expect("JSON");
    (state["vmm"]["boot"], state["supervisor"]["boot"]) = ("another".into(), "another".into());
    state["end"] = Value::Null;
    std::fs::write(&path, state.to_string()).expect("writing");
    let lab = host.ps();
    assert_eq!((&lab["standing"], &lab["end"]), (&json!("stopped"), &json!("the host was started anew")));
    host.expect(0, &["start", "lab"]);
    assert_eq!(states(&host), ["ready"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn what_cannot_start_says_why_and_the_way_out() {
    let host = Host::new();
    host.expect(2, &["start"]);
    host.up("lab", &["web"]);
    host.expect(0, &["save", "lab"]);
    let (_, stderr) = host.expect(2, &["start", "lab"]);
    assert!(stderr.contains("labyard restore lab"), "{stderr}");
    host.expect(0, &["restore", "lab"]);
    host.expect(0, &["stop", "lab"]);
    let (_, stderr) = host.expect(2, &["start", "lab/web"]);
    assert!(stderr.contains("`labyard start lab` starts all of it"), "{stderr}");
    let (_, stderr) = host.expect(2, &["start", "lab/db"]);
    assert!(stderr.contains("no machine `db` in lab `lab`: there is web"), "{stderr}");
    host.expect(2, &["start", "lan"]);
    host.expect(2, &["restart", "lan"]);
    // A file that the plan names is gone: the lab is stopped as before, and says what is missing.
    std::fs::remove_file(host.lab("lab").join("machines/web/machine.cpio")).expect("removed");
    let (_, stderr) = host.expect(1, &["start", "lab"]);
    assert!(stderr.contains("machine.cpio"), "{stderr}");
    assert_eq!(host.ps()["standing"], "stopped");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_start_is_left_alone_when_asked_and_survives_who_asked() {
    let host = Host::new();
    host.expect(0, &["up", "--detach", &host.manifest("lab", &["mute"])]);
    until("it runs", || host.ps()["standing"] == "running");
    host.expect(0, &["stop", "lab", "--grace", "1s"]);
    host.expect(0, &["start", "lab", "--detach"]);
    host.expect(0, &["stop", "lab", "--grace", "1s"]);
    let (_, stderr) = host.expect(3, &["start", "lab", "--timeout", "1s"]);
    assert!(stderr.contains("mute (last: KernelStarted)"), "{stderr}");
    host.expect(0, &["stop", "lab", "--grace", "1s"]);
    // It is never ready, so that nothing is quicker than the signal.
    let mut start = Running::start(&mut host.command(&["up", &host.manifest("lab", &["mute"])]));
    start.wait_for("Jailed");
    start.signal(Signal::INT);
    let (code, stderr) = start.end();
    assert_eq!(code, Some(130));
    assert!(stderr.contains("goes on starting"), "{stderr}");
    assert_eq!(host.ps()["standing"], "running");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn what_a_machine_printed_is_kept_by_boots() {
    let host = Host::new();
    host.up("lab", &["web"]);
    host.expect(0, &["stop", "lab/web"]);
    host.expect(0, &["start", "lab/web"]);
    host.expect(0, &["restart", "lab"]);
    let line = "web: \x1b[1mbooting\x1b[0m\n";
    assert_eq!(host.expect(0, &["logs", "web"]).0, line.repeat(3));
    for boot in ["1", "2", "3", "-1", "-3"] {
        assert_eq!(host.expect(0, &["logs", "web", "--boot", boot]).0, line, "{boot}");
    }
    let (stdout, _) = host.expect(0, &["logs", "lab/web", "--boots", "--json"]);
    let shown: Value = serde_json::from_str(&stdout).expect("one document");
    let boots = shown["boots"].as_array().expect("a list");
    let rows: Vec<_> = boots.iter().map(|boot| (&boot["number"], &boot["bytes"], &boot["kept_bytes"])).collect();
    let bytes = serde_json::json!(line.len());
    assert_eq!(rows, [1, 2, 3].map(Value::from).iter().map(|number| (number, &bytes, &bytes)).collect::<Vec<_>>());
    assert_eq!(host.expect(0, &["logs", "web", "--boots"]).0.lines().count(), 3);
    let (_, stderr) = host.expect(2, &["logs", "web", "--boot", "4"]);
    assert!(
        stderr.contains("machine `web` has no boot 4: 1 to 3 are known; `labyard logs lab/web --boots`"),
        "{stderr}"
    );
    host.expect(2, &["logs", "web", "--boot", "0"]);
    host.expect(2, &["logs", "web", "--boots", "-f"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn who_starts_a_lab_again_waits_for_the_supervisor_that_sees_it_end() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let before = host.ps();
    let pid = |name: &str| i32::try_from(before[name].as_i64().expect("a pid")).expect("a pid");
    let supervisor = pid("supervisor_pid");
    // It is on its way to write down that the lab has ended.
    kill(supervisor, Signal::STOP);
    kill(pid("vmm_pid"), Signal::KILL);
    let start = Running::start(&mut host.command(&["up", &host.manifest("lab", &["web"])]));
    let lock = std::fs::File::open(host.lab("lab").join("lock")).expect("the lock");
    let is_held = || {
        let free = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        let _ = flock(&lock, FlockOperation::Unlock); // what is not held needs none
        !free
    };
    until("it has the lab", is_held);
    kill(supervisor, Signal::CONT);
    let (code, stderr) = start.end();
    assert_eq!(code, Some(0), "{stderr}");
    until("the one before has ended", || has_ended(supervisor));
    assert_eq!(host.ps()["standing"], "running");
    host.expect(0, &["down"]);
    host.assert_clean();
}
