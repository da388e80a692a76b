//! Drives as files, their sizes, and limits, seen from the command line. The monitor is a fake that writes down what it is told.

use std::fs;

use super::host::Host;
use serde_json::{Value, json};

#[test]
fn limits_reach_the_vmm_as_they_were_meant() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    let rate = |per_second, burst| json!({ "per-second": per_second, "burst": burst });
    let limits = |bytes, operations| json!({ "bytes": bytes, "operations": operations });
    let megabyte = limits(rate(1 << 20, 64 << 10), Value::Null);
    let none = limits(Value::Null, Value::Null);
    let cases: &[(&[&str], Value, Value)] = &[
        (
            &["lab/web:d00", "--bytes", "1MiB", "--bytes-burst", "64KiB"],
            "web".into(),
            json!({ "drive-limit": { "serial": "d00", "limits": megabyte } }),
        ),
        (
            &["db:eth0", "--ops", "9", "--ops-burst", "2"],
            "db".into(),
            json!({ "nic-limit": { "interface": 0, "limits": limits(Value::Null, rate(9, 2)) } }),
        ),
        (
            &["lab/web", "--drives", "--ops", "5"],
            "web".into(),
            json!({ "machine-limit": { "limits": limits(Value::Null, rate(5, 0)) } }),
        ),
        (&["-p", "lab", "web", "--nics", "--off"], "web".into(), json!({ "nics-limit": { "limits": none } })),
        (&["lab", "--drives", "--off"], Value::Null, json!({ "playground-limit": { "limits": none } })),
    ];
    for (arguments, machine, change) in cases {
        host.expect(0, &[&["limit"], *arguments].concat());
        let log = fs::read_to_string(host.lab("lab").join("vmm.log")).expect("reading");
        let last = log.lines().filter_map(|line| line.strip_prefix("change: ")).next_back().expect("a change");
        let last: Value = serde_json::from_str(last).expect("JSON");
        assert_eq!(last, json!({ "machine": machine, "change": change }));
    }
    let refused: &[(&[&str], &str)] = &[
        (&["lab/web", "--ops", "5"], "--drives or --nics"),
        (&["lab/web:d00", "--nics", "--ops", "5"], "leave --drives and --nics out"),
        (&["lab/web:d00", "--ops", "0"], "1 is the least"),
        (&["lab/web:d00"], "--bytes"),
        (&["lab/web:d00", "--bytes-burst", "1MiB"], "--bytes"),
        (&["lab/web:d00", "--bytes", "5"], "has no unit"),
        (&["lab/mail:d00", "--ops", "5"], "no machine `mail`"),
        (&["play", "--drives", "--ops", "5"], "`play` is not there"),
    ];
    for (arguments, why) in refused {
        let (_, stderr) = host.expect(2, &[&["limit"], *arguments].concat());
        assert!(stderr.contains(why), "{stderr}");
    }
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_size_is_in_the_plan_once_the_vmm_has_made_it_so_and_not_when_it_refuses() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let planned = || {
        let plan: Value =
            serde_json::from_slice(&fs::read(host.lab("lab").join("plan.json")).expect("reading")).expect("JSON");
        plan["spec"]["machines"][0]["drives"][0]["overlay"]["capacity_bytes"].as_u64()
    };
    host.expect(0, &["drive", "resize", "lab/web:d00", "2MiB"]);
    assert_eq!(planned(), Some(2 << 20));
    // The fake one has no more than that.
    let (_, stderr) = host.expect(2, &["drive", "resize", "web", "4TiB"]);
    assert!(stderr.contains("no room"), "{stderr}");
    assert_eq!(planned(), Some(2 << 20));
    let (_, stderr) = host.expect(2, &["drive", "resize", "web:d07", "4MiB"]);
    assert!(stderr.contains("machine `web` has no drive `d07`; there is d00"), "{stderr}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_drive_of_a_machine_that_does_not_run_becomes_a_file() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let path = host.home().join("web.raw");
    let file = path.to_str().expect("UTF-8");
    let (_, stderr) = host.expect(2, &["drive", "export", "lab/web", file]);
    assert!(stderr.contains("machine `web` runs: stop it first with `labyard stop lab/web`"), "{stderr}");
    host.expect(0, &["stop", "lab"]);
    host.expect(0, &["drive", "export", "lab/web:d00", file]);
    let bytes = fs::read(&path).expect("reading");
    assert!(bytes.len() == 1 << 20 && bytes.starts_with(b"an image\0"), "{} bytes", bytes.len());
    let (_, stderr) = host.expect(2, &["drive", "export", "lab/web", file]);
    assert!(stderr.contains("--force replaces it"), "{stderr}");
    let (stdout, _) = host.expect(0, &["drive", "export", "web", file, "--force", "--json", "--format", "qcow2"]);
    let said: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!(
        (&said["drive"], &said["format"], &said["capacity_bytes"]),
        (&"d00".into(), &"qcow2".into(), &(1 << 20).into())
    );
    assert_eq!(said["file_bytes"], fs::metadata(&path).expect("metadata").len());
    assert!(fs::read(&path).expect("reading").starts_with(b"QFI\xfb"));
    fs::remove_file(&path).expect("removed");
    host.expect(0, &["down"]);
    host.assert_clean();
}
