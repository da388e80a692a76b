//! Hundreds of labs in one run: as many at a time as there is memory for, each looked at and removed, and nothing of any is left.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{self, Traces};
use crate::tiny::Tiny;

/// Labs in CI, and in the soak.
const LABS: usize = 10;
const SOAK_LABS: usize = 300;
/// What a lab of one tiny guest takes, well above what was seen: its supervisor, its vmm, the touched part of its memory.
const LAB_KIB: usize = 48 << 10;
/// Commands at a time.
const COMMANDS: usize = 8;

/// KiB that can be had without swapping (proc_meminfo(5)).
fn available_kib() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Runs `each` for every one of `names`, some at a time; how long each took, or the first failure.
fn at_once(names: &[String], each: impl Fn(&str) -> Result<()> + Sync) -> Result<Vec<Duration>> {
    let (next, times) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            each(name).with_context(|| name.clone())?;
            times.lock().unwrap_or_else(PoisonError::into_inner).push(start.elapsed());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..COMMANDS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
    })?;
    Ok(times.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// All of them run, by `ps` and by /proc, and `ps` knows no other.
fn all_run(names: &[String]) -> Result<()> {
    let said = host::run(&["ps", "--json"])?.expect(0)?;
    let told: Value = serde_json::from_slice(&said.stdout)?;
    let labs = told["labs"].as_array().context("labs")?;
    ensure!(labs.len() == names.len(), "ps tells of {} labs, {} were started", labs.len(), names.len());
    for name in names {
        let lab = labs.iter().find(|lab| lab["name"] == **name).with_context(|| format!("ps does not know {name}"))?;
        ensure!(lab["standing"] == "running", "{lab}");
        let pid = lab["vmm_pid"].as_u64().with_context(|| format!("{lab}"))?;
        ensure!(fs::exists(format!("/proc/{pid}/exe"))?, "{name}: no process {pid}: {lab}");
    }
    Ok(())
}

/// The times at these hundredths, and the longest.
fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |hundredth: usize| times.get((times.len() * hundredth / 100).min(times.len().saturating_sub(1)));
    let shown = [("half", 50), ("90 %", 90), ("99 %", 99), ("all", 100)].map(|(name, hundredth)| {
        format!("{name} within {:.3} s", at(hundredth).copied().unwrap_or_default().as_secs_f64())
    });
    eprintln!("  {what}: {}", shown.join(", "));
}

#[test]
fn hundreds_of_labs_are_started_looked_at_and_removed_and_leave_nothing() -> Result<()> {
    let wanted = if crate::is_soak() { SOAK_LABS } else { LABS };
    let together = (available_kib()? / LAB_KIB).clamp(1, wanted);
    let before = Traces::now()?;
    let tiny = Tiny::new()?;
    let names: Vec<_> = (0..wanted).map(|number| format!("crowd-{number}")).collect();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for names in names.chunks(together) {
        up.extend(at_once(names, |name| {
            let manifest = tiny.manifest(name, &["one"])?;
            host::run(&["up", &manifest, "--detach"])?.expect(0)?;
            host::run(&["wait", name, "--for", "kernel-started", "--timeout", "2m"])?.expect(0).map(drop)
        })?);
        all_run(names)?;
        down.extend(at_once(names, |name| host::run(&["down", name])?.expect(0).map(drop))?);
    }
    eprintln!("  {wanted} labs, {together} at a time, {COMMANDS} commands at a time");
    report("from `up` until the guest runs", up);
    report("`down`", down);
    drop(tiny);
    before.wait_until_back()
}
