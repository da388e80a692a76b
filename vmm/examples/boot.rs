//! Boots one machine with the `vmm` crate and shows its console: `boot KERNEL INITRAMFS[,PART…] [DISK…]`.
//!
//! What an embedder does: open the files, describe a playground, watch its events.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use labyard_spec::control::{Happening, MachineState};
use labyard_spec::playground::{BootSpec, DriveSpec, Engine, MachineSpec, PlaygroundSpec, Slot};
use labyard_vmm::kvm::Hypervisor;
use labyard_vmm::playground::Playground;
use labyard_vmm::vcpu;

fn main() -> Result<()> {
    let since = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, disks @ ..] = arguments.as_slice() else {
        return Err(anyhow!("usage: boot KERNEL INITRAMFS[,PART…] [DISK…]"));
    };
    let mut passed: HashMap<Slot, OwnedFd> = HashMap::new();
    let mut pass = |path: &str, write: bool| -> Result<Slot> {
        let slot = Slot(u32::try_from(passed.len())?);
        let file = OpenOptions::new().read(true).write(write).open(path).with_context(|| path.to_owned())?;
        passed.insert(slot, file.into());
        Ok(slot)
    };
    let boot = BootSpec {
        kernel: pass(kernel, false)?,
        initrd: initramfs.split(',').map(|part| pass(part, false)).collect::<Result<_>>()?,
        extra_cmdline: std::env::var("CMDLINE").unwrap_or_default(),
    };
    let mut drives = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        drives.push(DriveSpec {
            serial: format!("d{number:02}"),
            file: pass(disk, true)?,
            read_only: false,
            engine: Engine::Auto,
        });
    }
    let machine = MachineSpec {
        name: "example".into(),
        cpu_count: 1,
        memory_mib: 256,
        boot,
        drives,
        interfaces: Vec::new(),
        cid: 3,
        console_log: pass("/dev/null", true)?,
    };

    vcpu::install_wake_handler()?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
    let playground = Playground::new(Hypervisor::new(kvm.into())?, File::create("/dev/null")?, since);
    let spec = PlaygroundSpec { name: "example".into(), networks: Vec::new(), machines: vec![machine] };
    playground.create(&spec, passed).map_err(|error| anyhow!(error))?;
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
