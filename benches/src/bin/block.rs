//! `block`: fio in a guest, on an overlay of labyard's vmm and on a raw file of QEMU's microvm, in turns.
//!
//! Runs where guests run: tests/host/run -- block --kernel FILE --root FILE --libexec DIR

#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use labyard_bench::drive::{Contest, JOBS, MEMORY_MIB, labyard, qemu, qemu_arguments};
use labyard_bench::guest;
use labyard_bench::table::{markdown, median};

const USAGE: &str = "usage: block --kernel FILE --root FILE --libexec DIR [--folder DIR] [--runs N] [--seconds N] [--mib N]
             [--engine auto|sync|uring] [--qemu PROGRAM|none] [--aio io_uring|threads] [--raw sparse|full]
FILE of --kernel is an ELF kernel or a bzImage with drivers of drives and ext4 built in, that of --root an ext4 image with fio; DIR holds
labyard-vmm and labyard-jail; the drives lie in --folder, $LABYARD_SCRATCH unless told. 5 rounds that count, 1 second a job, 64 MiB a round.
The peer's raw file is sparse where it is written, as the overlay is; with `--raw full` it has blocks there, in the host's page cache.";

struct Options {
    kernel: PathBuf,
    root: PathBuf,
    libexec: PathBuf,
    folder: PathBuf,
    runs: u64,
    seconds: u64,
    mib: u64,
    engine: String,
    qemu: Option<PathBuf>,
    aio: String,
    full: bool,
}

fn options() -> Result<Options> {
    let (mut kernel, mut root, mut libexec) = (None, None, None);
    let mut folder = std::env::var_os("LABYARD_SCRATCH").map(PathBuf::from);
    let (mut runs, mut seconds, mut mib) = (5, 1, 64);
    let (mut engine, mut aio, mut full) = ("auto".to_owned(), "io_uring".to_owned(), false);
    let mut qemu = Some(PathBuf::from("qemu-system-x86_64"));
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option}: a value is missing\n{USAGE}"))?;
        match option.as_str() {
            "--kernel" => kernel = Some(PathBuf::from(value)),
            "--root" => root = Some(PathBuf::from(value)),
            "--libexec" => libexec = Some(PathBuf::from(value)),
            "--folder" => folder = Some(PathBuf::from(value)),
            "--runs" => runs = value.parse().context("--runs")?,
            "--seconds" => seconds = value.parse().context("--seconds")?,
            "--mib" => mib = value.parse().context("--mib")?,
            "--engine" => engine = value,
            "--qemu" => qemu = Some(value).filter(|value| value != "none").map(PathBuf::from),
            "--aio" => aio = value,
            "--raw" if ["sparse", "full"].contains(&value.as_str()) => full = value == "full",
            _ => bail!("{option}: not an option\n{USAGE}"),
        }
    }
    let (Some(kernel), Some(root), Some(libexec), Some(folder)) = (kernel, root, libexec, folder) else {
        bail!("{USAGE}")
    };
    Ok(Options { kernel, root, libexec, folder, runs: runs.max(1), seconds, mib, engine, qemu, aio, full })
}

fn main() -> Result<()> {
    let options = options()?;
    let folder = tempfile::tempdir_in(&options.folder).context("a folder for the drives")?;
    let place = |name: &str| folder.path().join(name);
    let contest = Contest {
        kernel: place("vmlinux"),
        root: options.root.clone(),
        folder: folder.path().to_owned(),
        round_bytes: options.mib << 20,
        full: options.full,
        // The first fills caches and is not counted.
        rounds: options.runs + 1,
        seconds: options.seconds,
    };
    std::fs::write(&contest.kernel, guest::elf(&options.kernel)?).context("vmlinux")?;
    let vmm = place("labyard-vmm");
    std::fs::copy(options.libexec.join("labyard-vmm"), &vmm).context("labyard-vmm")?;
    std::fs::copy(options.libexec.join("labyard-jail"), vmm.with_file_name("labyard-jail")).context("labyard-jail")?;
    contest.prepare()?;

    let mut own = labyard(&vmm, &contest, &options.engine).context("labyard-vmm")?;
    own.wait().context("labyard-vmm")?;
    let mut peer = options.qemu.as_ref().map(|program| qemu(program, &contest, &options.aio)).transpose()?;
    if let Some(peer) = &mut peer {
        peer.wait().context("qemu")?;
    }
    let mut figures: Vec<Vec<Pair>> = JOBS.iter().map(|_| Vec::new()).collect();
    for round in 0..contest.rounds {
        for (job, (name, all)) in JOBS.iter().map(|job| job.name).zip(&mut figures).enumerate() {
            // Who is first is second the next time.
            let own_first = (round + job as u64).is_multiple_of(2);
            let before = if own_first { Some(own.play(round, job).context("labyard")?) } else { None };
            let theirs = peer.as_mut().map(|peer| peer.play(round, job)).transpose().context("qemu")?;
            let ours = before.map_or_else(|| own.play(round, job).context("labyard"), Ok)?;
            eprintln!(
                "round {round}: {name}: labyard {ours:.0}{}",
                theirs.map_or(String::new(), |theirs| format!(", qemu {theirs:.0}"))
            );
            if round > 0 {
                all.push((ours, theirs));
            }
        }
    }
    println!(
        "\n{} rounds, each job by one guest after the other, 1 vCPU, {MEMORY_MIB} MiB, {} s a job, {} MiB a round, engine {}; medians\n",
        options.runs, options.seconds, options.mib, options.engine
    );
    report(&figures);
    let counters: Vec<_> = own.counters()?.iter().map(|(name, value)| format!("{name} {value}")).collect();
    println!("\nlabyard's counters: {}", counters.join(", "));
    for (name, player) in [("labyard", Some(&own)), ("QEMU", peer.as_ref())] {
        let Some(player) = player else { continue };
        let threads: Vec<_> =
            player.threads()?.iter().map(|(name, seconds)| format!("{name} {seconds:.2} s")).collect();
        println!("processor time of {name}'s threads: {}", threads.join(", "));
    }
    if let Some(program) = &options.qemu {
        println!("\nthe peer:\n  {} {}", program.display(), qemu_arguments(&contest, &options.aio).join(" "));
    }
    Ok(())
}

/// Labyard's figure, and the peer's right before or after it.
type Pair = (f64, Option<f64>);

fn report(figures: &[Vec<Pair>]) {
    let head = ["fio in the guest", "labyard, overlay", "QEMU microvm, raw", "ratio", "of each pair"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (job, all) in JOBS.iter().zip(figures) {
        let said = |figures: Vec<f64>| match figures.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.0} {}", median(figures), job.unit()),
        };
        let ratios: Vec<f64> = all.iter().filter_map(|(own, peer)| peer.map(|peer| own / peer)).collect();
        let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        rows.push(vec![
            job.name.to_owned(),
            said(all.iter().map(|(own, _)| *own).collect()),
            said(all.iter().filter_map(|(_, peer)| *peer).collect()),
            if ratios.is_empty() { "-".to_owned() } else { format!("{:.2}", median(ratios)) },
            each.join(" "),
        ]);
    }
    print!("{}", markdown(&rows));
}
