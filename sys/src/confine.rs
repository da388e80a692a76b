//! Leaving the host behind: an empty read-only root, no capabilities, limits. For single-threaded programs. Namespaces of a jail are
//! made by [`crate::split`].

use std::io;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};
use rustix::process::{Gid, Resource, Rlimit, Uid, getegid, geteuid, getrlimit, pivot_root, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, remove_capability_from_bounding_set, set_capabilities,
};

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

fn write_id_maps(user: Uid, group: Gid) -> io::Result<()> {
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

/// Gives up every capability that exec would bring back.
///
/// # Errors
/// What prctl(2) says.
pub fn drop_bounding_set() -> io::Result<()> {
    drop_bounding_set_but(CapabilitySet::empty())
}

/// Lets exec bring back nothing but changing the networks of the own network namespace.
///
/// # Errors
/// What prctl(2) says.
pub fn drop_bounding_set_but_network() -> io::Result<()> {
    drop_bounding_set_but(CapabilitySet::NET_ADMIN)
}

fn drop_bounding_set_but(kept: CapabilitySet) -> io::Result<()> {
    // Which is the kernel's last capability is not known here: the first number that it refuses is past the end.
    for number in (0..64).filter(|number| kept.bits() >> number & 1 == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What changes the host rather than what is started on it: modules, its clock, its power, its ports and memory, its logs, its
/// policies, devices, files that are above permissions.
const OF_THE_HOST: CapabilitySet = CapabilitySet::SYS_MODULE
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SYS_TTY_CONFIG)
    .union(CapabilitySet::SYS_PACCT)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::AUDIT_CONTROL)
    .union(CapabilitySet::AUDIT_READ)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::WAKE_ALARM)
    .union(CapabilitySet::BLOCK_SUSPEND)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::LEASE)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::IPC_OWNER)
    .union(CapabilitySet::NET_BROADCAST)
    .union(CapabilitySet::CHECKPOINT_RESTORE);

/// Gives up the capabilities that change the host itself, for what the calling thread starts, too. Who has no say in that (CAP_SETPCAP)
/// is no root, and has none of them to pass on.
///
/// # Errors
/// What prctl(2) or capset(2) says.
pub fn drop_capabilities_of_the_host() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    if !sets.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(());
    }
    drop_bounding_set_but(!OF_THE_HOST)?;
    sets.effective &= !OF_THE_HOST;
    sets.permitted &= !OF_THE_HOST;
    sets.inheritable &= !OF_THE_HOST;
    Ok(set_capabilities(None, sets)?)
}

/// Gives up the capabilities that the caller has.
///
/// # Errors
/// What prctl(2) or capset(2) says.
pub fn drop_capabilities() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}

/// A capability that is given up last, or kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Reading files of others.
    ReadSearch,
    /// Writing files of others.
    Override,
    /// Changing the networks of its own network namespace.
    Network,
    /// Ending processes of others.
    Kill,
    /// Listening to ports below 1024.
    LowPorts,
}

/// Gives up what files of others are opened with, for now: what is left is what the caller may as a user. [`drop_capabilities_but`] is next.
///
/// # Errors
/// What capset(2) says.
pub fn lower_capabilities() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = CapabilitySet::empty();
    Ok(set_capabilities(None, sets)?)
}

/// Gives up all capabilities that the caller has, but these.
///
/// # Errors
/// What prctl(2) or capset(2) says.
pub fn drop_capabilities_but(kept: &[Kept]) -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    let one = |kept: &Kept| match kept {
        Kept::ReadSearch => CapabilitySet::DAC_READ_SEARCH,
        Kept::Override => CapabilitySet::DAC_OVERRIDE,
        Kept::Network => CapabilitySet::NET_ADMIN,
        Kept::Kill => CapabilitySet::KILL,
        Kept::LowPorts => CapabilitySet::NET_BIND_SERVICE,
    };
    let some = kept.iter().map(one).fold(CapabilitySet::empty(), |all, one| all | one);
    let some = some & rustix::thread::capabilities(None)?.permitted;
    Ok(set_capabilities(
        None,
        CapabilitySets { effective: some, permitted: some, inheritable: CapabilitySet::empty() },
    )?)
}

/// How many threads this process has.
///
/// # Errors
/// That `/proc` cannot be read.
pub fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
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

/// Whether the caller is root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Whether no set has a capability.
pub fn has_no_capabilities() -> bool {
    // As above: the first number that is refused is past the end. Any other failure counts as a capability.
    let bounding = (0..64)
        .map(|number| rustix::thread::capability_is_in_bounding_set(CapabilitySet::from_bits_retain(1 << number)))
        .take_while(|answer| *answer != Err(rustix::io::Errno::INVAL))
        .any(|answer| answer != Ok(false));
    let sets = rustix::thread::capabilities(None);
    !bounding && sets.is_ok_and(|sets| (sets.permitted | sets.effective | sets.inheritable).is_empty())
}

/// Whether no_new_privs is set.
pub fn has_no_new_privileges() -> bool {
    rustix::thread::no_new_privs().unwrap_or(false)
}

/// Whether this is the first process of its pid namespace.
pub fn is_first_process() -> bool {
    rustix::process::getpid().as_raw_nonzero().get() == 1
}

/// Becomes this user and group for good, without supplementary groups where they can be given up.
///
/// Where a user namespace was made by who is not root, setgroups(2) is denied in it (user_namespaces(7)): the groups stay.
///
/// # Errors
/// What setgroups(2), setresgid(2) or setresuid(2) says.
pub fn become_user(id: u32, may_set_groups: bool) -> io::Result<()> {
    if may_set_groups {
        rustix::thread::set_thread_groups(&[])?;
    }
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    Ok(())
}

/// Leads a session of its own: no terminal, and no signal meant for somebody else's group. The caller leads no process group.
///
/// # Errors
/// What setsid(2) says.
pub fn own_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Gives the UTS namespace a name that tells nothing of the host.
///
/// # Errors
/// What sethostname(2) says.
pub fn name_host(name: &str) -> io::Result<()> {
    rustix::system::sethostname(name.as_bytes())?;
    Ok(rustix::system::setdomainname(b"(none)")?)
}

/// Lets nobody in this user namespace make another one, in which he would have every capability. It is not the host's.
///
/// # Errors
/// What writing says, and that `/proc/sys/user` is not there.
pub fn forbid_user_namespaces() -> io::Result<()> {
    std::fs::write("/proc/sys/user/max_user_namespaces", "0")
}

/// Leaves the session keyring, with the keys of whoever started it, for an empty one. A host that forbids keyrings has none to leave.
///
/// # Errors
/// What keyctl(2) says.
pub fn own_keyring() -> io::Result<()> {
    let nameless = std::ptr::null::<libc::c_char>();
    // SAFETY: without a name the kernel reads no memory (KEYCTL_JOIN_SESSION_KEYRING).
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, nameless) };
    match result {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
            error => Err(error),
        },
    }
}

/// Lets no other process run on the other threads of a core while this one does (core scheduling), where the kernel has that and
/// the processor such threads. Whether it does now.
///
/// # Errors
/// What prctl(2) says.
pub fn own_cores() -> io::Result<bool> {
    // PR_SCHED_CORE, PR_SCHED_CORE_CREATE, this process, all its threads (Documentation/admin-guide/hw-vuln/core-scheduling.rst).
    const ALL_THREADS: libc::c_ulong = 1;
    // SAFETY: prctl takes numbers here; the last one would be a pointer only for PR_SCHED_CORE_GET.
    let result = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, ALL_THREADS, 0) };
    match result {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => Ok(false),
            error => Err(error),
        },
    }
}

/// What no vmm needs: a core file, message queues, real-time priority. Locked memory stays as it is: rings are counted as that.
///
/// # Errors
/// Which one, and what setrlimit(2) says.
pub fn limit_all() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limits = [
        ("core", Resource::Core),
        ("msgqueue", Resource::Msgqueue),
        ("rtprio", Resource::Rtprio),
        ("nice", Resource::Nice),
    ];
    for (name, resource) in limits {
        setrlimit(resource, none).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{name}: {error}"))
        })?;
    }
    Ok(())
}

/// Limits threads and processes of the user in this user namespace (from Linux 5.14 on; before, of the user on the host). Where the caller
/// may have fewer, that stays: a plan counts what could be asked for at once, and that is hardly ever asked for.
///
/// # Errors
/// What setrlimit(2) says.
pub fn limit_threads(limit: u64) -> io::Result<()> {
    let limit = getrlimit(Resource::Nproc).maximum.map_or(limit, |hard| hard.min(limit));
    Ok(setrlimit(Resource::Nproc, Rlimit { current: Some(limit), maximum: Some(limit) })?)
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
