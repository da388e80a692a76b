//! What a jail costs: measured when it is asked for (docs/benchmarks.md).

use std::fs;
use std::io::PipeWriter;
use std::process::{Child, Command, Stdio};

use room::{Jailed, Started, example, spec};

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/confinement/room.rs"]
mod room;

/// Starts that are measured together.
const STARTS: u64 = 200;
/// Programs that live at once.
const ALIVE: u64 = 50;

/// What children that were reaped have used of processors, user and system, in milliseconds (proc(5), /proc/pid/stat).
fn children_ms() -> u64 {
    let text = fs::read_to_string("/proc/self/stat").expect("our own");
    let (_, fields) = text.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let ticks: u64 = [13, 14].iter().map(|at| fields[*at].parse::<u64>().expect("a number")).sum();
    ticks * 10 // USER_HZ is 100 for every program (time(7))
}

/// What the kernel holds for itself, in KiB: what a process does not show.
fn kernel_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("meminfo");
    let names = ["Slab:", "KernelStack:", "PageTables:", "Percpu:"];
    let value = |line: &str| line.split_ascii_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
    text.lines().filter(|line| names.iter().any(|name| line.starts_with(name))).filter_map(value).sum()
}

fn pss_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("its share");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn bare() -> (Child, PipeWriter) {
    let (end, input) = std::io::pipe().expect("a pipe");
    let child = Command::new(example("nothing")).stdin(end).stdout(Stdio::null()).spawn();
    (child.expect("the program is built with the tests"), input)
}

fn main() {
    let mut jailed_ms = 0;
    for _ in 0..STARTS {
        // The copy of the jail that it makes is not the jail's.
        let mut started = Started::new("nothing", None);
        let before = children_ms();
        let identity = started.tell(&spec());
        assert!(started.go(identity).end().success());
        jailed_ms += children_ms() - before;
    }
    let before = children_ms();
    for _ in 0..STARTS {
        let (mut child, input) = bare();
        drop(input);
        assert!(child.wait().expect("waiting").success());
    }
    let bare_ms = children_ms() - before;
    let per = |ms: u64| ms as f64 / STARTS as f64;
    println!("user and system of a start: {:.2} ms in the jail, {:.2} ms without", per(jailed_ms), per(bare_ms));

    let before = kernel_kib();
    let all: Vec<Jailed> = (0..ALIVE).map(|_| Jailed::start("nothing", None)).collect();
    let jailed_kib = kernel_kib().saturating_sub(before);
    let jailed_pss = all.iter().map(|one| pss_kib(one.pid)).sum::<u64>() / ALIVE;
    all.into_iter().for_each(|one| {
        one.end();
    });
    let before = kernel_kib();
    let all: Vec<_> = (0..ALIVE).map(|_| bare()).collect();
    let bare_kib = kernel_kib().saturating_sub(before);
    let bare_pss = all.iter().map(|(child, _)| pss_kib(child.id().cast_signed())).sum::<u64>() / ALIVE;
    for (mut child, input) in all {
        drop(input);
        child.wait().expect("waiting");
    }
    println!("memory of the program: {jailed_pss} KiB in the jail, {bare_pss} KiB without");
    println!("of the kernel for each: {} KiB in the jail, {} KiB without", jailed_kib / ALIVE, bare_kib / ALIVE);
}
