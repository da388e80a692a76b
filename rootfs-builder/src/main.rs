//! `rootfs-builder`: images, kernels and initramfs archives into the store, from the command line.
//!
//! Standard output is the answer (with `--json` its last line), standard error is progress and at most one line `error: …`.
//! Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted.

#![forbid(unsafe_code)]

mod cli;
mod progress;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use labyard_rootfs_builder::report::one_line;
use labyard_rootfs_builder::watch::Watch;
use labyard_spec::text::printable;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const FAILED: u8 = 1;
const WRONG_INPUT: u8 = 2;
const INTERRUPTED: u8 = 130;

/// An error and whether what was asked for is at fault.
struct Failure {
    text: String,
    is_input: bool,
}

impl Failure {
    fn new(error: &dyn Error, is_input: bool) -> Self {
        Self { text: one_line(error), is_input }
    }
}

fn main() -> ExitCode {
    let cancelled = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The first asks, the second ends at once; what it leaves is removed by the next builder.
        let second =
            signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&cancelled));
        let first = signal_hook::flag::register(signal, Arc::clone(&cancelled));
        if let Err(error) = second.and(first) {
            eprintln!("error: asking for signal {signal}: {error}");
            return ExitCode::from(FAILED);
        }
    }
    let arguments = cli::Arguments::parse();
    let progress = progress::Progress::new();
    let watch = Watch::new(cancelled, progress.report());
    let result = cli::run(arguments, &watch);
    progress.finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if watch.check().is_err() => {
            eprintln!("error: interrupted; nothing was left behind");
            ExitCode::from(INTERRUPTED)
        }
        Err(failure) => {
            eprintln!("error: {}", printable(&failure.text));
            ExitCode::from(if failure.is_input { WRONG_INPUT } else { FAILED })
        }
    }
}
