//! Linux comes up and goes down again and again; rounds of labs whose guests are nothing are in `cycles`.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::host::{self, Traces};
use crate::lab;

/// Rounds where nobody says `LABYARD_SOAK`, and where somebody does.
const ROUNDS: u32 = 3;
const SOAK_ROUNDS: u32 = 50;

#[test]
fn a_lab_of_linux_comes_up_and_goes_down_again_and_again_and_leaves_nothing() -> Result<()> {
    let rounds = if std::env::var_os("LABYARD_SOAK").is_some() { SOAK_ROUNDS } else { ROUNDS };
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let machine = "    - name: m\n      drives: [{source: 'IMAGE', mount: /, size: 1GiB}]\n      resources: {ramSize: 192MiB}\n      \
                   network: {interfaces: [{network: local}]}\n";
    let manifest = lab::manifest(folder.path(), "rounds", machine)?;
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
