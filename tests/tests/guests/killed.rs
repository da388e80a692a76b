//! Processes of ours that are killed at a bad moment: the next command says what is true, continues or cleans.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::host::{self, Traces};
use crate::lab::{self, Lab};

const MACHINE: &str = "    - name: one
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
";

#[test]
fn a_killed_up_leaves_what_down_cleans() -> Result<()> {
    // Moments of `up`, by what it has said last.
    for moment in ["ImagesReady", "DisksReady", "Jailed", "KernelStarted"] {
        let before = Traces::now()?;
        let folder = tempfile::tempdir()?;
        let manifest = lab::manifest(folder.path(), "cut", MACHINE)?;
        let mut command = host::labyard(&["up"])?;
        let mut up = command.arg(&manifest).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut said = String::new();
        for line in BufReader::new(up.stdout.take().context("its output")?).lines() {
            let line = line?;
            said.push_str(&line);
            said.push('\n');
            if line.contains(moment) {
                break;
            }
        }
        host::signal(up.id(), "KILL")?;
        host::reap(&mut up)?;
        ensure!(said.contains(moment), "`up` never said {moment}:\n{said}");
        host::run(&["ps"])?.expect(0)?;
        host::run(&["down", "cut", "--grace", "1s"])?.expect(0).context(moment)?;
        drop(folder);
        before.wait_until_back().context(moment)?;
        eprintln!("  ok      killed after {moment}");
    }
    Ok(())
}

#[test]
fn labs_outlive_their_supervisor_and_not_their_vmm() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), "orphan", MACHINE)?;
    {
        let mut lab = Lab::new("orphan");
        lab.up(&manifest)?;
        lab.check("after the supervisor is killed, exec works with a new one", |lab| {
            let (supervisor, vmm) = lab.processes()?;
            host::signal(supervisor, "KILL")?;
            let said = lab.exec("one", &["echo", "alive"])?.expect(0)?;
            ensure!(said.text() == "alive\n", "{said:?}");
            let (new, same) = lab.processes()?;
            ensure!(new != supervisor && same == vmm, "supervisor {supervisor}, then {new}; vmm {vmm}, then {same}");
            Ok(())
        });
        lab.check("after the vmm is killed, ps says so", |lab| {
            let (_, vmm) = lab.processes()?;
            host::signal(vmm, "KILL")?;
            let ended = || Ok(lab.ps()?.filter(|shown| shown["standing"] == "stopped"));
            let seen = || format!("{:?}", lab.ps());
            host::wait_for("the lab is over", Duration::from_secs(60), ended, seen)?;
            let said = lab.exec("one", &["true"])?;
            ensure!(said.code == 2, "{said:?}");
            Ok(())
        });
        lab.check("down removes what is left", |_| host::run(&["down", "orphan"])?.expect(0).map(|_| ()));
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}
