//! A vCPU's thread: KVM_RUN, port and MMIO exits, nothing else. No host I/O is done here, except what a console prints.
//!
//! ```text
//!   start ─▶ halted ── run ──▶ in the guest ── leave ──▶ halted ─▶ … ─▶ join
//!                                   └─ a fault: its signal, and the thread has ended
//! ```
//!
//! Told to leave, a vCPU first lets KVM finish the instruction whose port or MMIO access brought it out (api.rst, the note at
//! KVM_EXIT_MMIO): KVM_RUN is entered with `immediate_exit` until it says EINTR. So a halted vCPU is between two instructions.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuExit, VcpuFd};
use labyard_devices::bus::Bus;
use labyard_devices::counters::{Set, Snapshot};
use labyard_devices::legacy::power::PowerEvent;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::kvm::KvmError;
use crate::kvm::leave::Leave;
use crate::kvm::state::VcpuState;
use crate::machine::hold::Order;
use crate::runtime;
use crate::seccomp::Role;

/// Why a machine's thread is woken.
#[derive(Debug)]
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
    /// The playground wants a step of a pause, a save or a resumption.
    Order(Order),
    /// The host's disk has no room for what the machine writes, or has it again.
    HostDisk {
        /// Something waits for room.
        full: bool,
    },
}

impl Signal {
    /// Whether it is not the guest who says it.
    pub fn is_from_host(&self) -> bool {
        matches!(self, Self::Kill | Self::Order(_) | Self::HostDisk { .. })
    }
}

/// What all vCPUs of a machine share.
pub struct Shared {
    /// Ports.
    pub ports: Bus,
    /// Memory-mapped devices.
    pub mmio: Bus,
    /// vCPUs do not enter the guest again. Set before they are brought out.
    pub stop: AtomicBool,
}

/// A vCPU.
pub struct Vcpu {
    thread: JoinHandle<()>,
    leave: Leave,
    /// To the thread, which listens while it is out of the guest.
    wishes: Sender<Wish>,
}

/// What a halted vCPU is asked for.
enum Wish {
    /// Enter the guest; after a pause its clock is told of it.
    Run { paused: bool },
    /// Say that you are out of the guest.
    Answer(SyncSender<()>),
    /// Say what state you are in.
    Save(SyncSender<Result<VcpuState, KvmError>>),
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

/// What a vCPU's thread works with.
pub struct Parts {
    /// The vCPU, with its registers set.
    pub vcpu: VcpuFd,
    /// What it shares.
    pub shared: Arc<Shared>,
    /// Where it tells that it cannot go on.
    pub signals: Sender<Signal>,
    /// Its exits.
    pub exits: Arc<Exits>,
    /// MSRs of its state.
    pub msrs: Arc<[u32]>,
}

/// Makes the thread of a vCPU, which is halted. `first_run` is called on it before it enters the guest for the first time.
pub fn start(
    machine: &str,
    index: u32,
    parts: Parts,
    first_run: impl FnOnce() + Send + 'static,
) -> std::io::Result<Vcpu> {
    let leave = Leave::of(&parts.vcpu)?;
    let (wishes, wanted) = channel();
    let thread = runtime::spawn(Role::Vcpu, &format!("{machine} cpu{index}"), move || {
        let Parts { mut vcpu, shared, signals, exits, msrs } = parts;
        let life = || live(&mut vcpu, &wanted, &shared, &exits, &msrs, first_run);
        let signal = match catch_unwind(AssertUnwindSafe(life)) {
            Ok(Some(signal)) => signal,
            Ok(None) => return,
            Err(_) => Signal::Fault(format!("vCPU {index} panicked")),
        };
        let _ = signals.send(signal); // nobody listens any more when the machine is stopping anyway
        // Only now do those who wait for an answer hear that there is none: they find the signal.
        drop(wanted);
    })?;
    Ok(Vcpu { thread, leave, wishes })
}

impl Vcpu {
    /// Lets it run, from where it is. It is halted, and `Shared::stop` is not set.
    pub fn run(&self, paused: bool) {
        self.leave.lower();
        let _ = self.wishes.send(Wish::Run { paused }); // one that has ended has said why
    }

    /// Brings the vCPU out of the guest. `Shared::stop` was set before, so it does not go back.
    pub fn leave(&self) {
        self.leave.raise();
        if let Err(error) = self.thread.kill(wake_signal()) {
            log::debug!("waking a vCPU: {error}"); // it has left already
        }
    }

    /// Waits until it is halted, or has ended. [`Vcpu::leave`] was called before.
    pub fn wait(&self) {
        let (answer, answered) = sync_channel(1);
        let _ = self.wishes.send(Wish::Answer(answer));
        let _ = answered.recv(); // one that has ended has said why
    }

    /// Its state. It is halted.
    pub fn save(&self) -> Result<VcpuState, String> {
        let (answer, answered) = sync_channel(1);
        let _ = self.wishes.send(Wish::Save(answer));
        match answered.recv() {
            Ok(state) => state.map_err(|error| runtime::chain(&error)),
            Err(_) => Err("its thread has ended".into()),
        }
    }

    /// Waits until the thread has ended. [`Vcpu::leave`] was called before.
    pub fn join(self) {
        drop(self.wishes);
        let _ = self.thread.join(); // panics were caught inside
    }
}

/// Does what is wished until nobody is there to wish (`None`), or the guest cannot go on.
fn live(
    vcpu: &mut VcpuFd,
    wishes: &Receiver<Wish>,
    shared: &Shared,
    exits: &Exits,
    msrs: &[u32],
    first_run: impl FnOnce(),
) -> Option<Signal> {
    let mut first_run = Some(first_run);
    loop {
        match wishes.recv().ok()? {
            Wish::Answer(to) => drop(to.send(())),
            Wish::Save(to) => drop(to.send(VcpuState::save(vcpu, msrs))),
            Wish::Run { paused } => {
                if let Some(first_run) = first_run.take() {
                    first_run();
                }
                if paused {
                    // Its watchdog is told that it did not run (api.rst, KVM_KVMCLOCK_CTRL). EINVAL: it has no kvmclock.
                    let _ = vcpu.kvmclock_ctrl();
                }
                if let Some(signal) = run(vcpu, shared, exits) {
                    return Some(signal);
                }
            }
        }
    }
}

/// Runs the guest until it is told to stop (`None`) or cannot go on.
fn run(vcpu: &mut VcpuFd, shared: &Shared, exits: &Exits) -> Option<Signal> {
    loop {
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
            // Nothing is left undone: who is to stop can.
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                if shared.stop.load(Ordering::SeqCst) {
                    return None;
                }
            }
            Err(error) => return Some(Signal::Fault(format!("KVM_RUN: {error}"))),
        }
    }
}
