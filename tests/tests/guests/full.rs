//! A guest that fills the disk of its host: it stands still and hears of no error, whoever looks is told why and what helps, and it
//! goes on where it stood once there is room.
//!
//! All that the lab writes lies on a small file system in memory, which is mounted over `playgrounds/` in a mount namespace of the
//! test's own: drives, logs, journal and state find no room at the same moment, as they would in life.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::{self, Said, Traces};
use crate::lab;

const NAME: &str = "full";
const MACHINE: &str = "    - name: disk
      drives: [{source: 'IMAGE', mount: /, size: 4GiB}, {size: 256MiB}, {size: 256MiB, labyard: {engine: sync}}]
      network: {interfaces: [{network: local}]}
";
/// How long something may take in the emulated host.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the file system leaves to the guest, and what the guest writes.
const ROOM_MIB: u64 = 12;
const DATA_MIB: u64 = 32;
/// Longer than the test may take.
const GRACE: &str = "40m";

/// Mounts it, which mount(8) does for root alone, and holds the namespace until its input ends.
const HOLDER: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b'small', os.fsencode(sys.argv[1]), b'tmpfs', 0, b'size=512m,mode=0700'):
    sys.exit(os.strerror(ctypes.get_errno()))
print('mounted', flush=True)
sys.stdin.read()
";

/// A mount namespace in which the labs' folder is a small file system; both are gone when dropped. Of somebody who is not root it is in
/// a user namespace in which he is himself.
struct Small {
    holder: Child,
    playgrounds: PathBuf,
}

impl Small {
    fn new() -> Result<Self> {
        let playgrounds = host::given("LABYARD_HOME")?.join("playgrounds");
        fs::create_dir_all(&playgrounds)?;
        let mut unshare = Command::new("unshare");
        if !host::is_root() {
            unshare.args(["--user", "--map-current-user", "--keep-caps"]);
        }
        let mut holder = unshare
            .args(["--mount", "--propagation", "private", "python3", "-c", HOLDER])
            .arg(&playgrounds)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        BufReader::new(holder.stdout.take().context("its output")?).read_line(&mut said)?;
        let small = Self { holder, playgrounds };
        ensure!(said == "mounted\n", "no small file system: {said}");
        Ok(small)
    }

    /// A program in there.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        if !host::is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--mount", "--target", &self.holder.id().to_string(), "--", program]).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Said> {
        host::run_with(self.command(program, arguments), &[]).with_context(|| format!("{program} {arguments:?}"))
    }

    fn labyard_command(&self, arguments: &[&str]) -> Result<Command> {
        let program = host::given("LABYARD_LIBEXEC")?.join("labyard");
        Ok(self.command(program.to_str().context("a path in UTF-8")?, arguments))
    }

    fn labyard(&self, arguments: &[&str]) -> Result<Said> {
        host::run_with(self.labyard_command(arguments)?, &[]).with_context(|| format!("labyard {arguments:?}"))
    }

    fn filler(&self) -> Result<String> {
        Ok(self.playgrounds.join("filler").to_str().context("a path in UTF-8")?.to_owned())
    }

    /// Takes all but `ROOM_MIB` of the room.
    fn fill(&self) -> Result<()> {
        let filler = self.filler()?;
        let script = format!(
            "free=$(df --output=avail -B1M \"$(dirname {filler})\" | tail -n 1) && fallocate -l $((free - {ROOM_MIB}))M {filler}"
        );
        self.run("sh", &["-c", &script])?.expect(0).map(|_| ())
    }

    fn make_room(&self) -> Result<()> {
        self.run("rm", &[&self.filler()?])?.expect(0).map(|_| ())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let down = self.labyard(&["down", NAME, "--grace", "5s"]);
        if !down.as_ref().is_ok_and(|said| said.code == 0) {
            eprintln!("labyard down {NAME}: {down:?}");
        }
        // It ends with its input; the mount goes with the last process in there.
        drop(self.holder.stdin.take());
        let _ = host::reap(&mut self.holder);
    }
}

/// The machine as `ps` shows it.
fn machine(small: &Small) -> Result<Value> {
    let said = small.labyard(&["ps", "--json"])?.expect(0)?;
    let document: Value = serde_json::from_slice(&said.stdout)?;
    let lab = document["labs"].as_array().and_then(|labs| labs.iter().find(|lab| lab["name"] == NAME));
    Ok(lab.with_context(|| said.text())?["machines"][0].clone())
}

fn wait_for(small: &Small, state: &str) -> Result<Value> {
    let look = || Ok(Some(machine(small)?).filter(|machine| machine["state"] == state));
    host::wait_for(state, PATIENCE, look, || format!("{:?}", machine(small)))
}

fn exec(small: &Small, script: &str) -> Result<String> {
    Ok(small.labyard(&["exec", "full/disk", "--", "sh", "-c", script])?.expect(0)?.text())
}

/// A guest that writes its data to a drive, and does not come to an end of it before there is room.
fn start_writing(small: &Small, device: &str) -> Result<Child> {
    let script = format!("dd if=/dev/shm/data of={device} bs=1M oflag=direct conv=fsync 2>&1");
    let mut command = small.labyard_command(&["exec", "full/disk", "--", "sh", "-c", &script])?;
    Ok(command.stdout(Stdio::piped()).spawn()?)
}

/// The guest has written all of it, and reads what it has written.
fn ended_well(small: &Small, mut writing: Child, device: &str) -> Result<()> {
    let mut said = String::new();
    writing.stdout.take().context("its output")?.read_to_string(&mut said)?;
    let ended = writing.wait()?;
    ensure!(ended.success(), "{ended}: {said}");
    let script = format!(
        "dd if={device} bs=1M count={DATA_MIB} iflag=direct 2>/dev/null | sha256sum; sha256sum < /dev/shm/data"
    );
    let sums = exec(small, &script)?;
    let lines: Vec<_> = sums.lines().collect();
    ensure!(lines.len() == 2 && lines[0] == lines[1], "written and read back: {sums}");
    let errors = exec(small, "dmesg > /dev/shm/said && { grep -i 'i/o error' /dev/shm/said || true; }")?;
    ensure!(errors.is_empty(), "the guest has seen errors: {errors}");
    Ok(())
}

/// The host's disk becomes full while the guest writes; the machine as `ps` shows it then.
fn paused(small: &Small, device: &str) -> Result<(Child, Value)> {
    small.fill()?;
    let mut writing = start_writing(small, device)?;
    let shown = wait_for(small, "paused: host disk full")?;
    ensure!(writing.try_wait()?.is_none(), "the guest has come to an end on a full disk");
    Ok((writing, shown))
}

fn says_so(small: &Small, shown: &Value) -> Result<()> {
    let reason = shown["reason"].as_str().with_context(|| format!("no reason: {shown}"))?;
    let folder = small.playgrounds.join(NAME).join("machines/disk");
    for part in [
        "No space left on device (os error 28)".to_owned(),
        format!("free space on the file system {} (tmpfs) of {}", small.playgrounds.display(), folder.display()),
        "`labyard resume full/disk`".to_owned(),
    ] {
        ensure!(reason.contains(&part), "no `{part}` in: {reason}");
    }
    ensure!(shown["ready"] == false && shown["full_drives"][0]["errno"] == 28, "{shown}");
    for command in [["ps"].as_slice(), &["status", NAME]] {
        let said = small.labyard(command)?.expect(0)?.text();
        ensure!(said.contains("paused: host disk full") && said.contains("free space on"), "{command:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_guest_that_fills_the_disk_of_its_host_waits_and_goes_on_where_it_stood() -> Result<()> {
    let before = Traces::now()?;
    let folder = tempfile::tempdir()?;
    let manifest = lab::manifest(folder.path(), NAME, MACHINE)?;
    let small = Small::new()?;
    let step = |name: &str, since: Instant| eprintln!("  ok      {:>6.1} s  {name}", since.elapsed().as_secs_f32());
    let start = Instant::now();
    small.labyard(&["up", manifest.to_str().context("a path in UTF-8")?])?.expect(0)?;
    exec(&small, &format!("head -c {DATA_MIB}M /dev/urandom > /dev/shm/data"))?;
    step("it is up", start);

    let start = Instant::now();
    let (writing, shown) = paused(&small, "/dev/vdb")?;
    says_so(&small, &shown)?;
    let said = small.labyard(&["resume", "full/disk"])?.expect(2)?;
    ensure!(said.stderr.contains("machine `disk` stays paused: drive"), "{said:?}");
    wait_for(&small, "paused: host disk full")?;
    step("it is paused, says why and what helps, and is not resumed without room", start);
    let start = Instant::now();
    small.make_room()?;
    small.labyard(&["resume", "full/disk"])?.expect(0)?;
    ended_well(&small, writing, "/dev/vdb")?;
    let shown = wait_for(&small, "ready")?;
    ensure!(shown["reason"].is_null(), "{shown}");
    let events = small.labyard(&["events", NAME])?.expect(0)?.text();
    for line in ["HostDiskFull: drive d0", "the host's disk has room again", "disk: paused", "disk: resumed"] {
        ensure!(events.contains(line), "no `{line}` in {events}");
    }
    step("room, and `resume`: it goes on, and has what it wrote", start);

    let start = Instant::now();
    let (writing, _) = paused(&small, "/dev/vdc")?;
    small.make_room()?;
    ended_well(&small, writing, "/dev/vdc")?;
    wait_for(&small, "ready")?;
    step("room alone: it goes on by itself, and has what it wrote", start);

    let start = Instant::now();
    exec(&small, "blkdiscard /dev/vdb && dd if=/dev/shm/data of=/dev/vdb bs=1M count=4 oflag=direct conv=fsync 2>&1")?;
    let sum = |of: &str| format!("head -c 4M {of} | sha256sum");
    let flushed = exec(&small, &sum("/dev/shm/data"))?;
    exec(&small, "blkdiscard /dev/vdc")?;
    let (mut writing, _) = paused(&small, "/dev/vdc")?;
    let said = small.labyard(&["ps", "--json"])?.expect(0)?;
    let document: Value = serde_json::from_slice(&said.stdout)?;
    let vmm = document["labs"][0]["vmm_pid"].as_u64().and_then(|id| u32::try_from(id).ok()).context("its vmm")?;
    host::signal(vmm, "KILL")?;
    host::reap(&mut writing)?;
    small.make_room()?;
    let over = || Ok(small.labyard(&["ps"])?.text().contains("stopped").then_some(()));
    host::wait_for("the lab is over", PATIENCE, over, || format!("{:?}", small.labyard(&["ps"])))?;
    small.labyard(&["start", NAME])?.expect(0)?;
    let found = exec(&small, &sum("/dev/vdb"))?;
    ensure!(found == flushed, "flushed {flushed}, found {found}");
    step("killed without room: what was flushed is there", start);

    exec(&small, &format!("head -c {DATA_MIB}M /dev/urandom > /dev/shm/data && blkdiscard /dev/vdc"))?;
    let (mut writing, _) = paused(&small, "/dev/vdc")?;
    let start = Instant::now();
    small.labyard(&["down", NAME, "--grace", GRACE])?.expect(0)?;
    ensure!(start.elapsed() < PATIENCE, "down took {:?}", start.elapsed());
    host::reap(&mut writing)?;
    small.make_room()?;
    let left = small.run("ls", &["-A", small.playgrounds.to_str().context("a path in UTF-8")?])?.expect(0)?.text();
    ensure!(left.is_empty(), "left behind: {left}");
    step("`down` ends it at once without room, and leaves nothing", start);
    drop(small);
    drop(folder);
    before.wait_until_back()
}
