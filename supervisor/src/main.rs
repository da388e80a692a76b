//! `labyard`: builds, boots and joins virtual labs on this host.

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Everything that is made is for the owner alone, whoever makes it.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    cli::main(umask.bits())
}
