//! Starting a program as another user, in its own session, without unsafe code.
//!
//! A process of our own binary (role [`ROLE`]) is spawned. It receives the `Launch` as JSON over its standard input, a
//! socket, with the program's three standard descriptors beside the first byte. It becomes the program's user, and execs.
//! The socket is close-on-exec, so its end without a word means that the program runs; else it carries the reason.
//! The process is single-threaded, so switching one thread's user switches the process's.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::users::User;

/// First argument of the binary in this role.
pub const ROLE: &str = "launch";
/// What programs are looked up in where nothing else is said.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where a process finds its own program, whatever happened to the file's name.
pub(crate) const OWN_BINARY: &str = "/proc/self/exe";

/// A program, ready to start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) argv: Vec<String>,
    /// The whole environment; a later value of a name wins.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Standard input is a terminal that becomes the session's.
    pub(crate) tty: bool,
    /// Folder of the control group that it is to be in.
    pub(crate) control_group: Option<PathBuf>,
}

impl Launch {
    /// `argv` as `user`, with the user's own variables before `env` (`KEY=value`), in `working_dir` or else at home.
    pub(crate) fn new(argv: &[String], user: User, working_dir: Option<&str>, env: &[String]) -> Self {
        let own = [
            ("PATH", DEFAULT_PATH),
            ("HOME", &user.home),
            ("USER", &user.name),
            ("LOGNAME", &user.name),
            ("SHELL", &user.shell),
        ];
        let given = env.iter().map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let env = own.into_iter().chain(given).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        // A home that is not there is no reason to refuse a program.
        let home = if Path::new(&user.home).is_dir() { user.home.as_str() } else { "/" };
        let working_dir = working_dir.filter(|dir| !dir.is_empty()).unwrap_or(home).to_owned();
        Self {
            argv: argv.to_vec(),
            env,
            working_dir,
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            tty: false,
            control_group: None,
        }
    }
}

/// A program that did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("starting a process for the program")]
    Spawn { source: io::Error },
    #[error("handing over the program's descriptors")]
    HandOver { source: io::Error },
    /// The reason that the new process gave.
    #[error("{0}")]
    Refused(String),
}

/// Starts `launch` with `stdio` as its standard descriptors; `binary` is this program. Returns once it runs.
/// It leads a session and a process group whose number is its process id.
pub(crate) fn launch(binary: &Path, launch: &Launch, stdio: [OwnedFd; 3]) -> Result<Child, LaunchError> {
    let spawn = |source| LaunchError::Spawn { source };
    let (mut ours, theirs) = UnixStream::pair().map_err(spawn)?;
    let mut child = Command::new(binary)
        .arg0("labyard-launch")
        .arg(ROLE)
        .env_clear()
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(spawn)?;
    let told = tell(&ours, launch, &stdio);
    drop(stdio);
    let mut reason = String::new();
    let heard = told.and_then(|()| ours.read_to_string(&mut reason));
    let refused = match heard {
        Ok(0) => return Ok(child),
        Ok(_) => LaunchError::Refused(reason),
        Err(source) => LaunchError::HandOver { source },
    };
    // It ends by itself after the reason, but nothing is left to chance (or as a zombie).
    let _ = child.kill();
    let _ = child.wait();
    Err(refused)
}

fn tell(mut socket: &UnixStream, launch: &Launch, stdio: &[OwnedFd; 3]) -> io::Result<()> {
    let message = serde_json::to_vec(launch)?;
    let descriptors = [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for three descriptors"));
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    socket.write_all(message.get(sent..).unwrap_or_default())?;
    socket.shutdown(Shutdown::Write)
}

/// The role itself: becomes the program that standard input tells of.
///
/// # Errors
/// Where standard input is not such a socket. Everything else is told through the socket, and the process ends with 127.
pub fn run() -> anyhow::Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("taking the socket at standard input")?;
    let mut socket = UnixStream::from(stdin);
    let (launch, stdio) = hear(&mut socket).context("reading what to start from standard input")?;
    let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(stdio)
        .map_err(|got| anyhow::anyhow!("{} descriptors came with the program, not 3", got.len()))?;
    let error = match become_it(&launch, [stdin, stdout, stderr]) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    socket.write_all(format!("{error:#}").as_bytes()).context("telling why the program did not start")?;
    drop(socket);
    std::process::exit(127)
}

fn hear(socket: &mut UnixStream) -> anyhow::Result<(Launch, Vec<OwnedFd>)> {
    let mut message = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got =
        rustix::net::recvmsg(&*socket, &mut [IoSliceMut::new(&mut message)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    message.truncate(got.bytes);
    let mut stdio = Vec::new();
    for more in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = more {
            stdio.extend(more);
        }
    }
    socket.read_to_end(&mut message)?;
    Ok((serde_json::from_slice(&message)?, stdio))
}

fn become_it(launch: &Launch, stdio: [OwnedFd; 3]) -> anyhow::Result<std::convert::Infallible> {
    let [stdin, stdout, stderr] = stdio;
    rustix::stdio::dup2_stdin(&stdin).context("setting standard input")?;
    rustix::stdio::dup2_stdout(&stdout).context("setting standard output")?;
    rustix::stdio::dup2_stderr(&stderr).context("setting standard error")?;
    rustix::process::setsid().context("starting a session")?;
    if launch.tty {
        rustix::process::ioctl_tiocsctty(&stdin).context("taking the terminal")?;
    }
    drop((stdin, stdout, stderr));
    // The agent is the last to go when memory runs out; what it starts is not.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    if let Some(group) = &launch.control_group {
        // 0 is the writer itself (cgroup-v2.rst, cgroup.procs). A program in the agent's own group runs, too.
        let _ = std::fs::write(group.join("cgroup.procs"), "0");
    }
    switch_user(launch)?;
    std::env::set_current_dir(&launch.working_dir)
        .with_context(|| format!("entering the working folder {}", launch.working_dir))?;
    let (name, arguments) = launch.argv.split_first().context("no program was named: argv is empty")?;
    let path = launch.env.iter().rev().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, path)| path);
    let program = look_up(name, path)?;
    // Through the C library's exec, so that a script without `#!` goes to /bin/sh as it does from a shell.
    let error = Command::new(&program)
        .arg0(name)
        .args(arguments)
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .exec();
    Err(error).with_context(|| format!("executing {}", program.display()))
}

fn switch_user(launch: &Launch) -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(launch.uid), Gid::from_raw(launch.gid));
    if !rustix::process::geteuid().is_root() && rustix::process::geteuid() == uid {
        return Ok(());
    }
    let groups: Vec<_> = launch.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).context("setting the user's groups")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).with_context(|| format!("becoming group {}", launch.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).with_context(|| format!("becoming user {}", launch.uid))
}

/// The file that `name` means, looked up as the user who will run it.
fn look_up(name: &str, path: &str) -> anyhow::Result<PathBuf> {
    if name.contains('/') {
        anyhow::ensure!(Path::new(name).exists(), "command not found: {name}: no such file");
        return Ok(name.into());
    }
    anyhow::ensure!(!name.is_empty(), "command not found: the name is empty");
    path.split(':')
        .map(|folder| Path::new(if folder.is_empty() { "." } else { folder }).join(name))
        .find(|file| is_program(file))
        .with_context(|| format!("command not found: {name}: not in PATH {path}"))
}

fn is_program(file: &Path) -> bool {
    // Who may execute it is for exec to say; a file that nobody may execute is passed over as a shell does.
    std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
