//! `memory`: what VMMs hold beside their guests' memory, for the first machine and for each further one: labyard's vmm with all of
//! them in one process, and one QEMU microvm for each.
//!
//! Runs where guests run: tests/host/run -- memory --kernel FILE --libexec DIR

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use labyard_bench::boot::Running;
use labyard_bench::guest;
use labyard_bench::table::markdown;
use labyard_bench::vmm::{Guest, Peer, labyard, qemu};

const USAGE: &str =
    "usage: memory --kernel FILE --libexec DIR [--machines N,N,...] [--memory-mib N] [--qemu PROGRAM|none]
FILE is an ELF kernel or a bzImage; DIR holds labyard-vmm, labyard-jail and labyard-init. 1,2,5,10 machines of 128 MiB unless told.";

struct Options {
    kernel: PathBuf,
    libexec: PathBuf,
    machines: Vec<usize>,
    memory_mib: u64,
    /// Nothing where only labyard's vmm is looked at.
    qemu: Option<PathBuf>,
}

fn options() -> Result<Options> {
    let (mut kernel, mut libexec, mut machines, mut memory_mib) = (None, None, vec![1, 2, 5, 10], 128);
    let mut qemu = Some(PathBuf::from("qemu-system-x86_64"));
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option}: a value is missing\n{USAGE}"))?;
        match option.as_str() {
            "--kernel" => kernel = Some(PathBuf::from(value)),
            "--libexec" => libexec = Some(PathBuf::from(value)),
            "--machines" => {
                machines = value.split(',').map(str::parse).collect::<Result<_, _>>().context("--machines")?;
            }
            "--memory-mib" => memory_mib = value.parse().context("--memory-mib")?,
            "--qemu" => qemu = Some(value).filter(|program| program != "none").map(PathBuf::from),
            _ => bail!("{option}: not an option\n{USAGE}"),
        }
    }
    ensure!(
        machines.is_sorted() && machines.first().is_some_and(|first| *first > 0),
        "--machines: counts that grow\n{USAGE}"
    );
    let (Some(kernel), Some(libexec)) = (kernel, libexec) else { bail!("{USAGE}") };
    Ok(Options { kernel, libexec, machines, memory_mib, qemu })
}

fn main() -> Result<()> {
    let options = options()?;
    // Copies in memory: a VMM that reads its kernel from a network file system measures that.
    let folder = tempfile::tempdir().context("a folder for the guest's files")?;
    let guest = Guest {
        kernel: folder.path().join("vmlinux"),
        initramfs: folder.path().join("initramfs.cpio"),
        memory_mib: options.memory_mib,
        furnished: true,
    };
    std::fs::write(&guest.kernel, guest::elf(&options.kernel)?).context("vmlinux")?;
    std::fs::write(&guest.initramfs, guest::initramfs(&options.libexec.join("labyard-init"))?).context("initramfs")?;
    let vmm = folder.path().join("labyard-vmm");
    std::fs::copy(options.libexec.join("labyard-vmm"), &vmm).context("labyard-vmm")?;
    std::fs::copy(options.libexec.join("labyard-jail"), vmm.with_file_name("labyard-jail")).context("labyard-jail")?;

    let mut own = Vec::new();
    let mut peer = Vec::new();
    let mut peer_program = options.qemu.as_deref();
    for count in options.machines.iter().copied() {
        let running = Running::from(labyard(&vmm, &guest, folder.path(), count)?).context("labyard-vmm")?;
        own.push((count, running.beside_kib(guest.memory_mib)?));
        eprintln!(
            "{count} machines: labyard {} KiB, all at their init in {:.1} s",
            last(&own),
            running.to_init.as_secs_f64()
        );
        drop(running);
        if let Some(program) = peer_program {
            match qemu_kib(program, &guest, folder.path(), count) {
                Ok(kib) => {
                    peer.push((count, kib));
                    eprintln!("{count} machines: qemu {kib} KiB");
                }
                // Our figures stay; the table has none of the peer's from here on.
                Err(error) => {
                    eprintln!("{count} machines: {error:#}; the peer is left out from here on");
                    peer_program = None;
                }
            }
        }
    }
    report(&guest, &own, &peer);
    Ok(())
}

fn last(figures: &[(usize, u64)]) -> u64 {
    figures.last().map_or(0, |(_, kib)| *kib)
}

/// So many processes, all at once: what they share counts once.
fn qemu_kib(program: &Path, guest: &Guest, folder: &Path, count: usize) -> Result<u64> {
    let started: Vec<_> =
        (0..count).map(|number| qemu(program, guest, Peer::Alike, folder, number)).collect::<Result<_>>()?;
    // Each is read from its start on: a guest that nobody listens to waits.
    let waiting: Vec<_> = started.into_iter().map(|one| std::thread::spawn(|| Running::from(one))).collect();
    let running = waiting.into_iter().map(|one| one.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
    let running: Vec<_> = running.collect::<Result<_>>().context("qemu")?;
    running.iter().map(|one| one.beside_kib(guest.memory_mib)).sum()
}

fn report(guest: &Guest, own: &[(usize, u64)], peer: &[(usize, u64)]) {
    let mib = |kib: f64| format!("{:.2} MiB", kib / 1024.0);
    // A further machine costs what is beyond those before it, shared among the new ones.
    let further = |figures: &[(usize, u64)], at: usize| {
        let (before, (count, kib)) = (figures[at.saturating_sub(1)], figures[at]);
        match count - before.0 {
            0 => "-".to_owned(),
            new => mib((kib as f64 - before.1 as f64) / new as f64),
        }
    };
    let mut rows = vec![
        ["machines", "labyard, one process", "each further", "QEMU microvm, one each", "each further"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (at, (count, kib)) in own.iter().enumerate() {
        let mut row = vec![count.to_string(), mib(*kib as f64), further(own, at)];
        match peer.get(at) {
            Some((_, kib)) => row.extend([mib(*kib as f64), further(peer, at)]),
            None => row.extend(["-".to_owned(), "-".to_owned()]),
        }
        rows.push(row);
    }
    println!(
        "\nPSS beside the guests' memory; {} MiB, 1 vCPU, a drive and a network card each; at their init\n\n{}",
        guest.memory_mib,
        markdown(&rows)
    );
}
