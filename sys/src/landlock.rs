//! Landlock: this process, and what it becomes, opens nothing, connects nowhere and signals nobody outside (landlock(7)).
//!
//! Rights are those that the kernel knows; what is newer than this list is not handled, and what is older than the kernel's list is left out.

use std::io;
use std::os::fd::RawFd;

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
const READ_FILE: u64 = 1 << 2;
const RULE_PATH_BENEATH: libc::c_int = 1;
const CREATE_RULESET_VERSION: libc::c_uint = 1;

/// Forbids everything but executing `program`, which has no name in an empty root. Needs no_new_privs.
///
/// # Errors
/// What the kernel says; that it has no Landlock is none.
pub fn forbid_all_but(program: RawFd) -> io::Result<Landlock> {
    let abi = match version() {
        Ok(abi) => abi,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
            return Ok(Landlock::Missing);
        }
        Err(error) => return Err(error),
    };
    let (rights, size) = ruleset(abi);
    // SAFETY: `rights` is of the kernel's layout, and the kernel reads `size` bytes of it, which are not more than it has.
    let made = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rights, size, 0) };
    let ruleset = check(made)?;
    let rule = PathBeneath { allowed_access: EXECUTE | READ_FILE, parent_fd: program };
    // SAFETY: `rule` is of the kernel's layout for this kind of rule, and lives past the call.
    let added = unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &raw const rule, 0) };
    let restricted = check(added).and_then(|_| {
        // SAFETY: landlock_restrict_self takes a descriptor and flags, and touches no memory.
        check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) })
    });
    // SAFETY: `ruleset` was made above and is nobody else's.
    unsafe { libc::close(ruleset) };
    restricted.map(|_| Landlock::Abi(abi))
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
    let (net, scoped) = (if abi >= 4 { 3 } else { 0 }, if abi >= 6 { 3 } else { 0 });
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
