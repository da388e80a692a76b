//! fio in a guest, on a drive of each VMM: an overlay over a base for labyard, a raw file for the peer.
//!
//! Both guests have the same three drives: the root, read-only, an image with fio in it; the drive that is measured; and a small one
//! with the script that the kernel starts as its init, and behind it a sector that says which job is next. All lie on one file
//! system of the host. Both guests run all the time, and each job is done by one right after the other while that one sleeps and
//! looks at its sector: a machine that is busy with other things is so for both. The drive's first half is read and has the same bytes
//! on both sides, in the base and in the raw file; the second half is written, and begins as a hole on both sides.
//!
//! The drive has a write-back cache on both sides: a write that was answered is in the host's page cache, and a flush of the guest
//! is an fdatasync(2) of the host. That is what labyard always does, and `cache=writeback` of the peer; `cache=none` would promise the same to the
//! guest, but wait for the disk with each write.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::boot::pieces;
use crate::vmm::{HERE, Process, begin, create, empty, receive, send};

/// Without a word from the guest for so long, the run has failed.
const SILENCE: Duration = Duration::from_secs(180);
/// MiB of a guest's memory; less than what is read, though direct input and output keeps none of it anyway.
pub const MEMORY_MIB: u64 = 192;

/// One job of fio.
pub struct Job {
    /// What the table calls it.
    pub name: &'static str,
    arguments: &'static str,
    /// Position of the figure in fio's terse output, version 3, from 1; the unit.
    figure: (usize, &'static str),
}

impl Job {
    /// The unit of its figure.
    pub fn unit(&self) -> &'static str {
        self.figure.1
    }
}

const READ_IOPS: (usize, &str) = (8, "IOPS");
const READ_BW: (usize, &str) = (7, "KiB/s");
const WRITE_IOPS: (usize, &str) = (49, "IOPS");
const WRITE_BW: (usize, &str) = (48, "KiB/s");

/// The jobs, in their order. A fresh overlay is read through to its base, and written for the first time, which gives it blocks; the
/// last three write where there are blocks.
pub const JOBS: [Job; 9] = [
    Job { name: "read 4k random, depth 1", arguments: "--rw=randread --bs=4k --iodepth=1", figure: READ_IOPS },
    Job { name: "read 4k random, depth 32", arguments: "--rw=randread --bs=4k --iodepth=32", figure: READ_IOPS },
    Job { name: "read 128k sequential, depth 8", arguments: "--rw=read --bs=128k --iodepth=8", figure: READ_BW },
    Job { name: "first write 4k random, depth 1", arguments: "--rw=randwrite --bs=4k --iodepth=1", figure: WRITE_IOPS },
    Job {
        name: "first write 4k random, depth 32",
        arguments: "--rw=randwrite --bs=4k --iodepth=32 --randseed=7",
        figure: WRITE_IOPS,
    },
    Job {
        name: "first write 128k sequential, depth 8",
        arguments: "--rw=write --bs=128k --iodepth=8",
        figure: WRITE_BW,
    },
    Job { name: "write 4k random, depth 1", arguments: "--rw=randwrite --bs=4k --iodepth=1", figure: WRITE_IOPS },
    Job { name: "write 4k random, depth 32", arguments: "--rw=randwrite --bs=4k --iodepth=32", figure: WRITE_IOPS },
    Job { name: "write 128k sequential, depth 8", arguments: "--rw=write --bs=128k --iodepth=8", figure: WRITE_BW },
];

/// What both VMMs are given.
pub struct Contest {
    /// An ELF image with drivers of drives and ext4 built in.
    pub kernel: PathBuf,
    /// An ext4 image with `/bin/sh` and fio.
    pub root: PathBuf,
    /// A folder on the disk of the host that is measured.
    pub folder: PathBuf,
    /// Bytes of each half of the drive that each round has for itself.
    pub round_bytes: u64,
    /// The peer's raw file has blocks for what is written, too, and they are in the host's page cache.
    pub full: bool,
    /// How often all jobs are done.
    pub rounds: u64,
    /// How long each takes.
    pub seconds: u64,
}

/// Where the sector is that says which job is next.
const NEXT_AT: u64 = 64 << 10;

impl Contest {
    /// Writes base, raw file and scripts.
    pub fn prepare(&self) -> Result<()> {
        let base = self.base();
        let mut noise = std::io::Read::take(File::open("/dev/urandom")?, self.drive_bytes() / 2);
        std::io::copy(&mut noise, &mut File::create(&base)?).context("the base")?;
        std::fs::copy(&base, self.raw()).context("the raw file")?;
        for side in SIDES {
            let mut script = self.text().into_bytes();
            ensure!(script.len() < NEXT_AT as usize, "a script of {} bytes", script.len());
            script.resize(NEXT_AT as usize, b'\n');
            script.resize(NEXT_AT as usize + 512, 0);
            std::fs::write(self.script(side), script).context("the script")?;
            File::open(self.script(side))?.sync_all()?;
        }
        let raw = File::options().write(true).open(self.raw())?;
        if self.full {
            raw.write_all_at(&std::fs::read(&base)?, self.drive_bytes() / 2)?;
        }
        raw.set_len(self.drive_bytes())?;
        raw.sync_all()?;
        File::open(base)?.sync_all()?;
        Ok(())
    }

    fn drive_bytes(&self) -> u64 {
        self.round_bytes * self.rounds * 2
    }

    fn base(&self) -> PathBuf {
        self.folder.join("base.raw")
    }

    fn raw(&self) -> PathBuf {
        self.folder.join("peer.raw")
    }

    fn script(&self, side: &str) -> PathBuf {
        self.folder.join(format!("script.{side}"))
    }

    /// Where a side's next turn is written.
    fn next(&self, side: &str) -> Result<File> {
        File::options().write(true).open(self.script(side)).context("the script")
    }

    /// Words for the kernel beside those of [`crate::vmm::Guest::command_line`].
    pub fn words() -> &'static str {
        "root=/dev/vda ro devtmpfs.mount=1 init=/bin/sh -- /dev/vdc"
    }

    /// What the guest does.
    fn text(&self) -> String {
        let mut text = format!(
            "mount -t proc proc /proc\nmount -t sysfs sys /sys\nmount -t tmpfs tmp /tmp\ncd /tmp\nexec >/dev/ttyS0 2>&1\n\
             turn() {{\n  until [ \"$(dd if=/dev/vdc bs=512 skip={} count=1 iflag=direct 2>/dev/null | tr -d '\\000')\" = $1 ]; do sleep 0.5; done\n\
             shift\n  echo bench: $(fio --name=job --filename=/dev/vdb --direct=1 --ioengine=libaio --size={} --time_based \
             --runtime={} --norandommap --output-format=terse --terse-version=3 $* | tr '\\n' ' ')\n}}\necho bench: here\n",
            NEXT_AT / 512,
            self.round_bytes,
            self.seconds
        );
        for round in 0..self.rounds {
            for (number, Job { arguments, figure, .. }) in JOBS.iter().enumerate() {
                let turn = turn(round, number);
                let half = if [READ_IOPS, READ_BW].contains(figure) { 0 } else { self.rounds };
                text.push_str(&format!("turn {turn} {arguments} --offset={}\n", (half + round) * self.round_bytes));
            }
        }
        text.push_str("while :; do sleep 1000; done\n");
        text
    }
}

/// The two sides, as their files are called.
const SIDES: [&str; 2] = ["labyard", "qemu"];

/// The number of a turn; 0 is none.
fn turn(round: u64, job: usize) -> u64 {
    round * JOBS.len() as u64 + job as u64 + 1
}

/// Drives of its machine.
const DRIVES: usize = 3;

/// Labyard's vmm in its jail, with one machine.
pub fn labyard(program: &Path, contest: &Contest, engine: &str) -> Result<Player> {
    let (process, control) = begin(program, &contest.folder, DRIVES)?;
    let open = |path: &Path| File::open(path).map(OwnedFd::from).with_context(|| path.display().to_string());
    let layer = |what: &str| empty(&contest.folder.join(what), 0).map(OwnedFd::from);
    let (console, printed) = std::io::pipe()?;
    let files = [
        open(&contest.kernel)?,
        printed.into(),
        open(&contest.root)?,
        open(&contest.base())?,
        layer("overlay.data")?,
        layer("overlay.map")?,
        open(&contest.script("labyard"))?,
    ];
    let whole = |serial: &str, file: usize| json!({"serial": serial, "read_only": true, "base": {"file": file, "name": serial}, "overlay": null});
    let measured = json!({
        "serial": "d01", "read_only": false, "base": {"file": 3, "name": "base"}, "engine": engine,
        "overlay": {"frozen": [], "top": {"data": 4, "map": 5}, "capacity_bytes": contest.drive_bytes()},
    });
    let machine = json!({
        "name": "bench0", "cpu_count": 1, "memory_mib": MEMORY_MIB, "interfaces": [], "cid": 3, "console_log": 1,
        "boot": {"kernel": 0, "initrd": [], "extra_cmdline": Contest::words()},
        "drives": [whole("d00", 2), measured, whole("d02", 6)],
    });
    create(&control, &files, &[], &[machine])?;
    crate::vmm::created(&control)?;
    Ok(Player {
        said: pieces(console),
        text: String::new(),
        process,
        control: Some(control),
        next: contest.next("labyard")?,
    })
}

/// The arguments of QEMU's microvm; `aio` is one of its ways to the files.
pub fn qemu_arguments(contest: &Contest, aio: &str) -> Vec<String> {
    let line = labyard_vmm::boot::command_line(Contest::words());
    let (kernel, memory) = (contest.kernel.display().to_string(), format!("{MEMORY_MIB}M"));
    let mut words: Vec<String> =
        ["-M", "microvm,acpi=on,rtc=off,isa-serial=on", "-accel", "kvm", "-cpu", "host", "-smp", "1"]
            .into_iter()
            .chain([
                "-m",
                &memory,
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-serial",
                "stdio",
            ])
            .chain(["-kernel", &kernel, "-append", &line])
            .map(str::to_owned)
            .collect();
    for (id, path, options) in [
        ("root", &contest.root, "readonly=on"),
        ("drive", &contest.raw(), "discard=unmap"),
        ("script", &contest.script("qemu"), "readonly=on"),
    ] {
        let file = path.display();
        words.extend([
            "-drive".to_owned(),
            format!("file={file},if=none,id={id},format=raw,cache=writeback,aio={aio},{options}"),
        ]);
        words.extend(["-device".to_owned(), format!("virtio-blk-device,drive={id}")]);
    }
    words
}

/// QEMU's microvm.
pub fn qemu(program: &Path, contest: &Contest, aio: &str) -> Result<Player> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{HERE} \"$0\" \"$@\" </dev/null")]).arg(program).args(qemu_arguments(contest, aio));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("sh")?;
    let output = child.stdout.take().context("standard output is not a pipe")?;
    Ok(Player {
        said: pieces(output),
        text: String::new(),
        process: child.into(),
        control: None,
        next: contest.next("qemu")?,
    })
}

/// A VMM whose guest does what it is told.
pub struct Player {
    said: mpsc::Receiver<(Instant, Vec<u8>)>,
    text: String,
    process: Process,
    control: Option<UnixStream>,
    next: File,
}

impl Player {
    /// Waits until its guest is there.
    pub fn wait(&mut self) -> Result<()> {
        self.line().map(drop)
    }

    /// Lets the guest do a job; its figure.
    pub fn play(&mut self, round: u64, job: usize) -> Result<f64> {
        let turn = format!("{:\0<512}", turn(round, job));
        self.next.write_all_at(turn.as_bytes(), NEXT_AT)?;
        let said = self.line()?;
        figure(&said, JOBS[job].figure.0)
    }

    /// What the guest says next.
    fn line(&mut self) -> Result<String> {
        loop {
            if let Some((_, rest)) = self.text.split_once("bench: ")
                && let Some((line, rest)) = rest.split_once('\n')
            {
                let line = line.to_owned();
                self.text = rest.to_owned();
                return Ok(line);
            }
            let Ok((_, piece)) = self.said.recv_timeout(SILENCE) else {
                bail!("the guest ended or fell silent; it said: {:?}", self.text);
            };
            self.text.push_str(&String::from_utf8_lossy(&piece));
        }
    }

    /// Labyard's counters, by owner and name.
    pub fn counters(&self) -> Result<Vec<(String, u64)>> {
        let Some(control) = &self.control else { return Ok(Vec::new()) };
        send(control, &json!("status"), &[])?;
        let status = receive(control)?;
        Ok(counters(&status["status"]["machines"][0]["counters"]))
    }

    /// Seconds of processor time of each of the VMM's threads.
    pub fn threads(&self) -> Result<Vec<(String, f64)>> {
        threads(self.process.id())
    }
}

/// Processor time of a process's threads, user's and system's.
fn threads(pid: u32) -> Result<Vec<(String, f64)>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A worker of io_uring may have ended.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        // proc(5): the name in parentheses, then state, …; utime and stime are the 12th and 13th behind it.
        let (name, rest) = stat.rsplit_once(") ").context("a stat without a name")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let name = name.split_once(" (").map_or(name, |(_, name)| name);
        all.push((name.to_owned(), (ticks(11) + ticks(12)) as f64 / 100.0));
    }
    Ok(all)
}

/// One field of fio's terse output, version 3; the fifth is its error.
fn figure(said: &str, field: usize) -> Result<f64> {
    let fields: Vec<&str> = said.trim().split(';').collect();
    match (fields.get(4), fields.get(field - 1)) {
        (Some(&"0"), Some(figure)) => figure.parse().with_context(|| said.to_owned()),
        _ => bail!("fio failed: {said}"),
    }
}

/// The counters of the drive and of the vCPU.
fn counters(all: &serde_json::Value) -> Vec<(String, u64)> {
    let owners = all.as_array().into_iter().flatten();
    let wanted = owners.filter(|owner| owner[0] == "block d01" || owner[0] == "cpu0");
    let each = wanted.flat_map(|owner| {
        let name = owner[0].as_str().unwrap_or_default().to_owned();
        let list = owner[1].as_array().cloned().unwrap_or_default();
        list.into_iter().filter_map(move |pair| Some((format!("{name} {}", pair[0].as_str()?), pair[1].as_u64()?)))
    });
    each.filter(|(_, value)| *value > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_does_every_job_in_every_round_on_a_part_of_the_drive_of_its_own() {
        let place = |name: &str| PathBuf::from("/nowhere").join(name);
        let (kernel, root, folder) = (place("vmlinux"), place("root"), place(""));
        let text = Contest { kernel, root, folder, round_bytes: 1 << 20, full: false, rounds: 3, seconds: 1 }.text();
        assert_eq!(text.matches("\nturn ").count(), 3 * JOBS.len());
        assert!(text.contains(&format!("\nturn {} {} --offset=2097152\n", turn(2, 1), JOBS[1].arguments)), "{text}");
    }

    #[test]
    fn what_fio_could_not_do_is_no_figure() {
        assert_eq!(figure("3;fio-3.33;job;0;0;7;81.5;9 ", 7).expect("a figure"), 81.5);
        assert!(figure("3;fio-3.33;job;0;22;7;81.5", 7).expect_err("an error").to_string().contains("22"));
        figure("", 7).expect_err("nothing");
    }
}
