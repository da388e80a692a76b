//! One binary, three roles. As PID 1 it is init, whatever words the kernel's command line has left for it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        labyard_guest::init::run();
    }
    let role = std::env::args().nth(1);
    let done = match role.as_deref() {
        Some(labyard_guest::agent::ROLE) => labyard_guest::agent::run(),
        Some(labyard_guest::launch::ROLE) => labyard_guest::launch::run(),
        _ => Err(anyhow::anyhow!("labyard-init runs as PID 1 of a guest's initramfs; it has no use outside")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
