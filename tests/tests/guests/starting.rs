//! Machines and labs that stop and start again: what a guest has flushed is there, and its network is the one it was in.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::host::{self, Traces};
use crate::lab::{self, Lab};

const MACHINES: &str = "    - name: web
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.10}]}
    - name: db
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.11}]}
";

#[test]
fn a_machine_and_a_lab_start_again_on_their_drives() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), "again", MACHINES)?;
    {
        let mut lab = Lab::new("again");
        lab.up(&manifest)?;
        lab.check("a machine starts again while the other runs on", one_machine);
        lab.check("a lab starts again", whole_lab);
        lab.check("up of a lab that runs changes nothing", |lab| up_again(lab, &manifest));
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

/// Writes a file down to the drive.
fn leave(lab: &Lab, machine: &str, text: &str) -> Result<()> {
    lab.exec(machine, &["sh", "-c", &format!("echo {text} > /root/kept && sync")])?.expect(0)?;
    Ok(())
}

fn found(lab: &Lab, machine: &str) -> Result<String> {
    Ok(lab.exec(machine, &["cat", "/root/kept"])?.expect(0)?.text().trim().to_owned())
}

fn boot_id(lab: &Lab, machine: &str) -> Result<String> {
    Ok(lab.exec(machine, &["cat", "/proc/sys/kernel/random/boot_id"])?.expect(0)?.text())
}

fn one_machine(lab: &Lab) -> Result<()> {
    leave(lab, "db", "first")?;
    let (web, db) = (boot_id(lab, "web")?, boot_id(lab, "db")?);
    for verb in [&["stop", "again/db"][..], &["start", "again/db"], &["restart", "again/db"]] {
        host::run(verb)?.expect(0)?;
    }
    ensure!(found(lab, "db")? == "first", "the file is another");
    ensure!(boot_id(lab, "web")? == web, "web was to run on");
    ensure!(boot_id(lab, "db")? != db, "db was to start anew");
    let said = lab.exec("web", &["ping", "-c", "3", "-W", "10", "db"])?.expect(0)?.text();
    ensure!(said.contains("3 received, 0% packet loss"), "{said}");
    Ok(())
}

fn whole_lab(lab: &Lab) -> Result<()> {
    leave(lab, "web", "second")?;
    host::run(&["stop", "again"])?.expect(0)?;
    let shown = lab.ps()?.context("ps does not know the lab")?;
    ensure!(shown["standing"] == "stopped", "{shown}");
    host::run(&["start", "again"])?.expect(0)?;
    ensure!(found(lab, "web")? == "second" && found(lab, "db")? == "first", "a file is another");
    Ok(())
}

fn up_again(lab: &Lab, manifest: &Path) -> Result<()> {
    let boot = boot_id(lab, "web")?;
    let said = lab.up(manifest)?.text();
    ensure!(said.contains("nothing has changed"), "{said}");
    ensure!(boot_id(lab, "web")? == boot, "it was to run on");
    Ok(())
}
