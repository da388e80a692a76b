//! Networks that `up` has come to a lab that runs, and leave it: private ones, and those with a way out, whose uplinks come and go with them.

use std::path::Path;

use super::host::{Host, kill, until};
use super::members::{LOCAL, machines, manifest, vmm_log};
use rustix::process::Signal;
use serde_json::{Value, json};

const SMALL: &[(&str, &[&str])] = &[("web", &["local"])];
const OPEN: &[(&str, bool)] = &[("local", true), ("edge", false)];
const LARGE: &[(&str, &[&str])] = &[("web", &["local"]), ("db", &["local", "edge"])];

fn state(host: &Host) -> Value {
    serde_json::from_slice(&std::fs::read(host.lab("lab").join("state.json")).expect("a state")).expect("JSON")
}

/// Networks that have an uplink, with its process.
fn uplinks(host: &Host) -> Vec<(String, i32)> {
    let state = state(host);
    let uplinks = state["uplinks"].as_array().expect("uplinks").iter();
    let one = |uplink: &Value| {
        let pid = uplink["process"]["pid"].as_i64().expect("a pid");
        (uplink["network"].as_str().expect("a name").to_owned(), i32::try_from(pid).expect("a pid"))
    };
    uplinks.map(one).collect()
}

fn lives(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

fn uplink_log(host: &Host) -> String {
    std::fs::read_to_string(host.lab("lab").join("uplink.log")).expect("the uplinks' log")
}

/// The last table that a network's uplink was given.
fn table(host: &Host, network: &str) -> Value {
    let log = uplink_log(host);
    let tables = log.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("table: ")?).ok());
    tables.rev().find(|table| table["network"] == network).expect("a table")
}

fn kill_supervisor(host: &Host) {
    kill(host.ps()["supervisor_pid"].as_i64().expect("a pid") as i32, Signal::KILL);
}

#[test]
fn a_private_network_comes_with_a_machine_and_leaves_with_it() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, LOCAL, SMALL)]);
    let large = [("web", &["local"][..]), ("db", &["local", "back"])];
    host.expect(0, &["up", &manifest(&host, &[("local", true), ("back", true)], &large)]);
    assert!(vmm_log(&host).contains("\nnetwork: back\n"), "{}", vmm_log(&host));
    assert_eq!(machines(&host), ["web ready", "db ready"]);
    assert_eq!(uplinks(&host), []);
    host.expect(0, &["up", &manifest(&host, LOCAL, SMALL)]);
    assert!(vmm_log(&host).contains("\nno network: back\n"), "{}", vmm_log(&host));
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_network_with_a_way_out_comes_to_a_running_lab_and_leaves_nothing_when_it_goes() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, LOCAL, SMALL)]);
    let vmm = host.ps()["vmm_pid"].clone();
    let (stdout, _) = host.expect(0, &["up", &manifest(&host, OPEN, LARGE)]);
    assert!(stdout.contains("network edge is new, with a way out (a fake)"), "{stdout}");
    assert_eq!((machines(&host), &host.ps()["vmm_pid"]), (vec!["web ready".to_owned(), "db ready".to_owned()], &vmm));
    let [(network, pid)] = uplinks(&host).try_into().expect("one");
    assert!(network == "edge" && lives(pid));
    let (stdout, _) = host.expect(0, &["status", "lab", "--json"]);
    let shown: Value = serde_json::from_str(&stdout).expect("JSON");
    let ways: Vec<_> = shown["networks"].as_array().expect("networks").iter().map(|one| &one["way_out"]).collect();
    assert_eq!(ways, [&Value::Null, &json!("a fake")]);

    // A further one has an uplink of its own, and the two refuse each other's addresses.
    let three = [("local", true), ("edge", false), ("more", false)];
    host.expect(0, &["up", &manifest(&host, &three, LARGE)]);
    let [first, (more, pid_more)] = uplinks(&host).try_into().expect("two");
    assert_eq!((first, more.as_str()), (("edge".to_owned(), pid), "more"));
    assert_eq!(table(&host, "edge")["others"], json!(["172.16.2.0/24"]));
    assert_eq!(table(&host, "more")["others"], json!(["172.16.1.0/24"]));
    host.expect(0, &["up", &manifest(&host, OPEN, LARGE)]);
    assert!(!lives(pid_more) && lives(pid), "the one that went");
    assert!(!host.lab("lab").join("uplink-more.sock").exists());
    assert_eq!(table(&host, "edge")["others"], json!([]));

    // Whoever is on it leaves first, then it.
    host.expect(0, &["up", &manifest(&host, LOCAL, SMALL)]);
    assert_eq!((uplinks(&host), lives(pid), machines(&host)), (vec![], false, vec!["web ready".to_owned()]));
    assert!(vmm_log(&host).contains("\nno network: edge\n"), "{}", vmm_log(&host));
    assert_eq!(&host.ps()["vmm_pid"], &vmm);
    host.expect(0, &["restart", "lab"]);
    assert_eq!(uplinks(&host), []);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_gateway_knows_who_comes_and_who_leaves_whoever_supervises() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, OPEN, LARGE)]);
    let db = json!(["db", "172.16.1.2"]);
    assert!(uplink_log(&host).contains(r#""names":[["db","172.16.1.2"]]"#), "{}", uplink_log(&host));
    let more = [LARGE, &[("mail", &["edge"])]].concat();
    host.expect(0, &["up", &manifest(&host, OPEN, &more)]);
    assert_eq!(table(&host, "edge")["names"], json!([db, ["mail", "172.16.1.3"]]));
    kill_supervisor(&host);
    host.expect(0, &["up", &manifest(&host, OPEN, LARGE)]);
    assert_eq!(table(&host, "edge")["names"], json!([db]));
    // A supervisor that was killed before it could tell is made up for by the next one.
    let before = uplink_log(&host).matches("table: ").count();
    kill_supervisor(&host);
    host.expect(0, &["exec", "lab/web", "--", "true"]);
    until("the gateway is told anew", || uplink_log(&host).matches("table: ").count() > before);
    // And who starts again is known from the start.
    host.expect(0, &["up", &manifest(&host, OPEN, &more)]);
    host.expect(0, &["restart", "lab"]);
    let log = uplink_log(&host);
    let spec = log.lines().rfind(|line| line.starts_with("spec: ")).expect("a spec");
    assert!(spec.contains(r#""names":[["db","172.16.1.2"],["mail","172.16.1.3"]]"#), "{spec}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_network_whose_uplink_fails_comes_without_a_way_out_and_the_next_change_tries_again() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, LOCAL, SMALL)]);
    let broken = [("local", true), ("broken", false)];
    let (stdout, _) = host.expect(0, &["up", &manifest(&host, &broken, SMALL)]);
    assert!(stdout.contains("network broken is new, without a way out"), "{stdout}");
    let (stdout, _) = host.expect(0, &["events", "lab"]);
    assert!(stdout.contains("networks without a way out: broken (nobody lets it out)"), "{stdout}");
    assert_eq!((uplinks(&host), machines(&host)), (vec![], vec!["web ready".to_owned()]));
    let tried = uplink_log(&host).matches("spec: ").count();
    let two = [("web", &["local"][..]), ("db", &["broken"])];
    host.expect(0, &["up", &manifest(&host, &broken, &two)]);
    assert_eq!((uplink_log(&host).matches("spec: ").count(), machines(&host).len()), (tried + 1, 2));
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn an_uplink_that_was_killed_is_replaced_by_the_next_change() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, OPEN, SMALL)]);
    let [(_, first)] = uplinks(&host).try_into().expect("one");
    kill(first, Signal::KILL);
    until("it is gone", || !lives(first));
    host.expect(0, &["up", &manifest(&host, OPEN, LARGE)]);
    let [(_, second)] = uplinks(&host).try_into().expect("one");
    assert!(second != first && lives(second));
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn ways_out_end_with_the_vmm_however_it_ends() {
    let host = Host::new();
    let open = manifest(&host, OPEN, LARGE);
    host.expect(0, &["up", &open]);
    let pid = |host: &Host| uplinks(host).first().expect("one").1;
    let first = pid(&host);
    kill(host.ps()["vmm_pid"].as_i64().expect("a pid") as i32, Signal::KILL);
    until("its supervisor has ended it", || uplinks(&host).is_empty());
    assert!(!lives(first));
    host.expect(0, &["up", &open]);
    // What was saved goes on with another.
    let second = pid(&host);
    host.expect(0, &["save", "lab"]);
    assert_eq!((uplinks(&host), lives(second)), (vec![], false));
    host.expect(0, &["restore", "lab"]);
    let third = pid(&host);
    assert!(lives(third));
    // Nobody supervises, and the vmm is killed: whoever comes next sees that all of it is gone.
    kill_supervisor(&host);
    kill(host.ps()["vmm_pid"].as_i64().expect("a pid") as i32, Signal::KILL);
    host.expect(0, &["down"]);
    assert!(!lives(third));
    host.assert_clean();
}

#[test]
fn a_private_network_that_is_to_be_open_or_the_other_way_round_takes_a_restart() {
    let host = Host::new();
    host.expect(0, &["up", &manifest(&host, OPEN, LARGE)]);
    let private = manifest(&host, &[("local", true), ("edge", true)], LARGE);
    let (_, stderr) = host.expect(2, &["up", &private]);
    let why = "networks[edge].private was false, is true";
    assert!(stderr.contains(why) && stderr.contains("--restart` stops it, applies that"), "{stderr}");
    assert_eq!(uplinks(&host).len(), 1);
    host.expect(0, &["up", &private, "--restart"]);
    assert_eq!((uplinks(&host), machines(&host).len()), (vec![], 2));
    host.expect(0, &["down"]);
    host.assert_clean();
}
