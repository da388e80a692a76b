//! `boot`: from exec to the guest's init, and memory beside the guest's, for labyard's vmm and QEMU's microvm in turns.
//!
//! Runs where guests run: tests/host/run -- boot --kernel FILE --libexec DIR

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use labyard_bench::boot::{Boot, watch};
use labyard_bench::guest;
use labyard_bench::table::{markdown, median};
use labyard_bench::vmm::{Guest, labyard, qemu, qemu_arguments};

const USAGE: &str = "usage: boot --kernel FILE --libexec DIR [--runs N] [--memory-mib N] [--qemu PROGRAM]
FILE is an ELF kernel or a bzImage; DIR holds labyard-vmm and labyard-init. 5 runs of each and 128 MiB unless told.";

struct Options {
    kernel: PathBuf,
    libexec: PathBuf,
    runs: usize,
    memory_mib: u64,
    qemu: PathBuf,
}

fn options() -> Result<Options> {
    let (mut kernel, mut libexec, mut runs, mut memory_mib) = (None, None, 5, 128);
    let mut qemu = PathBuf::from("qemu-system-x86_64");
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option}: a value is missing\n{USAGE}"))?;
        match option.as_str() {
            "--kernel" => kernel = Some(PathBuf::from(value)),
            "--libexec" => libexec = Some(PathBuf::from(value)),
            "--runs" => runs = value.parse().context("--runs")?,
            "--memory-mib" => memory_mib = value.parse().context("--memory-mib")?,
            "--qemu" => qemu = value.into(),
            _ => bail!("{option}: not an option\n{USAGE}"),
        }
    }
    let (Some(kernel), Some(libexec)) = (kernel, libexec) else { bail!("{USAGE}") };
    Ok(Options { kernel, libexec, runs: runs.max(1), memory_mib, qemu })
}

fn main() -> Result<()> {
    let options = options()?;
    // Copies in memory: a VMM that reads its kernel from a network file system measures that.
    let folder = tempfile::tempdir().context("a folder for the guest's files")?;
    let guest = Guest {
        kernel: folder.path().join("vmlinux"),
        initramfs: folder.path().join("initramfs.cpio"),
        memory_mib: options.memory_mib,
        furnished: false,
    };
    std::fs::write(&guest.kernel, guest::elf(&options.kernel)?).context("vmlinux")?;
    std::fs::write(&guest.initramfs, guest::initramfs(&options.libexec.join("labyard-init"))?).context("initramfs")?;
    let vmm = folder.path().join("labyard-vmm");
    std::fs::copy(options.libexec.join("labyard-vmm"), &vmm).context("labyard-vmm")?;

    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    // The first boot of each fills caches and is not counted.
    for run in 0..=options.runs {
        let own = watch(labyard(&vmm, &guest, folder.path(), 1)?, guest.memory_mib).context("labyard-vmm")?;
        let peer = watch(qemu(&options.qemu, &guest, folder.path(), 0)?, guest.memory_mib).context("qemu")?;
        eprintln!("run {run}: labyard {:.3} s, qemu {:.3} s", own.to_init.as_secs_f64(), peer.to_init.as_secs_f64());
        if run > 0 {
            ours.push(own);
            peers.push(peer);
        }
    }
    report(&options, &guest, &ours, &peers);
    Ok(())
}

fn report(options: &Options, guest: &Guest, ours: &[Boot], peers: &[Boot]) {
    let head = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
    let row = |name: &str, unit: &str, own: f64, peer: f64| {
        vec![name.to_owned(), format!("{own:.2} {unit}"), format!("{peer:.2} {unit}"), format!("{:.2}", own / peer)]
    };
    let seconds = |boots: &[Boot]| median(boots.iter().map(|boot| boot.to_init.as_secs_f64()).collect());
    let memory = |boots: &[Boot]| median(boots.iter().map(|boot| boot.beside_kib as f64 / 1024.0).collect());
    println!("\n{} boots of each in turns, 1 vCPU, {} MiB; medians; {}", options.runs, guest.memory_mib, processor());
    let rows = [
        head(["", "labyard", "QEMU microvm", "ratio"]),
        row("exec to guest init", "s", seconds(ours), seconds(peers)),
        row("memory beside the guest's (PSS)", "MiB", memory(ours), memory(peers)),
    ];
    print!("\n{}", markdown(&rows));
    for (number, (name, _)) in
        ours.first().map(|boot| boot.milestones.as_slice()).unwrap_or_default().iter().enumerate()
    {
        let times = ours.iter().filter_map(|boot| boot.milestones.get(number)).map(|(_, us)| us / 1000.0).collect();
        println!("labyard, start of the process to {name}: {:.1} ms", median(times));
    }
    println!("\ncommand line of both guests: {}", Guest::command_line());
    println!(
        "the peer, {}:\n  {} {}",
        version(&options.qemu),
        options.qemu.display(),
        quoted(&qemu_arguments(guest, Path::new("")))
    );
}

fn quoted(words: &[String]) -> String {
    let quote = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn version(program: &Path) -> String {
    let said = Command::new(program).arg("--version").output();
    let text = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown version").to_owned()
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    name.unwrap_or("unknown processor").to_owned()
}
