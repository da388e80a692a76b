//! Memory in pages of every size, and at every address.
//!
//! The host's settings are its own again afterwards: other tests of this host expect them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use labyard_spec::control::{Change, MachineStatus, Reply, Request};

use crate::host::{self, HUGE_PAGES, SHMEM_HUGE_PAGES, Setting, Traces};
use crate::lab::{self, Lab};

const NAME: &str = "pages";
const MIB: u64 = 1 << 20;
const HUGE: u64 = 2 * MIB;
const PATIENCE: Duration = Duration::from_secs(180);
/// Huge pages that `set-aside` is made of.
const SET_ASIDE: u64 = 128;

const MACHINES: &str = "    - name: set-aside
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
      labyard: {hugePages: true, entry: linux64}
    - name: high
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {cpuCount: 2, ramSize: HIGHGiB}
";

/// GiB of `high`, beyond the hole below 4 GiB; more in the soak, whose host has room for it.
fn high_gib() -> u64 {
    if crate::is_soak() { 6 } else { 5 }
}

fn huge_pages(name: &str) -> Result<u64> {
    let path = Path::new(HUGE_PAGES).with_file_name(name);
    Ok(fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().parse()?)
}

#[test]
fn memory_is_in_the_pages_that_were_asked_for() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), NAME, &MACHINES.replace("HIGH", &high_gib().to_string()))?;
    let _advised = Setting::set(SHMEM_HUGE_PAGES, "advise")?;
    let _set_aside = Setting::set(HUGE_PAGES, &(SET_ASIDE - 1).to_string())?;
    refused_with_the_numbers(&manifest)?;
    {
        fs::write(HUGE_PAGES, SET_ASIDE.to_string())?;
        ensure!(huge_pages("free_hugepages")? == SET_ASIDE, "the host has no {SET_ASIDE} huge pages");
        let mut lab = Lab::new(NAME);
        lab.up(&manifest)?;
        lab.check("each machine tells the size of its pages", page_sizes);
        lab.check("huge pages that were set aside stay with their machine", set_aside);
        lab.check("memory beyond the hole is there, and was written at its top", high_memory);
        lab.check("what is set aside is enough for a reboot in place", reboots);
        lab.check("whole transparent huge pages come back without asking", whole_pages_come_back);
        lab.verdict()?;
    }
    ensure!(huge_pages("free_hugepages")? == SET_ASIDE, "{} are free", huge_pages("free_hugepages")?);
    drop(folder);
    before.wait_until_back()
}

fn refused_with_the_numbers(manifest: &Path) -> Result<()> {
    let _lab = Lab::new(NAME);
    let said = host::run(&["up", manifest.to_str().context("a path")?])?.expect(2)?;
    let errors: Vec<_> = said.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    let (needed, free) = (SET_ASIDE, SET_ASIDE - 1);
    let words =
        format!("machines[0].labyard.hugePages: {needed} huge pages of 2MiB, {free} of the {free} that are free");
    ensure!(errors.len() == 1 && errors[0].contains(&words), "{}", said.stderr);
    ensure!(errors[0].contains("pages.yaml:10:"), "{}", errors[0]);
    Ok(())
}

fn status(lab: &Lab, machine: &str) -> Result<MachineStatus> {
    let Reply::Status(status) = lab.control(&Request::Status)? else { anyhow::bail!("no status") };
    status.machines.into_iter().find(|known| known.name == machine).with_context(|| machine.to_owned())
}

fn page_sizes(lab: &Lab) -> Result<()> {
    let shown = lab.ps()?.context("ps does not know the lab")?;
    for (position, machine) in ["set-aside", "high"].into_iter().enumerate() {
        ensure!(status(lab, machine)?.page_size == HUGE, "{machine}: {}", status(lab, machine)?.page_size);
        ensure!(shown["machines"][position]["page_size"] == HUGE, "{shown}");
    }
    Ok(())
}

fn set_aside(lab: &Lab) -> Result<()> {
    ensure!(huge_pages("free_hugepages")? == 0, "{} are free", huge_pages("free_hugepages")?);
    let change = Change::Balloon { target_mib: 64 };
    let asked = lab.control(&Request::Change { machine: Some("set-aside".into()), change })?;
    ensure!(matches!(&asked, Reply::Failed(why) if why.contains("none of which goes back")), "{asked:?}");
    // Its guest fills and frees most of it, and reports nothing.
    lab.exec("set-aside", &["python3", "-c", "len(bytearray(b'x') * (100 << 20))"])?.expect(0)?;
    let balloon = status(lab, "set-aside")?.balloon.context("its statistics")?;
    ensure!(balloon.given_back_bytes == 0 && huge_pages("free_hugepages")? == 0, "{balloon:?}");
    Ok(())
}

fn high_memory(lab: &Lab) -> Result<()> {
    let said = lab.exec("high", &["awk", "/MemTotal/ {print $2}", "/proc/meminfo"])?.expect(0)?.text();
    let kib = high_gib() << 20;
    ensure!((kib * 9 / 10..=kib).contains(&said.trim().parse::<u64>()?), "{said} KiB of {kib}");
    // Linux has its page descriptors as high as memory goes; they are in the file that its memory is.
    let file = lab.guest_memory("high")?;
    let len = file.metadata()?.len();
    ensure!(len == high_gib() * 1024 * MIB, "{len} bytes");
    let mut top = vec![0; 16 << 20];
    file.read_exact_at(&mut top, len - 16 * MIB)?;
    ensure!(top.iter().any(|byte| *byte != 0), "nothing was written in the last 16 MiB");
    let topology = lab.exec("high", &["lscpu", "-p=CPU,CORE,SOCKET"])?.expect(0)?.text();
    let cpus: Vec<_> = topology.lines().filter(|line| !line.starts_with('#')).collect();
    ensure!(cpus == ["0,0,0", "1,1,0"], "{topology}");
    Ok(())
}

fn reboots(lab: &Lab) -> Result<()> {
    let read = || lab.exec("set-aside", &["cat", "/proc/sys/kernel/random/boot_id"]);
    let old = read()?.expect(0)?.text();
    let back = || {
        let now = read()?;
        if now.code == 0 && now.text() == old {
            // Again where systemd does not listen yet. The program may be cut off by what it does.
            let _ = lab.exec("set-aside", &["reboot"])?;
        }
        Ok((now.code == 0 && now.text() != old).then_some(()))
    };
    host::wait_for("another boot", PATIENCE, back, || lab.words())?;
    ensure!(status(lab, "set-aside")?.page_size == HUGE && huge_pages("free_hugepages")? == 0);
    Ok(())
}

fn whole_pages_come_back(lab: &Lab) -> Result<()> {
    let memory = lab.guest_memory("high")?;
    let fill = || lab.exec("high", &["python3", "-c", "len(bytearray(b'x') * (256 << 20))"])?.expect(0).map(drop);
    let most = lab::most_held_bytes(&memory, fill)?;
    ensure!(most >= 256 * MIB, "{most} bytes held while a program uses 256 MiB");
    let look = || Ok(Some(lab::held_bytes(&memory)?).filter(|now| *now + 208 * MIB <= most));
    let seen = || format!("{most} bytes held, then {:?}", lab::held_bytes(&memory));
    let after = host::wait_for("208 of 256 MiB back", PATIENCE, look, seen)?;
    // Blocks of 2 MiB and more, so that none was broken up on the way.
    let order = lab.exec("high", &["cat", "/sys/module/page_reporting/parameters/page_reporting_order"])?.expect(0)?;
    ensure!(order.text().trim() == "9", "{order:?}");
    eprintln!("          {} MiB held while a program used 256, {} later", most / MIB, after / MIB);
    Ok(())
}
