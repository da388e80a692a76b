//! Machines that `up` has come to a lab that runs, and leave it.

use super::host::{Host, kill};
use serde_json::{Value, json};

/// A manifest with these machines, each on these networks.
pub(crate) fn manifest(host: &Host, networks: &[(&str, bool)], machines: &[(&str, &[&str])]) -> String {
    let machine = |(name, networks): &(&str, &[&str])| {
        json!({
            "name": name,
            "drives": [{ "source": "debian", "mount": "/", "size": "1MiB" }],
            "network": { "interfaces": networks.iter().map(|network| json!({ "network": network })).collect::<Vec<_>>() },
            "resources": { "ramSize": "32MiB" },
        })
    };
    let network = |(at, (name, private)): (usize, &(&str, bool))| json!({ "name": name, "subnet": format!("172.16.{at}.0/24"), "private": private });
    let networks: Vec<_> = networks.iter().enumerate().map(network).collect();
    let machines: Vec<_> = machines.iter().map(machine).collect();
    host.write_manifest(
        "lab",
        &json!({ "kind": "playground", "name": "lab", "playground": { "networks": networks, "machines": machines } }),
    )
}

pub(crate) const LOCAL: &[(&str, bool)] = &[("local", true)];

pub(crate) fn machines(host: &Host) -> Vec<String> {
    let ps = host.ps();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let machines = ps["machines"].as_array().expect("machines").iter();
    machines.map(|machine| format!("{} {}", text(&machine["name"]), text(&machine["state"]))).collect()
}

pub(crate) fn vmm_log(host: &Host) -> String {
    std::fs::read_to_string(host.lab("lab").join("vmm.log")).expect("the vmm's log")
}

#[test]
fn machines_come_and_leave_while_others_run() {
    let host = Host::new();
    let two = manifest(&host, LOCAL, &[("web", &["local"]), ("db", &["local"])]);
    host.expect(0, &["up", &two]);
    let before = host.ps();
    let three = [("web", &["local"][..]), ("db", &["local"]), ("mail", &["local"])];
    let (stdout, _) = host.expect(0, &["up", &manifest(&host, LOCAL, &three)]);
    for part in ["machines[mail] is new", "mail is new and starts", "mail: Ready"] {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    assert_eq!(machines(&host), ["web ready", "db ready", "mail ready"]);
    let now = host.ps();
    assert_eq!(
        (&now["vmm_pid"], &now["machines"][0]),
        (&before["vmm_pid"], &before["machines"][0]),
        "web is as it was"
    );
    for machine in ["web", "db"] {
        let line = format!("hosts of {machine}: ");
        let told = vmm_log(&host);
        let told = told.lines().rev().find(|other| other.starts_with(&line)).expect("it was told");
        assert!(told.contains(r#"{"address":"172.16.0.4","names":["mail"]}"#), "{told}");
    }
    host.expect(0, &["exec", "lab/mail", "--", "true"]);
    let (stdout, _) = host.expect(0, &["up", &manifest(&host, LOCAL, &three)]);
    assert!(stdout.contains("nothing has changed"), "{stdout}");

    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    host.expect(0, &["publish", "lab/mail", &format!("127.0.0.1:{port}:25")]);
    let (stdout, _) = host.expect(0, &["up", &manifest(&host, LOCAL, &[("web", &["local"]), ("db", &["local"])])]);
    for part in ["machines[mail] is gone", "mail: powered off", "mail: gone, with its drives"] {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    assert_eq!(machines(&host), ["web ready", "db ready"]);
    assert!(!host.lab("lab").join("machines/mail").exists());
    assert!(vmm_log(&host).contains(r#"hosts of web: {"gone":["mail"],"here":[]}"#), "{}", vmm_log(&host));
    let (stdout, _) = host.expect(0, &["publish", "lab", "--json"]);
    assert!(!stdout.contains("mail"), "{stdout}");
    assert_eq!(host.ps()["vmm_pid"], before["vmm_pid"]);

    // What has changed is so for the next vmm, and a supervisor that takes over knows it, too.
    host.expect(0, &["up", &manifest(&host, LOCAL, &three)]);
    kill(host.ps()["supervisor_pid"].as_i64().expect("a pid") as i32, rustix::process::Signal::KILL);
    host.expect(0, &["exec", "lab/mail", "--", "true"]);
    assert_eq!(machines(&host), ["web ready", "db ready", "mail ready"]);
    host.expect(0, &["restart", "lab"]);
    assert_eq!(machines(&host), ["web ready", "db ready", "mail ready"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn who_cannot_come_is_not_there_and_the_rest_is_as_it_was() {
    let host = Host::new();
    let small = [("web", &["local"][..])];
    host.expect(0, &["up", &manifest(&host, LOCAL, &small)]);
    let large = manifest(&host, LOCAL, &[("web", &["local"]), ("unwelcome", &["local"])]);
    for _ in 0..2 {
        let (_, stderr) = host.expect(1, &["up", &large]);
        assert!(stderr.contains("machine unwelcome: nobody wants it"), "{stderr}");
        assert_eq!(machines(&host), ["web ready"]);
    }
    // The plan knows of it, and it does not start for that.
    host.expect(0, &["restart", "lab"]);
    assert_eq!(machines(&host), ["web ready"]);
    host.expect(0, &["up", &manifest(&host, LOCAL, &small)]);
    std::fs::write(host.home().join("config.toml"), "[lab]\nmachines = 1\n").expect("writing");
    let (_, stderr) = host.expect(2, &["up", &manifest(&host, LOCAL, &[("web", &["local"]), ("db", &["local"])])]);
    assert!(stderr.contains("2 machines asked for: more than the 1"), "{stderr}");
    assert_eq!(machines(&host), ["web ready"]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

/// The manifest of `names` with an init task in each: that of db needs that of web and leaves what it heard.
fn with_tasks(host: &Host, names: &[&str], said: &str) -> String {
    let machines: Vec<_> = names.iter().map(|name| (*name, &["local"][..])).collect();
    let path = manifest(host, LOCAL, &machines);
    let text = std::fs::read_to_string(&path).expect("reading");
    let mut text: Value = serde_json::from_str(&text).expect("JSON");
    let place = host.home().join("done");
    let task =
        |name: &str, run: &str, needs: &[&str]| json!({ "init": true, "machine": name, "run": run, "needs": needs });
    let mut tasks =
        json!({ "init_web": task("web", &format!("echo web >> {}; echo A=b >> $LABYARD_ENV", place.display()), &[]) });
    if names.contains(&"db") {
        tasks["init_db"] = task("db", &format!("echo db $A {said} >> {}", place.display()), &["init_web"]);
    }
    text["playground"]["initTasks"] = tasks;
    std::fs::write(&path, text.to_string()).expect("writing");
    path
}

#[test]
fn a_machine_that_comes_runs_its_init_tasks_and_nobody_else_does() {
    let host = Host::new();
    let done = || std::fs::read_to_string(host.home().join("done")).unwrap_or_default();
    host.expect(0, &["up", &with_tasks(&host, &["web"], "")]);
    assert_eq!(done(), "web\n");
    host.expect(0, &["up", &with_tasks(&host, &["web", "db"], "first")]);
    assert_eq!(done(), "web\ndb b first\n");
    // One that leaves takes its task along; one that comes again is new, with what the manifest asks for by then.
    host.expect(0, &["up", &with_tasks(&host, &["web"], "")]);
    let (stdout, _) = host.expect(0, &["tasks", "lab", "--json"]);
    assert!(stdout.contains("init_web") && !stdout.contains("init_db"), "{stdout}");
    assert_eq!(host.ps()["conditions"].as_array().expect("conditions").last().expect("one")["name"], "Ready");
    host.expect(0, &["up", &with_tasks(&host, &["web", "db"], "second")]);
    assert_eq!(done(), "web\ndb b first\ndb b second\n");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn tasks_of_who_cannot_come_keep_nobody_waiting() {
    let host = Host::new();
    host.expect(0, &["up", &with_tasks(&host, &["web"], "")]);
    let path = with_tasks(&host, &["web", "unwelcome"], "");
    let text = std::fs::read_to_string(&path).expect("reading");
    let mut text: Value = serde_json::from_str(&text).expect("JSON");
    text["playground"]["initTasks"]["init_unwelcome"] =
        json!({ "init": true, "machine": "unwelcome", "run": "true", "needs": [] });
    std::fs::write(&path, text.to_string()).expect("writing");
    let (_, stderr) = host.expect(1, &["up", &path]);
    assert!(stderr.contains("machine unwelcome: nobody wants it"), "{stderr}");
    let (stdout, _) = host.expect(0, &["tasks", "lab", "--json"]);
    assert!(stdout.contains("init_web") && !stdout.contains("init_unwelcome"), "{stdout}");
    assert_eq!(host.ps()["conditions"].as_array().expect("conditions").last().expect("one")["name"], "Ready");
    // What needed one of them has not got it, and runs where somebody says so.
    let path = with_tasks(&host, &["web", "db", "unwelcome"], "late");
    let text = std::fs::read_to_string(&path).expect("reading");
    let mut text: Value = serde_json::from_str(&text).expect("JSON");
    text["playground"]["initTasks"]["init_db"]["needs"] = json!(["init_web", "init_unwelcome"]);
    text["playground"]["initTasks"]["init_unwelcome"] =
        json!({ "init": true, "machine": "unwelcome", "run": "true", "needs": [] });
    std::fs::write(&path, text.to_string()).expect("writing");
    host.expect(1, &["up", &path]);
    assert_eq!(machines(&host), ["web ready", "db ready"]);
    let (stdout, _) = host.expect(0, &["tasks", "lab", "--json"]);
    assert!(stdout.contains("the machine of a task that it needs could not come"), "{stdout}");
    host.expect(0, &["tasks", "lab", "init_db", "--retry"]);
    assert_eq!(std::fs::read_to_string(host.home().join("done")).expect("reading"), "web\ndb b late\n");
    // Nor after a restart, by what is written down.
    host.expect(0, &["restart", "lab"]);
    let (stdout, _) = host.expect(0, &["tasks", "lab", "--json"]);
    assert!(!stdout.contains("init_unwelcome"), "{stdout}");
    host.expect(0, &["down"]);
    host.assert_clean();
}
