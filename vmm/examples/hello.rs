//! The smallest program that boots a machine: `hello KERNEL [INITRAMFS]`. Its console is this terminal's output.

use std::{error::Error, io, thread};

use labyard_spec::control::MachineState;
use labyard_spec::playground::{BootSpec, Entry, MachineSpec, PlaygroundSpec};
use labyard_vmm::embed::{self, Files};

fn main() -> Result<(), Box<dyn Error>> {
    let end = boot(std::env::args().skip(1).collect())?;
    eprintln!("{end:?}");
    Ok(())
}

/// Boots a kernel and waits for the machine's end.
pub(crate) fn boot(paths: Vec<String>) -> Result<MachineState, Box<dyn Error>> {
    let [kernel, initrd @ ..] = paths.as_slice() else { return Err("usage: hello KERNEL [INITRAMFS]".into()) };
    let mut files = Files::default();
    let kernel = files.read(kernel)?;
    let initrd = initrd.iter().map(|path| files.read(path)).collect::<io::Result<_>>()?;
    let boot = BootSpec { kernel, initrd, extra_cmdline: String::new(), entry: Entry::Auto };
    let machine = MachineSpec::new("hello", boot, files.write("/dev/null")?);
    let spec = PlaygroundSpec { name: "hello".into(), networks: Vec::new(), machines: vec![machine] };

    let playground = embed::playground()?;
    playground.create(&spec, files.into_slots())?;
    let mut console = playground.console("hello")?;
    thread::spawn(move || io::copy(&mut console, &mut io::stdout()));
    Ok(playground.wait("hello")?)
}
