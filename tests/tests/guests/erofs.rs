//! The example image as a read-only disk, by the only judge that counts: Linux mounts it, and sees what umoci unpacks.
//!
//! `tools/prepare` has our builder write it; the host's own kernel reads it, for it is the one here that runs without a lab.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{host, reference};

/// Where the disk is mounted, until this is dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(disk: &Path) -> Result<Self> {
        let at = Self(tempfile::tempdir()?);
        let mut mount = Command::new("mount");
        mount.args(["-t", "erofs", "-o", "loop,ro"]).arg(disk).arg(at.0.path());
        host::run_with(mount, b"")?.expect(0)?;
        Ok(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn linux_sees_in_an_erofs_disk_what_umoci_unpacks() -> Result<()> {
    let disk: PathBuf = host::given("LABYARD_SCRATCH")?.join("debian.erofs");
    let len = disk.metadata().with_context(|| format!("{}: run tools/prepare", disk.display()))?.len();
    // As small as its content: the same tree is a disk of 4 GiB otherwise.
    ensure!(len < 1 << 30, "{len} bytes");
    let mounted = Mounted::new(&disk)?;
    let mut walk = Command::new("python3");
    walk.arg("-").arg(mounted.0.path());
    let ours = host::run_with(walk, reference::WALK)?.expect(0)?;
    reference::compare(&ours.stdout)
}
