//! Machines that stand still because the host's disk has no room: what is said of them, what lets them go on, and how they end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::host::{Host, PATIENCE};

/// What `ps` says of the machine, once that is its state.
fn wait_for(host: &Host, state: &str) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let machine = host.ps()["machines"][0].take();
        if machine["state"] == state {
            return machine;
        }
        assert!(Instant::now() < until, "{machine}, not {state}");
        std::thread::yield_now();
    }
}

/// The fake machine has no room from now on.
fn fill(host: &Host) -> Value {
    host.expect(0, &["limit", "lab/full:d00", "--ops", "1"]);
    wait_for(host, "paused: host disk full")
}

#[test]
fn a_machine_without_room_says_so_with_the_way_out_and_goes_on_once_there_is_some() {
    let host = Host::new();
    host.up("lab", &["full", "web"]);
    let machine = fill(&host);
    let folder = host.lab("lab").join("machines/full");
    let reason = machine["reason"].as_str().expect("a reason");
    assert!(
        reason.starts_with("drive d00: No space left on device (os error 28); free space on the file system /"),
        "{reason}"
    );
    assert!(reason.ends_with(&format!(" of {}, then `labyard resume lab/full`", folder.display())), "{reason}");
    assert_eq!((&machine["ready"], &machine["full_drives"][0]["errno"]), (&json!(false), &json!(28)));
    assert_eq!(machine["full_drives"][0]["drive"], "d00");
    let (stdout, _) = host.expect(0, &["ps"]);
    assert!(stdout.contains(&format!("lab/full: paused, {reason}\n")), "{stdout}");
    let (stdout, _) = host.expect(0, &["status", "lab"]);
    assert!(stdout.contains("lab/full: paused: host disk full, 1 x 32 MiB"), "{stdout}");
    assert!(stdout.contains(&format!("HostDiskFull: {reason}")) || stdout.contains(&format!(": {reason}")), "{stdout}");
    let (stdout, _) = host.expect(0, &["status", "lab", "--json"]);
    let status: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!(status["machines"][0]["reason"], reason);
    let names = |machine: &Value| -> Vec<String> {
        let conditions = machine["conditions"].as_array().expect("conditions");
        conditions.iter().map(|condition| condition["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert!(names(&machine).contains(&"HostDiskFull".to_owned()));

    for name in ["lab/full", "lab"] {
        let (_, stderr) = host.expect(2, &["resume", name]);
        assert!(stderr.contains(&format!("machine `full` stays paused: {reason}")), "{stderr}");
    }
    host.expect(0, &["exec", "lab/web", "--", "true"]);
    host.expect(0, &["limit", "lab/full:d00", "--off"]);
    let machine = wait_for(&host, "ready");
    assert_eq!((&machine["reason"], &machine["full_drives"]), (&Value::Null, &json!([])));
    assert!(!names(&machine).contains(&"HostDiskFull".to_owned()), "it is over");
    host.expect(0, &["resume", "lab/full"]);
    let (stdout, _) = host.expect(0, &["events", "lab", "--json"]);
    let full: Vec<Value> = stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok()?.pointer("/what/vmm/happening/host-disk").cloned())
        .collect();
    assert_eq!(full, [json!({"drive": "d00", "full": true, "errno": 28}), json!({"drive": "d00", "full": false})]);
    let (stdout, _) = host.expect(0, &["events", "lab"]);
    assert!(stdout.contains("full: the host's disk has no room for what drive d00 writes: it waits"), "{stdout}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_machine_without_room_is_stopped_at_once() {
    let host = Host::new();
    host.up("lab", &["full", "web"]);
    fill(&host);
    let start = Instant::now();
    assert_eq!(host.expect(0, &["stop", "lab/full", "--grace", "10m"]).0, "full: killed\n");
    let machine = wait_for(&host, "killed");
    assert_eq!((&machine["reason"], &machine["full_drives"]), (&Value::Null, &json!([])));
    host.expect(0, &["start", "lab/full"]);
    fill(&host);
    assert_eq!(host.expect(0, &["stop", "lab", "--grace", "10m"]).0, "full: killed\nweb: powered off\n");
    host.expect(0, &["start", "lab"]);
    fill(&host);
    host.expect(0, &["down", "lab", "--grace", "10m"]);
    assert!(start.elapsed() < Duration::from_secs(300), "it was not waited for");
    host.assert_clean();
}

#[test]
fn the_next_supervisor_knows_that_a_machine_has_no_room() {
    let host = Host::new();
    host.up("lab", &["full"]);
    let before = fill(&host);
    let supervisor = host.ps()["supervisor_pid"].as_i64().expect("a process");
    let killed = std::process::Command::new("kill").args(["-KILL", &supervisor.to_string()]).status().expect("kill");
    assert!(killed.success());
    let until = Instant::now() + PATIENCE;
    while host.ps()["supervisor_pid"] == supervisor {
        assert!(Instant::now() < until, "it lives");
        std::thread::yield_now();
    }
    assert_eq!(wait_for(&host, "paused: host disk full")["reason"], before["reason"]);
    host.expect(0, &["limit", "lab/full:d00", "--off"]);
    wait_for(&host, "ready");
    host.expect(0, &["down"]);
    host.assert_clean();
}
