//! Up and down again and again with tiny guests, and kills in between: nothing is left of any round.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

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
    for moment in 0..moments {
        let verbs: [&[&str]; 4] = [
            &["up", &small, "--detach"],
            &["up", &large, "--detach"],
            &["exec", "cut/one", "--", "true"],
            &["down", "cut", "--grace", "1s"],
        ];
        let verb = verbs[throw(&mut dice, 4) as usize];
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
