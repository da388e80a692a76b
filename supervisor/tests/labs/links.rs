//! Links of a lab, as a person disturbs and watches them. The monitor is a fake that writes down what it is told.

use std::fs;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::host::{Host, Running, until};

/// The changes that the monitor was told, in order.
fn told(host: &Host) -> Vec<Value> {
    let log = fs::read_to_string(host.lab("lab").join("vmm.log")).expect("a log");
    let changes = log.lines().filter_map(|line| line.strip_prefix("change: "));
    changes.map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn what_is_typed_reaches_the_links_that_are_meant() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    let (stdout, _) = host.expect(0, &["net", "delay", "lab/web", "50ms", "--jitter", "5ms"]);
    assert_eq!(stdout, "lab/web: a delay of 50ms ± 5ms\n");
    host.expect(0, &["net", "loss", "-p", "lab", "web:local", "2%", "--only", "sent"]);
    host.expect(0, &["net", "rate", "db", "10Mbit", "--only", "received"]);
    host.expect(0, &["net", "cut", "lab:local"]);
    host.expect(0, &["net", "cut", "lab/web", "--carrier"]);
    host.expect(0, &["net", "heal", "lab/web"]);
    let of = |machine: &str, direction: &str, change: Value| {
        json!({ "machine": machine, "change": {
            "disturb": { "interface": 0, "direction": direction, "change": change } } })
    };
    let expected = [
        of("web", "both", json!({ "delay": { "delay_us": 50_000, "jitter_us": 5_000 } })),
        of("web", "sent", json!({ "loss": { "ppm": 20_000 } })),
        of("db", "received", json!({ "rate": { "bits_per_second": 10_000_000 } })),
        json!({ "machine": null, "change": { "disturb-network": { "network": "local", "change": "cut" } } }),
        json!({ "machine": "web", "change": { "link": { "interface": 0, "up": false } } }),
        of("web", "both", json!("heal")),
    ];
    assert_eq!(told(&host), expected);

    for (arguments, part) in [
        (&["net", "delay", "lab/web:lan", "1s"][..], "machine `web` is not plugged into `lan`; it is into local"),
        (&["net", "loss", "lab/nobody", "2%"], "no machine `nobody` in lab `lab`: there is web, db"),
        (&["net", "cut", "lab:local", "--only", "sent"], "--only is of one machine"),
        (&["net", "heal", "nolab:local"], "lab `nolab` is not there; there is lab"),
        (&["net", "loss", "lab/web", "2"], "write it as 2% or 0.1%, 100% at most"),
        (&["net", "delay", "lab/web", "50"], "write it as 50ms, 200us or 1s"),
    ] {
        let (_, stderr) = host.expect(2, arguments);
        assert!(stderr.contains(part), "{arguments:?}: {stderr}");
    }
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn links_are_shown_as_a_table_and_as_a_document() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let (stdout, _) = host.expect(0, &["net", "show"]);
    let lines: Vec<_> = stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["MACHINE", "NIC", "NETWORK", "SENT", "RECEIVED", "LOST"]);
    assert_eq!(lines[1], ["web", "eth0", "local", "loses", "2%", "-", "3"]);
    let (stdout, _) = host.expect(0, &["net", "show", "lab", "--json"]);
    let shown: Value = serde_json::from_str(&stdout).expect("one document");
    let link = &shown["links"][0];
    assert_eq!((&link["machine"], &link["interface"], &link["carrier"]), (&json!("web"), &json!("eth0"), &json!(true)));
    assert_eq!((&link["sent"]["loss_ppm"], &link["counters"]["lost_sent"]), (&json!(20_000), &json!(3)));
    host.expect(0, &["down"]);
}

#[test]
fn a_capture_goes_into_a_file_until_it_is_interrupted_or_the_lab_ends() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let file = host.home().join("lan.pcap");
    let path = file.to_str().expect("UTF-8");
    let written = || fs::read(&file).unwrap_or_default() == b"captured";
    let capture = Running::start(&mut host.command(&["net", "pcap", "lab:local", "-w", path]));
    until("frames are in the file", written);
    capture.signal(Signal::INT);
    let (code, stderr) = capture.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("lan.pcap: 8 bytes"), "{stderr}");

    let (_, stderr) = host.expect(2, &["net", "pcap", "lab:lan", "-w", path]);
    assert!(stderr.contains("no machine of `lab` is plugged into `lan`"), "{stderr}");
    // What the first capture has written would do for the second.
    fs::remove_file(&file).expect("removed");
    let mut capture = Running::start(&mut host.command(&["net", "pcap", "web", "-w", path]));
    until("frames are in the file again", written);
    assert!(capture.child.try_wait().expect("waiting").is_none());
    host.expect(0, &["down"]);
    assert_eq!(capture.end().0, Some(0), "it ends with the lab");
    fs::remove_file(&file).expect("removed");
    host.assert_clean();
}
