//! Landlock: this process, and what it becomes, opens nothing that it was not told it may, connects nowhere and signals nobody outside
//! (landlock(7)).
//!
//! Rights are those that the kernel knows; what is newer than this list is not handled, and what is older than the kernel's list is left out.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

/// How much of it the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// Its version of the interface.
    Abi(u32),
    /// Not built in, or not started with the kernel.
    Missing,
}

/// struct landlock_ruleset_attr, as of version 6.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// struct landlock_path_beneath_attr.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
/// What a rule on something else than a folder may say.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE;
/// Binding to TCP ports, and connecting.
const BIND: u64 = 1;
const CONNECT: u64 = 2;
/// Signals to who has not the same rules.
const SIGNAL: u64 = 1 << 1;
const RULE_PATH_BENEATH: libc::c_int = 1;
const CREATE_RULESET_VERSION: libc::c_uint = 1;

/// What may be done with a file, or with what is below a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it and list it.
    Read,
    /// That, and remove files.
    Remove,
    /// Read it, list it and execute it.
    Execute,
    /// Change it.
    Change,
    /// Make, change and remove files and folders, and nothing of another kind.
    Write,
    /// Make, rename and remove folders, and look into none.
    Folders,
}

impl Access {
    fn rights(self) -> u64 {
        let read = READ_FILE | READ_DIR;
        match self {
            Self::Read => read,
            Self::Remove => read | REMOVE_FILE,
            Self::Execute => read | EXECUTE,
            Self::Change => read | WRITE_FILE | TRUNCATE,
            Self::Write => read | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE,
            Self::Folders => MAKE_DIR | REMOVE_DIR,
        }
    }
}

/// What looking up names reads: glibc's resolver and its modules (nsswitch.conf(5)), which are libraries.
pub const LOOKUP: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ld.so.cache",
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
];

/// Forbids everything but executing `program`, which has no name in an empty root. Needs no_new_privs.
///
/// # Errors
/// What the kernel says; that it has no Landlock is none.
pub fn forbid_all_but(program: RawFd) -> io::Result<Landlock> {
    let Landlock::Abi(abi) = known()? else { return Ok(Landlock::Missing) };
    restrict(abi, ruleset(abi), &[(program, EXECUTE | READ_FILE)])
}

/// Whether rules can be about files at this path. On 9p, as virtual machines share folders of their hosts, a file is another one for the
/// kernel each time that it is looked up.
pub fn can_name(path: &Path) -> bool {
    // V9FS_MAGIC (linux/magic.h).
    !rustix::fs::statfs(path).is_ok_and(|found| found.f_type == 0x0102_1997)
}

/// What is let through beside files.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Beside {
    /// TCP is spoken to others.
    pub connects: bool,
    /// TCP ports are listened to.
    pub binds: bool,
    /// Processes that were started before are ended.
    pub signals: bool,
}

/// Forbids all files but those at `paths` and below, which may be missing. Needs no_new_privs, and holds for the calling thread and those
/// that it makes. A version that cannot let files be moved between folders counts as none.
///
/// # Errors
/// What the kernel says; that it has no Landlock is none.
pub fn allow_only(paths: &[(&Path, Access)], beside: Beside) -> io::Result<Landlock> {
    let Landlock::Abi(abi @ 2..) = known()? else { return Ok(Landlock::Missing) };
    let (mut rights, size) = ruleset(abi);
    if beside.connects {
        rights.handled_access_net &= !CONNECT;
    }
    if beside.binds {
        rights.handled_access_net &= !BIND;
    }
    if beside.signals {
        rights.scoped &= !SIGNAL;
    }
    let mut open = Vec::new();
    for (path, access) in paths {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match openat(CWD, *path, flags, Mode::empty()) {
            Ok(file) => open.push((file, access.rights() & rights.handled_access_fs)),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut rules = Vec::new();
    for (file, access) in &open {
        let is_folder = FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory;
        rules.push((file.as_raw_fd(), if is_folder { *access } else { access & OF_FILES }));
    }
    restrict(abi, (rights, size), &rules)
}

fn known() -> io::Result<Landlock> {
    match version() {
        Ok(abi) => Ok(Landlock::Abi(abi)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => Ok(Landlock::Missing),
        Err(error) => Err(error),
    }
}

fn restrict(abi: u32, (rights, size): (Ruleset, usize), rules: &[(RawFd, u64)]) -> io::Result<Landlock> {
    // SAFETY: `rights` is of the kernel's layout, and the kernel reads `size` bytes of it, which are not more than it has.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rights, size, 0) };
    let ruleset = check(made)?;
    let restricted = rules.iter().try_for_each(|(file, access)| add(ruleset, *file, *access)).and_then(|()| {
        // SAFETY: landlock_restrict_self takes a descriptor and flags, and touches no memory.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) })
    });
    // SAFETY: `ruleset` was made above and is nobody else's.
    unsafe { libc::close(ruleset) };
    restricted.map(|_| Landlock::Abi(abi))
}

fn add(ruleset: RawFd, file: RawFd, allowed_access: u64) -> io::Result<()> {
    let rule = PathBeneath { allowed_access, parent_fd: file };
    // SAFETY: `rule` is of the kernel's layout for this kind of rule, and lives past the call.
    check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &raw const rule, 0) })?;
    Ok(())
}

fn version() -> io::Result<u32> {
    let nothing = std::ptr::null::<Ruleset>();
    // SAFETY: with this flag the kernel takes no structure, and touches no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, CREATE_RULESET_VERSION) };
    check(version).map(|version| version.unsigned_abs())
}

/// All rights that a version knows, and how long its structure is (Documentation/userspace-api/landlock.rst).
fn ruleset(abi: u32) -> (Ruleset, usize) {
    let files = match abi {
        0 | 1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    // Binding and connecting; abstract sockets and signals.
    let (net, scoped) = (if abi >= 4 { BIND | CONNECT } else { 0 }, if abi >= 6 { 3 } else { 0 });
    let size = match abi {
        0..=3 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    (Ruleset { handled_access_fs: (1 << files) - 1, handled_access_net: net, scoped }, size)
}

fn check(result: libc::c_long) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_for_what_it_knows() {
        let of = |abi| {
            let (rights, size) = ruleset(abi);
            (rights.handled_access_fs, rights.handled_access_net, rights.scoped, size)
        };
        assert_eq!(of(1), (0x1fff, 0, 0, 8));
        assert_eq!(of(2), (0x3fff, 0, 0, 8));
        assert_eq!(of(4), (0x7fff, 3, 0, 16));
        assert_eq!(of(7), (0xffff, 3, 3, 24));
    }
}
