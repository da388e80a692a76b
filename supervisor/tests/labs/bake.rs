//! Labs that become images. The fake machines send a line for a drive, and the fake builder keeps what comes.

use std::fs;
use std::path::{Path, PathBuf};

use super::host::{Host, Running, until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A manifest with these machines and tasks, and the folder that `bake` is to make.
fn manifest(host: &Host, machines: &[&str], tasks: &Value) -> (String, PathBuf) {
    let machine = |name: &&str| {
        json!({
            "name": name,
            "drives": [
                { "source": "oci-layout:image", "mount": "/", "size": "1MiB" },
                { "mount": "/srv", "size": "2MiB", "filesystem": "ext4" },
            ],
            "network": { "interfaces": [{ "network": "local" }] }, "resources": { "ramSize": "32MiB" },
        })
    };
    let text = json!({
        "kind": "playground", "name": "lab",
        "playground": {
            "networks": [{ "name": "local", "subnet": "172.16.0.0/24", "private": true }],
            "machines": machines.iter().map(machine).collect::<Vec<_>>(),
            "initConditions": { "values": [{ "key": "size", "default": "small", "options": ["small", "large"] }] },
            "initTasks": tasks,
        },
    });
    let out = host.home().with_file_name("out");
    fs::create_dir_all(host.home().with_file_name("image")).expect("a folder");
    (host.write_manifest("lab", &text), out)
}

fn task(machine: &str, needs: &[&str], run: &str) -> Value {
    json!({ "init": true, "machine": machine, "needs": needs, "run": run })
}

/// What `labyard manifest` makes of the manifest in a folder.
fn made(host: &Host, out: &Path) -> Value {
    let file = out.join("lab.yaml");
    let (shown, _) = host.expect(0, &["manifest", "show", file.to_str().expect("UTF-8"), "--json"]);
    serde_json::from_str(&shown).expect("one document")
}

fn assert_nothing(host: &Host, out: &Path) {
    assert!(!out.exists(), "{} is there", out.display());
    assert!(!out.with_file_name("out.part").exists(), "a draft is left");
    host.assert_clean();
}

#[test]
fn tasks_run_once_and_the_manifest_that_comes_out_needs_none() {
    let host = Host::new();
    let (file, out) = manifest(
        &host,
        &["web", "db"],
        &json!({
            "first": task("web", &[], "echo X=1 >> $LABYARD_ENV"),
            "second": task("db", &["first"], "test $X = 1 && test $LABYARD_SIZE = large"),
        }),
    );
    let out_text = out.to_str().expect("UTF-8");
    let (stdout, stderr) = host.expect(0, &["bake", &file, "--out", out_text, "-i", "size=large", "--json"]);
    for part in ["task second: completed", "stopping the machines", "web: reading drive d00", "db: reading drive d01"] {
        assert!(stderr.contains(part), "{part}\n{stderr}");
    }
    let told: Value = serde_json::from_str(&stdout).expect("one document");
    assert_eq!(told["images"].as_array().map(Vec::len), Some(4));
    assert_eq!(told["images"][3]["path"], json!(out.join("db-d01")));
    for (image, line) in [("web", "drive d00 of web\n"), ("db-d01", "drive d01 of db\n")] {
        assert_eq!(fs::read_to_string(out.join(image).join("layer")).expect("a layer"), line);
    }
    let like = format!("--like oci-layout:{}", host.home().with_file_name("image").display());
    let of = |image: &str| fs::read_to_string(out.join(image).join("told")).expect("what it was told");
    assert!(of("web").contains("--tag baked --size 1MiB") && of("web").contains(&like), "{}", of("web"));
    assert!(!of("web-d01").contains("--like"), "a blank drive comes from no image: {}", of("web-d01"));

    let shown = made(&host, &out);
    assert_eq!(shown["name"], "lab");
    assert_eq!(shown["playground"]["machines"][0]["drives"][0]["source"], "oci-layout:./web:baked");
    assert_eq!(shown["playground"]["machines"][1]["drives"][1]["source"], "oci-layout:./db-d01:baked");
    assert_eq!(
        (&shown["playground"]["initTasks"], &shown["playground"]["initConditions"]),
        (&Value::Null, &Value::Null)
    );
    host.assert_clean();

    let (_, stderr) = host.expect(2, &["bake", &file, "--out", out_text]);
    assert!(stderr.contains("something is there already"), "{stderr}");
    host.expect(0, &["up", out.join("lab.yaml").to_str().expect("UTF-8")]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn machines_that_are_not_baked_keep_their_images_and_their_tasks() {
    let host = Host::new();
    let (file, out) = manifest(
        &host,
        &["web", "db"],
        &json!({
            "first": task("web", &[], "true"),
            "second": task("db", &["first"], "true"),
        }),
    );
    host.expect(0, &["bake", &file, "--out", out.to_str().expect("UTF-8"), "--machine", "web"]);
    let shown = made(&host, &out);
    let image = format!("oci-layout:{}", host.home().with_file_name("image").display());
    assert_eq!(shown["playground"]["machines"][0]["drives"][0]["source"], "oci-layout:./web:baked");
    assert_eq!(
        shown["playground"]["machines"][1]["drives"][0]["source"],
        json!(image),
        "found from another folder, too"
    );
    let tasks = shown["playground"]["initTasks"].as_object().expect("tasks");
    assert_eq!(tasks.keys().collect::<Vec<_>>(), ["second"]);
    assert_eq!(tasks["second"]["needs"], Value::Null);
    host.assert_clean();
}

#[test]
fn what_would_be_another_lab_than_the_one_that_was_baked_is_refused() {
    let host = Host::new();
    let tasks = json!({
        "first": task("web", &[], "echo X=1 >> $LABYARD_ENV"),
        "second": task("db", &["first"], "true"),
    });
    let (file, out) = manifest(&host, &["web", "db"], &tasks);
    let out_text = out.to_str().expect("UTF-8");
    let bake = |machine: &str| host.expect(2, &["bake", &file, "--out", out_text, "--machine", machine]).1;
    let stderr = bake("nobody");
    assert!(stderr.contains("--machine nobody: no such machine in lab `lab`: there is web, db"), "{stderr}");
    let stderr = bake("db");
    assert!(stderr.contains("initTasks.second: it needs `first` of machine `web`, which is not baked"), "{stderr}");
    // Known only once it has run.
    let stderr = bake("web");
    assert!(stderr.contains("initTasks.second: it needs what `first` has left in LABYARD_ENV"), "{stderr}");
    assert_nothing(&host, &out);
}

#[test]
fn a_task_that_fails_ends_it_with_its_own_code_and_nothing_is_left() {
    let host = Host::new();
    let (file, out) = manifest(&host, &["web"], &json!({ "first": task("web", &[], "echo looking; exit 7") }));
    let out_text = out.to_str().expect("UTF-8");
    let (_, stderr) = host.expect(4, &["bake", &file, "--out", out_text]);
    for part in ["init task `first` failed: its script ended with 7", "looking", "--keep leaves it for a look"] {
        assert!(stderr.contains(part), "{part}\n{stderr}");
    }
    assert!(!stderr.contains("the lab runs on"), "{stderr}");
    assert_nothing(&host, &out);

    let (stdout, _) = host.expect(4, &["bake", &file, "--out", out_text, "--keep"]);
    let lab = host.ps()["name"].as_str().expect("a lab").to_owned();
    assert!(lab.starts_with("lab-bake-") && stdout.contains(&format!("`labyard down {lab}` removes it")), "{stdout}");
    host.expect(0, &["down", &lab]);
    assert_nothing(&host, &out);
}

#[test]
fn a_machine_that_does_not_power_off_or_sends_half_a_drive_is_not_kept() {
    let host = Host::new();
    for (machine, part) in [
        ("stubborn", "machine `stubborn` did not power off by itself within 1 s"),
        ("cut", "machine cut: drive d00: in the machine: reading /baked/d00: it is broken"),
    ] {
        let (file, out) = manifest(&host, &[machine], &json!({}));
        let (_, stderr) = host.expect(1, &["bake", &file, "--out", out.to_str().expect("UTF-8"), "--grace", "1s"]);
        assert!(stderr.contains(part), "{stderr}");
        assert_nothing(&host, &out);
    }
}

#[test]
fn a_builder_that_takes_no_archive_says_why_itself() {
    let host = Host::new();
    let (file, out) = manifest(&host, &["web"], &json!({}));
    fs::write(host.home().join("no-bakes"), "").expect("writing");
    let (_, stderr) = host.expect(1, &["bake", &file, "--out", out.to_str().expect("UTF-8")]);
    assert!(stderr.contains("No space left on device") && !stderr.contains("interrupted"), "{stderr}");
    assert_nothing(&host, &out);
}

#[test]
fn whoever_interrupts_it_finds_nothing_left() {
    for (machine, then, part) in [
        ("web", "while [ -e BEGUN ]; do sleep 0.1; done", "task wait: running"),
        ("endless", "true", "endless: reading drive d00"),
    ] {
        let host = Host::new();
        let begun = host.home().with_file_name("begun");
        let run = format!("touch BEGUN; {then}").replace("BEGUN", &begun.display().to_string());
        let (file, out) = manifest(&host, &[machine], &json!({ "wait": task(machine, &[], &run) }));
        let mut bake = Running::start(&mut host.command(&["bake", &file, "--out", out.to_str().expect("UTF-8")]));
        bake.wait_for(part);
        until("its script runs", || begun.exists());
        bake.signal(Signal::INT);
        let (code, stderr) = bake.end();
        assert_eq!(code, Some(130), "{stderr}");
        assert_nothing(&host, &out);
    }
}

#[test]
fn who_was_killed_leaves_a_lab_that_down_removes_and_a_draft_that_the_next_takes_over() {
    let host = Host::new();
    let (file, out) = manifest(&host, &["endless"], &json!({}));
    let out_text = out.to_str().expect("UTF-8");
    let mut bake = Running::start(&mut host.command(&["bake", &file, "--out", out_text]));
    bake.wait_for("endless: reading drive d00");
    let (_, stderr) = host.expect(2, &["bake", &file, "--out", out_text]);
    assert!(stderr.contains("another `labyard bake` is about to make it"), "{stderr}");
    bake.signal(Signal::KILL);
    bake.end();
    host.expect(0, &["down", "--all", "--grace", "1s"]);
    until("every process is gone", || host.processes().is_empty());
    assert!(out.with_file_name("out.part").exists(), "its draft");
    let (file, _) = manifest(&host, &["web"], &json!({}));
    host.expect(0, &["bake", &file, "--out", out_text]);
    assert!(out.join("web/layer").exists() && !out.with_file_name("out.part").exists());
    host.assert_clean();
}

#[test]
fn a_folder_that_is_no_draft_of_ours_keeps_what_it_has() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let host = Host::new();
    let (file, out) = manifest(&host, &["web"], &json!({}));
    let out_text = out.to_str().expect("UTF-8");
    let part = out.with_file_name("out.part");
    let refused = |why: &str| {
        let (_, stderr) = host.expect(2, &["bake", &file, "--out", out_text]);
        assert!(stderr.contains("out.part is there, and is no draft of `labyard bake`"), "{stderr}");
        assert!(stderr.contains(why) && stderr.contains("move it away, or name another"), "{stderr}");
        assert!(!out.exists());
    };
    let notes = part.join("notes");
    fs::create_dir(&part).expect("a folder");
    fs::write(&notes, "mine").expect("writing");
    refused("it has files of another kind");
    assert_eq!(fs::read_to_string(&notes).expect("still there"), "mine");
    // A marker that leads elsewhere is none.
    symlink(&notes, part.join(".labyard-bake")).expect("a link");
    refused("it has files of another kind");

    let elsewhere = out.with_file_name("elsewhere");
    fs::rename(&part, &elsewhere).expect("renaming");
    symlink(&elsewhere, &part).expect("a link");
    refused("it is no folder");
    assert!(elsewhere.join("notes").exists());
    fs::remove_file(&part).expect("removing");

    // Even with the mark: somebody else may have put it there.
    fs::create_dir(&part).expect("a folder");
    fs::write(part.join(".labyard-bake"), "").expect("writing");
    fs::write(&notes, "theirs").expect("writing");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o775)).expect("its mode");
    refused("others may write into it");
    assert!(notes.exists());
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).expect("its mode");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&part, Some(65_534), Some(65_534)).expect("its owner");
        refused("it is somebody else's");
        assert!(notes.exists());
        std::os::unix::fs::chown(&part, Some(0), Some(0)).expect("its owner");
    }

    // A draft of ours that somebody left, with a link out of it: the link goes, not what it leads to.
    symlink(&elsewhere, part.join("link")).expect("a link");
    host.expect(0, &["bake", &file, "--out", out_text]);
    let mut names: Vec<_> = fs::read_dir(&out).expect("listing").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["lab.yaml", "web", "web-d01"], "neither the old files nor the mark");
    assert!(elsewhere.join("notes").exists() && !part.exists());
    host.assert_clean();
}

#[test]
fn a_host_that_runs_no_guests_is_known_before_a_draft_is_touched() {
    let host = Host::new();
    let (file, out) = manifest(&host, &["web"], &json!({}));
    let part = out.with_file_name("out.part");
    fs::create_dir(&part).expect("a folder");
    for name in [".labyard-bake", "layer"] {
        fs::write(part.join(name), "").expect("writing");
    }
    let mut bake = host.command(&["bake", &file, "--out", out.to_str().expect("UTF-8")]);
    let output = bake.env("LABYARD_KVM_DEVICE", "/dev/none").output().expect("it starts");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(part.join("layer").exists() && !out.exists());
    host.assert_clean();
}
