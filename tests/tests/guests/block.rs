//! Drives under load in a real guest, by both engines: data that is verified, space that comes back, limits and sizes that change
//! meanwhile, and what is there when the vmm was killed in the middle.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use labyard_spec::control::{Reply, Request, Status};
use serde_json::Value;

use crate::host;
use crate::lab::{self, Lab};

const NAME: &str = "drives";
const MIB: u64 = 1 << 20;
/// How long something may take that waits for the host's disk or for a guest's driver.
const PATIENCE: Duration = Duration::from_secs(120);

/// d00 is the root, d01 a file system, d02 is read-only; d03 to d10 are raw, by io_uring and system calls in turns.
fn machine() -> String {
    let mut drives = vec![
        "{source: 'IMAGE', mount: /, size: 4GiB}".to_owned(),
        "{mount: /one, size: 512MiB}".to_owned(),
        "{size: 16MiB, readOnly: true}".to_owned(),
    ];
    drives.extend(
        (3..11)
            .map(|n| format!("{{size: 128MiB, labyard: {{engine: {}}}}}", if n % 2 == 1 { "uring" } else { "sync" })),
    );
    format!(
        "    - name: disk\n      drives: [{}]\n      network: {{interfaces: [{{network: local}}]}}\n",
        drives.join(", ")
    )
}

/// The guest's name of a drive.
fn device(number: u8) -> String {
    format!("/dev/vd{}", char::from(b'a' + number))
}

#[test]
fn drives_keep_data_give_space_back_change_while_they_work_and_outlive_their_vmm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), NAME, &machine())?;
    let mut lab = Lab::new(NAME);
    lab.up(&manifest)?;
    lab.check("each drive has its engine, its serial and the queue features", known);
    lab.check("a read-only drive is one to the guest", read_only);
    lab.check("fio verifies what it wrote to eight drives at once", verified);
    lab.check("what the guest trims and discards is the host's again", given_back);
    lab.check("limits of drive, machine and lab hold at once, and so does their end", limited);
    lab.check("a limit of a NIC holds what its guest sends", nic_limited);
    lab.check("a drive that grows is larger for the guest and for its file system", resized);
    lab.check("drives count what they do", counted);
    lab.check("a drive is not exported while its machine runs", refused);
    lab.check("what was flushed is there when the vmm was killed in the middle of writing", |lab| {
        killed(lab, folder.path())
    });
    lab.check("an exported file system is sound, in both formats", |_| exported(folder.path()));
    lab.verdict()
}

/// A file of the lab in the state directory.
fn file(name: &str) -> Result<PathBuf> {
    Ok(host::given("LABYARD_HOME")?.join("playgrounds").join(NAME).join(name))
}

fn run(lab: &Lab, script: &str) -> Result<String> {
    Ok(lab.exec("disk", &["sh", "-c", script])?.expect(0)?.text())
}

fn known(lab: &Lab) -> Result<()> {
    let log = fs::read_to_string(file("vmm.log")?)?;
    for told in ["drive d00: io_uring", "drive d03: io_uring", "drive d04: system calls, as asked for"] {
        ensure!(log.contains(told), "no `{told}` in {log}");
    }
    let said = run(lab, "for d in /sys/block/vd?; do echo ${d##*/} $(cat $d/serial) $(cat $d/device/features); done")?;
    let serials: Vec<_> = (0..11).map(|n| (device(n).replace("/dev/", ""), format!("d{n:02}"))).collect();
    for (name, serial) in serials {
        let line = said.lines().find(|line| line.starts_with(&format!("{name} {serial} ")));
        let features = line.and_then(|line| line.split(' ').nth(2)).with_context(|| format!("{name}: {said}"))?;
        // VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX (VIRTIO 1.2, §6); sysfs shows bit 0 first.
        ensure!(features.get(28..30) == Some("11"), "{name}: {features}");
    }
    Ok(())
}

fn read_only(lab: &Lab) -> Result<()> {
    let device = device(2);
    let said = run(lab, "cat /sys/block/vdc/ro")?;
    ensure!(said.trim() == "1", "{said}");
    let said =
        lab.exec("disk", &["dd", "if=/dev/zero", &format!("of={device}"), "bs=4096", "count=1", "oflag=direct"])?;
    ensure!(said.code != 0 && said.stderr.contains("not permitted") | said.stderr.contains("ead-only"), "{said:?}");
    run(lab, &format!("dd if={device} of=/dev/null bs=1M iflag=direct 2>&1")).map(|_| ())
}

/// Runs fio in the guest; the jobs of its report.
fn fio(lab: &Lab, arguments: &[String]) -> Result<Vec<Value>> {
    let common = ["fio", "--output-format=json", "--direct=1", "--ioengine=libaio"];
    let all: Vec<_> = common.into_iter().chain(arguments.iter().map(String::as_str)).collect();
    let said = lab.exec("disk", &all)?.expect(0)?.text();
    let document: Value = serde_json::from_str(said.get(said.find('{').unwrap_or(0)..).unwrap_or_default())?;
    let jobs = document["jobs"].as_array().cloned().with_context(|| said.clone())?;
    for job in &jobs {
        ensure!(job["error"] == 0, "{job}");
    }
    Ok(jobs)
}

fn verified(lab: &Lab) -> Result<()> {
    let bytes = if crate::is_soak() { 100 * MIB } else { 2 * MIB };
    let mut arguments: Vec<String> = Vec::new();
    for number in 3..11 {
        // Parts of blocks on two of them, one for each engine.
        let sizes = if number < 5 { "--bs=512" } else { "--bsrange=4k-64k" };
        let size = if number < 5 { bytes / 8 } else { bytes };
        arguments.extend([format!("--name=j{number}"), format!("--filename={}", device(number)), sizes.to_owned()]);
        arguments.extend(["--rw=randwrite", "--iodepth=16", "--verify=crc32c", "--fdatasync=32"].map(str::to_owned));
        arguments.push(format!("--size={size}"));
    }
    let jobs = fio(lab, &arguments)?;
    ensure!(jobs.len() == 8, "{} jobs", jobs.len());
    for job in jobs {
        ensure!(job["read"]["io_bytes"].as_u64() >= Some(bytes / 8), "not read back: {job}");
    }
    Ok(())
}

fn given_back(lab: &Lab) -> Result<()> {
    let used = |serial: &str| {
        Ok::<_, anyhow::Error>(fs::metadata(file(&format!("machines/disk/{serial}.overlay"))?)?.blocks() * 512)
    };
    run(lab, "dd if=/dev/urandom of=/one/large bs=1M count=24 conv=fsync 2>&1")?;
    let before = used("d01")?;
    let said = run(lab, "rm /one/large && sync && fstrim -v /one")?;
    let after = used("d01")?;
    ensure!(after + 20 * MIB <= before, "{before} bytes, then {after}: {said}");
    for (number, serial) in [(5, "d05"), (6, "d06")] {
        let device = device(number);
        run(lab, &format!("dd if=/dev/urandom of={device} bs=1M count=8 oflag=direct conv=fsync 2>&1"))?;
        let before = used(serial)?;
        let said = run(lab, &format!("blkdiscard {device} && head -c 8388608 {device} | tr -d '\\0' | wc -c"))?;
        ensure!(said.trim() == "0", "{said} bytes are not zeros after a discard");
        let after = used(serial)?;
        ensure!(after + 6 * MIB <= before, "{serial}: {before} bytes, then {after}");
    }
    Ok(())
}

/// Bytes a second that the guest reads from a drive.
fn read_speed(lab: &Lab, bytes: u64) -> Result<u64> {
    let (filename, size) = (format!("--filename={}", device(7)), format!("--size={bytes}"));
    let words = ["--name=read", &filename, "--readonly", "--rw=read", "--bs=16k", "--iodepth=4", &size];
    let jobs = fio(lab, &words.map(str::to_owned))?;
    jobs.first().and_then(|job| job["read"]["bw_bytes"].as_u64()).context("fio without a rate")
}

fn limit(arguments: &[&str]) -> Result<()> {
    host::run(&[&["limit"], arguments].concat())?.expect(0).map(|_| ())
}

fn limited(lab: &Lab) -> Result<()> {
    let free = read_speed(lab, 4 * MIB)?;
    // Far below what the drive does here, and at least three seconds of it.
    let rate = (free / 8).max(64 << 10) >> 10 << 10;
    let bytes = format!("{}KiB", rate >> 10);
    for (target, shared) in [("drives/disk:d07", None), ("drives/disk", Some("--drives")), (NAME, Some("--drives"))] {
        let words: Vec<_> = [target].into_iter().chain(shared).collect();
        limit(&[words.as_slice(), &["--bytes", &bytes]].concat())?;
        let speed = read_speed(lab, (rate * 3) >> 14 << 14)?;
        ensure!(speed <= rate * 14 / 10 && speed >= rate / 3, "{target}: {speed} bytes a second, {rate} are the limit");
        limit(&[words.as_slice(), &["--off"]].concat())?;
        let speed = read_speed(lab, 4 * MIB)?;
        ensure!(speed >= rate * 2, "{target}: {speed} bytes a second without a limit of {rate}, {free} before");
    }
    Ok(())
}

fn nic_limited(lab: &Lab) -> Result<()> {
    // To nobody: what counts is how fast the NIC takes it.
    let script = "import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
t = time.monotonic()
for _ in range(1000): s.sendto(b'x' * 1400, ('172.16.0.77', 9))
print(time.monotonic() - t)";
    run(lab, "ip neigh replace 172.16.0.77 lladdr 02:00:00:00:00:77 dev eth0")?;
    let seconds =
        || -> Result<f64> { Ok(lab.exec("disk", &["python3", "-c", script])?.expect(0)?.text().trim().parse()?) };
    let free = seconds()?;
    limit(&["drives/disk:eth0", "--ops", "100"])?;
    let held = seconds()?;
    limit(&["drives/disk:eth0", "--off"])?;
    let freed = seconds()?;
    // The ring and the socket hold several hundred of the thousand.
    ensure!(held > 2.0 && held > free * 2.0 && freed < held, "{free} s, limited {held} s, then {freed} s");
    Ok(())
}

fn resized(lab: &Lab) -> Result<()> {
    let resize = |size: &str| host::run(&["drive", "resize", "drives/disk:d01", size]);
    resize("768MiB")?.expect(0)?;
    let sectors = || run(lab, "cat /sys/block/vdb/size");
    let seen = || Ok((sectors()?.trim() == (768 * 2048).to_string()).then_some(()));
    host::wait_for("the new size", PATIENCE, seen, || format!("{:?}", sectors()))?;
    run(lab, "resize2fs /dev/vdb 2>&1 && df -m --output=size /one | tail -n 1")?;
    let mib: u64 = run(lab, "df -m --output=size /one | tail -n 1")?.trim().parse()?;
    ensure!(mib > 600, "a file system of {mib} MiB");
    run(lab, "dd if=/dev/urandom of=/one/behind bs=1M count=8 conv=fsync 2>&1 && sync")?;
    let said = resize("512MiB")?;
    ensure!(said.code == 2 && said.stderr.contains("cannot shrink"), "{said:?}");
    Ok(())
}

fn status(lab: &Lab) -> Result<Status> {
    match lab.control(&Request::Status)? {
        Reply::Status(status) => Ok(status),
        other => bail!("{other:?}"),
    }
}

fn counted(lab: &Lab) -> Result<()> {
    let status = status(lab)?;
    let counters = &status.machines.first().context("a machine")?.counters;
    for (serial, names) in [("d03", ["reads", "writes", "flushes"]), ("d05", ["discards", "written_bytes", "writes"])] {
        let owner = format!("block {serial}");
        let (_, own) =
            counters.iter().find(|(name, _)| *name == owner).with_context(|| format!("{owner}: {counters:?}"))?;
        for name in names {
            let value = own.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
            ensure!(value > Some(0), "{owner}: {name} in {own:?}");
        }
    }
    Ok(())
}

fn refused(_: &Lab) -> Result<()> {
    let said = host::run(&["drive", "export", "drives/disk:d01", "/nowhere/file"])?.expect(2)?;
    ensure!(said.stderr.contains("stop it first"), "{said:?}");
    Ok(())
}

/// Records of 4 KiB, eight to each drive in turn, and a line once they are flushed.
const WRITER: &str = "import mmap, os, struct, sys
files = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in sys.argv[1:]]
page, n = mmap.mmap(-1, 4096), 0
while True:
    for file in files:
        for _ in range(8):
            n += 1
            page.seek(0)
            page.write(struct.pack('<Q', n) * 512)
            os.pwritev(file, [page], n * 7919 % PLACES * 4096)
        os.fdatasync(file)
    print(n, flush=True)
";
/// Places for records on each drive, 7919 apart from one to the next.
const PLACES: u64 = 4096;

fn killed(lab: &Lab, folder: &Path) -> Result<()> {
    let (_, vmm) = lab.processes()?;
    let (script, one, two) = (WRITER.replace("PLACES", &PLACES.to_string()), device(9), device(10));
    let mut command = host::labyard(&["exec", "drives/disk", "--", "python3", "-c", &script, &one, &two])?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let enough = if crate::is_soak() { 2000 } else { 30 };
    let (mut flushed, mut rounds) = (0u64, 0);
    let start = Instant::now();
    for line in BufReader::new(child.stdout.take().context("its output")?).lines() {
        flushed = line?.trim().parse()?;
        rounds += 1;
        if rounds == enough {
            host::signal(vmm, "KILL")?;
        }
        ensure!(start.elapsed() < PATIENCE * 4, "{rounds} rounds");
    }
    host::reap(&mut child)?;
    ensure!(rounds >= enough, "it wrote {rounds} rounds");
    let ended = || Ok(lab.ps()?.filter(|shown| shown["standing"] == "stopped"));
    host::wait_for("the lab is over", PATIENCE, ended, || format!("{:?}", lab.ps()))?;
    for (index, serial) in [(0u64, "d09"), (1, "d10")] {
        let path = folder.join(serial);
        let name = path.to_str().context("a path in UTF-8")?;
        host::run(&["drive", "export", &format!("drives/disk:{serial}"), name])?.expect(0)?;
        let drive = fs::File::open(&path)?;
        let own = |record: u64| (record - 1) / 8 % 2 == index;
        let mut last = vec![0u64; PLACES as usize];
        for record in (1..=flushed).filter(|record| own(*record)) {
            last[(record * 7919 % PLACES) as usize] = record;
        }
        for (place, least) in last.into_iter().enumerate().filter(|(_, least)| *least > 0) {
            let mut bytes = [0; 4096];
            drive.read_exact_at(&mut bytes, place as u64 * 4096)?;
            let found = u64::from_le_bytes(bytes[..8].try_into()?);
            let whole = bytes.chunks(8).all(|word| word == &bytes[..8]);
            let fits = found >= least && own(found) && found * 7919 % PLACES == place as u64;
            ensure!(whole && fits, "{serial}, place {place}: record {found}, whole: {whole}; {least} was flushed");
        }
    }
    eprintln!("  note    {flushed} records were flushed before the kill");
    Ok(())
}

fn exported(folder: &Path) -> Result<()> {
    let path = |name: &str| folder.join(name).display().to_string();
    let (raw, qcow2) = (path("one.raw"), path("one.qcow2"));
    host::run(&["drive", "export", "drives/disk:d01", &raw])?.expect(0)?;
    let said = host::run(&["drive", "export", "drives/disk:d01", &qcow2, "--format", "qcow2", "--json"])?.expect(0)?;
    let said: Value = serde_json::from_slice(&said.stdout)?;
    ensure!(said["capacity_bytes"] == 768 * MIB, "{said}");
    let tool = |program: &str, arguments: &[&str], codes: &[i32]| -> Result<()> {
        let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
        let code = output.status.code().unwrap_or(-1);
        ensure!(codes.contains(&code), "{program} {arguments:?}: {output:?}");
        Ok(())
    };
    tool("qemu-img", &["check", &qcow2], &[0])?;
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2], &[0])?;
    // e2fsck(8): 1 is that its journal was replayed or something was corrected.
    tool("/sbin/e2fsck", &["-fy", &raw], &[0, 1])?;
    tool("/sbin/e2fsck", &["-fn", &raw], &[0])
}
