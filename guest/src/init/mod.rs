//! PID 1 of the initramfs: mounts the image's root, makes the machine what `/machine.json` says, and hands over.
//!
//! What the supervisor wrote is trusted; the image is not: paths in it are resolved strictly below its root, and its programs
//! run only after the hand-over. A step that fails ends the boot with a reason, on the console and on the readiness port.
//!
//! A machine that is baked goes another way once its drives are found (`bake`).
//!
//! The initramfs holds this program as `/init`, `/machine.json`, the early modules in `/modules`, and nodes for `/dev/console`
//! (5, 1) and `/dev/null` (1, 3): a program that starts without standard descriptors and without these cannot run.

mod bake;
mod drives;
mod files;
mod fstab;
mod handover;
mod managers;
mod mounts;
mod netlink;
mod network;
mod pid1;
mod startup;
mod wait;

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use labyard_spec::guest::{BOOT_MARKER, Hello, MachineConfig, PATH};
use rustix::system::RebootCommand;

use crate::below::Below;
use crate::console::{chain, say};
use crate::modules::{ModuleError, Modules, load_file};
use crate::ready::Ready;

/// How init signs its lines on the console.
const WHO: &str = "labyard-init";
/// Where the image's root is mounted until it becomes `/`.
const NEW_ROOT: &str = "/newroot";

#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("reading {PATH} of the initramfs")]
    Config { source: io::Error },
    #[error("{PATH} of the initramfs does not fit this labyard-init: take both from one version")]
    Meaning { source: serde_json::Error },
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    #[error(transparent)]
    Drive(#[from] drives::DriveError),
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    File(#[from] files::FileError),
    #[error(transparent)]
    Startup(#[from] startup::StartupError),
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    #[error(transparent)]
    Bake(#[from] bake::BakeError),
    #[error(transparent)]
    HandOver(#[from] handover::HandOverError),
}

/// Prepares the machine and becomes its init, or powers it off.
pub fn run() -> ! {
    let error = match std::panic::catch_unwind(prepare) {
        Ok(Ok(never)) => match never {},
        Ok(Err(error)) => chain(&error),
        // PID 1 may not end, or the kernel panics and takes the reason with it.
        Err(_) => "labyard-init panicked, which is a mistake in it: the console says where".to_owned(),
    };
    say(WHO, format_args!("failed: {error}"));
    if let Ok(ready) = Ready::connect() {
        let _ = ready.say_last(&Hello::InitFailed { error });
    }
    power_off()
}

/// Writes what is in memory and cuts the power.
fn power_off() -> ! {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
        say(WHO, format_args!("the kernel refused to power off: {error}"));
    }
    loop {
        std::thread::park();
    }
}

fn prepare() -> Result<Infallible, InitError> {
    let text = std::fs::read(PATH).map_err(|source| InitError::Config { source })?;
    let config: MachineConfig = serde_json::from_slice(&text).map_err(|source| InitError::Meaning { source })?;
    mounts::kernel_file_systems()?;
    if config.boot_marker {
        mark();
    }
    open_console();
    for file in &config.early_modules {
        load_file(&Path::new("/modules").join(file))?;
    }
    let drives = drives::find(&config.drives, !config.late_modules.is_empty())?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let modules_at = drives.modules.as_deref().map(|device| mounts::modules(device, &release)).transpose()?;
    let mut modules = modules_at.as_deref().map(Modules::read).transpose()?;
    load_late(&config, modules.as_mut());
    if config.bake {
        return bake::serve(&config, &drives, modules.as_mut(), &release).map_err(InitError::from);
    }

    mounts::root(&drives.root, modules.as_mut())?;
    let root = Below::open(NEW_ROOT).map_err(|source| files::FileError { path: "/".to_owned(), source })?;
    let written = files::write(&root, &config).and_then(|()| {
        fstab::write(&root, &drives.others)?;
        managers::write(&root, &config.interfaces)
    });
    match written {
        Err(error) if drives.root.drive.read_only => say(WHO, chain(&error)),
        written => written?,
    }
    for other in &drives.others {
        mounts::drive(&root, other, modules.as_mut())?;
    }
    // Behind the drives: a file may lie on one.
    startup::write(&root, &config)?;
    if let Some(from) = &modules_at {
        mounts::move_modules(&root, from, &release);
    }
    network::configure(&config.interfaces)?;

    let ready = announce(&release);
    handover::hand_over(&root, config.entrypoint.as_ref(), ready).map_err(InitError::from)
}

/// Ends "exec to guest init" in every bench: straight to the port, past whatever the console is.
fn mark() {
    if let Ok(mut port) = File::options().write(true).open("/dev/ttyS0") {
        let _ = port.write_all(format!("{BOOT_MARKER}\n").as_bytes());
    }
}

/// Makes the console our standard descriptors: the kernel could not where the initramfs has no node for it.
fn open_console() {
    let Ok(console) = File::options().read(true).write(true).open("/dev/console") else { return };
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
}

/// A machine without one of these modules still boots and can be looked at, so nothing here is fatal.
fn load_late(config: &MachineConfig, mut modules: Option<&mut Modules>) {
    for name in &config.late_modules {
        if let Some(Err(error)) = modules.as_mut().map(|modules| modules.load(name)) {
            say(WHO, chain(&error));
        }
    }
}

/// Tells the host that the root is ready. A host that cannot hear it is no reason to stop.
fn announce(kernel: &str) -> Option<Ready> {
    let said = Ready::connect().and_then(|mut ready| {
        ready.say(&Hello::InitDone { kernel: kernel.to_owned() })?;
        Ok(ready)
    });
    said.inspect_err(|error| say(WHO, format_args!("the host was not told that init is done: {error}"))).ok()
}
