//! PID 1 of an image without an init: runs its entrypoint, reaps children, and powers off when the agent asks.
//!
//! The machine outlives its entrypoint: programs can still be run in it, and it ends when somebody ends it. An agent that
//! dies is started again. Two threads: this one waits for children, the other for the agent's byte on the pipe.

use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use labyard_spec::guest::Entrypoint;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::handover::Agents;
use super::{WHO, power_off};
use crate::console::{chain, say};
use crate::launch::{Launch, OWN_BINARY, launch};
use crate::users;

/// How long the entrypoint has after its stop signal (what container runtimes give).
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long everybody else has, after SIGTERM and after SIGKILL.
const END_WITHIN: Duration = Duration::from_secs(3);
/// An agent that died sooner would do so again.
const AGENT_LIVES: Duration = Duration::from_secs(10);

/// Never returns: PID 1 does not end before the machine.
pub(super) fn stay<T>(entrypoint: Option<&Entrypoint>, asked: PipeReader, agents: &Agents, agent: Child) -> T {
    mount_the_rest();
    let program = entrypoint.filter(|entrypoint| !entrypoint.argv.is_empty());
    let running = program.and_then(|entrypoint| start(entrypoint).map(|child| Pid::from_child(&child)));
    let stop = program.and_then(|entrypoint| entrypoint.stop_signal.as_deref()).map_or(Signal::TERM, signal_named);
    let ending = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ending);
    let wait = move || wait_for_the_end(asked, running, stop, &seen);
    let waiting = std::thread::Builder::new().name("power".to_owned()).spawn(wait);
    if let Err(error) = waiting {
        say(WHO, format_args!("nobody will hear a request to power off: {error}"));
    }
    reap(running, agents, &agent, &ending)
}

fn start(entrypoint: &Entrypoint) -> Option<Child> {
    let started = users::find(Path::new("/"), &entrypoint.user).map_err(|error| error.to_string()).and_then(|user| {
        // An image that names no folder means /, not the user's home.
        let folder = Some(entrypoint.working_dir.as_str()).filter(|folder| !folder.is_empty()).unwrap_or("/");
        let launched = Launch::new(&entrypoint.argv, user, Some(folder), &entrypoint.env);
        let console = || File::options().read(true).write(true).open("/dev/console").map(OwnedFd::from);
        let stdio =
            console().and_then(|a| Ok([a, console()?, console()?])).map_err(|error| format!("console: {error}"))?;
        launch(Path::new(OWN_BINARY), &launched, stdio).map_err(|error| chain(&error))
    });
    started.inspect_err(|error| say(WHO, format_args!("the image's entrypoint did not start: {error}"))).ok()
}

/// `ending` is set once the machine powers off: what ends then is meant to.
fn reap(entrypoint: Option<Pid>, agents: &Agents, agent: &Child, ending: &AtomicBool) -> ! {
    let mut agent = (Some(Pid::from_child(agent)), Instant::now());
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => (Some(pid), status),
            Err(Errno::CHILD) => {
                // No child, so no orphan can come either: all that is left is the other thread.
                std::thread::park();
                continue;
            }
            Ok(None) | Err(_) => continue,
        };
        if ending.load(Ordering::Acquire) {
            continue;
        }
        if pid == entrypoint {
            say(WHO, format_args!("the image's entrypoint ended {}; the machine stays", end_of(status)));
        }
        if pid == agent.0 {
            say(WHO, format_args!("the agent ended {}", end_of(status)));
            let again = agent.1.elapsed() > AGENT_LIVES;
            agent =
                (again.then(|| agents.start(None).ok()).flatten().map(|child| Pid::from_child(&child)), Instant::now());
        }
    }
}

fn end_of(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("with code {code}"),
        (None, Some(signal)) => format!("by signal {signal}"),
        (None, None) => "without a reason".to_owned(),
    }
}

/// What an init would mount. The image may lack a folder or the kernel a file system; programs then do without.
fn mount_the_rest() {
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, at, flags, data) in [
        ("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755")),
        ("cgroup2", "/sys/fs/cgroup", closed, None),
    ] {
        if std::fs::create_dir_all(at).is_ok() {
            let _ = mount(kind, at, kind, flags, data);
        }
    }
    let links = [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
    for (name, target) in links {
        let _ = std::os::unix::fs::symlink(format!("/proc/self/{target}"), format!("/dev/{name}"));
    }
}

fn wait_for_the_end(mut asked: PipeReader, entrypoint: Option<Pid>, stop: Signal, ending: &AtomicBool) {
    // Our own end of the pipe stays open for the next agent, so this ends only with a byte.
    if asked.read_exact(&mut [0]).is_err() {
        return;
    }
    ending.store(true, Ordering::Release);
    say(WHO, "powering off");
    if let Some(pid) = entrypoint.filter(|pid| lives(*pid)) {
        let _ = rustix::process::kill_process(pid, stop);
        wait_until(STOP_WITHIN, || !lives(pid));
    }
    for signal in [Signal::TERM, Signal::KILL] {
        for pid in processes() {
            let _ = rustix::process::kill_process(pid, signal);
        }
        if wait_until(END_WITHIN, || processes().is_empty()) {
            break;
        }
    }
    rustix::fs::sync();
    unmount_all();
    power_off()
}

fn wait_until(within: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + within;
    while !holds() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn lives(pid: Pid) -> bool {
    rustix::process::test_kill_process(pid).is_ok()
}

/// All programs but this one. Threads of the kernel have no program, and neither have the dead.
fn processes() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != 1 && std::fs::read_link(format!("/proc/{pid}/exe")).is_ok())
        .filter_map(Pid::from_raw)
        .collect()
}

/// Leaves every file system of a drive clean.
fn unmount_all() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.collect::<Vec<_>>().into_iter().rev().filter(|point| needs_unmount(point)) {
        let _ = unmount(point, UnmountFlags::empty());
    }
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, c"") {
        say(WHO, format_args!("the root was not left clean: {error}"));
    }
}

fn needs_unmount(point: &str) -> bool {
    let within = |folder: &str| point == folder || point.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
    point != "/" && !["/proc", "/sys", "/dev"].into_iter().any(within)
}

/// The signal of an image's configuration: a number, or a name with or without `SIG`; SIGTERM where it is neither.
fn signal_named(name: &str) -> Signal {
    const NAMES: [(&str, Signal); 12] = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("ABRT", Signal::ABORT),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("CONT", Signal::CONT),
        ("WINCH", Signal::WINCH),
        ("PWR", Signal::POWER),
    ];
    let bare = name.strip_prefix("SIG").unwrap_or(name);
    let by_name = NAMES.iter().find(|(known, _)| *known == bare).map(|(_, signal)| *signal);
    by_name.or_else(|| name.parse().ok().and_then(Signal::from_named_raw)).unwrap_or(Signal::TERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_signal_is_a_name_or_a_number() {
        for (name, signal) in [
            ("SIGQUIT", Signal::QUIT),
            ("WINCH", Signal::WINCH),
            ("2", Signal::INT),
            ("SIGRTMIN+3", Signal::TERM),
            ("", Signal::TERM),
            ("999", Signal::TERM),
        ] {
            assert_eq!(signal_named(name), signal, "{name}");
        }
    }

    #[test]
    fn only_what_may_hold_data_is_unmounted() {
        for (point, needs) in [
            ("/", false),
            ("/proc", false),
            ("/sys/fs/cgroup", false),
            ("/dev/shm", false),
            ("/data", true),
            ("/devel", true),
        ] {
            assert_eq!(needs_unmount(point), needs, "{point}");
        }
    }
}
