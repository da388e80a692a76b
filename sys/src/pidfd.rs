//! Processes that are meant to stay who they are: a pid with its start time, and a pidfd that was checked against both.
//!
//! A pid alone is reused. Process start times (field 22 of `/proc/PID/stat`, proc(5)) have a resolution of a clock tick, in which a pid
//! does not come round again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

/// A process, named so that nobody else can answer to the name on this boot of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Process id in the namespace of the caller.
    pub pid: i32,
    /// Clock ticks from the boot of the host to the start of the process.
    pub start_time: u64,
}

impl Identity {
    /// Who `pid` is now.
    ///
    /// # Errors
    /// `NotFound` where there is no such process, or only its unreaped remains.
    pub fn of(pid: i32) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("no process {pid}"));
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => gone(),
            // ESRCH: it went while the file was read.
            _ if error.raw_os_error() == Some(libc::ESRCH) => gone(),
            _ => error,
        })?;
        let (state, start_time) = parse_stat(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {stat}")))?;
        if matches!(state, 'Z' | 'X') {
            return Err(gone());
        }
        Ok(Self { pid, start_time })
    }

    /// This process.
    ///
    /// # Errors
    /// Where `/proc` is not there.
    pub fn own() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
    }

    /// Whether this very process still runs (a zombie does not).
    pub fn is_alive(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }

    /// Takes hold of it.
    ///
    /// # Errors
    /// `NotFound` where it has ended, also when its pid belongs to another process by now.
    pub fn open(self) -> io::Result<Process> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("process {} has ended", self.pid));
        let pid = Pid::from_raw(self.pid).ok_or_else(gone)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
        // Opened first, looked at second: if it is the right one now, it was when the descriptor was made.
        if self.is_alive() { Ok(Process { descriptor }) } else { Err(gone()) }
    }
}

/// The state letter and the start time in the text of `/proc/PID/stat`. The program's name may hold anything, also `)`.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// A process held by its pidfd.
#[derive(Debug)]
pub struct Process {
    descriptor: OwnedFd,
}

impl Process {
    /// Kills it. One that has ended already is no error.
    ///
    /// # Errors
    /// Where the caller may not.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.descriptor, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended and removes what is left of it. It is a child of the caller.
    ///
    /// # Errors
    /// What waitid(2) says; that it is no child of the caller, or was reaped before.
    pub fn reap(&self) -> io::Result<ExitStatus> {
        loop {
            match waitid(WaitId::PidFd(self.descriptor.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => {
                    let code = status.exit_status().map(|code| code << 8);
                    // As wait(2) tells it.
                    return Ok(ExitStatus::from_raw(code.or(status.terminating_signal()).unwrap_or_default()));
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until it has ended, reaped or not; `false` where `limit` passed first.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let until = std::time::Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.descriptor, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Process {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl From<Process> for OwnedFd {
    fn from(process: Process) -> Self {
        process.descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9";
        assert_eq!(parse_stat(stat), Some(('S', 777)));
    }

    #[test]
    fn a_process_is_held_killed_and_then_gone() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let identity = Identity::of(i32::try_from(child.id()).expect("a pid")).expect("it runs");
        assert!(identity.is_alive());
        let process = identity.open().expect("a pidfd");
        assert!(!process.wait(Duration::ZERO).expect("waiting"));
        process.kill().expect("killing");
        assert!(process.wait(Duration::from_secs(60)).expect("waiting"));
        assert!(!identity.is_alive(), "a zombie is not alive");
        let status = process.reap().expect("reaping");
        assert_eq!((status.code(), status.signal()), (None, Some(9)));
        assert!(process.reap().is_err() && child.wait().is_err(), "it is reaped");
        assert_eq!(identity.open().expect_err("it is gone").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_process_with_another_start_time_is_someone_else() {
        let own = Identity::own().expect("this process");
        let other = Identity { start_time: own.start_time + 1, ..own };
        assert!(own.is_alive() && !other.is_alive());
        assert!(other.open().is_err());
    }
}
