//! Somebody of a lab is killed at a moment that nobody chose: its command, its supervisor or its vmm.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{host, number};

/// How long whoever was killed may be on his way.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab, and how it is brought up.
pub(crate) struct Kills<'a> {
    pub(crate) lab: &'a str,
    /// A manifest, and others of the same lab with more in them. All have a machine `one`.
    pub(crate) small: &'a str,
    pub(crate) others: &'a [&'a str],
    /// What `up` is given beside them.
    pub(crate) up: &'a [&'a str],
    /// How long after a command began it happens, at most.
    pub(crate) within: Duration,
    /// Programs are answered.
    pub(crate) has_agent: bool,
}

/// Another one for each run, unless somebody asks for one.
pub(crate) fn seed() -> Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(number("LABYARD_SEED").unwrap_or_else(|| u64::from(now.subsec_micros())))
}

/// A number below `most` (xorshift64*).
fn throw(state: &mut u64, most: u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
}

impl Kills<'_> {
    /// That many moments. After each, `ps` is true and `down` cleans.
    pub(crate) fn run(&self, moments: u64, seed: u64) -> Result<()> {
        eprintln!("  LABYARD_SEED={seed}, {moments} moments");
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let machine = format!("{}/one", self.lab);
        let up = |manifest| [&["up", manifest], self.up].concat();
        let mut verbs = vec![vec!["exec", &machine, "--", "true"], vec!["down", self.lab, "--grace", "1s"]];
        verbs.push(up(self.small));
        verbs.extend(self.others.iter().map(|manifest| up(manifest)));
        let within_ms = u64::try_from(self.within.as_millis())?;
        for moment in 0..moments {
            let verb = &verbs[throw(&mut dice, verbs.len() as u64) as usize];
            if throw(&mut dice, 3) != 0 || verb[0] != "up" {
                host::run(&up(self.small))?;
            }
            let after_ms = throw(&mut dice, within_ms);
            let victim = ["command", "supervisor", "vmm"][throw(&mut dice, 3) as usize];
            let context = format!("LABYARD_SEED={seed}, moment {moment}: {verb:?}, {victim} after {after_ms} ms");
            self.one(verb, victim, after_ms).with_context(|| context)?;
        }
        Ok(())
    }

    fn one(&self, verb: &[&str], victim: &str, after_ms: u64) -> Result<()> {
        let mut command = host::labyard(verb)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // The moment itself is what is tried, not waited for.
        std::thread::sleep(Duration::from_millis(after_ms));
        if let Some(pid) = self.process(victim) {
            let _ = host::signal(pid, "KILL"); // it may be gone
        }
        if victim == "command" || (verb[0] == "exec" && !self.has_agent) {
            let _ = command.kill(); // it may be gone
        }
        host::reap(&mut command)?;
        ps_is_true()?;
        host::run(&["down", "--all", "--grace", "1s"])?.expect(0)?;
        let folder = host::given("LABYARD_HOME")?.join("playgrounds").join(self.lab);
        ensure!(!folder.exists(), "its folder is there");
        Ok(())
    }

    fn process(&self, who: &str) -> Option<u32> {
        let state = host::given("LABYARD_HOME").ok()?.join("playgrounds").join(self.lab).join("state.json");
        let state: Value = serde_json::from_slice(&std::fs::read(state).ok()?).ok()?;
        let pid = u32::try_from(state[who]["pid"].as_u64()?).ok()?;
        // Not one that has its number by now.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains("labyard").then_some(pid)
    }
}

/// Labs as `ps` tells of them, held against their processes. One that was killed is on its way for a moment, whoever looks.
fn ps_is_true() -> Result<()> {
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
    host::wait_for("`ps` is true", PATIENCE, look, || format!("{:?}", host::run(&["ps", "--json"])))
}
