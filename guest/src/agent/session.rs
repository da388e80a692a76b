//! What a program of a call is given beside its user: a control group of its own, and the way to its user's services.
//!
//! The agent has a group of PID 1, under systemd `init.scope`, where nothing that a person starts belongs: what is counted or
//! limited there is init's. systemd-run would make a scope, at the cost of two programs and a message to PID 1 for each call; a
//! folder below `/sys/fs/cgroup` costs a system call, and is there with every init that has mounted control groups.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::Agent;
use crate::launch::DEFAULT_PATH;

/// The folder of all our groups.
pub(super) const GROUPS: &str = "/sys/fs/cgroup/labyard";
/// Groups whose programs have ended and left others behind are looked at once in so many calls.
const SWEEP_EVERY: usize = 16;
/// How long a user's own systemd may take to start.
const MANAGER_WITHIN: Duration = Duration::from_secs(10);

/// A control group; gone when dropped, unless programs that were left in the background are in it.
pub(super) struct Group(PathBuf);

impl Group {
    /// A new one, where the guest has control groups of version 2.
    pub(super) fn make(agent: &Agent) -> Option<Self> {
        let all = agent.groups.as_ref()?;
        if !all.parent()?.join("cgroup.procs").exists() {
            return None;
        }
        let number = agent.state.started.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(SWEEP_EVERY) {
            sweep(all);
        }
        let own = all.join(format!("call-{number}"));
        // An agent that was started again counts anew, and meets the groups of the one before.
        std::fs::create_dir_all(&own).ok()?;
        Some(Self(own))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// The kernel keeps what is in use.
fn sweep(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(entry.path());
    }
}

/// The variables that lead to a user's own services (pam_systemd(8)). Their systemd is started where the system's can be asked.
pub(super) fn variables(root: &Path, uid: u32) -> Vec<String> {
    let folder = root.join("run/user").join(uid.to_string());
    let has = |path: &str| root.join(path).exists();
    if uid != 0 && !folder.is_dir() && has("run/systemd/system") && has("run/dbus/system_bus_socket") {
        start_manager(uid);
    }
    if !folder.is_dir() {
        return Vec::new();
    }
    let mut variables = vec![format!("XDG_RUNTIME_DIR=/run/user/{uid}")];
    if folder.join("bus").exists() {
        variables.push(format!("DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{uid}/bus"));
    }
    variables
}

/// Whether that works shows in the folder.
fn start_manager(uid: u32) {
    let started = Command::new("systemctl")
        .args(["start", &format!("user@{uid}.service")])
        .env("PATH", DEFAULT_PATH)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = started else { return };
    if let Ok(ended) = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        let within = Timespec::try_from(MANAGER_WITHIN).ok();
        let _ = rustix::event::poll(&mut [PollFd::new(&ended, PollFlags::IN)], within.as_ref());
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_user_with_a_folder_for_services_is_told_of_it() {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(variables(root.path(), 1000), Vec::<String>::new());
        fs::create_dir_all(root.path().join("run/user/1000")).expect("a folder");
        assert_eq!(variables(root.path(), 1000), ["XDG_RUNTIME_DIR=/run/user/1000"]);
        fs::write(root.path().join("run/user/1000/bus"), "").expect("a file");
        let bus = "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus";
        assert_eq!(variables(root.path(), 1000), ["XDG_RUNTIME_DIR=/run/user/1000", bus]);
        assert_eq!(variables(root.path(), 0), Vec::<String>::new());
    }
}
