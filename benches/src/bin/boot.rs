//! `boot`: from exec to the guest's init, and memory beside the guest's, for labyard's vmm and QEMU's microvm in turns.
//!
//! Runs where guests run: tests/host/run -- boot --kernel FILE --libexec DIR
//! Several kernels are booted in turns, too, so that they can be compared with each other.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use labyard_bench::boot::{Boot, watch};
use labyard_bench::guest;
use labyard_bench::table::{markdown, median};
use labyard_bench::vmm::{Guest, Peer, labyard, qemu, qemu_arguments};

const USAGE: &str = "usage: boot --kernel FILE... --libexec DIR [--runs N] [--memory-mib N] [--qemu PROGRAM|none]
FILE is an ELF kernel or a bzImage, and `--kernel` may come again: the others are compared with the first. DIR holds labyard-vmm, labyard-jail and
labyard-init. 5 runs of each and 128 MiB unless told; `--qemu none` leaves the peer out.";

struct Options {
    kernels: Vec<PathBuf>,
    libexec: PathBuf,
    runs: usize,
    memory_mib: u64,
    qemu: Option<PathBuf>,
}

fn options() -> Result<Options> {
    let (mut kernels, mut libexec, mut runs, mut memory_mib) = (Vec::new(), None, 5, 128);
    let mut qemu = Some(PathBuf::from("qemu-system-x86_64"));
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option}: a value is missing\n{USAGE}"))?;
        match option.as_str() {
            "--kernel" => kernels.push(PathBuf::from(value)),
            "--libexec" => libexec = Some(PathBuf::from(value)),
            "--runs" => runs = value.parse().context("--runs")?,
            "--memory-mib" => memory_mib = value.parse().context("--memory-mib")?,
            "--qemu" => qemu = Some(value).filter(|value| value != "none").map(PathBuf::from),
            _ => bail!("{option}: not an option\n{USAGE}"),
        }
    }
    let (false, Some(libexec)) = (kernels.is_empty(), libexec) else { bail!("{USAGE}") };
    Ok(Options { kernels, libexec, runs: runs.max(1), memory_mib, qemu })
}

fn main() -> Result<()> {
    let options = options()?;
    // Copies in memory: a VMM that reads its kernel from a network file system measures that.
    let folder = tempfile::tempdir().context("a folder for the guest's files")?;
    let initramfs = folder.path().join("initramfs.cpio");
    std::fs::write(&initramfs, guest::initramfs(&options.libexec.join("labyard-init"))?).context("initramfs")?;
    let mut contests = Vec::new();
    for (number, source) in options.kernels.iter().enumerate() {
        let kernel = folder.path().join(format!("vmlinux-{number}"));
        std::fs::write(&kernel, guest::elf(source)?).context("vmlinux")?;
        let guest = Guest { kernel, initramfs: initramfs.clone(), memory_mib: options.memory_mib, furnished: false };
        contests.push(Contest { source, guest, ours: Vec::new(), peers: Default::default() });
    }
    let vmm = folder.path().join("labyard-vmm");
    std::fs::copy(options.libexec.join("labyard-vmm"), &vmm).context("labyard-vmm")?;
    std::fs::copy(options.libexec.join("labyard-jail"), vmm.with_file_name("labyard-jail")).context("labyard-jail")?;

    // The first boot of each fills caches and is not counted.
    for run in 0..=options.runs {
        for contest in &mut contests {
            contest.round(&options, &vmm, folder.path(), run)?;
        }
    }
    println!("\n{} boots of each in turns, 1 vCPU, {} MiB; medians; {}", options.runs, options.memory_mib, processor());
    contests.iter().for_each(report);
    compare(&contests);
    println!("\ncommand line of all guests: {}", Guest::command_line());
    if let (Some(program), Some(contest)) = (&options.qemu, contests.first()) {
        println!("the peer, {}:", version(program));
        for peer in PEERS {
            let arguments = quoted(&qemu_arguments(&contest.guest, peer, Path::new(""), 0));
            println!("{}:\n  {} {arguments}", peer.name(), program.display());
        }
    }
    Ok(())
}

/// Writes to more memory than a guest has, and frees it, before each boot of either VMM. What was freed last is given out first, so it is
/// the last guest's memory that the next one gets; and in an emulated host the first write to a page that was executed throws away what
/// the page was translated to, which took 50 ms for one huge page of a kernel. Whose boot that fell into was chance.
fn overwrite_free_memory(guest_mib: u64) {
    std::hint::black_box(vec![1u8; (guest_mib as usize) << 21]);
}

/// In the order of their columns.
const PEERS: [Peer; 2] = [Peer::Alike, Peer::Bare];

/// One kernel's boots.
struct Contest<'a> {
    source: &'a Path,
    guest: Guest,
    ours: Vec<Boot>,
    /// Of each of [`PEERS`]; empty where nobody asked for them.
    peers: [Vec<Boot>; PEERS.len()],
}

impl Contest<'_> {
    /// Each VMM once. What the first round shows is not kept.
    fn round(&mut self, options: &Options, vmm: &Path, folder: &Path, run: usize) -> Result<()> {
        let keep = |boots: &mut Vec<Boot>, name: &str, boot: Boot| {
            eprint!(", {name} {:.3} s", boot.to_init.as_secs_f64());
            if run > 0 {
                boots.push(boot);
            }
        };
        eprint!("run {run}: {}", self.source.display());
        overwrite_free_memory(self.guest.memory_mib);
        let own = watch(labyard(vmm, &self.guest, folder, 1)?, self.guest.memory_mib).context("labyard-vmm")?;
        keep(&mut self.ours, "labyard", own);
        for (peer, boots) in PEERS.into_iter().zip(&mut self.peers) {
            let Some(program) = &options.qemu else { continue };
            overwrite_free_memory(self.guest.memory_mib);
            let started = qemu(program, &self.guest, peer, folder, 0)?;
            keep(boots, peer.name(), watch(started, self.guest.memory_mib).with_context(|| peer.name())?);
        }
        eprintln!();
        Ok(())
    }
}

fn seconds(boots: &[Boot]) -> f64 {
    median(boots.iter().map(|boot| boot.to_init.as_secs_f64()).collect())
}

fn beside_mib(boots: &[Boot]) -> f64 {
    median(boots.iter().map(|boot| boot.beside_kib as f64 / 1024.0).collect())
}

fn report(contest: &Contest<'_>) {
    let Contest { source, ours, peers, .. } = contest;
    println!("\n{}:\n", source.display());
    let row = |name: &str, unit: &str, of: fn(&[Boot]) -> f64| {
        let own = of(ours);
        let mut cells = vec![name.to_owned(), format!("{own:.2} {unit}")];
        for boots in peers.iter().filter(|boots| !boots.is_empty()) {
            let peer = of(boots);
            cells.extend([format!("{peer:.2} {unit}"), format!("{:.2}", own / peer)]);
        }
        cells
    };
    let mut head = vec![String::new(), "labyard".to_owned()];
    for (peer, _) in PEERS.iter().zip(peers).filter(|(_, boots)| !boots.is_empty()) {
        head.extend([peer.name(), "ratio"].map(str::to_owned));
    }
    let rows =
        [head, row("exec to guest init", "s", seconds), row("memory beside the guest's (PSS)", "MiB", beside_mib)];
    print!("{}", markdown(&rows));
    for (number, (name, _)) in
        ours.first().map(|boot| boot.milestones.as_slice()).unwrap_or_default().iter().enumerate()
    {
        let times = ours.iter().filter_map(|boot| boot.milestones.get(number)).map(|(_, us)| us / 1000.0).collect();
        println!("labyard, start of the process to {name}: {:.1} ms", median(times));
    }
}

/// The kernels beside each other, on labyard.
fn compare(contests: &[Contest<'_>]) {
    let [first, _, ..] = contests else { return };
    let mut rows = vec![["kernel", "exec to guest init", "to the first"].map(str::to_owned).to_vec()];
    rows.extend(contests.iter().map(|contest| {
        let own = seconds(&contest.ours);
        vec![contest.source.display().to_string(), format!("{own:.2} s"), format!("{:.2}", own / seconds(&first.ours))]
    }));
    print!("\n{}", markdown(&rows));
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
