//! Up and down again and again with tiny guests, and kills in between: nothing is left of any round.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::{self, Traces};
use crate::kills::{self, Kills};
use crate::tiny::Tiny;
use crate::{is_soak, number};

/// Rounds in CI, and in the soak; those of the soak can be done in shares.
const ROUNDS: u64 = 5;
const SOAK_ROUNDS: u64 = 1000;
/// Moments of a kill in CI, and in the soak.
const MOMENTS: u64 = 4;
const SOAK_MOMENTS: u64 = 50;
/// How long after a command began one of them is, at most.
const WITHIN: Duration = Duration::from_millis(800);

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

#[test]
fn whoever_is_killed_at_whatever_moment_ps_is_true_down_cleans_and_nothing_leaks() -> Result<()> {
    let before = Traces::now()?;
    let tiny = Tiny::new()?;
    let (small, large) = (tiny.manifest("cut", &["one", "two"])?, tiny.manifest("cut", &["one", "two", "three"])?);
    // A guest without an agent is never ready, and answers no program, so that nobody waits for either.
    let up = ["--detach"];
    let kills = Kills { lab: "cut", small: &small, large: &large, up: &up, within: WITHIN, has_agent: false };
    let seed = kills::seed()?;
    kills.run(if is_soak() { SOAK_MOMENTS } else { MOMENTS }, seed)?;
    drop(tiny);
    before.wait_until_back().with_context(|| format!("LABYARD_SEED={seed}"))
}
