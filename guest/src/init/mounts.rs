//! What is mounted where, until the hand-over: the kernel's file systems, the modules, the root, the other drives.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};

use super::drives::Found;
use super::{NEW_ROOT, WHO};
use crate::below::{Below, path_of};
use crate::console::{chain, say};
use crate::modules::Modules;

/// The layers of a read-only root: the drive below, what is written above.
const LOWER: &str = "/lower";
const UPPER: &str = "/upper";

#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("mounting {what} at {at}")]
    Mount { what: String, at: String, source: io::Error },
    #[error("making the folder {at}")]
    Folder { at: String, source: io::Error },
}

fn fail<E: Into<io::Error>>(what: impl Into<String>, at: impl Into<String>) -> impl FnOnce(E) -> MountError {
    let (what, at) = (what.into(), at.into());
    |source| MountError::Mount { what, at, source: source.into() }
}

fn make(at: &str) -> Result<(), MountError> {
    std::fs::create_dir_all(at).map_err(|source| MountError::Folder { at: at.to_owned(), source })
}

/// `/proc`, `/sys` and `/dev` of the initramfs; they move to the root later.
pub(super) fn kernel_file_systems() -> Result<(), MountError> {
    let closed = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    for (kind, at, flags, data) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755")),
        ("proc", "/proc", closed, None),
        ("sysfs", "/sys", closed, None),
    ] {
        make(at)?;
        match mount(kind, at, kind, flags, data) {
            // A kernel may mount /dev itself (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => return Err(fail(kind, at)(error)),
        }
    }
    for (kind, at, flags, data) in [
        ("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(c"gid=5,mode=0620,ptmxmode=0666")),
        ("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777")),
    ] {
        // Terminals must work from the agent's first call on, before an init has come to this.
        let mounted = make(at).and_then(|()| mount(kind, at, kind, flags, data).map_err(fail(kind, at)));
        mounted.unwrap_or_else(|error| say(WHO, chain(&error)));
    }
    Ok(())
}

/// Mounts the modules image in the initramfs, at the place where it will stay; returns that place.
pub(super) fn modules(device: &Path, release: &str) -> Result<PathBuf, MountError> {
    let at = format!("/lib/modules/{release}");
    make(&at)?;
    mount(device, &at, "ext4", MountFlags::RDONLY, None).map_err(fail(device.display().to_string(), &at))?;
    Ok(at.into())
}

/// Moves the modules into the root. A root that has no place for them and can not be given one does without.
pub(super) fn move_modules(root: &Below, from: &Path, release: &str) {
    // Programs look below /lib; where it is a link to /usr/lib, resolving it leads there.
    let lib = if root.has_dir("/lib") { "/lib" } else { "/usr/lib" };
    let at = format!("{lib}/modules/{release}");
    let moved = root
        .make_dir(&at)
        .map_err(|source| MountError::Folder { at: at.clone(), source })
        .and_then(|folder| mount_move(from, path_of(&folder)).map_err(fail("the kernel's modules", &at)));
    moved.unwrap_or_else(|error| say(WHO, chain(&error)));
}

/// Mounts the root. A read-only one gets a layer in memory above it where the kernel can do that, so that an init that
/// wants to write is content and nothing of it outlives the machine.
pub(super) fn root(found: &Found<'_>, mut modules: Option<&mut Modules>) -> Result<(), MountError> {
    make(NEW_ROOT)?;
    know(&found.drive.filesystem, modules.as_deref_mut());
    if !found.drive.read_only {
        return mount_device(found, NEW_ROOT.as_ref(), "/");
    }
    know("overlay", modules);
    if is_known("overlay") {
        return layered_root(found);
    }
    say(WHO, "the root is read-only and this kernel has no overlayfs: host name, hosts and resolvers stay the image's");
    mount_device(found, NEW_ROOT.as_ref(), "/")
}

fn layered_root(found: &Found<'_>) -> Result<(), MountError> {
    make(LOWER)?;
    make(UPPER)?;
    mount_device(found, LOWER.as_ref(), "/")?;
    mount("tmpfs", UPPER, "tmpfs", MountFlags::empty(), c"mode=0755").map_err(fail("tmpfs", UPPER))?;
    let (upper, work) = (format!("{UPPER}/upper"), format!("{UPPER}/work"));
    make(&upper)?;
    make(&work)?;
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
    let options = CString::new(options).map_err(|error| fail("overlay", "/")(io::Error::other(error)))?;
    mount("overlay", NEW_ROOT, "overlay", MountFlags::empty(), options.as_c_str()).map_err(fail("overlay", "/"))
}

/// Mounts another drive at its place in the root.
pub(super) fn drive(root: &Below, found: &Found<'_>, modules: Option<&mut Modules>) -> Result<(), MountError> {
    let at = found.drive.mount.as_deref().unwrap_or_default();
    know(&found.drive.filesystem, modules);
    let folder = root.make_dir(at).map_err(|source| MountError::Folder { at: at.to_owned(), source })?;
    mount_device(found, &path_of(&folder), at)
}

/// Mounts a drive at a place of the initramfs, so that nothing on it changes, runs or is a device.
pub(super) fn for_reading(found: &Found<'_>, at: &Path, modules: Option<&mut Modules>) -> Result<(), MountError> {
    let shown = at.display().to_string();
    make(&shown)?;
    know(&found.drive.filesystem, modules);
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let what = format!("drive `{}` ({}, {})", found.drive.serial, found.device.display(), found.drive.filesystem);
    mount(&found.device, at, found.drive.filesystem.as_str(), flags, None).map_err(fail(what, shown))
}

fn mount_device(found: &Found<'_>, target: &Path, at: &str) -> Result<(), MountError> {
    let flags = if found.drive.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let what = format!("drive `{}` ({}, {})", found.drive.serial, found.device.display(), found.drive.filesystem);
    mount(&found.device, target, found.drive.filesystem.as_str(), flags, None).map_err(fail(what, at))
}

/// Loads the module of a file system that the kernel does not know. In the initramfs nobody else would.
fn know(filesystem: &str, modules: Option<&mut Modules>) {
    if is_known(filesystem) {
        return;
    }
    if let Some(Err(error)) = modules.map(|modules| modules.load(filesystem)) {
        say(WHO, chain(&error));
    }
}

fn is_known(filesystem: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().filter_map(|line| line.split_whitespace().last()).any(|name| name == filesystem)
}
