//! kill -9 of whoever runs, at any moment: `ps` is true afterwards, `down` cleans, nothing is left.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::host::{Host, has_ended, kill, text, until};
use rustix::process::Signal;
use serde_json::Value;

/// Moments that are tried; `LABYARD_SOAK` in the environment makes it the fifty of the plan.
const MOMENTS: u64 = 12;

/// Where the dice begin; printed by a failure, so that it can be thrown again with `LABYARD_SEED`.
fn seed() -> u64 {
    let given = std::env::var("LABYARD_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| u64::from(std::process::id()))
}

/// A number below `most` (xorshift64*).
fn throw(state: &mut u64, most: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
}

/// The process of this name in `state.json`, if it lives.
fn pid_of(host: &Host, who: &str) -> Option<i32> {
    let state: Value = serde_json::from_slice(&std::fs::read(host.lab("lab").join("state.json")).ok()?).ok()?;
    i32::try_from(state[who]["pid"].as_i64()?).ok()
}

fn is_alive(pid: &Value) -> bool {
    pid.as_i64().is_some_and(|pid| Path::new(&format!("/proc/{pid}/exe")).exists())
}

/// Uplinks of the lab that live.
fn uplinks(host: &Host) -> usize {
    let is_one = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| text(&line).contains("labyard-uplink"))
    };
    host.processes().iter().filter(|pid| is_one(pid)).count()
}

/// What `ps` says, held against the processes themselves. One that was killed is on its way for a moment, whoever looks.
fn ps_is_true(host: &Host, context: &str) {
    until(context, || {
        let output = host.run(&["ps", "--json"]);
        assert!(output.status.success(), "{context}: {}", text(&output.stderr));
        let told: Value = serde_json::from_slice(&output.stdout).expect("one document");
        told["labs"].as_array().expect("labs").iter().all(|lab| {
            let runs = is_alive(&lab["vmm_pid"]);
            match lab["standing"].as_str().expect("a word") {
                "running" | "unattended" => runs,
                "stopped" | "interrupted" => !runs,
                _ => true,
            }
        })
    });
}

#[test]
fn whoever_is_killed_at_whatever_moment_ps_is_true_and_down_cleans() {
    let seed = seed();
    let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let moments = if std::env::var_os("LABYARD_SOAK").is_some() { 50 } else { MOMENTS };
    let host = Host::new();
    let file = host.manifest("lab", &["web", "db"]);
    // The same lab with a machine that comes, or leaves.
    let more = file.replace("lab.yaml", "more.yaml");
    std::fs::rename(host.manifest("lab", &["web", "db", "mail"]), &more).expect("renaming");
    assert_eq!(host.manifest("lab", &["web", "db"]), file);
    // And with a network that has a way out, for the machine that comes.
    let open = file.replace("lab.yaml", "open.yaml");
    let mut with: Value = serde_json::from_slice(&std::fs::read(&more).expect("reading")).expect("JSON");
    let networks = with["playground"]["networks"].as_array_mut().expect("networks");
    networks.push(serde_json::json!({ "name": "edge", "subnet": "10.0.0.0/24" }));
    with["playground"]["machines"][2]["network"]["interfaces"][0]["network"] = "edge".into();
    std::fs::write(&open, with.to_string()).expect("writing");
    for moment in 0..moments {
        let verbs: [&[&str]; 10] = [
            &["up", &file],
            &["up", &more],
            &["up", &more],
            &["up", &open],
            &["up", &open],
            &["down", "lab", "--grace", "1s"],
            &["exec", "lab/web", "--", "sleep", "1"],
            &["restart", "lab/db"],
            &["stop", "lab"],
            &["start", "lab"],
        ];
        let verb = verbs[throw(&mut dice, 10) as usize];
        // All but `up` want a lab that is there.
        if verb[0] != "up" && !host.lab("lab").join("plan.json").exists() {
            host.run(&["down", "lab"]);
            host.up("lab", &["web", "db"]);
        }
        let mut command = host.command(verb).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let (after_ms, victim) =
            (throw(&mut dice, 700), ["command", "supervisor", "vmm"][throw(&mut dice, 3) as usize]);
        let context = format!("seed {seed}, moment {moment}: {verb:?}, {victim} after {after_ms} ms");
        // The moment itself is what is tried, not waited for.
        std::thread::sleep(Duration::from_millis(after_ms));
        match victim {
            "command" => command.kill().expect("a child"),
            who => {
                if let Some(pid) = pid_of(&host, who).filter(|pid| *pid > 1 && host.processes().contains(pid)) {
                    kill(pid, Signal::KILL);
                }
            }
        }
        command.wait().expect("waiting");
        ps_is_true(&host, &context);
        until(&context, || uplinks(&host) <= usize::from(pid_of(&host, "vmm").is_some_and(|pid| !has_ended(pid))));
        // Whatever was begun, `up` makes it what is asked for.
        if throw(&mut dice, 3) == 0 && host.lab("lab").join("plan.json").exists() {
            let (asked, wanted) = [(&file, 0), (&open, 1)][throw(&mut dice, 2) as usize];
            let output = host.run(&["up", asked, "--restart"]);
            assert!(output.status.success(), "{context}, then {asked}: {}", text(&output.stderr));
            until(&context, || uplinks(&host) == wanted);
        }
        if throw(&mut dice, 3) == 0 {
            let output = host.run(&["down", "lab", "--grace", "1s"]);
            assert!(output.status.success(), "{context}: {}", text(&output.stderr));
            host.assert_clean();
        }
    }
    let output = host.run(&["down", "--all", "--grace", "1s"]);
    assert!(output.status.success(), "seed {seed}: {}", text(&output.stderr));
    host.assert_clean();
}
