//! Init tasks. The fake monitor runs their scripts on this host.

use std::fs;
use std::path::PathBuf;

use super::host::{Host, Running, kill, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A manifest with two machines and these tasks; `FOLDER` in scripts is a folder of the test's own.
fn manifest(host: &Host, machines: &[&str], tasks: &Value) -> (String, PathBuf) {
    let folder = host.home().with_file_name("work");
    fs::create_dir_all(&folder).expect("a folder");
    let machine = |name: &&str| {
        json!({
            "name": name, "drives": [{ "source": "debian", "mount": "/", "size": "1MiB" }],
            "network": { "interfaces": [{ "network": "local" }] }, "resources": { "ramSize": "32MiB" },
        })
    };
    let text = json!({
        "kind": "playground", "name": "lab",
        "playground": {
            "networks": [{ "name": "local", "subnet": "172.16.0.0/24", "private": true }],
            "machines": machines.iter().map(machine).collect::<Vec<_>>(),
            "initConditions": { "values": [{ "key": "data-set", "default": "small", "options": ["small", "large"] }] },
            "initTasks": tasks,
        },
    });
    let text: Value =
        serde_json::from_str(&text.to_string().replace("FOLDER", folder.to_str().expect("UTF-8"))).expect("JSON");
    (host.write_manifest("lab", &text), folder)
}

fn task(machine: &str, needs: &[&str], run: &str) -> Value {
    json!({ "init": true, "machine": machine, "needs": needs, "run": run, "user": "worker" })
}

fn states(host: &Host) -> Vec<String> {
    let told: Value = serde_json::from_str(&host.expect(0, &["tasks", "lab", "--json"]).0).expect("one document");
    let one = |task: &Value| {
        format!("{} {}", task["name"].as_str().expect("a name"), task["status"].as_str().expect("a status"))
    };
    told["tasks"].as_array().expect("tasks").iter().map(one).collect()
}

#[test]
fn tasks_run_in_order_once_and_pass_on_what_they_found() {
    let host = Host::new();
    let mut tasks = json!({
        "token": task("web", &[], "echo token on $AS_USER; echo TOKEN=abc=1 >> $LABYARD_ENV; dirname $LABYARD_ENV"),
        "join": task("db", &["token"], "echo got $TOKEN $LABYARD_DATA_SET; echo x >> FOLDER/joined"),
        "last": task("web", &["join", "large"], "test $(cat FOLDER/joined) = x && echo $TOKEN"),
        "large": task("web", &[], "exit 1"),
    });
    tasks["large"]["conditions"] = json!([{ "key": "data-set", "value": "large" }]);
    let (file, folder) = manifest(&host, &["web", "db"], &tasks);
    let (stdout, _) = host.expect(0, &["up", &file]);
    for part in ["web: task token: completed", "TasksDone: init tasks completed: 3", "Ready: every machine can be used"]
    {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    assert!(stdout.find("TasksDone") < stdout.find("] Ready: every"), "{stdout}");
    assert_eq!(host.expect(0, &["tasks", "lab", "token"]).0, "token on worker\n/dev/shm\n");
    assert_eq!(host.expect(0, &["tasks", "lab", "join"]).0, "got abc=1 small\n");
    assert_eq!(host.expect(0, &["tasks", "lab", "last"]).0, "abc=1\n");
    assert_eq!(states(&host), ["join completed", "last completed", "token completed"]);
    host.expect(0, &["stop", "lab"]);
    host.expect(0, &["start", "lab"]);
    assert_eq!(fs::read_to_string(folder.join("joined")).expect("a file"), "x\n", "once, whatever starts again");
    let (_, stderr) = host.expect(2, &["tasks", "lab", "join", "--retry"]);
    assert!(stderr.contains("task `join` is completed: only one that failed runs again"), "{stderr}");
    let (_, stderr) = host.expect(2, &["tasks", "lab", "none"]);
    assert!(stderr.contains("there is join, last, token"), "{stderr}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_task_that_fails_ends_up_with_its_own_code_and_can_run_again() {
    let host = Host::new();
    let tasks = json!({
        "first": task("web", &[], "echo looking >&2; test -e FOLDER/ready || exit 7"),
        "second": task("web", &["first"], "echo done"),
    });
    let (file, folder) = manifest(&host, &["web"], &tasks);
    let (_, stderr) = host.expect(4, &["up", &file]);
    for part in ["init task `first` failed: its script ended with 7", "looking", "labyard tasks lab first --retry"] {
        assert!(stderr.contains(part), "{part}\n{stderr}");
    }
    assert_eq!(states(&host), ["first failed", "second blocked"]);
    assert_eq!(host.ps()["machines"][0]["state"], "ready", "the lab runs on");
    host.expect(4, &["wait", "lab"]);
    host.expect(4, &["up", &file]);
    host.expect(4, &["tasks", "lab", "first", "--retry"]);
    fs::write(folder.join("ready"), "").expect("writing");
    host.expect(0, &["tasks", "lab", "first", "--retry"]);
    host.expect(0, &["wait", "lab", "--timeout", "60s"]);
    assert_eq!(states(&host), ["first completed", "second completed"]);
    host.expect(0, &["up", &file]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn parameters_are_chosen_when_the_lab_is_made() {
    let host = Host::new();
    let (file, _) = manifest(&host, &["web"], &json!({ "show": task("web", &[], "echo $LABYARD_DATA_SET") }));
    let (_, stderr) = host.expect(2, &["up", &file, "-i", "data-set=huge"]);
    assert!(stderr.contains("-i data-set=huge: none of the options small, large"), "{stderr}");
    host.expect(2, &["up", &file, "-i", "colour=red"]);
    host.expect(0, &["up", &file, "-i", "data-set=large"]);
    assert_eq!(host.expect(0, &["tasks", "lab", "show"]).0, "large\n");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_task_that_takes_too_long_or_loses_its_supervisor_has_failed_and_its_program_is_gone() {
    let host = Host::new();
    let mut slow = task("web", &[], "echo $$ > FOLDER/pid; exec sleep 600");
    slow["timeout_seconds"] = json!(1);
    let (file, folder) = manifest(&host, &["web"], &json!({ "slow": slow }));
    let (_, stderr) = host.expect(4, &["up", &file]);
    assert!(stderr.contains("init task `slow` failed: not done within 1 s"), "{stderr}");
    let gone = || {
        let pid = fs::read_to_string(folder.join("pid")).unwrap_or_default();
        // Its number may be somebody else's by now.
        let line = fs::read(std::path::Path::new("/proc").join(pid.trim()).join("cmdline")).unwrap_or_default();
        !pid.trim().is_empty() && line != b"sleep\x00600\x00"
    };
    until("its program is gone", gone);
    host.expect(0, &["down"]);

    let (file, _) =
        manifest(&host, &["web"], &json!({ "slow": task("web", &[], "echo $$ > FOLDER/pid; exec sleep 600") }));
    let mut up = Running::start(&mut host.command(&["up", &file]));
    up.wait_for("task slow: running");
    kill(i32::try_from(host.ps()["supervisor_pid"].as_i64().expect("a pid")).expect("a pid"), Signal::KILL);
    let (code, stderr) = up.end();
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains("its supervisor ended while it ran"), "{stderr}");
    until("its program is gone", gone);
    host.expect(0, &["down"]);
    host.assert_clean();
}
