//! `up`: from the start of `labyard up` until all machines of its lab are ready, for labs of several sizes, in turns.
//!
//! Runs where guests run, with a store that has a kernel and the image: tests/host/run -- up --libexec DIR --home DIR --image SOURCE

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use labyard_bench::table::{markdown, median};

const USAGE: &str = "usage: up --libexec DIR --home DIR --image SOURCE [--machines N,N,...] [--memory-mib N] [--runs N]
DIR holds the programs, and the state directory. Labs of 1, 3 and 10 machines of 192 MiB, three times each, unless told.";
/// Every lab's name; one is gone before the next comes.
const LAB: &str = "bench-up";

struct Options {
    libexec: PathBuf,
    home: PathBuf,
    image: String,
    machines: Vec<usize>,
    memory_mib: u64,
    runs: usize,
}

fn options() -> Result<Options> {
    let (mut libexec, mut home, mut image) = (None, None, None);
    let (mut machines, mut memory_mib, mut runs) = (vec![1, 3, 10], 192, 3);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option}: a value is missing\n{USAGE}"))?;
        match option.as_str() {
            "--libexec" => libexec = Some(PathBuf::from(value)),
            "--home" => home = Some(PathBuf::from(value)),
            "--image" => image = Some(value),
            "--machines" => {
                machines = value.split(',').map(str::parse).collect::<Result<_, _>>().context("--machines")?;
            }
            "--memory-mib" => memory_mib = value.parse().context("--memory-mib")?,
            "--runs" => runs = value.parse().context("--runs")?,
            _ => bail!("{option}: not an option\n{USAGE}"),
        }
    }
    ensure!(!machines.is_empty() && !machines.contains(&0) && runs > 0, "--machines, --runs: at least one\n{USAGE}");
    let (Some(libexec), Some(home), Some(image)) = (libexec, home, image) else { bail!("{USAGE}") };
    Ok(Options { libexec, home, image, machines, memory_mib, runs })
}

/// A lab of so many machines on one network.
fn manifest(options: &Options, machines: usize, folder: &Path) -> Result<PathBuf> {
    let mut text = format!(
        "kind: playground\nname: {LAB}\nplayground:\n  networks: [{{name: local, subnet: 172.16.0.0/24, private: true}}]\n  machines:\n"
    );
    for number in 1..=machines {
        text.push_str(&format!(
            "    - name: m{number}\n      drives: [{{source: '{}', mount: /, size: 4GiB}}]\n      \
             resources: {{cpuCount: 1, ramSize: {}MiB}}\n      network: {{interfaces: [{{network: local}}]}}\n",
            options.image, options.memory_mib
        ));
    }
    let path = folder.join(format!("{machines}.yaml"));
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn labyard(options: &Options, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(options.libexec.join("labyard"));
    command.args(arguments).env("LABYARD_HOME", &options.home).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.stderr(Stdio::piped()).output().context("labyard")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "labyard {}: {}\n{said}", arguments.join(" "), output.status);
    Ok(())
}

/// Seconds until it is ready; it is gone afterwards.
fn up(options: &Options, manifest: &Path) -> Result<f64> {
    let since = Instant::now();
    let came = labyard(options, &["up", manifest.to_str().context("a path in UTF-8")?]);
    let seconds = since.elapsed().as_secs_f64();
    let gone = labyard(options, &["down", LAB, "--grace", "1s"]);
    came.and(gone).map(|()| seconds)
}

fn main() -> Result<()> {
    let options = options()?;
    let folder = tempfile::tempdir().context("a folder for manifests")?;
    let labs = options.machines.iter().map(|count| Ok((*count, manifest(&options, *count, folder.path())?)));
    let labs = labs.collect::<Result<Vec<_>>>()?;
    // What the host has to read is read once, before any clock.
    if let Some((_, first)) = labs.first() {
        up(&options, first)?;
    }
    let mut times = vec![Vec::new(); labs.len()];
    for run in 1..=options.runs {
        for ((count, manifest), times) in labs.iter().zip(&mut times) {
            let seconds = up(&options, manifest)?;
            eprintln!("run {run} of {}: {count} machines ready within {seconds:.2} s", options.runs);
            times.push(seconds);
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    let first = medians.first().copied().unwrap_or(f64::NAN);
    let mut rows = vec![["machines", "ready", "to the first", "for each"].map(str::to_owned).to_vec()];
    rows.extend(labs.iter().zip(&medians).map(|((count, _), seconds)| {
        let each = seconds / *count as f64;
        vec![count.to_string(), format!("{seconds:.2} s"), format!("{:.2}", seconds / first), format!("{each:.2} s")]
    }));
    let processors = std::thread::available_parallelism().map_or(0, |count| count.get());
    println!(
        "{processors} processors; medians of {} runs in turns, from the start of `labyard up` to its end",
        options.runs
    );
    print!("{}", markdown(&rows));
    Ok(())
}
