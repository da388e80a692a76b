//! The devices that a person does not see: memory that comes back to the host, the console's size and floods, streams.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use labyard_spec::control::{BalloonStatus, Change, Reply, Request};

use crate::host::{self, SHMEM_HUGE_PAGES, Setting, Traces};
use crate::lab::{self, Lab};

const NAME: &str = "quiet";
const MACHINE: &str = "one";
const MACHINES: &str = "    - name: one
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {cpuCount: 1, ramSize: 512MiB}
";
const MIB: u64 = 1 << 20;
/// Emulation is slow, and a guest reports free pages no more often than every two seconds of its own.
const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn quiet_devices_do_their_work_in_a_real_guest() -> Result<()> {
    let before = Traces::now()?;
    // Of small pages every one comes back; of huge ones, see `sizes.rs`. A host without the file has small ones.
    let _small = Setting::set(SHMEM_HUGE_PAGES, "never").ok();
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), NAME, MACHINES)?;
    {
        let mut lab = Lab::new(NAME);
        lab.up(&manifest)?;
        lab.check("memory that the guest freed comes back without asking", freed_memory_comes_back);
        lab.check("the balloon takes memory when asked and gives it back", balloon_on_request);
        lab.check("the guest tells of its memory", statistics);
        lab.check("the console has the size of the terminal", console_size);
        lab.check("a flood on the console costs the host no memory and stops nobody", console_flood);
        lab.check("many streams carry their own bytes both ways at once", many_streams);
        lab.check("no device has counted a fault", no_faults);
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

fn control_socket() -> Result<PathBuf> {
    Ok(host::given("LABYARD_HOME")?.join("playgrounds").join(NAME).join("control.sock"))
}

/// Asks the vmm itself.
fn ask(request: &Request) -> Result<Reply> {
    let path = control_socket()?;
    let mut stream = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
    let body = serde_json::to_vec(request)?;
    stream.write_all(&u32::try_from(body.len())?.to_le_bytes())?;
    stream.write_all(&body)?;
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut body = vec![0; u32::from_le_bytes(len) as usize];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

fn change(change: Change) -> Result<()> {
    match ask(&Request::Change { machine: Some(MACHINE.into()), change })? {
        Reply::Done => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn balloon() -> Result<BalloonStatus> {
    let Reply::Status(status) = ask(&Request::Status)? else { bail!("no status") };
    status.machines.into_iter().next().and_then(|machine| machine.balloon).context("no balloon in the status")
}

/// The vmm's own memory in MiB, from /proc/PID/status.
fn resident_mib(vmm: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{vmm}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon")).with_context(|| status.clone())?;
    let kib: u64 = line.trim_matches([':', '\t', ' ']).split(' ').next().context("a number")?.parse()?;
    Ok(kib >> 10)
}

fn wait_until_below(memory: &File, mib: u64) -> Result<u64> {
    let look = || Ok(Some(lab::held_bytes(memory)? / MIB).filter(|now| *now < mib));
    let seen = || format!("{:?} bytes held, {:?}", lab::held_bytes(memory), balloon());
    host::wait_for(&format!("less than {mib} MiB of guest memory"), PATIENCE, look, seen)
}

fn use_200_mib(lab: &Lab) -> Result<()> {
    let said = lab.exec(MACHINE, &["python3", "-c", "print(len(bytearray(b'x') * (200 << 20)))"])?.expect(0)?;
    ensure!(said.text().trim() == (200 << 20).to_string(), "{said:?}");
    Ok(())
}

/// Waits until the guest's system is up. What it reads on its way lies among what others use meanwhile, and leaves holes that are
/// too small to be reported.
fn settled(lab: &Lab) -> Result<()> {
    let state = || Ok::<_, anyhow::Error>(lab.exec(MACHINE, &["systemctl", "is-system-running"])?.text());
    let up = || Ok(["running", "degraded"].contains(&state()?.trim()).then_some(()));
    host::wait_for("a system that is up", PATIENCE, up, || format!("{:?}", state()))
}

/// What is held in the end is what the guest uses. The bytes that it has reported say less: most are of pages that it never touched,
/// and some are reported again when they join others.
fn freed_memory_comes_back(lab: &Lab) -> Result<()> {
    settled(lab)?;
    let memory = lab.guest_memory(MACHINE)?;
    let most = lab::most_held_bytes(&memory, || use_200_mib(lab))? / MIB;
    ensure!(most >= 200, "{most} MiB held while a program uses 200");
    let after = wait_until_below(&memory, most - 170)?;
    let spare = || -> Result<i64> {
        let said = lab.exec(MACHINE, &["awk", "/MemFree/ {print $2}", "/proc/meminfo"])?.expect(0)?;
        let used = 512 - said.text().trim().parse::<i64>()? / 1024;
        Ok((lab::held_bytes(&memory)? / MIB) as i64 - used)
    };
    let spare = host::wait_for(
        "no more than 16 MiB beside what the guest uses",
        PATIENCE,
        || Ok(Some(spare()?).filter(|spare| *spare <= 16)),
        || format!("{:?} MiB", spare()),
    )?;
    eprintln!("          {most} MiB held while a program used 200, {after} later; beside what the guest uses {spare}");
    use_200_mib(lab)
}

fn balloon_on_request(lab: &Lab) -> Result<()> {
    let memory = lab.guest_memory(MACHINE)?;
    ensure!(
        ask(&Request::Change { machine: Some(MACHINE.into()), change: Change::Balloon { target_mib: 512 } })?
            != Reply::Done
    );
    // What a guest has read stays in its memory, and is what it parts with.
    lab.exec(MACHINE, &["dd", "if=/dev/vda", "of=/dev/null", "bs=1M", "count=300", "status=none"])?.expect(0)?;
    let full = lab::held_bytes(&memory)? / MIB;
    change(Change::Balloon { target_mib: 300 })?;
    let inflated = || Ok((balloon()?.actual_mib >= 290).then_some(()));
    host::wait_for("a balloon of 300 MiB", PATIENCE, inflated, || format!("{:?}", balloon()))?;
    let after = wait_until_below(&memory, full - 80)?;
    eprintln!("          {full} MiB before, {after} MiB with a balloon of 300 MiB");
    lab.exec(MACHINE, &["true"])?.expect(0)?;
    change(Change::Balloon { target_mib: 0 })?;
    let deflated = || Ok((balloon()?.actual_mib == 0).then_some(()));
    host::wait_for("an empty balloon", PATIENCE, deflated, || format!("{:?}", balloon()))?;
    use_200_mib(lab)
}

fn statistics(_: &Lab) -> Result<()> {
    let total = || {
        let told = balloon()?.statistics;
        let value = |name| told.iter().find(|(other, _)| other == name).map(|(_, value)| *value);
        Ok(value("total-bytes").zip(value("available-bytes")))
    };
    let (total, available) = host::wait_for("statistics", PATIENCE, total, || format!("{:?}", balloon()))?;
    ensure!((400 * MIB..=512 * MIB).contains(&total) && available < total, "{available} of {total}");
    Ok(())
}

fn console_size(lab: &Lab) -> Result<()> {
    change(Change::ConsoleSize { cols: 132, rows: 43 })?;
    let size = || -> Result<String> { Ok(lab.exec(MACHINE, &["stty", "-F", "/dev/hvc0", "size"])?.expect(0)?.text()) };
    let look = || Ok((size()?.trim() == "43 132").then_some(()));
    host::wait_for("a console of 132 columns", PATIENCE, look, || format!("{:?}", size()))
}

fn console_flood(lab: &Lab) -> Result<()> {
    let (_, vmm) = lab.processes()?;
    let before = resident_mib(vmm)?;
    let flood = "dd if=/dev/zero bs=64k count=160 status=none | tr '\\0' x > /dev/hvc0";
    lab.exec(MACHINE, &["sh", "-c", &format!("({flood}) & sleep 0; echo answered; wait")])?.expect(0)?;
    lab.exec(MACHINE, &["true"])?.expect(0)?;
    let after = resident_mib(vmm)?;
    ensure!(after <= before + 4, "the vmm grew from {before} to {after} MiB");
    Ok(())
}

/// 100 streams of 256 KiB each way; 1,000 of 1 MiB where time allows.
fn many_streams(lab: &Lab) -> Result<()> {
    let script = include_str!("streams.py");
    let soak = crate::is_soak();
    let (count, bytes) = if soak { ("1000", "1048576") } else { ("100", "262144") };
    let (_, vmm) = lab.processes()?;
    let before = resident_mib(vmm)?;
    let whole = format!("{count} whole");
    std::thread::scope(|scope| {
        let guest = scope
            .spawn(|| lab.exec(MACHINE, &["timeout", "900", "python3", "-c", script, "guest", "5000", count, bytes]));
        let control = control_socket()?;
        let control = control.to_str().context("a path in UTF-8")?;
        // Nobody listens until the guest's program has begun.
        let connect = || match ask(&Request::Connect { machine: MACHINE.into(), port: 5001 })? {
            Reply::Done => Ok(Some(())),
            _ => Ok(None),
        };
        host::wait_for("the guest listens", PATIENCE, connect, || "nobody".to_owned())?;
        let mut host = std::process::Command::new("timeout");
        host.args(["900", "python3", "-c", script, "host", control, MACHINE, "5000", count, bytes]);
        let here = host::run_with(host, b"")?.expect(0)?;
        let there = guest.join().map_err(|_| anyhow::anyhow!("the guest's side panicked"))??.expect(0)?;
        ensure!(here.text().contains(&whole) && there.text().contains(&whole), "{here:?}\n{there:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    let after = resident_mib(vmm)?;
    eprintln!("          {count} streams of {bytes} bytes each way; the vmm's own memory from {before} to {after} MiB");
    ensure!(after <= before + 24, "the vmm grew from {before} to {after} MiB");
    Ok(())
}

fn no_faults(_: &Lab) -> Result<()> {
    let Reply::Status(status) = ask(&Request::Status)? else { bail!("no status") };
    for machine in status.machines {
        let counted: Vec<_> = machine.faults.iter().filter(|(_, count)| *count > 0).collect();
        ensure!(counted.is_empty(), "{counted:?}");
    }
    Ok(())
}
