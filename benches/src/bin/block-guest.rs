//! PID 1 of the guest that `block` measures: loads modules, mounts the first drive, and has its shell run `/script`.
//!
//! Nothing else runs in that guest, so nothing else is measured. It never ends: a PID 1 that does is a panic of the kernel.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};

/// `MODULE_INIT_COMPRESSED_FILE` (include/uapi/linux/module.h): the kernel unpacks the file itself.
const COMPRESSED: i32 = 4;
/// First bytes of a module that is not compressed.
const ELF: &[u8] = b"\x7fELF";

fn main() {
    if let Err(error) = run() {
        println!("block-guest: {error:#}");
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn run() -> Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, place, kind, MountFlags::empty(), None).with_context(|| place.to_owned())?;
    }
    let console = || File::options().read(true).write(true).open("/dev/console").context("/dev/console");
    let console = console()?;
    let _ = (rustix::stdio::dup2_stdout(&console), rustix::stdio::dup2_stderr(&console)); // else nobody hears of it
    let mut modules: Vec<_> = fs::read_dir("/modules")?.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for module in modules {
        let flags = if fs::read(&module)?.starts_with(ELF) { 0 } else { COMPRESSED };
        let loaded = rustix::system::finit_module(File::open(&module)?, c"", flags);
        if let Err(error) = loaded {
            println!("block-guest: {}: {error}", module.display());
        }
    }
    while fs::metadata("/dev/vdb").is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    mount("/dev/vda", "/root", "ext4", MountFlags::RDONLY, None).context("mounting /dev/vda")?;
    for (kind, place) in [("proc", "/root/proc"), ("devtmpfs", "/root/dev"), ("tmpfs", "/root/tmp")] {
        mount(kind, place, kind, MountFlags::empty(), None).with_context(|| place.to_owned())?;
    }
    let script = fs::read_to_string("/script").context("/script")?;
    rustix::process::chroot("/root").context("/root")?;
    std::env::set_current_dir("/")?;
    let ended = Command::new("/bin/sh").args(["-c", &script]).status().context("/bin/sh")?;
    println!("block-guest: the script has ended with {ended}");
    Ok(())
}
