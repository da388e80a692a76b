//! Leaving the host behind: namespaces, an empty read-only root, no capabilities. For single-threaded programs.

use std::io;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};
use rustix::process::{Resource, Rlimit, getegid, geteuid, getrlimit, pivot_root, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, remove_capability_from_bounding_set, set_capabilities,
};

/// Enters new mount, network, IPC, UTS and cgroup namespaces, inside a new user namespace in which the caller is root and nobody else exists.
///
/// Root on a host that forbids user namespaces goes without that one.
///
/// # Errors
/// What unshare(2) or writing the id maps (user_namespaces(7)) says.
pub fn enter_namespaces() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    let rest = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    match unshare(rest | UnshareFlags::NEWUSER) {
        Ok(()) => write_id_maps(user, group),
        Err(_) if user.is_root() => unshare(rest),
        Err(error) => Err(error),
    }
}

/// Enters a new network namespace: root as it is, anybody else inside a new user namespace in which it is root and nobody else exists.
///
/// # Errors
/// What unshare(2) or writing the id maps (user_namespaces(7)) says.
pub fn enter_network_namespace() -> io::Result<()> {
    if geteuid().is_root() {
        return unshare(UnshareFlags::NEWNET);
    }
    let (user, group) = (geteuid(), getegid());
    unshare(UnshareFlags::NEWNET | UnshareFlags::NEWUSER)?;
    write_id_maps(user, group)
}

fn write_id_maps(user: rustix::process::Uid, group: rustix::process::Gid) -> io::Result<()> {
    // setgroups must be denied before an unprivileged gid map is accepted.
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {user} 1")), ("gid_map", format!("0 {group} 1"))]
    {
        std::fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| io::Error::new(error.kind(), format!("writing {file}: {error}")))?;
    }
    Ok(())
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags name namespaces only, none that splits the descriptor table or the memory of a thread (CLONE_FILES, CLONE_VM), so
    // what the program owns stays what it was.
    let result = unsafe { rustix::thread::unshare_unsafe(flags) };
    Ok(result?)
}

/// Makes an empty, read-only file system the root and the working directory, and lets go of the old one. In a mount namespace of its own.
///
/// # Errors
/// What mount(2) or pivot_root(2) says, with the step.
pub fn empty_root() -> io::Result<()> {
    let step = |name: &'static str| {
        move |error: rustix::io::Errno| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{name}: {error}"))
        }
    };
    // Nothing done here may travel back to the host's mount namespace.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(step("making mounts private"))?;
    // `/proc` is a folder on every host, and is not needed any more.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", "/proc", "tmpfs", flags, c"size=4k,nr_inodes=2,mode=0555").map_err(step("mounting an empty root"))?;
    rustix::process::chdir("/proc").map_err(step("entering the empty root"))?;
    // The old root comes to lie over the new one and is taken off it (pivot_root(2), NOTES).
    pivot_root(".", ".").map_err(step("pivoting"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("detaching the old root"))?;
    rustix::process::chdir("/").map_err(step("entering the new root"))?;
    mount_remount("/", flags | MountFlags::RDONLY, c"").map_err(step("making the root read-only"))
}

/// Gives up every capability, also those that exec would bring back.
///
/// # Errors
/// What prctl(2) or capset(2) says.
pub fn drop_capabilities() -> io::Result<()> {
    // Which is the kernel's last capability is not known here: the first number that it refuses is past the end.
    for number in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

/// Sets no_new_privs: no exec gives more than the caller has (prctl(2)).
///
/// # Errors
/// What prctl(2) says.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Makes the process undumpable: no core file, no ptrace, `/proc/PID` owned by root.
///
/// # Errors
/// What prctl(2) says.
pub fn not_dumpable() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// Limits the number of open descriptors, soft and hard.
///
/// # Errors
/// Where `limit` is above the caller's hard limit, which the text names.
pub fn limit_descriptors(limit: u64) -> io::Result<()> {
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).map_err(|error| {
        let error = io::Error::from(error);
        let hard = getrlimit(Resource::Nofile).maximum.map_or("unlimited".to_owned(), |hard| hard.to_string());
        io::Error::new(error.kind(), format!("{limit} descriptors, with a hard limit of {hard}: {error}"))
    })
}
