//! `labyard-vmm`: runs the machines of one playground. Started by `labyard-jail` with fixed descriptors
//! (`labyard_spec::jail::fd`); opens nothing itself.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Instant;

use labyard_spec::jail::fd;
use labyard_sys::exec::inherited;
use labyard_vmm::control::Control;
use labyard_vmm::kvm::Hypervisor;
use labyard_vmm::playground::Playground;
use labyard_vmm::runtime;

/// What this program says about itself when it was not started by the jail.
const USAGE: &str = "labyard-vmm runs the machines of one playground. It is started by labyard-jail, with its control socket, \
/dev/kvm and its logs as open descriptors; use `labyard up` instead.";

/// Exit code of Labyard's own failures.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let since = Instant::now();
    // Exec has made it dumpable again (prctl(2)). Whoever may ptrace it has it, and a core file would hold guests' memory.
    if let Err(error) = labyard_sys::confine::not_dumpable() {
        eprintln!("error: becoming undumpable: {error}");
        return ExitCode::from(OWN_FAILURE);
    }
    // Each reset of a machine starts new threads; with heaps of their own each left some memory behind.
    labyard_sys::heap::share();
    if let Some(argument) = std::env::args().nth(1) {
        let known = ["--help", "-h", "--version", "-V"].contains(&argument.as_str());
        match argument.as_str() {
            "--version" | "-V" => println!("labyard-vmm {}", env!("CARGO_PKG_VERSION")),
            _ => println!("{USAGE}"),
        }
        return if known { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    if log::set_logger(&LineLogger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    match run(since) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(OWN_FAILURE)
        }
    }
}

fn run(since: Instant) -> Result<(), String> {
    let take = |number: i32, what: &str| {
        inherited(number).map_err(|error| format!("descriptor {number}, {what}: {error}\n{USAGE}"))
    };
    let listener = UnixListener::from(take(fd::CONTROL, "the control socket")?);
    let kvm = take(fd::KVM, "/dev/kvm")?;
    let last_words = File::from(take(fd::LAST_WORDS, "last words")?);
    let hypervisor = Hypervisor::new(kvm).map_err(|error| runtime::chain(&error))?;
    let playground = Playground::new(hypervisor, last_words, since).map_err(|error| runtime::chain(&error))?;
    Control::new(playground).serve(&listener).map_err(|error| format!("the control socket: {error}"))
}

/// One line on standard error for each record.
struct LineLogger;

impl log::Log for LineLogger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let thread = std::thread::current();
            let (level, name) = (record.level(), thread.name().unwrap_or("-"));
            // The log lies on the host's disk, which a guest may have filled: that is no reason to panic.
            let _ = writeln!(std::io::stderr(), "{level} {name}: {}", record.args());
        }
    }

    fn flush(&self) {}
}
