//! The hand-over: the image's root becomes `/`, the agent is started, and the image's init takes over as PID 1.
//!
//! The agent comes after the move and chroot, so that it sees what everybody sees. Its program is gone from every folder by
//! then; `/proc/self/exe` still leads to it.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use labyard_spec::guest::Entrypoint;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::mount::mount_move;

use super::{NEW_ROOT, WHO, pid1};
use crate::agent;
use crate::below::{Below, path_of};
use crate::console::say;
use crate::launch::OWN_BINARY;
use crate::ready::Ready;

/// What an image's init is called (Filesystem Hierarchy Standard 3.0, 3.16).
const IMAGE_INIT: &str = "/sbin/init";
/// `RAMFS_MAGIC` and `TMPFS_MAGIC` (include/uapi/linux/magic.h): what an initramfs can be.
const IN_MEMORY: [u32; 2] = [0x8584_58f6, 0x0102_1994];

#[derive(Debug, thiserror::Error)]
pub(super) enum HandOverError {
    #[error("moving {what} to the root")]
    Move { what: &'static str, source: io::Error },
    #[error("making the image's root the root")]
    Root { source: io::Error },
    #[error("starting the agent")]
    Agent { source: io::Error },
}

/// Makes `root` the root and becomes its init.
pub(super) fn hand_over(
    root: &Below,
    entrypoint: Option<&Entrypoint>,
    ready: Option<Ready>,
) -> Result<Infallible, HandOverError> {
    // /proc goes last: targets are named through it.
    for what in ["/dev", "/sys", "/proc"] {
        let fail = |source| HandOverError::Move { what, source };
        let folder = root.make_dir(what).map_err(fail)?;
        mount_move(what, path_of(&folder)).map_err(|error| fail(error.into()))?;
    }
    let old = switch_root().map_err(|source| HandOverError::Root { source })?;
    forget(old.as_fd());
    drop(old);

    let (asked, ask) = io::pipe().map_err(|source| HandOverError::Agent { source })?;
    let agents =
        Agents { ask: ask.into(), env: entrypoint.map(|entrypoint| entrypoint.env.clone()).unwrap_or_default() };
    let agent = agents.start(ready).map_err(|source| HandOverError::Agent { source })?;
    if is_program(IMAGE_INIT) {
        // Everything of ours is close-on-exec, and with it the pipe: so the agent learns that PID 1 is not ours.
        let error = Command::new(IMAGE_INIT).env_clear().env("HOME", "/").env("TERM", "linux").exec();
        say(WHO, format_args!("{IMAGE_INIT} of the image does not run ({error}): staying as PID 1"));
    }
    pid1::stay(entrypoint, asked, &agents, agent)
}

/// How the agent is started, and started again where it dies.
pub(super) struct Agents {
    ask: OwnedFd,
    env: Vec<String>,
}

impl Agents {
    /// Starts one; it tells the host through `ready`, or connects by itself.
    pub(super) fn start(&self, ready: Option<Ready>) -> io::Result<Child> {
        // systemd leaves a process of root whose name begins so alone when it ends all others (systemd.io/ROOT_STORAGE_DAEMONS): the
        // agent outlives a soft reboot.
        Command::new(OWN_BINARY)
            .arg0("@labyard-agent")
            .arg(agent::ROLE)
            .env_clear()
            .envs(self.env.iter().filter_map(|pair| pair.split_once('=')))
            .stdin(ready.map_or_else(Stdio::null, |ready| Stdio::from(ready.into_stream())))
            .stdout(self.ask.try_clone()?)
            .spawn()
    }
}

fn is_program(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Puts the new root over the old one, which is only left through the descriptor that is returned.
fn switch_root() -> io::Result<OwnedFd> {
    let old = rustix::fs::openat(CWD, "/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(old)
}

/// Frees the memory of the initramfs; our own program lives on as long as it runs.
fn forget(old: BorrowedFd<'_>) {
    // Never anything but files in memory, whatever the kernel was booted with.
    let in_memory =
        rustix::fs::fstatfs(old).is_ok_and(|fs| IN_MEMORY.iter().any(|magic| i64::from(*magic) == fs.f_type));
    if let (true, Ok(stat)) = (in_memory, rustix::fs::fstat(old)) {
        let _ = remove_below(old, stat.st_dev);
    }
}

fn remove_below(folder: BorrowedFd<'_>, device: u64) -> io::Result<()> {
    let entries: Vec<_> = Dir::read_from(folder)?.flatten().collect();
    for entry in entries.iter().filter(|entry| ![&b"."[..], b".."].contains(&entry.file_name().to_bytes())) {
        if entry.file_type() != FileType::Directory {
            let _ = rustix::fs::unlinkat(folder, entry.file_name(), AtFlags::empty());
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(inner) = rustix::fs::openat(folder, entry.file_name(), flags, Mode::empty()) else { continue };
        // What is mounted here still (the layers of a read-only root) is not ours to empty.
        if rustix::fs::fstat(&inner).is_ok_and(|stat| stat.st_dev == device) {
            let _ = remove_below(inner.as_fd(), device);
            let _ = rustix::fs::unlinkat(folder, entry.file_name(), AtFlags::REMOVEDIR);
        }
    }
    Ok(())
}
