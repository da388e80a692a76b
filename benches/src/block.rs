//! What is measured of a drive: six ways to read and write, by fio in the guest, which prints one line for each.
//!
//! The guest's init is `block-guest`: it mounts the example image, which has fio, and runs it on the second drive. Every VMM boots the
//! same kernel, initramfs and root; only the second drive's way to the host's disk differs.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::guest::{FILE, FOLDER, NODE, PROGRAM, entry};
use crate::vmm::{Guest, Started, created};

/// Bytes of the drive that is measured.
pub const DRIVE_BYTES: u64 = 256 << 20;
/// Without a word from the guest for so long, the run has failed.
const SILENCE: Duration = Duration::from_secs(180);
/// What the guest's lines begin with, and its last one.
const LINE: &str = "BENCH;";
const END: &str = "BENCH-END";

/// One way to use a drive.
pub struct Workload {
    /// Its name, also to fio.
    pub name: &'static str,
    /// fio's `rw`.
    pub kind: &'static str,
    /// Block size.
    pub block: &'static str,
    /// Requests at a time.
    pub depth: u32,
}

/// In the order in which they run: what is written at random was written before.
pub const WORKLOADS: [Workload; 6] = [
    Workload { name: "4k random read, depth 1", kind: "randread", block: "4k", depth: 1 },
    Workload { name: "4k random read, depth 32", kind: "randread", block: "4k", depth: 32 },
    Workload { name: "128k sequential read, depth 8", kind: "read", block: "128k", depth: 8 },
    Workload { name: "128k sequential write, depth 8", kind: "write", block: "128k", depth: 8 },
    Workload { name: "4k random write, depth 1", kind: "randwrite", block: "4k", depth: 1 },
    Workload { name: "4k random write, depth 32", kind: "randwrite", block: "4k", depth: 32 },
];

/// What the guest's shell runs.
fn script(seconds: u32) -> String {
    let mut fio = format!(
        "fio --minimal --terse-version=3 --filename=/dev/vdb --direct=1 --ioengine=libaio --time_based --runtime={seconds} --ramp_time=1 \
         --randrepeat=1 --norandommap"
    );
    for (number, Workload { kind, block, depth, .. }) in WORKLOADS.iter().enumerate() {
        let _ = write!(fio, " --name=w{number} --stonewall --rw={kind} --bs={block} --iodepth={depth}"); // never fails
    }
    // The first job needs no wall, and none of them lays anything out.
    format!("export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp; cd /tmp; {fio} 2>&1 | sed 's/^/{LINE}/'; echo {END}")
}

/// An initramfs with `block-guest`, the modules that a drive needs, and what is to be run.
///
/// # Errors
/// What cannot be read.
pub fn initramfs(init: &Path, modules: &[PathBuf], seconds: u32) -> Result<Vec<u8>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let mut archive = Vec::new();
    for folder in ["dev", "proc", "sys", "root", "modules"] {
        entry(&mut archive, folder, FOLDER, (0, 0), &[]);
    }
    entry(&mut archive, "dev/console", NODE, (5, 1), &[]);
    // A program that starts without standard descriptors wants it, or aborts.
    entry(&mut archive, "dev/null", NODE, (1, 3), &[]);
    entry(&mut archive, "init", PROGRAM, (0, 0), &read(init)?);
    for (number, module) in modules.iter().enumerate() {
        entry(&mut archive, &format!("modules/{number:02}"), FILE, (0, 0), &read(module)?);
    }
    entry(&mut archive, "script", FILE, (0, 0), script(seconds).as_bytes());
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive)
}

/// The files of the two drives.
pub struct Disks {
    /// The image with fio, which nobody writes.
    pub root: PathBuf,
    /// What the measured drive starts as; QEMU's writes to a copy of it.
    pub base: PathBuf,
    /// That copy.
    pub raw: PathBuf,
    /// Data and map of labyard's layer on the base; made anew for each run.
    pub layer: [PathBuf; 2],
}

/// Labyard's vmm with the drive as a layer over the base.
///
/// # Errors
/// What cannot be opened.
pub fn labyard(program: &Path, guest: &Guest, disks: &Disks, folder: &Path) -> Result<Started> {
    let layer = disks.layer.each_ref().map(|path| {
        drop(std::fs::remove_file(path)); // of the last run, if there was one
        let made = std::fs::File::options().read(true).write(true).create_new(true).open(path);
        made.with_context(|| path.display().to_string())
    });
    let [data, map] = layer;
    let open = |path: &Path| std::fs::File::open(path).with_context(|| path.display().to_string());
    let files = [open(&disks.root)?, open(&disks.base)?, data?, map?];
    let drives = json!([
        { "serial": "d00", "read_only": true, "base": { "file": 3, "name": "root" }, "overlay": null },
        {
            "serial": "d01", "read_only": false, "base": { "file": 4, "name": "base" },
            "overlay": { "frozen": [], "top": { "data": 5, "map": 6 }, "capacity_bytes": DRIVE_BYTES },
        },
    ]);
    crate::vmm::labyard_with(program, guest, folder, files.map(Into::into).into(), &drives)
}

/// QEMU's microvm with the drive in a plain file, by its fastest engine with the same promise: a write is done when the host's page
/// cache has it, a flush when the disk has it.
#[must_use]
pub fn qemu_arguments(guest: &Guest, disks: &Disks) -> Vec<String> {
    let mut words = crate::vmm::qemu_arguments(guest, &disks.raw);
    // The console of both is virtio's.
    if let Some(place) = words.iter().position(|word| word == "-serial") {
        drop(words.drain(place..place + 2));
    }
    let drive =
        |id: &str, path: &Path, rest: &str| format!("id={id},file={},format=raw,if=none,{rest}", path.display());
    let more = [
        "-global".to_owned(),
        "virtio-mmio.force-legacy=false".to_owned(),
        "-object".to_owned(),
        "iothread,id=io".to_owned(),
        "-drive".to_owned(),
        drive("root", &disks.root, "readonly=on"),
        "-device".to_owned(),
        "virtio-blk-device,drive=root,serial=d00".to_owned(),
        "-drive".to_owned(),
        drive("data", &disks.raw, "cache=writeback,aio=io_uring,discard=unmap"),
        "-device".to_owned(),
        "virtio-blk-device,drive=data,serial=d01,iothread=io,queue-size=256".to_owned(),
        "-chardev".to_owned(),
        "stdio,id=console".to_owned(),
        "-device".to_owned(),
        "virtio-serial-device".to_owned(),
        "-device".to_owned(),
        "virtconsole,chardev=console".to_owned(),
    ];
    words.extend(more);
    words
}

/// Starts it.
///
/// # Errors
/// What cannot be started.
pub fn qemu(program: &Path, guest: &Guest, disks: &Disks) -> Result<Started> {
    let mut command = Command::new(program);
    command.args(qemu_arguments(guest, disks)).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().with_context(|| program.display().to_string())?;
    Ok(Started { child, consoles: Vec::new(), control: None })
}

/// Ends the VMM with its scope.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill(); // gone already is as good
        let _ = self.0.wait();
    }
}

/// Requests a second of each workload, in their order.
///
/// # Errors
/// The guest fell silent, or said something else.
pub fn watch(started: Started) -> Result<Vec<f64>> {
    let Started { mut child, consoles, control } = started;
    let output = child.stdout.take().context("standard output is not a pipe")?;
    let _child = Ended(child);
    if let Some(control) = &control {
        created(control)?;
    }
    let said = match consoles.into_iter().next() {
        Some(console) => until_end(console)?,
        None => until_end(output)?,
    };
    parse(&said)
}

fn until_end(mut from: impl Read + Send + 'static) -> Result<String> {
    let (sender, pieces) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            // Read on when nobody listens any more: a closed pipe would be an error to the VMM.
            let _ = sender.send(buffer[..n].to_vec());
        }
    });
    let mut said = String::new();
    loop {
        let Ok(piece) = pieces.recv_timeout(SILENCE) else {
            bail!("the guest did not say \"{END}\" but ended or fell silent; it said: {said:?}");
        };
        said.push_str(&String::from_utf8_lossy(&piece));
        if said.contains(END) {
            return Ok(said);
        }
    }
}

/// fio's terse output, version 3 (fio(1), "Terse output"): the fifth field is an error, then come KiB, KiB a second and requests a second
/// of reads; those of writes from the 47th on.
fn parse(said: &str) -> Result<Vec<f64>> {
    let lines: Vec<Vec<&str>> =
        said.lines().filter_map(|line| Some(line.trim_end().split_once(LINE)?.1.split(';').collect())).collect();
    let figure = |(number, Workload { name, kind, .. }): (usize, &Workload)| -> Result<f64> {
        let job = format!("w{number}");
        let line = lines.iter().find(|line| line.get(2) == Some(&job.as_str()));
        let line = line.with_context(|| format!("{name}: no line of fio in {said:?}"))?;
        ensure!(line.get(4) == Some(&"0"), "{name}: fio's error {:?}", line.get(4));
        let field = if kind.ends_with("read") { 7 } else { 48 };
        let figure: f64 = line.get(field).with_context(|| format!("{name}: a short line {line:?}"))?.parse()?;
        ensure!(figure > 0.0, "{name}: nothing was done");
        Ok(figure)
    };
    WORKLOADS.iter().enumerate().map(figure).collect()
}

/// The store's only image, and its newest kernel's files: the ELF image and the modules that mount the root.
///
/// # Errors
/// There is none.
pub fn from_store(home: &Path) -> Result<(PathBuf, PathBuf, Vec<PathBuf>)> {
    let newest = |kind: &str| -> Result<PathBuf> {
        let folder = home.join(kind);
        let listed = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let mut found: Vec<_> = listed.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.sort();
        found.pop().with_context(|| format!("{}: nothing is in it; run tools/prepare", folder.display()))
    };
    let kernel = newest("kernels")?;
    let record: Value = serde_json::from_slice(&std::fs::read(kernel.join("kernel.json"))?)?;
    let names = record["early_modules"].as_array().context("early_modules")?;
    let modules = names.iter().filter_map(Value::as_str).map(|name| kernel.join("early").join(name)).collect();
    Ok((newest("images")?.join("disk.ext4"), kernel.join("vmlinux"), modules))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_what_a_guest_prints() {
        let line = |number: usize, kind: &str| {
            let mut fields = vec!["0".to_owned(); 130];
            (fields[0], fields[2]) = ("3".to_owned(), format!("w{number}"));
            fields[if kind.ends_with("read") { 7 } else { 48 }] = (1000 + number).to_string();
            format!("{LINE}{}\r\n", fields.join(";"))
        };
        let lines: String = WORKLOADS.iter().enumerate().map(|(number, work)| line(number, work.kind)).collect();
        let said = format!("[    1.0] noise\r\n{lines}{END}\r\n");
        assert_eq!(parse(&said).expect("figures"), [1000.0, 1001.0, 1002.0, 1003.0, 1004.0, 1005.0]);
        let error = parse("Kernel panic").expect_err("none").to_string();
        assert!(error.contains("Kernel panic"), "{error}");
    }
}
