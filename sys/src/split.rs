//! A process that splits: its copy is alone in new namespaces, as a child of the same parent.
//!
//! ```text
//!   parent ─┬─ launcher: writes the copy's id maps, says who the copy is, ends
//!           └─ the copy: pid 1 of its namespace
//! ```
//!
//! unshare(2) does not move the caller itself into a new pid namespace, so there must be another process. Nobody has to wait for it in
//! between: with CLONE_PARENT the parent is told of its end.

use std::io;

use rustix::process::{getegid, geteuid};

/// First of the users that copies of root's processes become: above those of systemd's containers, below the kernel's own (2^31).
pub const FIRST_USER: u32 = 0x7000_0000;
/// More than there are pids (PID_MAX_LIMIT).
const USERS: u32 = 1 << 22;
/// Who the copy is in its user namespace. Not 0: that would be its root.
pub const INNER_USER: u32 = 1;

/// Who goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that was there; its copy has this pid.
    Launcher(i32),
    /// The copy.
    Copy,
}

/// Whose rights the copy has outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A user who is nobody else: [`FIRST_USER`] and the copy's pid. Two that run at one time are never the same.
    Own,
    /// The caller's.
    Callers,
}

/// What can be had here: a user of its own for root, where root may map that one.
pub fn owner() -> Owner {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if geteuid().is_root() && covers(&map, FIRST_USER, USERS) { Owner::Own } else { Owner::Callers }
}

/// Whether an id map (user_namespaces(7)) has all of these.
fn covers(map: &str, first: u32, count: u32) -> bool {
    let numbers = |line: &str| -> Option<(u64, u64)> {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (inner, _outer, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some((inner, count))
    };
    let has = |(inner, length): (u64, u64)| {
        inner <= u64::from(first) && u64::from(first) + u64::from(count) <= inner.saturating_add(length)
    };
    map.lines().filter_map(numbers).any(has)
}

/// Splits this process, which has one thread.
///
/// # Errors
/// Where it has more, and what clone(2) says.
pub fn split(user: bool) -> io::Result<Side> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has more than one thread"));
    }
    let mut flags = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_PARENT;
    if user {
        flags |= libc::CLONE_NEWUSER;
    }
    let nothing = std::ptr::null::<libc::c_void>();
    let flags = libc::c_long::from(flags);
    // SAFETY: without CLONE_VM this is a fork: the copy has memory of its own and runs on on the same addresses. There is one thread,
    // so no lock of it is held by somebody who is not in the copy.
    let made = unsafe { libc::syscall(libc::SYS_clone, flags, nothing, nothing, nothing, nothing) };
    match made {
        0 => Ok(Side::Copy),
        pid if pid > 0 => Ok(Side::Launcher(i32::try_from(pid).map_err(io::Error::other)?)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells the copy's user namespace whom [`INNER_USER`] is outside. By the launcher.
///
/// # Errors
/// What writing the maps says, with the file.
pub fn map_users(copy: i32, owner: Owner) -> io::Result<()> {
    let (user, group) = match owner {
        Owner::Own => (own_user(copy)?, own_user(copy)?),
        Owner::Callers => (geteuid().as_raw(), getegid().as_raw()),
    };
    let write = |file: &str, text: String| {
        std::fs::write(format!("/proc/{copy}/{file}"), text)
            .map_err(|error| io::Error::new(error.kind(), format!("writing {file}: {error}")))
    };
    if owner == Owner::Callers {
        // Before an unprivileged gid map is accepted.
        write("setgroups", "deny".to_owned())?;
    }
    write("uid_map", format!("{INNER_USER} {user} 1"))?;
    write("gid_map", format!("{INNER_USER} {group} 1"))
}

/// This process as the host counts, also from inside of a new pid namespace, for as long as the host's `/proc` is there.
///
/// # Errors
/// Where it is not.
pub fn own_pid() -> io::Result<i32> {
    let link = std::fs::read_link("/proc/self")?;
    let number = link.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("/proc/self leads to {}", link.display())))
}

/// The user that a process of its own has outside.
///
/// # Errors
/// Where the pid is none.
pub fn own_user(pid: i32) -> io::Result<u32> {
    let pid = u32::try_from(pid).ok().filter(|pid| *pid < USERS);
    pid.map(|pid| FIRST_USER + pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_of_its_own_needs_a_map_that_has_it() {
        assert!(covers("         0          0 4294967295\n", FIRST_USER, USERS));
        assert!(!covers("         0     100000      65536\n", FIRST_USER, USERS));
        assert!(!covers("", FIRST_USER, USERS));
        assert_eq!(own_user(4242).expect("a pid"), FIRST_USER + 4242);
        assert!(own_user(-1).is_err() && own_user(1 << 22).is_err());
    }
}
