//! A lab under load is saved at any moment, its process is killed, and it goes on in another: nothing is lost, repeated or changed.
//!
//! `labyard save` ends the vmm with SIGKILL, so every round is a killed process. Connections from outside are cut by it; between
//! the machines they live on.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use labyard_spec::control::{Change, Reply, Request};
use serde_json::Value;

use crate::host::{self, Traces};
use crate::lab::{self, Lab};

const NAME: &str = "kept";
const MACHINES: &str = "    - name: a
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.10}]}
      resources: {cpuCount: 2, ramSize: 256MiB}
    - name: b
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.11}]}
      resources: {cpuCount: 1, ramSize: 256MiB}
";
const BOTH: [&str; 2] = ["a", "b"];
/// In the balloon of one of them.
const BALLOON_MIB: u64 = 40;
/// Emulated guests are slow.
const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn a_lab_under_load_is_saved_killed_and_goes_on_as_if_nothing_had_been() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), NAME, MACHINES)?;
    let rounds = if crate::is_soak() { 25 } else { 1 };
    {
        let mut lab = Lab::new(NAME);
        lab.up(&manifest)?;
        begin(&lab)?;
        lab.check("paused, nothing moves; resumed, it goes on", pause_and_resume);
        for round in 1..=rounds {
            lab.check(&format!("saved, killed and restored, round {round} of {rounds}"), |lab| {
                save_and_restore(lab, round)
            });
        }
        lab.check("what was written, sent, printed and drawn is whole", |lab| whole(lab, rounds));
        lab.check("guests have seen no stall and know that they are copies", |lab| kernels_are_content(lab, rounds));
        lab.check("no device has counted a fault", no_faults);
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

fn begin(lab: &Lab) -> Result<()> {
    let script = include_bytes!("saved.py");
    for (machine, role, peer) in [("b", "receive", "172.16.0.10"), ("a", "send", "172.16.0.11")] {
        lab.exec_with(machine, &["sh", "-ec", "cat > /var/saved.py"], script)?.expect(0)?;
        // The agent answers before systemd does.
        let load = ["systemd-run", "--quiet", "--unit=load", "python3", "/var/saved.py", role, peer];
        let start = || Ok((lab.exec(machine, &load)?.code == 0).then_some(()));
        host::wait_for("systemd", PATIENCE, start, || format!("{:?}", lab.exec(machine, &load)))?;
    }
    change(lab, Change::Balloon { target_mib: BALLOON_MIB })?;
    for machine in BOTH {
        advance(lab, machine, 5)?;
    }
    let inflated = || Ok((balloon_mib(lab)? >= BALLOON_MIB).then_some(()));
    host::wait_for("the balloon", PATIENCE, inflated, || format!("{:?}", balloon_mib(lab)))
}

fn change(lab: &Lab, change: Change) -> Result<()> {
    match lab.control(&Request::Change { machine: Some("b".into()), change })? {
        Reply::Done => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn status(lab: &Lab) -> Result<Vec<labyard_spec::control::MachineStatus>> {
    let Reply::Status(status) = lab.control(&Request::Status)? else { bail!("no status") };
    Ok(status.machines)
}

fn balloon_mib(lab: &Lab) -> Result<u64> {
    let machine = status(lab)?.into_iter().find(|machine| machine.name == "b").context("b")?;
    Ok(machine.balloon.context("its balloon")?.actual_mib)
}

/// How many blocks a machine has written.
fn written(lab: &Lab, machine: &str) -> Result<u64> {
    let said = lab.exec(machine, &["cat", "/run/disk"])?;
    if said.code != 0 {
        return Ok(0);
    }
    said.text().trim().parse().with_context(|| format!("{said:?}"))
}

/// Waits until a machine has written so many blocks more.
fn advance(lab: &Lab, machine: &str, blocks: u64) -> Result<()> {
    let from = written(lab, machine)?;
    let look = || Ok((written(lab, machine)? >= from + blocks).then_some(()));
    host::wait_for(&format!("{machine}: {blocks} blocks after {from}"), PATIENCE, look, || {
        format!("{:?}\n{:?}", written(lab, machine), lab.exec(machine, &["systemctl", "status", "load"]))
    })
}

fn pause_and_resume(lab: &Lab) -> Result<()> {
    let exits = |lab: &Lab| -> Result<Vec<_>> {
        let cpus = |(owner, values): (String, Vec<_>)| owner.starts_with("cpu").then_some(values);
        Ok(status(lab)?.into_iter().flat_map(|machine| machine.counters).filter_map(cpus).collect())
    };
    host::run(&["pause", NAME])?.expect(0)?;
    ensure!(status(lab)?.iter().all(|machine| machine.paused));
    let (first, second) = (exits(lab)?, exits(lab)?);
    ensure!(first == second, "{first:?}, then {second:?}");
    host::run(&["resume", NAME])?.expect(0)?;
    BOTH.into_iter().try_for_each(|machine| advance(lab, machine, 5))
}

fn save_and_restore(lab: &Lab, round: u64) -> Result<()> {
    // Another moment each time, of which nobody here knows what happens in it.
    advance(lab, BOTH[(round % 2) as usize], 3 + round * 7 % 23)?;
    let (_, first) = lab.processes()?;
    let mut cut = host::labyard(&["exec", "kept/a", "--", "sleep", "1000000"])?;
    let mut cut = cut.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let since = Instant::now();
    let said = host::run(&["save", NAME, "--json"])?.expect(0)?.text();
    let (saved, since) = (since.elapsed(), Instant::now());
    let told: Value = serde_json::from_str(&said)?;
    ensure!(told["memory_bytes"] == 512 << 20, "{told}");
    ensure!(!std::path::Path::new(&format!("/proc/{first}")).exists(), "process {first} is still there");
    // Somebody who waited for a program in a machine is not left waiting.
    host::reap(&mut cut)?;
    host::run(&["restore", NAME])?.expect(0)?;
    let restored = since.elapsed();
    let (_, second) = lab.processes()?;
    ensure!(first != second, "one process");
    BOTH.into_iter().try_for_each(|machine| advance(lab, machine, 5))?;
    ensure!(balloon_mib(lab)? == BALLOON_MIB, "{} MiB in the balloon", balloon_mib(lab)?);
    let disk_mib = told["disk_bytes"].as_u64().unwrap_or_default() >> 20;
    eprintln!("          saved in {saved:.1?}, 512 MiB in {disk_mib} on disk; restored in {restored:.1?}");
    Ok(())
}

fn whole(lab: &Lab, rounds: u64) -> Result<()> {
    change(lab, Change::Balloon { target_mib: 0 })?;
    for machine in BOTH {
        lab.exec(machine, &["touch", "/run/stop"])?.expect(0)?;
    }
    let mut sent = Vec::new();
    for machine in BOTH {
        let look = || {
            let said = lab.exec(machine, &["cat", "/run/result"])?;
            Ok((said.code == 0).then(|| said.text()))
        };
        let result = host::wait_for("the result", PATIENCE, look, || {
            format!("{:?}", lab.exec(machine, &["systemctl", "status", "load"]))
        })?;
        let result: Value = serde_json::from_str(&result)?;
        ensure!(result["failed"].as_array().is_some_and(Vec::is_empty), "{machine}: {result:#}");
        eprintln!("          {machine}: {} over {rounds} saves", result["done"]);
        sent.push(result["done"]["net"].clone());
        let ticks = result["done"]["console"].as_u64().context("ticks")?;
        let log = host::given("LABYARD_HOME")?.join("playgrounds").join(NAME).join("machines").join(machine);
        let printed = std::fs::read(log.join("console.log"))?;
        let printed = String::from_utf8_lossy(&printed);
        let seen = printed.split("tick ").skip(1).filter_map(|rest| rest.split_once('.')?.0.parse::<u64>().ok());
        let wrong = seen.clone().zip(0..).find(|(seen, expected)| seen != expected);
        ensure!(
            (seen.count() as u64, wrong) == (ticks, None),
            "{machine}: of {ticks} lines, (printed, expected): {wrong:?}"
        );
    }
    ensure!(sent.iter().all(|count| *count == sent[0]), "sent and received: {sent:?}");
    Ok(())
}

fn kernels_are_content(lab: &Lab, rounds: u64) -> Result<()> {
    for machine in BOTH {
        let log = lab.exec(machine, &["dmesg"])?.expect(0)?.text();
        for trouble in
            ["soft lockup", "stall", "hung_task", "blocked for more than", "I/O error", "EXT4-fs error", "BUG:"]
        {
            let found = log.lines().find(|line| line.contains(trouble));
            ensure!(found.is_none(), "{machine}: {found:?}");
        }
        let copies = log.lines().filter(|line| line.contains("reseeded due to virtual machine fork")).count() as u64;
        ensure!(copies == rounds, "{machine}: heard {copies} times that it is a copy, restored {rounds} times\n{log}");
    }
    Ok(())
}

fn no_faults(lab: &Lab) -> Result<()> {
    for machine in status(lab)? {
        let counted: Vec<_> = machine.faults.iter().filter(|(_, count)| *count > 0).collect();
        ensure!(counted.is_empty(), "{}: {counted:?}", machine.name);
    }
    Ok(())
}
