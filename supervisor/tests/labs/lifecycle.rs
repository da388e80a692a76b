//! Labs from `up` to `down`, and whatever may be killed on the way. The monitor, the jail and the builder are fakes.

use std::fs::File;

use super::host::{Host, Running, has_ended, kill, until};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn a_lab_comes_up_is_seen_and_goes_without_a_trace() {
    let host = Host::new();
    let (stdout, _) = host.expect(0, &["up", &host.manifest("lab", &["web", "db"])]);
    for word in ["ImagesReady", "DisksReady", "Jailed", "web: AgentReachable", "db: Ready", "] Ready: every machine"] {
        assert!(stdout.contains(word), "{word}\n{stdout}");
    }
    let lab = host.ps();
    assert_eq!(lab["standing"], "running");
    assert_eq!(lab["machines"][1]["ready"], true);
    assert_eq!(lab["machines"][1]["addresses"], json!([{ "network": "local", "address": "172.16.0.3" }]));
    let (stdout, _) = host.expect(0, &["ps"]);
    assert!(stdout.contains("local=172.16.0.2") && stdout.contains("running"), "{stdout}");
    let (stdout, _) = host.expect(0, &["logs", "lab/web"]);
    assert_eq!(stdout, "web: \u{1b}[1mbooting\u{1b}[0m\n", "a pipe gets the bytes as they are");
    let (stdout, _) = host.expect(0, &["events", "--json", "lab"]);
    for line in stdout.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("one document a line");
    }
    host.expect(0, &["down", "lab"]);
    host.assert_clean();
    host.expect(0, &["down", "lab"]);
    host.expect(0, &["down", "--all"]);
}

#[test]
fn files_of_a_lab_are_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    host.up("lab", &["web"]);
    let mut folders = vec![host.lab("lab")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("listing").flatten() {
            let meta = entry.metadata().expect("metadata");
            assert_eq!(meta.permissions().mode() & 0o077, 0, "{:?}", entry.path());
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    let written = std::fs::read(host.lab("lab").join("machines/web/d00.overlay")).expect("the layer");
    assert_eq!(written, b"written", "what the machine wrote, and not the image");
    host.expect(0, &["down"]);
}

#[test]
fn a_killed_supervisor_is_replaced_and_the_lab_never_notices() {
    let host = Host::new();
    host.up("lab", &["web", "db"]);
    let before = host.ps();
    let pid = |lab: &serde_json::Value, who: &str| i32::try_from(lab[who].as_i64().expect("a pid")).expect("a pid");
    kill(pid(&before, "supervisor_pid"), Signal::KILL);
    until("the supervisor is gone", || has_ended(pid(&before, "supervisor_pid")));
    let (stdout, _) = host.expect(0, &["exec", "lab/db", "--", "echo", "still here"]);
    assert_eq!(stdout, "still here\n");
    let after = host.ps();
    assert_eq!((&after["standing"], &after["vmm_pid"]), (&json!("running"), &before["vmm_pid"]));
    assert_ne!(after["supervisor_pid"], before["supervisor_pid"]);
    let (stdout, _) = host.expect(0, &["events", "lab"]);
    assert_eq!(stdout.matches("web: started").count(), 1, "nothing is told twice\n{stdout}");
    host.expect(0, &["down"]);
    host.assert_clean();
}

/// Until a process that was killed is gone, its socket takes calls that nobody hears.
#[test]
fn who_calls_a_supervisor_while_it_dies_is_answered_by_the_next_one() {
    let host = Host::new();
    host.up("lab", &["web"]);
    for command in [&["exec", "lab/web", "--", "true"][..], &["status", "lab"]] {
        // The first call is the look whether somebody is there, the second the question.
        for calls in [1, 2] {
            let supervisor = i32::try_from(host.ps()["supervisor_pid"].as_i64().expect("a pid")).expect("a pid");
            kill(supervisor, Signal::KILL);
            until("the supervisor is gone", || has_ended(supervisor));
            let socket = host.lab("lab").join("supervisor.sock");
            std::fs::remove_file(&socket).expect("it was there");
            let dying = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
            dying.set_nonblocking(true).expect("a mode of it");
            std::thread::scope(|scope| {
                scope.spawn(move || (0..calls).for_each(|_| until("a call", || dying.accept().is_ok())));
                host.expect(0, command);
            });
            assert_ne!(host.ps()["supervisor_pid"], json!(supervisor), "{command:?}, {calls} calls");
        }
    }
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn a_supervisor_that_died_during_the_boot_is_replaced_by_the_up_that_waits() {
    let host = Host::new();
    let mut up = Running::start(&mut host.command(&["up", &host.manifest("lab", &["web", "mute"]), "--timeout", "5m"]));
    up.wait_for("web: Ready");
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(host.lab("lab").join("state.json")).expect("a state")).expect("JSON");
    kill(i32::try_from(state["supervisor"]["pid"].as_i64().expect("a pid")).expect("a pid"), Signal::KILL);
    up.wait_for("starting another");
    up.signal(Signal::INT);
    assert_eq!(up.end().0, Some(130));
    host.assert_clean();
}

#[test]
fn a_supervisor_that_died_before_there_was_a_machine_ends_the_lab_for_the_up_that_waits() {
    let host = Host::new();
    let file = host.manifest("lab", &["web", "unborn"]);
    let mut up = Running::start(&mut host.command(&["up", &file, "--timeout", "5m"]));
    up.wait_for("Jailed");
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(host.lab("lab").join("state.json")).expect("a state")).expect("JSON");
    kill(i32::try_from(state["supervisor"]["pid"].as_i64().expect("a pid")).expect("a pid"), Signal::KILL);
    let (code, stderr) = up.end();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("its supervisor was killed before any machine was there"), "{stderr}");
    assert_eq!(host.ps()["standing"], "stopped");
    host.expect(0, &["down", "lab"]);
    host.assert_clean();
}

#[test]
fn ctrl_c_asks_once_at_a_terminal_and_then_cleans() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let host = Host::new();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("its other side");
    let (name, flags) =
        (ptsname(&master, Vec::new()).expect("its name"), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC);
    let side = File::from(rustix::fs::open(name, flags, Mode::empty()).expect("its other side"));
    let mut command = host.command(&["up", &host.manifest("lab", &["web", "mute"]), "--timeout", "5m"]);
    command.stdin(side.try_clone().expect("a copy")).stderr(side);
    let mut up = Running::on_terminal(&mut command);
    up.wait_for("web: Ready");
    up.signal(Signal::INT);
    let mut terminal = File::from(master);
    let mut said = String::new();
    while !said.ends_with("stop, and remove what was made of lab `lab`? [Y/n] ") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut terminal, &mut byte).expect("a question");
        said.push(byte[0].into());
    }
    std::io::Write::write_all(&mut terminal, b"n\n").expect("typing");
    let supervisor = host.ps()["supervisor_pid"].as_i64().expect("a pid");
    kill(i32::try_from(supervisor).expect("a pid"), Signal::KILL);
    // So it goes on.
    up.wait_for("starting another");
    up.signal(Signal::INT);
    up.wait_for("interrupted: removing the lab");
    assert_eq!(up.end().0, Some(130));
    host.assert_clean();
}

#[test]
fn a_vmm_that_dies_is_told_with_its_last_words() {
    let host = Host::new();
    host.up("lab", &["web"]);
    kill(i32::try_from(host.ps()["vmm_pid"].as_i64().expect("a pid")).expect("a pid"), Signal::KILL);
    until("its end is written down", || host.ps()["standing"] == "stopped" && host.ps()["supervisor_pid"].is_null());
    assert!(host.ps()["end"].as_str().expect("a reason").contains("signal: 9"), "{}", host.ps());
    let (_, stderr) = host.expect(2, &["exec", "lab/web", "--", "true"]);
    assert!(stderr.contains("is stopped") && stderr.contains("labyard start lab"), "{stderr}");
    host.expect(0, &["down", "lab"]);
    host.assert_clean();
}

#[test]
fn a_vmm_that_dies_at_birth_fails_the_up_with_its_last_words() {
    let host = Host::new();
    let (_, stderr) = host.expect(1, &["up", &host.manifest("lab", &["doom"])]);
    assert!(stderr.contains("out of luck") && stderr.contains("exit status: 125"), "{stderr}");
    assert_eq!(host.ps()["standing"], "stopped");
    host.expect(0, &["down", "lab"]);
    host.assert_clean();
}

#[test]
fn a_machine_that_crashes_fails_the_up_with_the_reason_and_no_escape_sequence() {
    let host = Host::new();
    let (_, stderr) = host.expect(1, &["up", &host.manifest("lab", &["web", "crash"])]);
    assert!(stderr.contains("machine `crash` ended before it was ready: crashed: Kernel panic"), "{stderr}");
    assert!(!stderr.contains('\u{1b}'), "{stderr}");
    let lab = host.ps();
    assert!(lab["machines"][1]["state"].as_str().expect("a state").starts_with("crashed"), "{lab}");
    host.expect(0, &["down", "lab"]);
    host.assert_clean();
}

#[test]
fn a_machine_that_is_not_ready_in_time_is_named_and_left_running() {
    let host = Host::new();
    let (_, stderr) = host.expect(3, &["up", &host.manifest("lab", &["web", "mute"]), "--timeout", "1s"]);
    assert!(stderr.contains("mute (last: KernelStarted)"), "{stderr}");
    assert_eq!(host.ps()["machines"][1]["state"], "booting");
    host.expect(0, &["down", "lab"]);
    host.assert_clean();
}

#[test]
fn a_hostile_guest_at_the_readiness_port_harms_nobody() {
    let host = Host::new();
    host.up("lab", &["hostile", "web"]);
    let (stdout, _) = host.expect(0, &["events", "lab"]);
    assert!(stdout.contains("hostile: readiness: a line of more than 4096 bytes"), "{stdout}");
    host.expect(0, &["down", "lab"]);
    host.assert_clean();
}

#[test]
fn a_guest_that_does_not_power_off_loses_its_power() {
    let host = Host::new();
    host.up("lab", &["stubborn", "web"]);
    host.expect(0, &["down", "lab", "--grace", "1s"]);
    host.assert_clean();
}

#[test]
fn an_up_that_is_killed_while_it_builds_leaves_what_down_removes() {
    let host = Host::new();
    let manifest = host.manifest("lab", &["web"]).replace("lab.yaml", "slow.yaml");
    let text = std::fs::read_to_string(manifest.replace("slow.yaml", "lab.yaml")).expect("a manifest");
    std::fs::write(&manifest, text.replace("debian", "slow")).expect("writing");
    let mut up = Running::start(&mut host.command(&["up", &manifest]));
    up.wait_for("reading slow");
    assert_eq!(host.ps()["standing"], "preparing");
    up.signal(Signal::KILL);
    assert_eq!(up.end().0, None);
    until("the builder is gone too", || host.processes().is_empty());
    assert_eq!(host.ps()["standing"], "interrupted");
    host.expect(0, &["down", "lab"]);
    host.assert_clean();

    let mut up = Running::start(&mut host.command(&["up", &manifest]));
    up.wait_for("reading slow");
    up.signal(Signal::INT);
    let (code, stderr) = up.end();
    assert_eq!((code, stderr.as_str()), (Some(130), "error: interrupted\n"));
    host.assert_clean();
}

#[test]
fn an_up_that_is_killed_while_it_waits_leaves_a_lab_that_down_removes() {
    let host = Host::new();
    let mut up = Running::start(&mut host.command(&["up", &host.manifest("lab", &["mute"])]));
    up.wait_for("KernelStarted");
    up.signal(Signal::KILL);
    up.end();
    assert_eq!(host.ps()["standing"], "running");
    host.expect(0, &["down", "lab"]);
    host.assert_clean();
}

#[test]
fn what_is_wrong_is_told_before_anything_is_made() {
    let host = Host::new();
    let lab = host.manifest("lab", &["web"]);
    let text = std::fs::read_to_string(&lab).expect("a manifest");
    for (part, by, complaint) in [
        ("\"32MiB\"", "\"900TiB\"", "900TiB` is more than"),
        ("\"32MiB\"", "\"60TiB\"", "the machines ask for 62914560 MiB"),
        ("\"debian\"", "\"oci-layout:./nowhere\"", "machines[0].drives[0].source: "),
        ("\"debian\"", "\"bad\"", "machines[0].drives[0].source: no image `bad` in the catalogue"),
        (
            "\"name\":\"web\"",
            "\"name\":\"web\",\"kernel\":\"5.10\"",
            "machines[0].kernel: kernel `5.10`: not in the store; there is: 6.12",
        ),
        ("\"subnet\"", "\"subnets\"", "no such field `subnets`"),
    ] {
        assert!(text.contains(part), "{part}\n{text}");
        std::fs::write(&lab, text.replace(part, by)).expect("writing");
        let (_, stderr) = host.expect(2, &["up", &lab]);
        assert!(stderr.starts_with("error: ") && stderr.contains(complaint), "{complaint}\n{stderr}");
        host.assert_clean();
    }
    let output = host.command(&["up", &lab]).env_remove("LABYARD_KVM").env("LABYARD_KVM_DEVICE", "/nowhere").output();
    assert_eq!(output.expect("labyard starts").status.code(), Some(2));
    host.expect(2, &["up", "/nowhere.yaml"]);
    host.expect(2, &["up", &lab, "--name", "../lab"]);
    host.expect(2, &["down", "../lab"]);
}

#[test]
fn a_name_is_taken_once_and_a_machine_is_found_by_the_shortest_name_that_is_clear() {
    let host = Host::new();
    host.up("one", &["web", "db"]);
    let other = host.manifest("one", &["web", "db"]);
    let text = std::fs::read_to_string(&other).expect("a manifest");
    std::fs::write(&other, text.replace("32MiB", "64MiB")).expect("writing");
    let (_, stderr) = host.expect(2, &["up", &other]);
    assert!(stderr.contains("is running with another manifest: machines[web].resources.ramSize was 32MiB"), "{stderr}");
    host.expect(0, &["up", &host.manifest("one", &["web"]), "--name", "two"]);
    host.expect(0, &["exec", "db", "--", "true"]);
    let (_, stderr) = host.expect(2, &["exec", "web", "--", "true"]);
    assert!(stderr.contains("one/web") && stderr.contains("two/web"), "{stderr}");
    host.expect(0, &["exec", "-p", "two", "web", "--", "true"]);
    host.expect(2, &["exec", "two/db", "--", "true"]);
    host.expect(2, &["exec", "three/db", "--", "true"]);
    host.expect(2, &["down"]);
    host.expect(0, &["down", "--all"]);
    host.assert_clean();
}

#[test]
fn a_lab_with_more_files_than_one_message_carries_comes_up() {
    let host = Host::new();
    let machines: Vec<_> = (0..16)
        .map(|number| {
            let mut drives = vec![json!({ "source": "debian", "mount": "/", "size": "1MiB" })];
            drives.extend((0..20).map(|_| json!({ "size": "1MiB" })));
            json!({
                "name": format!("m{number}"), "drives": drives, "resources": { "ramSize": "32MiB" },
                "network": { "interfaces": [{ "network": "local" }] },
            })
        })
        .collect();
    let manifest = json!({ "kind": "playground", "name": "big", "playground": { "machines": machines } });
    host.expect(0, &["up", &host.write_manifest("big", &manifest)]);
    host.expect(0, &["down"]);
    host.assert_clean();
}

#[test]
fn what_cannot_be_carried_out_yet_is_said_in_one_line_each() {
    let host = Host::new();
    let manifest = json!({
        "kind": "playground", "name": "open",
        "playground": {
            "networks": [{ "name": "broken", "subnet": "10.0.0.0/24" }],
            "machines": [{
                "name": "web", "drives": [{ "source": "debian", "mount": "/", "size": "1MiB" }], "resources": { "ramSize": "32MiB" },
                "network": { "interfaces": [{ "network": "broken" }] },
            }],
        },
    });
    let (stdout, stderr) = host.expect(0, &["up", "--json", &host.write_manifest("open", &manifest)]);
    assert_eq!(stderr.matches("without a way out: broken (nobody lets it out)").count(), 1, "{stderr}");
    let state: serde_json::Value = serde_json::from_str(&stdout).expect("one document and nothing else");
    assert_eq!(state["machines"][0]["addresses"][0], json!(["broken", "10.0.0.2"]));
    host.expect(0, &["down"]);
}

#[test]
fn a_state_directory_that_others_may_write_into_is_refused_with_the_way_out() {
    use std::os::unix::fs::PermissionsExt;

    let host = Host::new();
    let allow = |mode| std::fs::set_permissions(host.home(), std::fs::Permissions::from_mode(mode)).expect("its mode");
    for mode in [0o775, 0o707, 0o1777] {
        allow(mode);
        let (_, stderr) = host.expect(2, &["ps"]);
        assert!(stderr.contains(&format!("(mode {mode:o})")), "{stderr}");
        assert!(stderr.contains(&format!("`chmod go-w {}` ends that", host.home().display())), "{stderr}");
    }
    for mode in [0o755, 0o700] {
        allow(mode);
        host.expect(0, &["ps"]);
    }
}
