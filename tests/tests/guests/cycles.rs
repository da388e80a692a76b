//! Up and down again and again with tiny guests, and kills in between: nothing is left of any round.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::host::{self, Traces};
use crate::tiny::Tiny;

/// Rounds in CI, and in the soak; those of the soak can be done in shares.
const ROUNDS: u64 = 5;
const SOAK_ROUNDS: u64 = 1000;
/// Moments of a kill in CI, and in the soak.
const MOMENTS: u64 = 4;
const SOAK_MOMENTS: u64 = 50;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn is_soak() -> bool {
    std::env::var_os("LABYARD_SOAK").is_some()
}

/// `LABYARD_CYCLES_FILE` has a line for each round that was done before, and gets one for each; `LABYARD_CYCLES` is how many at most.
#[test]
fn labs_come_up_and_go_down_again_and_again_and_leave_nothing() -> Result<()> {
    let file = std::env::var_os("LABYARD_CYCLES_FILE");
    let done = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).map_or(0, |text| text.lines().count());
    let wanted = if is_soak() { SOAK_ROUNDS } else { ROUNDS };
    let left = wanted.saturating_sub(done as u64).min(number("LABYARD_CYCLES").unwrap_or(u64::MAX));
    let before = Traces::now()?;
    let tiny = Tiny::new()?;
    let manifest = tiny.manifest("round", &["one", "two"])?;
    let mut log = file.map(|file| std::fs::File::options().append(true).create(true).open(file)).transpose()?;
    for round in 1..=left {
        let cycle = || -> Result<()> {
            host::run(&["up", &manifest, "--detach"])?.expect(0)?;
            host::run(&["wait", "round", "--for", "kernel-started", "--timeout", "2m"])?.expect(0)?;
            host::run(&["down", "round"])?.expect(0)?;
            Ok(())
        };
        cycle().with_context(|| format!("round {round}, after {done} before"))?;
        if let Some(log) = &mut log {
            writeln!(log, "{}", done as u64 + round)?;
        }
    }
    drop(tiny);
    eprintln!("  {left} rounds, {done} before, {wanted} wanted");
    before.wait_until_back()
}

/// A number below `most` (xorshift64*).
fn throw(state: &mut u64, most: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
}

/// The lab as `ps` tells of it, held against its processes. One that was killed is on its way for a moment, whoever looks.
fn ps_is_true(context: &str) -> Result<()> {
    let is_alive =
        |pid: &Value| pid.as_u64().is_some_and(|pid| std::fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false));
    let look = || {
        let said = host::run(&["ps", "--json"])?.expect(0)?;
        let told: Value = serde_json::from_slice(&said.stdout)?;
        let is_true = told["labs"].as_array().context("labs")?.iter().all(|lab| {
            let runs = is_alive(&lab["vmm_pid"]);
            match lab["standing"].as_str() {
                Some("running" | "unattended") => runs,
                Some("stopped" | "interrupted") => !runs,
                _ => true,
            }
        });
        Ok(is_true.then_some(()))
    };
    host::wait_for(context, Duration::from_secs(30), look, || format!("{:?}", host::run(&["ps", "--json"])))
}

#[test]
fn whoever_is_killed_at_whatever_moment_ps_is_true_down_cleans_and_nothing_leaks() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = number("LABYARD_SEED").unwrap_or_else(|| u64::from(now.subsec_micros()));
    let moments = if is_soak() { SOAK_MOMENTS } else { MOMENTS };
    eprintln!("  LABYARD_SEED={seed}, {moments} moments");
    let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let before = Traces::now()?;
    let tiny = Tiny::new()?;
    let (small, large) = (tiny.manifest("cut", &["one", "two"])?, tiny.manifest("cut", &["one", "two", "three"])?);
    let open = outward(&large)?;
    for moment in 0..moments {
        let verbs: [&[&str]; 5] = [
            &["up", &small, "--detach"],
            &["up", &large, "--detach"],
            &["up", &open, "--detach"],
            &["exec", "cut/one", "--", "true"],
            &["down", "cut", "--grace", "1s"],
        ];
        let verb = verbs[throw(&mut dice, 5) as usize];
        if throw(&mut dice, 3) != 0 || verb[0] != "up" {
            host::run(&["up", &small, "--detach"])?;
        }
        let (after_ms, victim) =
            (throw(&mut dice, 800), ["command", "supervisor", "vmm"][throw(&mut dice, 3) as usize]);
        let context = format!("LABYARD_SEED={seed}, moment {moment}: {verb:?}, {victim} after {after_ms} ms");
        let mut command = host::labyard(verb)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // The moment itself is what is tried, not waited for.
        std::thread::sleep(Duration::from_millis(after_ms));
        let pid = || {
            let state = host::given("LABYARD_HOME").ok()?.join("playgrounds/cut/state.json");
            let state: Value = serde_json::from_slice(&std::fs::read(state).ok()?).ok()?;
            let pid = u32::try_from(state[victim]["pid"].as_u64()?).ok()?;
            // Not one that has its number by now.
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains("labyard").then_some(pid)
        };
        if let Some(pid) = pid() {
            let _ = host::signal(pid, "KILL"); // it may be gone
        }
        // A guest without an agent answers no program, so that nobody waits for that.
        if victim == "command" || verb[0] == "exec" {
            let _ = command.kill(); // it may be gone
        }
        host::reap(&mut command)?;
        ps_is_true(&context)?;
        host::run(&["down", "--all", "--grace", "1s"])?.expect(0).with_context(|| context.clone())?;
        ensure!(!host::given("LABYARD_HOME")?.join("playgrounds/cut").exists(), "{context}: its folder is there");
    }
    drop(tiny);
    before.wait_until_back().with_context(|| format!("LABYARD_SEED={seed}"))
}

/// The same lab with its last machine on a network of its own, which has a way out.
fn outward(manifest: &str) -> Result<String> {
    let mut open: Value = serde_json::from_slice(&std::fs::read(manifest)?)?;
    let playground = &mut open["playground"];
    playground["networks"]
        .as_array_mut()
        .context("networks")?
        .push(json!({ "name": "edge", "subnet": "10.10.0.0/24" }));
    let last = playground["machines"].as_array_mut().and_then(|machines| machines.last_mut()).context("machines")?;
    last["network"]["interfaces"][0]["network"] = json!("edge");
    let path = format!("{manifest}.open.yaml");
    std::fs::write(&path, open.to_string())?;
    Ok(path)
}

#[test]
fn a_network_with_a_way_out_comes_to_a_lab_that_runs_and_nothing_is_left_of_it() -> Result<()> {
    // Anybody else may have no tun device or no pasta; such a network comes without a way out then, and goes all the same.
    let is_root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self")?) == 0;
    let before = Traces::now()?;
    let tiny = Tiny::new()?;
    let small = tiny.manifest("ways", &["one"])?;
    let open = outward(&tiny.manifest("ways", &["one", "two"])?)?;
    let state = || -> Result<Value> {
        let path = host::given("LABYARD_HOME")?.join("playgrounds/ways/state.json");
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    };
    let uplinks = || Ok::<_, anyhow::Error>(state()?["uplinks"].as_array().context("uplinks")?.len());
    // Devices that the vmm has, and those of the host that lead to a lab.
    let devices = || -> Result<[usize; 2]> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", state()?["vmm"]["pid"]))?.flatten();
        let is_tap = |file: &std::fs::DirEntry| {
            std::fs::read_link(file.path()).is_ok_and(|to| to == std::path::Path::new("/dev/net/tun"))
        };
        let host = std::fs::read_to_string("/proc/net/dev")?;
        Ok([files.filter(is_tap).count(), host.lines().filter(|line| line.trim_start().starts_with("ly-")).count()])
    };
    host::run(&["up", &small, "--detach"])?.expect(0)?;
    host::run(&["wait", "ways", "--for", "kernel-started", "--timeout", "2m"])?.expect(0)?;
    let vmm = state()?["vmm"].clone();
    for round in 1..=3 {
        let said = host::run(&["up", &open, "--detach"])?.expect(0)?.text();
        ensure!(said.contains("network edge is new, with"), "round {round}: {said}");
        ensure!(!is_root || (uplinks()?, devices()?) == (1, [1, 1]), "round {round}: {said}");
        if round == 2 {
            let supervisor = state()?["supervisor"]["pid"].as_u64().context("a supervisor")?;
            host::signal(u32::try_from(supervisor)?, "KILL")?;
        }
        host::run(&["up", &small, "--detach"])?.expect(0)?;
        ensure!(uplinks()? == 0, "round {round}: {}", state()?);
        // The kernel takes namespaces apart in its own time.
        let gone = || Ok((!is_root || devices()? == [0, 0]).then_some(()));
        host::wait_for("no device is left", Duration::from_secs(30), gone, || format!("{:?}", devices()))?;
    }
    ensure!(state()?["vmm"] == vmm, "another vmm");
    // The end of the vmm is the end of a way out; a lab that is saved and goes on has another.
    host::run(&["up", &open, "--detach"])?.expect(0)?;
    host::run(&["save", "ways"])?.expect(0)?;
    ensure!(uplinks()? == 0, "{}", state()?);
    host::run(&["restore", "ways"])?.expect(0)?;
    ensure!(!is_root || (uplinks()?, devices()?[0]) == (1, 1), "{}", state()?);
    host::run(&["down", "ways"])?.expect(0)?;
    drop(tiny);
    before.wait_until_back()
}
