//! Boots one machine with the `vmm` crate and shows its console: `boot KERNEL INITRAMFS[,PART…] [DISK…]`.
//!
//! What an embedder does: open the files, describe a playground, watch its events.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use labyard_spec::control::{Happening, MachineState};
use labyard_spec::playground::{BaseSpec, BootSpec, DriveSpec, Engine, Entry, MachineSpec, PlaygroundSpec, Slot};
use labyard_vmm::embed::Files;
use labyard_vmm::kvm::Hypervisor;
use labyard_vmm::playground::Playground;

fn main() -> Result<()> {
    let since = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, disks @ ..] = arguments.as_slice() else {
        return Err(anyhow!("usage: boot KERNEL INITRAMFS[,PART…] [DISK…]"));
    };
    let mut files = Files::default();
    let mut pass = |path: &str, write: bool| -> Result<Slot> {
        let slot = if write { files.write(path) } else { files.read(path) };
        slot.with_context(|| path.to_owned())
    };
    let boot = BootSpec {
        kernel: pass(kernel, false)?,
        initrd: initramfs.split(',').map(|part| pass(part, false)).collect::<Result<_>>()?,
        extra_cmdline: std::env::var("CMDLINE").unwrap_or_default(),
        entry: Entry::Auto,
    };
    let mut drives = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let base = Some(BaseSpec { file: pass(disk, true)?, name: disk.clone() });
        drives.push(DriveSpec {
            serial: format!("d{number:02}"),
            read_only: false,
            base,
            overlay: None,
            engine: Engine::Auto,
        });
    }
    let log = pass("/dev/null", true)?;
    let machine = MachineSpec { memory_mib: 256, drives, ..MachineSpec::new("example", boot, log) };

    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    let playground = Playground::new(Hypervisor::new(kvm.into())?, File::create("/dev/null")?, since)?;
    let spec = PlaygroundSpec { name: "example".into(), networks: Vec::new(), machines: vec![machine] };
    playground.create(&spec, files.into_slots()).map_err(|error| anyhow!(error))?;
    let mut console = playground.console("example").map_err(|error| anyhow!(error))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = console.read(&mut buffer) {
            let _ = std::io::stdout().write_all(&buffer[..n]);
        }
    });
    let mut after = 0;
    loop {
        let Some((event, _)) = playground.event_after(after, Duration::from_secs(60)) else { continue };
        after = event.number;
        eprintln!("[{:>9} us] {:?}", event.at_us, event.what);
        if let Happening::Ended(state) = event.what {
            eprintln!("{:?}", playground.status().machines);
            return if state == MachineState::PoweredOff { Ok(()) } else { Err(anyhow!("{state:?}")) };
        }
    }
}
