//! `images`: from an OCI layout to an ext4 disk: rootfs-builder, and `umoci unpack` with `mke2fs -d`. In turns, on one machine.
//!
//! Needs no guest, but root, without which umoci makes neither owners nor devices: images --libexec DIR

#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use labyard_bench::layout::{self, TAGS};
use labyard_bench::table::{markdown, median};

const USAGE: &str = "usage: images --libexec DIR [--files N] [--mib N] [--runs N] [--scratch DIR] [--peer umoci|none]
DIR holds rootfs-builder. 50,000 files of 1,000 MB together and 3 runs unless told; takes four times as much room.";

/// How often a program's memory is looked at.
const LOOK: Duration = Duration::from_millis(5);

struct Options {
    libexec: PathBuf,
    files: u64,
    bytes: u64,
    runs: usize,
    scratch: PathBuf,
    peer: bool,
}

fn options() -> Result<Options> {
    let (mut libexec, mut scratch) = (None, std::env::temp_dir());
    let (mut files, mut bytes, mut runs, mut peer) = (50_000, 1_000_000_000, 3, true);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option}: a value is missing\n{USAGE}"))?;
        match option.as_str() {
            "--libexec" => libexec = Some(PathBuf::from(value)),
            "--files" => files = value.parse().context("--files")?,
            "--mib" => bytes = value.parse::<u64>().context("--mib")? << 20,
            "--runs" => runs = value.parse().context("--runs")?,
            "--scratch" => scratch = PathBuf::from(value),
            "--peer" => peer = value != "none",
            _ => bail!("{option}: not an option\n{USAGE}"),
        }
    }
    ensure!(files >= 10 && runs >= 1, "{USAGE}");
    let Some(libexec) = libexec else { bail!("{USAGE}") };
    Ok(Options { libexec, files, bytes, runs, scratch, peer })
}

/// What one program took.
#[derive(Debug, Clone, Default)]
struct Taken {
    seconds: f64,
    peak_kib: u64,
    /// Of processors, by its threads together.
    processor_seconds: f64,
    /// What it said it was doing, and for how long.
    phases: Vec<(String, f64)>,
}

fn run(command: &mut Command) -> Result<Taken> {
    let shown = format!("{command:?}");
    let start = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context(shown.clone())?;
    let said = child.stderr.take().context("standard error is no pipe")?;
    let listener = thread::spawn(move || {
        BufReader::new(said)
            .lines()
            .map_while(Result::ok)
            .map(|line| (line, start.elapsed().as_secs_f64()))
            .collect::<Vec<_>>()
    });
    let (status, stat) = (format!("/proc/{}/status", child.id()), format!("/proc/{}/stat", child.id()));
    let (mut peak_kib, mut processor_seconds) = (0, 0.0);
    let done = loop {
        if let Some(done) = child.try_wait().context("waiting")? {
            break done;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let now = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        peak_kib = peak_kib.max(now.unwrap_or(0));
        // proc_pid_stat(5): utime and stime are the 12th and 13th behind the name, in hundredths of a second.
        let text = fs::read_to_string(&stat).unwrap_or_default();
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
        processor_seconds = f64::max(processor_seconds, (ticks(11) + ticks(12)) / 100.0);
        thread::sleep(LOOK);
    };
    let seconds = start.elapsed().as_secs_f64();
    let lines = listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))?;
    ensure!(done.success(), "{shown}: {done}: {lines:?}");
    let ends = lines.iter().skip(1).map(|(_, at)| *at).chain([seconds]);
    let phases = lines.iter().zip(ends).map(|((line, from), to)| (line.clone(), to - from)).collect();
    Ok(Taken { seconds, peak_kib, processor_seconds, phases })
}

fn build(options: &Options, layout: &Path, store: &Path, tag: &str) -> Result<Taken> {
    let source = format!("oci-layout:{}:{tag}", layout.display());
    let size = format!("{}MiB", (options.bytes >> 20) * 2 + 1024);
    run(Command::new(options.libexec.join("rootfs-builder"))
        .args(["build", &source, "--size", &size, "--store"])
        .arg(store))
}

fn peer(options: &Options, layout: &Path, folder: &Path) -> Result<(Taken, Taken)> {
    let (bundle, disk) = (folder.join("bundle"), folder.join("peer.ext4"));
    let image = format!("{}:{}", layout.display(), TAGS[0]);
    let unpacked = run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
    let size = format!("{}M", (options.bytes >> 20) * 2 + 1024);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    let made = run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(bundle.join("rootfs")).arg(&disk).arg(size))?;
    fs::remove_dir_all(bundle).context("the bundle")?;
    fs::remove_file(disk).context("the peer's disk")?;
    Ok((unpacked, made))
}

fn main() -> Result<()> {
    let options = options()?;
    let folder = tempfile::tempdir_in(&options.scratch).context("a folder for images")?;
    let layout = folder.path().join("layout");
    layout::make(&layout, options.files, options.bytes)?;
    let mut figures: [Vec<Taken>; 4] = Default::default();
    for turn in 0..options.runs {
        let store = folder.path().join("store");
        fs::create_dir(&store).context("a store")?;
        for (at, tag) in [TAGS[0], TAGS[0], TAGS[1]].into_iter().enumerate() {
            figures[at].push(build(&options, &layout, &store, tag)?);
        }
        fs::remove_dir_all(&store).context("the store")?;
        if options.peer {
            let (unpacked, made) = peer(&options, &layout, folder.path())?;
            let peak_kib = unpacked.peak_kib.max(made.peak_kib);
            let phases = vec![("umoci unpack".into(), unpacked.seconds), ("mke2fs -d".into(), made.seconds)];
            let processor_seconds = unpacked.processor_seconds + made.processor_seconds;
            figures[3].push(Taken { seconds: unpacked.seconds + made.seconds, peak_kib, processor_seconds, phases });
        }
        let single: Vec<String> =
            figures.iter().filter_map(|all| all.last()).map(|one| format!("{:.2}", one.seconds)).collect();
        eprintln!("run {turn}: {} s", single.join(", "));
    }
    println!("{} files, {} MB, medians of {}:\n", options.files, options.bytes / 1_000_000, options.runs);
    let head = [
        "",
        "time",
        "to the first",
        "processor",
        "to the first",
        "MB/s",
        "files/s",
        "peak memory",
        "where the time goes",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let names = ["rootfs-builder, first", "again", "another upper layer", "umoci unpack, mke2fs -d"];
    let processor = |all: &[Taken]| median(all.iter().map(|one| one.processor_seconds).collect());
    let first = median(figures[0].iter().map(|one| one.seconds).collect());
    let first_processor = processor(&figures[0]);
    for (name, all) in names.into_iter().zip(&figures).filter(|(_, all)| !all.is_empty()) {
        let seconds = median(all.iter().map(|one| one.seconds).collect());
        let peak = all.iter().map(|one| one.peak_kib).max().unwrap_or(0);
        // Those of the run in the middle, more or less: phases of several runs are no row of numbers.
        let near = all.iter().min_by(|a, b| (a.seconds - seconds).abs().total_cmp(&(b.seconds - seconds).abs()));
        let phases = near.map_or(&[][..], |one| &one.phases[..]);
        let phases: Vec<String> = phases.iter().map(|(name, seconds)| format!("{name} {seconds:.2} s")).collect();
        rows.push(vec![
            name.to_owned(),
            format!("{seconds:.3} s"),
            format!("{:.2}", seconds / first),
            format!("{:.2} s", processor(all)),
            format!("{:.2}", processor(all) / first_processor),
            format!("{:.0}", options.bytes as f64 / 1e6 / seconds),
            format!("{:.0}", options.files as f64 / seconds),
            format!("{:.1} MiB", peak as f64 / 1024.0),
            phases.join(", "),
        ]);
    }
    print!("{}", markdown(&rows));
    Ok(())
}
