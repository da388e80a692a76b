//! `labyard-vmm`: runs the machines of one playground. Started by `labyard-jail` with fixed descriptors
//! (`labyard_spec::jail::fd`); opens nothing itself.
//!
//! Outside of the jail it runs no guest, and it filters its system calls before it hears anybody ([`labyard_vmm::seccomp`]). What is built
//! for debugging may be started outside, with a warning, and takes `--log-calls`: what a filter forbids is then in the kernel's log and
//! happens. No result comes from such a build.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Instant;

use labyard_devices::backend::engine::uring::DEPTH;
use labyard_spec::jail::fd;
use labyard_sys::confine;
use labyard_sys::exec::inherited;
use labyard_vmm::control::Control;
use labyard_vmm::kvm::Hypervisor;
use labyard_vmm::playground::Playground;
use labyard_vmm::runtime;
use labyard_vmm::seccomp::Otherwise;

/// What this program says about itself when it was not started by the jail.
const USAGE: &str = "labyard-vmm runs the machines of one playground. It is started by labyard-jail, with its control socket, \
/dev/kvm and its logs as open descriptors; use `labyard up` instead.";

/// Exit code of Labyard's own failures.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let since = Instant::now();
    // Exec has made it dumpable again (prctl(2)). Whoever may ptrace it has it, and a core file would hold guests' memory.
    if let Err(error) = confine::not_dumpable() {
        eprintln!("error: becoming undumpable: {error}");
        return ExitCode::from(OWN_FAILURE);
    }
    // Each reset of a machine starts new threads; with heaps of their own each left some memory behind.
    labyard_sys::heap::share();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = match Options::parse(&arguments) {
        Ok(options) => options,
        Err(Said { text, code }) => {
            println!("{text}");
            return code;
        }
    };
    if log::set_logger(&LineLogger).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    match run(since, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(OWN_FAILURE)
        }
    }
}

/// What the jail is told to start it with.
struct Options {
    /// Rings of io_uring to make; each drive takes one.
    rings: usize,
    /// What becomes of a system call that a filter forbids.
    otherwise: Otherwise,
}

/// What is said instead of running.
struct Said {
    text: String,
    code: ExitCode,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Said> {
        let mut options = Self { rings: 0, otherwise: Otherwise::Kill };
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--version" | "-V" => {
                    let text = format!("labyard-vmm {}", env!("CARGO_PKG_VERSION"));
                    return Err(Said { text, code: ExitCode::SUCCESS });
                }
                "--help" | "-h" => return Err(Said { text: USAGE.to_owned(), code: ExitCode::SUCCESS }),
                "--rings" => {
                    let value = words.next().unwrap_or_default();
                    options.rings = value.parse().map_err(|_| {
                        let text = format!("--rings {value}: not a number of rings\n{USAGE}");
                        Said { text, code: ExitCode::from(2) }
                    })?;
                }
                #[cfg(debug_assertions)]
                "--log-calls" => options.otherwise = Otherwise::Log,
                other => {
                    let text = format!("{other}: not an option\n{USAGE}");
                    return Err(Said { text, code: ExitCode::from(2) });
                }
            }
        }
        Ok(options)
    }
}

/// Whether the jail's walls stand around this process; the first that does not.
fn jailed() -> Result<(), &'static str> {
    let walls = [
        (confine::has_no_capabilities(), "it has capabilities"),
        (confine::has_no_new_privileges(), "it may gain privileges"),
        (confine::is_first_process(), "it is not the first process of its namespace"),
        (std::fs::symlink_metadata("/proc").is_err(), "its root is not empty"),
    ];
    walls.into_iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, lack)| Err(lack))
}

fn run(since: Instant, options: Options) -> Result<(), String> {
    if let Err(lack) = jailed() {
        let why = format!("no guest runs outside of the jail, and {lack}");
        if !cfg!(debug_assertions) {
            return Err(format!("{why}\n{USAGE}"));
        }
        log::warn!("{why}; built for debugging, it goes on");
    }
    let take = |number: i32, what: &str| {
        inherited(number).map_err(|error| format!("descriptor {number}, {what}: {error}\n{USAGE}"))
    };
    let listener = UnixListener::from(take(fd::CONTROL, "the control socket")?);
    let kvm = take(fd::KVM, "/dev/kvm")?;
    let last_words = File::from(take(fd::LAST_WORDS, "last words")?);
    let hypervisor = Hypervisor::new(kvm).map_err(|error| runtime::chain(&error))?;
    let playground = Playground::new(hypervisor, last_words, since).map_err(|error| runtime::chain(&error))?;
    let rings = labyard_sys::uring::reserve(options.rings, DEPTH);
    if rings < options.rings {
        log::warn!("{rings} rings of {} were to be had", options.rings);
    }
    runtime::confine(options.otherwise).map_err(|error| format!("filtering system calls: {error}"))?;
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
