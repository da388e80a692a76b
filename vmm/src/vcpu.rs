//! A vCPU's thread: KVM_RUN, port and MMIO exits, nothing else. No host I/O is done here, except what a console prints.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use labyard_devices::bus::Bus;
use labyard_devices::counters::{Set, Snapshot};
use labyard_devices::legacy::power::PowerEvent;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::kvm::leave::Leave;
use crate::runtime;

/// Why a machine's thread is woken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The guest used its power registers.
    Power(PowerEvent),
    /// The guest's kernel says that it panics.
    Panic,
    /// A vCPU has shut down: a fault while it handled a fault while it handled a fault.
    TripleFault,
    /// Somebody pulls the plug.
    Kill,
    /// A vCPU cannot go on.
    Fault(String),
}

/// What all vCPUs of a machine share.
pub struct Shared {
    /// Ports.
    pub ports: Bus,
    /// Memory-mapped devices.
    pub mmio: Bus,
    /// Set once; vCPUs leave at their next exit.
    pub stop: AtomicBool,
}

/// A vCPU that runs.
pub struct RunningVcpu {
    thread: JoinHandle<()>,
    leave: Leave,
}

/// Exits from a guest, by reason; each vCPU has its own, so that they share no cache line.
#[repr(align(64))]
pub struct Exits(Set<{ Exit::NAMES.len() }>);

/// Reasons, as positions in [`Exit::NAMES`].
#[derive(Clone, Copy)]
enum Exit {
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    Interrupted,
    Other,
}

impl Exit {
    const NAMES: [&str; 6] = ["port_read", "port_write", "mmio_read", "mmio_write", "interrupted", "other"];

    fn of(outcome: &Result<VcpuExit<'_>, kvm_ioctls::Error>) -> Self {
        match outcome {
            Ok(VcpuExit::IoIn(..)) => Self::PortRead,
            Ok(VcpuExit::IoOut(..)) => Self::PortWrite,
            Ok(VcpuExit::MmioRead(..)) => Self::MmioRead,
            Ok(VcpuExit::MmioWrite(..)) => Self::MmioWrite,
            Ok(VcpuExit::Intr) | Err(_) => Self::Interrupted,
            Ok(_) => Self::Other,
        }
    }
}

impl Default for Exits {
    fn default() -> Self {
        Self(Set::new(Exit::NAMES))
    }
}

impl Snapshot for Exits {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        self.0.snapshot()
    }
}

/// The signal that brings a vCPU out of KVM_RUN; its handler does nothing.
fn wake_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler of the signal that brings vCPUs out of the guest, once in a process: a handler is the process's, whoever
/// asks for it. It does nothing, so it is in nobody's way.
pub(crate) fn install_wake_handler() -> std::io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let install = || register_signal_handler(wake_signal(), nothing).map_err(|error| error.errno());
    INSTALLED.get_or_init(install).map_err(std::io::Error::from_raw_os_error)
}

/// Starts a vCPU. `first_run` is called on its thread before it enters the guest.
pub fn start(
    machine: &str,
    index: u32,
    mut vcpu: VcpuFd,
    shared: Arc<Shared>,
    signals: Sender<Signal>,
    exits: Arc<Exits>,
    first_run: impl FnOnce() + Send + 'static,
) -> std::io::Result<RunningVcpu> {
    let leave = Leave::of(&vcpu)?;
    let thread = runtime::spawn(&format!("{machine} cpu{index}"), move || {
        first_run();
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut vcpu, &shared, &exits)));
        let signal = match outcome {
            Ok(Some(signal)) => signal,
            Ok(None) => return,
            Err(_) => Signal::Fault(format!("vCPU {index} panicked")),
        };
        let _ = signals.send(signal); // nobody listens any more when the machine is stopping anyway
    })?;
    Ok(RunningVcpu { thread, leave })
}

impl RunningVcpu {
    /// Brings the vCPU out of the guest. `Shared::stop` was set before, so it does not go back.
    pub fn leave(&self) {
        self.leave.raise();
        if let Err(error) = self.thread.kill(wake_signal()) {
            log::debug!("waking a vCPU: {error}"); // it has left already
        }
    }

    /// Waits until the thread has ended. [`RunningVcpu::leave`] was called before.
    pub fn join(self) {
        let _ = self.thread.join(); // panics were caught inside
    }
}

/// Runs the guest until it is told to stop (`None`) or cannot go on.
fn run(vcpu: &mut VcpuFd, shared: &Shared, exits: &Exits) -> Option<Signal> {
    while !shared.stop.load(Ordering::SeqCst) {
        let outcome = vcpu.run();
        exits.0.add(Exit::of(&outcome) as usize, 1);
        match outcome {
            Ok(VcpuExit::IoIn(port, data)) => shared.ports.read(port.into(), data),
            Ok(VcpuExit::IoOut(port, data)) => {
                shared.ports.write(port.into(), data);
            }
            Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => {
                shared.mmio.write(address, data);
            }
            Ok(VcpuExit::Shutdown) => return Some(Signal::TripleFault),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_)) => {}
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Some(Signal::Fault(format!(
                    "the processor refused to enter the guest: reason {reason:#x} on CPU {cpu}"
                )));
            }
            Ok(VcpuExit::InternalError) => {
                return Some(Signal::Fault("KVM cannot emulate an instruction of the guest (internal error)".into()));
            }
            Ok(other) => return Some(Signal::Fault(format!("an exit that this monitor does not know: {other:?}"))),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
            Err(error) => return Some(Signal::Fault(format!("KVM_RUN: {error}"))),
        }
    }
    None
}
