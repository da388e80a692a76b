//! Up and down again and again with tiny guests, and kills in between: nothing is left of any round.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

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
    let open = outward(&large)?;
    // A guest without an agent is never ready, and answers no program, so that nobody waits for either.
    let (up, others) = (["--detach"], [large.as_str(), &open]);
    let kills = Kills { lab: "cut", small: &small, others: &others, up: &up, within: WITHIN, has_agent: false };
    let seed = kills::seed()?;
    kills.run(if is_soak() { SOAK_MOMENTS } else { MOMENTS }, seed)?;
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
    let is_root = host::is_root();
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
