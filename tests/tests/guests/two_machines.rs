//! The main job: two machines in one process that find each other by name, and everything a person does with them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::host::{self, Traces};
use crate::lab::{self, Lab};
use crate::reference;

const MACHINES: &str = "    - name: web
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}, {source: 'IMAGE', mount: /data, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.10}]}
      resources: {cpuCount: 2, ramSize: 512MiB}
    - name: db
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local, address: 172.16.0.11}]}
";

#[test]
fn a_lab_of_two_machines_does_what_people_do_with_it() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), "pair", MACHINES)?;
    {
        let mut lab = Lab::new("pair");
        lab.up(&manifest)?;
        lab.check("ps shows both as ready", both_are_ready);
        lab.check("the machines ping each other by name", ping_by_name);
        lab.check("what a program says and how it ends arrives unchanged", exec_is_faithful);
        lab.check("10 MiB go in and come out unchanged", ten_mebibytes);
        lab.check("every entry of the image is as umoci unpacks it", same_tree);
        lab.check("64 MiB are the same after sync and remount", write_and_remount);
        lab.check("the vmm sits in an empty room", jailed);
        lab.check("no device has counted a fault of the guest's drivers", no_faults);
        lab.check("logs have the login prompt of the console", logs);
        lab.check("a guest's reboot brings the same machine back", reboot);
        lab.check("a guest's power-off is its end", power_off);
        lab.check("a guest's panic is told with the last lines", panic);
        lab.check("down leaves nothing", |_| down("pair"));
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

fn both_are_ready(lab: &Lab) -> Result<()> {
    let shown = lab.ps()?.context("ps does not know the lab")?;
    ensure!(shown["standing"] == "running", "{shown}");
    for machine in shown["machines"].as_array().context("machines")? {
        ensure!(machine["ready"] == true, "{machine}");
    }
    Ok(())
}

fn ping_by_name(lab: &Lab) -> Result<()> {
    for (from, to, address) in [("web", "db", "172.16.0.11"), ("db", "web", "172.16.0.10")] {
        let said = lab.exec(from, &["ping", "-c", "3", "-W", "10", to])?.expect(0)?.text();
        ensure!(said.contains(&format!("PING {to} ({address})")), "{said}");
        ensure!(said.contains("3 received, 0% packet loss"), "{said}");
    }
    let said = lab.exec("db", &["hostname"])?.expect(0)?.text();
    ensure!(said.trim() == "db", "{said}");
    Ok(())
}

fn exec_is_faithful(lab: &Lab) -> Result<()> {
    for code in [0, 1, 7, 255] {
        lab.exec("web", &["sh", "-c", &format!("exit {code}")])?.expect(code)?;
    }
    lab.exec("web", &["sh", "-c", "kill -TERM $$"])?.expect(128 + 15)?;
    let said = lab.exec("web", &["sh", "-c", "echo out; echo err >&2; exit 3"])?.expect(3)?;
    ensure!((said.text().as_str(), said.stderr.as_str()) == ("out\n", "err\n"), "{said:?}");
    let said = lab.exec("web", &["no-such-program"])?;
    ensure!(said.code != 0 && said.stderr.contains("no-such-program"), "{said:?}");
    let said = host::run(&[
        "exec",
        "pair/web",
        "-u",
        "games",
        "-w",
        "/tmp",
        "-e",
        "COLOUR=blue",
        "--",
        "sh",
        "-c",
        "id -un; pwd; echo $COLOUR",
    ])?;
    ensure!(said.text() == "games\n/tmp\nblue\n", "{said:?}");
    Ok(())
}

fn ten_mebibytes(lab: &Lab) -> Result<()> {
    // A sequence without a period that a lost or doubled block would not show in (an LCG's high bytes).
    let mut state = 1u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(10 << 20)
    .collect();
    let said = lab.exec_with("web", &["cat"], &bytes)?.expect(0)?;
    ensure!(said.stdout.len() == bytes.len(), "{} bytes came back", said.stdout.len());
    ensure!(said.stdout == bytes, "the bytes that came back are others");
    Ok(())
}

/// The image as our builder wrote it, seen by the guest's kernel on a drive that nothing else uses, against umoci's tree.
fn same_tree(lab: &Lab) -> Result<()> {
    let ours = lab.exec_with("web", &["python3", "-", "/data"], reference::WALK)?.expect(0)?;
    reference::compare(&ours.stdout, &reference::example()?, 10_000)
}

fn write_and_remount(lab: &Lab) -> Result<()> {
    let script = "set -e
        dd if=/dev/urandom of=/data/blob bs=1M count=64 status=none
        sync
        sha256sum < /data/blob
        device=$(findmnt -no SOURCE /data)
        umount /data
        echo 3 > /proc/sys/vm/drop_caches
        mount \"$device\" /data
        sha256sum < /data/blob
        rm /data/blob";
    let said = lab.exec("web", &["sh", "-c", script])?.expect(0)?.text();
    let sums: Vec<_> = said.lines().collect();
    ensure!(matches!(sums.as_slice(), [before, after] if before == after && before.len() > 60), "{said}");
    Ok(())
}

/// The vmm's root is an empty folder, it has no capability, and only the descriptors that it was given.
fn jailed(lab: &Lab) -> Result<()> {
    let (_, vmm) = lab.processes()?;
    let proc = Path::new("/proc").join(vmm.to_string());
    let inside: Vec<_> = fs::read_dir(proc.join("root"))?.flatten().map(|entry| entry.path()).collect();
    ensure!(inside.is_empty(), "{inside:?}");
    let status = fs::read_to_string(proc.join("status"))?;
    for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
        ensure!(status.lines().any(|found| found == line), "{line} is not in\n{status}");
    }
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let (own, theirs) =
            (fs::read_link(format!("/proc/self/ns/{namespace}"))?, fs::read_link(proc.join("ns").join(namespace))?);
        ensure!(own != theirs, "it shares our {namespace} namespace");
    }
    let program = host::given("LABYARD_LIBEXEC")?.join("labyard-vmm");
    ensure!(!has_interpreter(&fs::read(program)?), "labyard-vmm is not static");
    Ok(())
}

/// Whether an ELF-64 program asks for a dynamic loader: a program header of type PT_INTERP (3).
fn has_interpreter(elf: &[u8]) -> bool {
    let number =
        |at: usize, len: usize| elf[at..at + len].iter().rev().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
    let (table, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).any(|index| number(table + index * size, 4) == 3)
}

fn no_faults(lab: &Lab) -> Result<()> {
    let words = lab.words();
    let said: Vec<_> = words.lines().filter(|line| line.contains("guest fault")).collect();
    ensure!(said.is_empty(), "{said:?}");
    Ok(())
}

fn logs(lab: &Lab) -> Result<()> {
    let prompt = || Ok(host::run(&["logs", "pair/db"])?.expect(0)?.text().contains("db login:").then_some(()));
    host::wait_for("a login prompt on the console", std::time::Duration::from_secs(180), prompt, || lab.words())
}

fn reboot(lab: &Lab) -> Result<()> {
    let boot_id = |lab: &Lab| -> Result<String> {
        Ok(lab.exec("db", &["cat", "/proc/sys/kernel/random/boot_id"])?.expect(0)?.text())
    };
    let before = boot_id(lab)?;
    lab.exec("db", &["sh", "-c", "echo kept > /root/note; sync"])?.expect(0)?;
    // The machine goes away under the program, so how that ends is not looked at.
    lab.exec("db", &["systemctl", "reboot", "--force"])?;
    let look = || Ok(boot_id(lab).ok().filter(|now| *now != before));
    host::wait_for("db: another boot", std::time::Duration::from_secs(180), look, || lab.words())?;
    let note = lab.exec("db", &["cat", "/root/note"])?.expect(0)?.text();
    ensure!(note == "kept\n", "{note}");
    lab.exec("web", &["ping", "-c", "1", "-W", "20", "db"])?.expect(0)?;
    Ok(())
}

fn power_off(lab: &Lab) -> Result<()> {
    // The agent answers before systemd does: right after a boot nobody listens yet.
    let asked = || Ok((lab.exec("db", &["systemctl", "poweroff"])?.code == 0).then_some(()));
    host::wait_for("db: systemd takes the wish", std::time::Duration::from_secs(180), asked, || lab.words())?;
    lab.wait_for_state("db", "powered off")?;
    lab.exec("web", &["true"])?.expect(0)?;
    let said = lab.exec("db", &["true"])?;
    ensure!(said.code != 0 && said.stderr.contains("db"), "{said:?}");
    Ok(())
}

fn panic(lab: &Lab) -> Result<()> {
    lab.exec("web", &["sh", "-c", "echo c > /proc/sysrq-trigger"])?;
    let state = lab.wait_for_state("web", "panic")?;
    ensure!(state.contains("Kernel panic - not syncing: sysrq triggered crash"), "not the kernel's words: {state}");
    Ok(())
}

fn down(name: &str) -> Result<()> {
    host::run(&["down", name])?.expect(0)?;
    let said = host::run(&["down", name])?.expect(0)?;
    ensure!(said.text().contains("nothing to do") || said.stderr.contains("nothing to do"), "{said:?}");
    Ok(())
}
