//! Linux comes up and goes down again and again, and is killed in between; the same of labs whose guests are nothing is in `cycles`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host::{self, Traces};
use crate::kills::{self, Kills};
use crate::{is_soak, lab};

/// Rounds where nobody says `LABYARD_SOAK`, and where somebody does.
const ROUNDS: u32 = 3;
const SOAK_ROUNDS: u32 = 50;
/// Moments of a kill, likewise.
const MOMENTS: u64 = 3;
const SOAK_MOMENTS: u64 = 50;
/// How long after a command began one of them is, at most: longer than Linux takes to come up.
const WITHIN: Duration = Duration::from_secs(15);

/// A machine in a manifest.
fn machine(name: &str) -> String {
    format!(
        "    - name: {name}\n      drives: [{{source: 'IMAGE', mount: /, size: 1GiB}}]\n      resources: {{ramSize: 192MiB}}\n      \
         network: {{interfaces: [{{network: local}}]}}\n"
    )
}

#[test]
fn a_lab_of_linux_comes_up_and_goes_down_again_and_again_and_leaves_nothing() -> Result<()> {
    let rounds = if is_soak() { SOAK_ROUNDS } else { ROUNDS };
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), "rounds", &machine("m"))?;
    let manifest = manifest.to_str().context("a path in UTF-8")?;
    for round in 1..=rounds {
        let start = Instant::now();
        let cycle = || -> Result<()> {
            host::run(&["up", manifest])?.expect(0)?;
            host::run(&["exec", "rounds/m", "--", "true"])?.expect(0)?;
            // Its systemd may not be there yet to hear of the power button: that is not what this is about.
            host::run(&["down", "rounds", "--grace", "1s"])?.expect(0).map(drop)
        };
        cycle().with_context(|| format!("round {round}"))?;
        eprintln!("  round {round} of {rounds}: {:.1} s", start.elapsed().as_secs_f32());
    }
    drop(folder);
    before.wait_until_back()
}

#[test]
fn whoever_of_a_lab_of_linux_is_killed_ps_is_true_down_cleans_and_nothing_leaks() -> Result<()> {
    let before = Traces::now()?;
    let (small, large) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let small_manifest = lab::manifest(small.path(), "cut", &machine("one"))?;
    let large_manifest = lab::manifest(large.path(), "cut", &(machine("one") + &machine("two")))?;
    let others = [large_manifest.to_str().context("UTF-8")?];
    let kills = Kills {
        lab: "cut",
        small: small_manifest.to_str().context("UTF-8")?,
        others: &others,
        up: &[],
        within: WITHIN,
        has_agent: true,
    };
    let seed = kills::seed()?;
    kills.run(if is_soak() { SOAK_MOMENTS } else { MOMENTS }, seed)?;
    drop((small, large));
    before.wait_until_back().with_context(|| format!("LABYARD_SEED={seed}"))
}
