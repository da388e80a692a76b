//! Machines of all sizes, and every way in which one ends or starts again.
//!
//! Some of it needs the host: the size of shared memory's huge pages is set once for all tests of this host.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::host::{self, Said, Traces};
use crate::lab::{self, Lab};

/// How long a machine may take to come back or to end in the emulated host.
const PATIENCE: Duration = Duration::from_secs(180);

const MACHINES: &str = "    - name: wide
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {cpuCount: 4, ramSize: 5GiB}
    - name: small
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 256MiB}
";

#[test]
fn machines_have_the_size_that_was_asked_for_and_end_as_they_are_told() -> Result<()> {
    // A host that has no such file gives small pages, and that is then what is expected.
    let _ = fs::write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise");
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), "sizes", MACHINES)?;
    {
        let mut lab = Lab::new("sizes");
        lab.up(&manifest)?;
        lab.check("four processors are one package of four cores", topology);
        lab.check("four busy processors all run", busy);
        lab.check("5 GiB of memory are there, also beyond the hole", high_memory);
        lab.check("the pages that a machine got are those that the host gives", page_size);
        lab.check("the firmware's devices have their drivers", firmware);
        lab.check("every thread of the vmm has its filters of system calls", filters);
        lab.check("counters and the time line of the boot are told", counters);
        lab.check("reboots in place keep descriptors and memory", reboots);
        lab.check("shutdown -r reboots", |lab| comes_back(lab, &["shutdown", "-r", "now"]));
        lab.check("sysrq-b resets", |lab| comes_back(lab, &["sh", "-c", "echo b > /proc/sysrq-trigger"]));
        lab.check("without its agent a machine hears its power button", button);
        lab.check("stop of the lab ends by the guest's own power-off", stop);
        lab.verdict()?;
    }
    drop(folder);
    before.wait_until_back()
}

#[test]
fn memory_below_the_kernels_minimum_is_one_clear_error() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let machines = "    - name: tiny
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {ramSize: 48MiB}
";
    let manifest = lab::manifest(folder.path(), "tiny", machines)?;
    {
        let _lab = Lab::new("tiny");
        let said = host::run(&["up", manifest.to_str().context("a path")?])?;
        ensure!(said.code == 2, "{said:?}");
        let errors: Vec<_> = said.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        ensure!(errors.len() == 1, "{}", said.stderr);
        ensure!(errors[0].contains("48 MiB are too few for kernel"), "{}", errors[0]);
    }
    drop(folder);
    before.wait_until_back()
}

#[test]
fn thirty_two_processors_come_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let machines = "    - name: broad
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}]
      network: {interfaces: [{network: local}]}
      resources: {cpuCount: 32, ramSize: 1GiB}
";
    let manifest = lab::manifest(folder.path(), "broad", machines)?;
    let lab = Lab::new("broad");
    lab.up(&manifest)?;
    ensure!(lab.exec("broad", &["nproc"])?.expect(0)?.text() == "32\n");
    let cores = lab.exec("broad", &["lscpu", "-p=CPU,CORE,SOCKET"])?.expect(0)?.text();
    let seen: Vec<_> = cores.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    ensure!(seen == (0..32).map(|cpu| format!("{cpu},{cpu},0")).collect::<Vec<_>>(), "{cores}");
    Ok(())
}

fn said(lab: &Lab, machine: &str, script: &str) -> Result<String> {
    Ok(lab.exec(machine, &["sh", "-c", script])?.expect(0)?.text().trim().to_owned())
}

fn topology(lab: &Lab) -> Result<()> {
    ensure!(said(lab, "wide", "nproc")? == "4");
    let at = "/sys/devices/system/cpu/cpu";
    for cpu in 0..4 {
        let script =
            format!("cd {at}{cpu}/topology && cat physical_package_id core_id thread_siblings_list package_cpus_list");
        let words = said(lab, "wide", &script)?;
        ensure!(words.lines().collect::<Vec<_>>() == ["0", &cpu.to_string(), &cpu.to_string(), "0-3"], "{words}");
    }
    ensure!(said(lab, "small", "nproc")? == "1");
    Ok(())
}

fn busy(lab: &Lab) -> Result<()> {
    let script = "for cpu in 0 1 2 3; do taskset -c $cpu sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done' & done; wait";
    let words = said(lab, "wide", script)?;
    ensure!(words.lines().count() == 4, "{words}");
    let ran = said(lab, "wide", "grep -c '^cpu[0-3] ' /proc/stat")?;
    ensure!(ran == "4", "{ran}");
    Ok(())
}

fn high_memory(lab: &Lab) -> Result<()> {
    let total: u64 = said(lab, "wide", "awk '/MemTotal/ {print $2}' /proc/meminfo")?.parse()?;
    ensure!((4_850_000..=5_242_880).contains(&total), "{total} KiB");
    let high = said(lab, "wide", "grep -c '^1[0-9a-f]*-.*: System RAM' /proc/iomem")?;
    ensure!(high == "1", "{high} ranges beyond 4 GiB");
    let small: u64 = said(lab, "small", "awk '/MemTotal/ {print $2}' /proc/meminfo")?.parse()?;
    ensure!((180_000..=262_144).contains(&small), "{small} KiB");
    Ok(())
}

/// What the vmm says over its control socket.
fn status(lab: &Lab) -> Result<Value> {
    let home = host::given("LABYARD_HOME")?;
    // A socket's path ends at 108 bytes, so it is dialled through a descriptor of its folder.
    let folder = fs::File::open(home.join("playgrounds").join(lab.name()))?;
    let path = format!("/proc/self/fd/{}/control.sock", std::os::fd::AsRawFd::as_raw_fd(&folder));
    let mut stream = UnixStream::connect(path)?;
    let body = serde_json::to_vec(&json!("status"))?;
    stream.write_all(&u32::try_from(body.len())?.to_le_bytes())?;
    stream.write_all(&body)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice::<Value>(&body)?["status"].take())
}

fn page_size(lab: &Lab) -> Result<()> {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let expected = if enabled.contains("[advise]") { 2 << 20 } else { 4096 };
    for machine in status(lab)?["machines"].as_array().context("machines")? {
        ensure!(machine["page_size"] == expected, "{}, and shmem_enabled is {enabled}", machine["page_size"]);
    }
    Ok(())
}

fn firmware(lab: &Lab) -> Result<()> {
    for (device, driver) in [("LBYD0001:00", "vmgenid"), ("QEMU0001:00", "pvpanic-mmio"), ("PNP0C0C:00", "button")] {
        let script = format!(
            "for at in /sys/bus/acpi/devices/{device} /sys/bus/acpi/devices/{device}/physical_node; do basename \"$(readlink $at/driver)\"; done"
        );
        let words = said(lab, "small", &script)?;
        ensure!(words.lines().any(|word| word == driver), "{device}: {words}");
    }
    let interrupts = said(lab, "small", "grep -c 'ACPI:Ged' /proc/interrupts")?;
    ensure!(interrupts == "1", "{interrupts}");
    Ok(())
}

fn counters(lab: &Lab) -> Result<()> {
    let status = status(lab)?;
    let wide = &status["machines"][0];
    let points: Vec<_> = wide["boot_us"].as_array().context("a time line")?.iter().map(|point| &point[0]).collect();
    ensure!(points == ["loaded", "first-run", "first-console-byte", "init-hello"], "{points:?}");
    let counted = |owner: &str, name: &str| -> Result<u64> {
        let owners = wide["counters"].as_array().context("counters")?;
        let counters =
            owners.iter().find(|entry| entry[0] == owner).with_context(|| format!("{owner} in {owners:?}"))?;
        let found = counters[1].as_array().context("values")?.iter().find(|entry| entry[0] == name);
        found.and_then(|entry| entry[1].as_u64()).with_context(|| format!("{name} in {counters}"))
    };
    for cpu in 0..4 {
        ensure!(counted(&format!("cpu{cpu}"), "mmio_write")? > 0, "cpu{cpu}");
    }
    ensure!(counted("cpu0", "port_write")? > 0);
    ensure!(counted("net eth0", "sent_frames")? > 0);
    Ok(())
}

/// Filters add up: main has its own, the spawner two, and who was made by the spawner one more.
fn filters(lab: &Lab) -> Result<()> {
    let (_, vmm) = lab.processes()?;
    let mut seen = Vec::new();
    for task in fs::read_dir(format!("/proc/{vmm}/task"))? {
        // A thread may have ended.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned()).with_context(|| format!("no {name} in {status}"))
        };
        let (name, mode, count) = (field("Name")?, field("Seccomp")?, field("Seccomp_filters")?);
        let least = match name.as_str() {
            "spawner" => 2,
            // Main. Before Linux 6.14 a program that was executed by its descriptor is called by that.
            "labyard-vmm" => 1,
            name if name.bytes().all(|byte| byte.is_ascii_digit()) => 1,
            // Of the kernel, made by ours: KVM's, and workers of rings.
            name if name.starts_with("kvm-") || name.starts_with("iou-wrk-") => 1,
            _ => 3,
        };
        ensure!(mode == "2" && count.parse::<u32>()? >= least, "thread {name}: mode {mode}, {count} filters");
        seen.push(name);
    }
    for name in ["spawner", "control", "wide", "wide io", "wide cpu3", "small cpu0"] {
        ensure!(seen.iter().any(|seen| seen == name), "no thread {name}: {seen:?}");
    }
    Ok(())
}

/// Descriptors and resident memory of the vmm, in KiB, without its guests' memory, which is shared.
fn footprint(lab: &Lab) -> Result<(usize, u64)> {
    let (_, vmm) = lab.processes()?;
    let descriptors = host::descriptors(vmm)?.len();
    let status = fs::read_to_string(format!("/proc/{vmm}/status"))?;
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    Ok((descriptors, anonymous.trim().trim_end_matches(" kB").parse()?))
}

/// Runs what reboots `small`, and waits until it is another boot.
fn comes_back(lab: &Lab, argv: &[&str]) -> Result<()> {
    let boot = |said: Said| (said.code == 0).then(|| said.text());
    let read = || lab.exec("small", &["cat", "/proc/sys/kernel/random/boot_id"]);
    let old = read()?.expect(0)?.text();
    let back = || {
        let now = boot(read()?);
        if now.as_ref() == Some(&old) {
            // Again where systemd does not listen yet: the agent answers before it does. The program may be cut off by what it does.
            let _ = lab.exec("small", argv)?;
        }
        Ok(now.filter(|new| *new != old))
    };
    host::wait_for("another boot", PATIENCE, back, || lab.words()).map(|_| ())
}

fn reboots(lab: &Lab) -> Result<()> {
    let count = if crate::is_soak() { 20 } else { 3 };
    // The first one fills what is kept for the next.
    comes_back(lab, &["reboot"])?;
    let (descriptors, memory) = footprint(lab)?;
    for _ in 1..count {
        comes_back(lab, &["reboot"])?;
    }
    let (now, memory_now) = footprint(lab)?;
    ensure!(now == descriptors, "{descriptors} descriptors have become {now}");
    ensure!(memory_now < memory + 512, "{memory} KiB have become {memory_now} KiB");
    Ok(())
}

/// Kills the agent, which has given itself this name.
const KILL_AGENT: &str =
    "for at in /proc/[0-9]*; do if [ \"$(cat $at/comm)\" = labyard-agent ]; then kill -9 ${at#/proc/}; fi; done";

/// What systemd-logind does, which this image lacks because it has no D-Bus: KEY_POWER (1, 116) pressed (1) powers off. It is in
/// the background once it listens (struct input_event, Linux, include/uapi/linux/input.h).
const LISTEN_TO_BUTTON: &str = "
import glob, os, struct, subprocess, time
name, = [at for at in glob.glob('/sys/class/input/event*') if open(at + '/device/name').read() == 'Power Button\\n']
button = os.open('/dev/input/' + os.path.basename(name), os.O_RDONLY)
if os.fork():
    os._exit(0)
os.setsid()
null = os.open('/dev/null', os.O_RDWR)
for stream in 0, 1, 2:
    os.dup2(null, stream)
while struct.unpack('llHHi', os.read(button, 24))[2:] != (1, 116, 1):
    pass
# After a reset a moment ago systemd may not take orders yet; the host's patience is the deadline.
while subprocess.call(['systemctl', 'poweroff']):
    time.sleep(0.2)
";

fn button(lab: &Lab) -> Result<()> {
    lab.exec_with("small", &["python3", "-"], LISTEN_TO_BUTTON.as_bytes())?.expect(0)?;
    // Nobody but the power button is left: the call ends with the agent that it kills.
    let _ = lab.exec("small", &["sh", "-c", KILL_AGENT])?;
    let said = host::run(&["stop", "sizes/small", "--grace", "3m"])?.expect(0)?;
    ensure!(said.text() == "small: powered off\n", "{said:?}");
    let events = host::run(&["events", "sizes"])?.expect(0)?.text();
    ensure!(events.contains("the power button is pressed"), "{events}");
    Ok(())
}

fn stop(lab: &Lab) -> Result<()> {
    let said = host::run(&["stop", lab.name(), "--grace", "3m"])?.expect(0)?;
    ensure!(said.text() == "wide: powered off\nsmall: powered off\n", "{said:?}");
    let again = host::run(&["stop", lab.name()])?.expect(0)?;
    ensure!(again.stderr.contains("nothing to do"), "{again:?}");
    let Some(shown) = lab.ps()? else { bail!("the lab is gone") };
    ensure!(shown["standing"] == "stopped", "{shown}");
    Ok(())
}
