//! `block`: requests a second of a guest's drive, for labyard's layer over an image and a plain file of QEMU's microvm, in turns.
//!
//! Runs where guests run: tests/host/run --scratch-from LAB -- block --home HOME --libexec DIR

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use labyard_bench::block::{self, DRIVE_BYTES, Disks, WORKLOADS};
use labyard_bench::table::{markdown, median};
use labyard_bench::vmm::Guest;

const USAGE: &str = "usage: block --libexec DIR [--home DIR] [--runs N] [--seconds N] [--qemu PROGRAM]
DIR holds labyard-vmm and block-guest; the home is a store as tools/prepare makes it, $LABYARD_SCRATCH/home unless told, on a file system
with room for three times the drive. 5 runs of each, 3 seconds a workload unless told.";

struct Options {
    home: PathBuf,
    libexec: PathBuf,
    runs: usize,
    seconds: u32,
    qemu: PathBuf,
}

fn options() -> Result<Options> {
    let mut home = std::env::var_os("LABYARD_SCRATCH").map(|scratch| PathBuf::from(scratch).join("home"));
    let (mut libexec, mut runs, mut seconds) = (None, 5, 3);
    let mut qemu = PathBuf::from("qemu-system-x86_64");
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option}: a value is missing\n{USAGE}"))?;
        match option.as_str() {
            "--home" => home = Some(value.into()),
            "--libexec" => libexec = Some(PathBuf::from(value)),
            "--runs" => runs = value.parse().context("--runs")?,
            "--seconds" => seconds = value.parse().context("--seconds")?,
            "--qemu" => qemu = value.into(),
            _ => bail!("{option}: not an option\n{USAGE}"),
        }
    }
    let (Some(home), Some(libexec)) = (home, libexec) else { bail!("{USAGE}") };
    Ok(Options { home, libexec, runs: runs.max(1), seconds: seconds.max(1), qemu })
}

fn main() -> Result<()> {
    let options = options()?;
    let folder = tempfile::tempdir_in(&options.home).context("a folder on the disk that is measured")?;
    let place = |name: &str| folder.path().join(name);
    let (root, kernel, modules) = block::from_store(&options.home)?;
    let guest = Guest { kernel, initramfs: place("initramfs.cpio"), memory_mib: 256, furnished: false };
    let init = options.libexec.join("block-guest");
    std::fs::write(&guest.initramfs, block::initramfs(&init, &modules, options.seconds)?).context("initramfs")?;
    let vmm = place("labyard-vmm");
    std::fs::copy(options.libexec.join("labyard-vmm"), &vmm).context("labyard-vmm")?;
    let layer = [place("overlay"), place("overlay.map")];
    let disks = Disks { root, base: place("base"), raw: place("raw"), layer };
    for path in [&disks.base, &disks.raw] {
        fill(path).with_context(|| path.display().to_string())?;
    }

    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    // The first run of each fills caches and is not counted.
    for run in 0..=options.runs {
        let own = block::watch(block::labyard(&vmm, &guest, &disks, folder.path())?).context("labyard-vmm")?;
        let peer = block::watch(block::qemu(&options.qemu, &guest, &disks)?).context("qemu")?;
        eprintln!("run {run}: labyard {own:.0?}, qemu {peer:.0?}");
        if run > 0 {
            ours.push(own);
            peers.push(peer);
        }
    }
    report(&options, &guest, &disks, &ours, &peers);
    Ok(())
}

/// Every block is there, so that a read is one of the disk and not of a hole.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let block: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for number in 0..DRIVE_BYTES >> 20 {
        file.write_all(&block)?;
        file.write_all_at(&number.to_le_bytes(), number << 20)?;
    }
    Ok(file.sync_all()?)
}

fn report(options: &Options, guest: &Guest, disks: &Disks, ours: &[Vec<f64>], peers: &[Vec<f64>]) {
    let Options { runs, seconds, qemu, .. } = options;
    println!(
        "\n{runs} runs of each in turns, {seconds} s a workload, 1 vCPU, {} MiB; medians of requests a second\n",
        guest.memory_mib
    );
    let mut rows = vec![["", "labyard, overlay", "QEMU microvm, raw", "ratio"].map(str::to_owned).to_vec()];
    for (number, workload) in WORKLOADS.iter().enumerate() {
        let middle = |runs: &[Vec<f64>]| median(runs.iter().filter_map(|run| run.get(number)).copied().collect());
        let (own, peer) = (middle(ours), middle(peers));
        rows.push(vec![
            workload.name.to_owned(),
            format!("{own:.0}"),
            format!("{peer:.0}"),
            format!("{:.2}", own / peer),
        ]);
    }
    print!("{}", markdown(&rows));
    println!("\nthe peer: {} {}", qemu.display(), block::qemu_arguments(guest, disks).join(" "));
}
