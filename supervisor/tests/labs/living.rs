//! `status`, `wait`, `rename`, and labs that end by themselves.

use std::process::Stdio;

use super::host::{Host, Running, kill, until};
use rustix::process::Signal;
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("one document")
}

#[test]
fn status_tells_all_of_a_lab_while_it_runs_and_when_it_does_not() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    let (stdout, _) = host.expect(0, &["status", "lab"]);
    for part in [
        "lab: running",
        "lab/web: ready",
        "AgentReachable (+",
        "eth0  172.16.0.2 on local, 02:",
        "d00   1MiB over ",
        "network local: 172.16.0.0/24",
    ] {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    assert!(stdout.contains("d00: reads 7\n"), "what the vmm counts\n{stdout}");
    let told = json(&host.expect(0, &["status", "--json"]).0);
    assert_eq!((&told["standing"], &told["counters"]["web"]["d00"]["reads"]), (&"running".into(), &7.into()));
    assert_eq!(told["drives"][1]["machine"], "db");
    host.expect(0, &["stop", "lab"]);
    let (stdout, _) = host.expect(0, &["status", "lab"]);
    assert!(stdout.contains("lab: stopped: stopped") && stdout.contains("lab/web: powered off"), "{stdout}");
    host.expect(2, &["status", "lan"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn wait_ends_when_it_is_so_when_it_cannot_be_and_when_time_is_over() {
    let host = Host::new();
    host.expect(0, &["up", "--detach", &host.manifest("lab", &["web", "mute"])]);
    assert_eq!(host.expect(0, &["wait", "lab/web"]).0, "lab/web: ready\n");
    host.expect(0, &["wait", "lab", "--for", "KERNEL-STARTED"]);
    let (_, stderr) = host.expect(3, &["wait", "lab", "--timeout", "1s"]);
    assert!(stderr.contains("lab is not ready within 1 s"), "{stderr}");
    let mut waiting =
        host.command(&["wait", "lab", "--for", "stopped"]).stdout(Stdio::null()).spawn().expect("it starts");
    host.expect(0, &["stop", "lab/web"]);
    let (_, stderr) = host.expect(1, &["wait", "lab/web", "--for", "agent-reachable"]);
    assert!(stderr.contains("machine `web` has ended: powered off"), "{stderr}");
    host.expect(0, &["wait", "lab/web", "--for", "stopped"]);
    assert!(waiting.try_wait().expect("looking").is_none(), "the lab runs");
    host.expect(0, &["stop", "lab", "--grace", "1s"]);
    assert!(waiting.wait().expect("waiting").success());
    let (_, stderr) = host.expect(1, &["wait", "lab"]);
    assert!(stderr.contains("lab `lab` is stopped: stopped"), "{stderr}");
    host.expect(2, &["wait", "lan"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_lab_is_renamed_while_it_does_not_run() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let (_, stderr) = host.expect(2, &["rename", "lab", "other"]);
    assert!(stderr.contains("lab `lab` is running: stop it first with `labyard stop lab`"), "{stderr}");
    host.expect(0, &["stop", "lab"]);
    host.expect(2, &["rename", "lab", "../other"]);
    host.up("there", &["web"]);
    let (_, stderr) = host.expect(2, &["rename", "lab", "there"]);
    assert!(stderr.contains("lab `there` is there already"), "{stderr}");
    host.expect(0, &["down", "there"]);
    assert_eq!(host.expect(0, &["rename", "lab", "other"]).0, "lab: other from now on\n");
    assert_eq!(host.ps()["name"], "other");
    host.expect(0, &["start", "other"]);
    host.expect(0, &["exec", "other/web", "--", "true"]);
    host.expect(0, &["stop", "other"]);
    // As a command that was killed half way leaves it.
    std::fs::rename(host.lab("other"), host.lab("third")).expect("renaming");
    host.expect(0, &["start", "third"]);
    host.expect(0, &["exec", "third/web", "--", "true"]);
    host.expect(0, &["down", "third"]);
    host.assert_clean();
}

#[test]
fn a_lab_ends_when_its_lifetime_is_over_and_is_removed_where_that_was_asked_for() {
    let host = Host::new();
    host.expect(0, &["up", &host.manifest("lab", &["web"]), "--lifetime", "1s"]);
    until("it has stopped by itself", || host.ps()["standing"] == "stopped" && host.ps()["supervisor_pid"].is_null());
    let (stdout, _) = host.expect(0, &["events", "lab"]);
    assert!(stdout.contains("its lifetime is over: the lab is stopped"), "{stdout}");
    assert!(host.expect(0, &["expire", "lab", "--never"]).0.contains("does not end by itself"));
    host.expect(0, &["start", "lab"]);
    let (stdout, _) = host.expect(0, &["expire", "lab", "1h", "--idle", "30m"]);
    assert!(stdout.contains("stops at 2") && stdout.contains("stops when nobody has used it for 30m"), "{stdout}");
    assert_eq!(host.ps()["standing"], "running");
    host.expect(2, &["expire", "lab"]);
    host.expect(0, &["expire", "lab", "0s", "--on-expiry", "remove"]);
    until("it is gone", || std::fs::read_dir(host.home().join("playgrounds")).expect("listing").next().is_none());
    host.assert_clean();
}

#[test]
fn a_lab_that_is_in_use_is_not_idle_and_whoever_takes_over_minds_it_too() {
    let host = Host::new();
    host.expect(0, &["up", &host.manifest("lab", &["web"]), "--idle", "1s", "--on-expiry", "remove", "--detach"]);
    let mut command = host.command(&["exec", "-i", "lab/web", "--", "sh", "-c", "echo up; sleep 3; echo still; cat"]);
    until("it can be used", || {
        host.run(&["wait", "lab", "--timeout", "1s"]).status.success() || !host.lab("lab").exists()
    });
    let mut used = Running::start(command.stdin(Stdio::piped()));
    used.wait_for("up");
    used.wait_for("still");
    assert_eq!(host.ps()["standing"], "running", "three seconds of use are not one of idleness");
    let supervisor = i32::try_from(host.ps()["supervisor_pid"].as_i64().expect("a pid")).expect("a pid");
    kill(supervisor, Signal::KILL);
    used.end();
    // The next command brings another supervisor, under which nobody uses it.
    until("it is gone", || {
        host.run(&["ps"]).status.success()
            && std::fs::read_dir(host.home().join("playgrounds")).expect("listing").next().is_none()
    });
    host.assert_clean();
}
