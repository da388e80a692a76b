//! Powering the guest off, whoever is its PID 1.
//!
//! Our own PID 1 reads the pipe that the agent writes to. An image's init has closed that pipe by exec, and is asked its own
//! way: systemd through `systemctl`, others through `poweroff`. If nothing of this is there, the agent does it alone.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::system::RebootCommand;

use super::Agent;
use crate::launch::DEFAULT_PATH;

/// How the request will be carried out.
pub(super) enum Way<'a> {
    /// By our own PID 1.
    Ours(&'a OwnedFd),
    /// By the image's init, which has taken the request.
    Taken,
    /// By nobody but us.
    Alone,
}

/// Finds the way, and asks the image's init where it is that.
pub(super) fn ask(agent: &Agent) -> Way<'_> {
    if let Some(pipe) = agent.power.as_ref().filter(|pipe| has_reader(pipe)) {
        return Way::Ours(pipe);
    }
    let mut ways = vec![vec!["poweroff"]];
    if Path::new("/run/systemd/system").is_dir() {
        ways.insert(0, vec!["systemctl", "poweroff", "--no-block"]);
    }
    for way in ways {
        let (program, arguments) = (way.first().copied().unwrap_or_default(), way.get(1..).unwrap_or_default());
        let done = Command::new(program)
            .args(arguments)
            .env("PATH", DEFAULT_PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if done.is_ok_and(|status| status.success()) {
            return Way::Taken;
        }
    }
    Way::Alone
}

impl Way<'_> {
    /// Goes on, after the caller has been answered.
    pub(super) fn go(self) {
        match self {
            Self::Ours(pipe) => {
                let _ = rustix::io::write(pipe, &[1]);
            }
            Self::Taken => {}
            Self::Alone => {
                rustix::fs::sync();
                let _ = rustix::system::reboot(RebootCommand::PowerOff);
            }
        }
    }
}

/// A pipe without a reader reports an error (poll(2)).
fn has_reader(pipe: &OwnedFd) -> bool {
    let mut poll = [PollFd::new(pipe, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)).is_ok_and(|_| !poll[0].revents().intersects(PollFlags::ERR))
}
