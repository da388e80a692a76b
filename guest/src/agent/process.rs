//! A program of a call: its process, its pipes or terminal, its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use labyard_spec::agent::{Exec, Exit};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::{Agent, session};
use crate::launch::{Launch, launch};
use crate::users;

/// A program that runs. Its ends here never block.
pub(super) struct Process {
    child: Child,
    group: Pid,
    /// Readable once the program has ended.
    pub(super) ended: OwnedFd,
    /// Writing end of its input, until closed.
    pub(super) stdin: Option<OwnedFd>,
    /// Reading end of its output, until at its end.
    pub(super) stdout: Option<OwnedFd>,
    /// Reading end of its error output; none on a terminal.
    pub(super) stderr: Option<OwnedFd>,
    /// The terminal's outer side.
    terminal: Option<OwnedFd>,
    _group: Option<session::Group>,
}

impl Process {
    /// Starts what the caller asks for. The error is the text for the caller.
    pub(super) fn start(agent: &Agent, exec: &Exec) -> Result<Self, String> {
        let user = users::find(&agent.root, exec.user.as_deref().unwrap_or("")).map_err(|error| error.to_string())?;
        let mut env = agent.env.clone();
        if exec.tty.is_some() {
            env.push("TERM=xterm-256color".to_owned());
        }
        env.extend(session::variables(&agent.root, user.uid));
        env.extend_from_slice(&exec.env);
        let control_group = session::Group::make(agent);
        let mut plan = Launch::new(&exec.argv, user, exec.working_dir.as_deref(), &env);
        plan.tty = exec.tty.is_some();
        plan.control_group = control_group.as_ref().map(session::Group::path);
        let ends = match exec.tty {
            Some(size) => Ends::terminal(size).map_err(|error| format!("opening a terminal: {error}"))?,
            None => Ends::pipes().map_err(|error| format!("opening pipes: {error}"))?,
        };
        let mut child = launch(&agent.binary, &plan, ends.theirs).map_err(|error| crate::console::chain(&error))?;
        let group = Pid::from_child(&child);
        match rustix::process::pidfd_open(group, PidfdFlags::empty()) {
            Ok(ended) => {
                let [stdin, stdout, stderr] = ends.ours;
                Ok(Self { child, group, ended, stdin, stdout, stderr, terminal: ends.terminal, _group: control_group })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("watching process {}: {error}", child.id()))
            }
        }
    }

    /// Closes its input. A terminal has no closing: it gets the character that ends input (termios(3), VEOF).
    pub(super) fn close_stdin(&mut self) {
        if let (Some(_), Some(stdin)) = (&self.terminal, &self.stdin) {
            let _ = rustix::io::write(stdin, &[4]);
        } else {
            self.stdin = None;
        }
    }

    /// Sends a signal to its process group, which exists at least until [`Self::reap`].
    pub(super) fn signal(&self, signal: Signal) {
        // Its only failure is that everybody in the group is gone.
        let _ = rustix::process::kill_process_group(self.group, signal);
    }

    /// Tells a terminal its new size.
    pub(super) fn resize(&self, size: (u16, u16)) {
        if let Some(terminal) = &self.terminal {
            let _ = rustix::termios::tcsetwinsize(terminal, winsize(size));
        }
    }

    /// Whether its output comes from a terminal.
    pub(super) fn on_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Waits for its end, which the caller has seen coming on `ended` or brought about.
    pub(super) fn reap(&mut self) -> io::Result<Exit> {
        let status = self.child.wait()?;
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
            (None, Some(signal)) => Exit::Signal(u8::try_from(signal).unwrap_or(u8::MAX)),
            (None, None) => Exit::Code(u8::MAX),
        };
        Ok(end)
    }

    /// Drops all ends here, so that a program that still writes notices.
    pub(super) fn let_go(&mut self) {
        (self.stdin, self.stdout, self.stderr, self.terminal) = (None, None, None, None);
    }
}

struct Ends {
    theirs: [OwnedFd; 3],
    ours: [Option<OwnedFd>; 3],
    terminal: Option<OwnedFd>,
}

impl Ends {
    fn pipes() -> io::Result<Self> {
        let (stdin, our_stdin) = io::pipe()?;
        let (our_stdout, stdout) = io::pipe()?;
        let (our_stderr, stderr) = io::pipe()?;
        for ours in [our_stdin.as_fd(), our_stdout.as_fd(), our_stderr.as_fd()] {
            never_block(ours)?;
        }
        Ok(Self {
            theirs: [stdin.into(), stdout.into(), stderr.into()],
            ours: [Some(our_stdin.into()), Some(our_stdout.into()), Some(our_stderr.into())],
            terminal: None,
        })
    }

    fn terminal(size: (u16, u16)) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let inner = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
        rustix::termios::tcsetwinsize(&ours, winsize(size))?;
        never_block(ours.as_fd())?;
        Ok(Self {
            theirs: [inner.try_clone()?, inner.try_clone()?, inner],
            ours: [Some(ours.try_clone()?), Some(ours.try_clone()?), None],
            terminal: Some(ours),
        })
    }
}

fn winsize((columns, rows): (u16, u16)) -> Winsize {
    Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Makes reads and writes on `fd` return at once.
pub(super) fn never_block(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}

/// How many bytes wait in a pipe.
pub(super) fn waiting(fd: &OwnedFd) -> usize {
    rustix::io::ioctl_fionread(fd).map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}
