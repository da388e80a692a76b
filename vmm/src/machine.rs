//! One machine, from power-on to its end.
//!
//! ```text
//!            ┌──────── the guest resets, and has said hello ────────┐
//!            ▼                                                      │
//!   build ─▶ run ─▶ signal ─▶ stop vCPUs, stop devices ─▶ what was it? ─▶ ended
//! ```
//!
//! A reset drops the KVM machine and builds another on emptied memory, with the same devices over the same files; kernel,
//! initramfs and all threads but the vCPUs' stay. A machine that runs can be halted, saved and let go on ([`hold`]); one that was
//! saved is built from its state, and waits until it is let go on ([`restore`]).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::CpuId;
use labyard_devices::Memory;
use labyard_devices::bus::{Bus, Overlap};
use labyard_devices::counters::Counters;
use labyard_devices::fault::Faults;
use labyard_devices::legacy::power::{Power, PowerEvent};
use labyard_devices::legacy::pvpanic::{self, PvPanic};
use labyard_devices::legacy::{ged, ioapic, power, serial};
use labyard_devices::virtio::device::VirtioDevice;
use labyard_devices::virtio::transport::mmio::{self, MmioTransport};
use labyard_spec::control::MachineState;

use crate::arch::x86_64::acpi::Description;
use crate::arch::x86_64::cpuid::Processors;
use crate::arch::x86_64::{layout, regs};
use crate::boot::{self, BootError, Images, Start};
use crate::console::ConsoleHub;
use crate::kvm::memory::{self, GuestMemory, MemoryError};
use crate::kvm::{Hypervisor, KvmError, Vm};
use crate::runtime::{self, DeviceLoop};
use crate::seccomp::Role;
use crate::vcpu::{self, Exits, Shared, Signal, Vcpu};
use restore::{Restored, TakeBackError};

pub mod hold;
pub mod restore;

/// Console lines in the report of a crash.
const REPORTED_LINES: usize = 30;
/// How long a guest that panics may take to print its last lines and to reset; one that halts instead has crashed all the same.
const PANIC_WITHIN: Duration = Duration::from_secs(20);

/// A machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// What is loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Registers of a vCPU.
    #[error("setting up vCPU {0}")]
    Vcpu(u32, #[source] kvm_ioctls::Error),
    /// Two devices at one address: a mistake of the layout.
    #[error(transparent)]
    Bus(#[from] Overlap),
    /// A thread or an eventfd.
    #[error("threads and eventfds")]
    Host(#[source] std::io::Error),
    /// A saved state.
    #[error(transparent)]
    TakeBack(#[from] TakeBackError),
}

/// Milestones and changes of a machine's life, as they happen.
pub trait Witness: Send + Sync {
    /// It is about to boot; its console's log has so many bytes.
    fn booting(&self, log_bytes: u64);
    /// Guest memory is there, in pages of so many bytes.
    fn mapped(&self, page_size: u64);
    /// Everything is in guest memory.
    fn loaded(&self);
    /// The first vCPU is about to enter the guest.
    fn first_run(&self);
    /// vCPUs run.
    fn started(&self);
    /// The guest has reset and starts again.
    fn rebooted(&self);
    /// vCPUs stand still because the host's disk has no room, or need not any more.
    fn out_of_room(&self, is_out: bool);
    /// Over.
    fn ended(&self, state: MachineState);
}

/// Everything that a machine is made of and that outlives a reset.
pub struct Parts {
    /// Its name.
    pub name: String,
    /// Its processors.
    pub processors: Processors,
    /// Exits of each processor.
    pub exits: Vec<Arc<Exits>>,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// In huge pages that the host has set aside.
    pub huge_pages: bool,
    /// Which of all machines and copies of machines it is; a reset does not change that.
    pub generation: [u8; 16],
    /// Its power button, and what else it is told.
    pub events: Arc<ged::Events>,
    /// What is loaded.
    pub images: Images,
    /// Its virtio devices, in the order in which the guest finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Where it prints.
    pub console: Arc<ConsoleHub>,
    /// Set when the guest's init has said hello.
    pub hello: Arc<AtomicBool>,
    /// What it begins from, where it was saved; a reset begins as ever.
    pub saved: Option<Restored>,
}

impl Parts {
    /// The devices' counters of guest's mistakes.
    pub fn faults(&self) -> Vec<Faults> {
        self.devices.iter().map(|device| device.faults().clone()).collect()
    }

    /// All counters: devices in their order, then vCPUs.
    pub fn counters(&self) -> Vec<Counters> {
        let devices = self.devices.iter().map(|device| device.counters());
        let exits = self.exits.iter().enumerate();
        devices.chain(exits.map(|(cpu, exits)| Counters::new(&format!("cpu{cpu}"), Arc::clone(exits) as _))).collect()
    }
}

/// Runs a machine until it ends. `signals` come from vCPUs, power registers and whoever pulls the plug.
pub fn run(
    mut parts: Parts,
    hypervisor: &Arc<Hypervisor>,
    signals: Receiver<Signal>,
    sender: &Sender<Signal>,
    witness: &Arc<dyn Witness>,
) {
    let mut signals = Signals { receiver: signals, waiting: VecDeque::new() };
    let state = match DeviceLoop::start(&parts.name) {
        Ok(devices) => {
            let state = live(&mut parts, hypervisor, &devices, &mut signals, sender, witness);
            devices.end();
            state
        }
        Err(error) => MachineState::Failed(runtime::chain(&BuildError::Host(error))),
    };
    witness.ended(state);
    // Who waits for an answer hears that there is none when the end has been told.
    drop(signals);
}

/// What wakes a machine's thread, in order.
struct Signals {
    receiver: Receiver<Signal>,
    /// Came before what is in the channel.
    waiting: VecDeque<Signal>,
}

impl Signals {
    /// The next; `None` when the deadline has passed.
    fn next(&mut self, deadline: Option<Instant>) -> Option<Signal> {
        if let Some(signal) = self.waiting.pop_front() {
            return Some(signal);
        }
        match deadline {
            None => Some(self.receiver.recv().unwrap_or(Signal::Kill)),
            Some(at) => match self.receiver.recv_timeout(at.saturating_duration_since(Instant::now())) {
                Ok(signal) => Some(signal),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Signal::Kill),
            },
        }
    }

    /// Whether the guest has said something that nobody has looked at.
    fn has_words_of_guest(&mut self) -> bool {
        self.waiting.extend(self.receiver.try_iter());
        !self.waiting.iter().all(Signal::is_from_host)
    }

    /// What vCPUs said while they were stopped belongs to the machine that is gone; a pulled plug stays pulled (`true`), and orders
    /// are for the next one.
    fn forget_guest(&mut self) -> bool {
        self.waiting.extend(self.receiver.try_iter());
        self.waiting.retain(Signal::is_from_host);
        self.waiting.iter().any(|signal| matches!(signal, Signal::Kill))
    }
}

fn live(
    parts: &mut Parts,
    hypervisor: &Arc<Hypervisor>,
    devices: &Arc<DeviceLoop>,
    signals: &mut Signals,
    sender: &Sender<Signal>,
    witness: &Arc<dyn Witness>,
) -> MachineState {
    loop {
        // One that was saved goes on with the boot that it is in.
        if parts.saved.is_none() {
            witness.booting(parts.console.log_bytes());
        }
        let mut running = match Running::build(parts, hypervisor, devices, sender, witness) {
            Ok(running) => running,
            Err(error) => return MachineState::Failed(runtime::chain(&error)),
        };
        witness.started();
        let (signal, panicked) = running.until_signal(signals, parts, &**witness);
        let lost = running.stop(parts);
        let killed = signals.forget_guest();
        let printed = parts.console.take_panic(REPORTED_LINES);
        let panic = printed.or_else(|| panicked.then(|| parts.console.last_lines(REPORTED_LINES)));
        let greeted = parts.hello.swap(false, Ordering::SeqCst);
        match signal {
            _ if killed => return MachineState::Killed,
            // Orders were obeyed, and what the host's disk says was heard.
            Signal::Kill | Signal::Order(_) | Signal::HostDisk { .. } => return MachineState::Killed,
            Signal::Fault(reason) => return MachineState::Failed(reason),
            // A PC would reset. Our command line tells Linux another way to do that, so this one was not meant.
            Signal::TripleFault => {
                let last = parts.console.last_lines(REPORTED_LINES);
                return MachineState::Crashed(format!("a vCPU shut down (triple fault)\n{last}"));
            }
            Signal::Panic | Signal::Power(_) if panic.is_some() => {
                return MachineState::Crashed(format!("the kernel panicked\n{}", panic.unwrap_or_default()));
            }
            Signal::Power(PowerEvent::Off) => return MachineState::PoweredOff,
            Signal::Panic | Signal::Power(PowerEvent::Reset) => {
                if !greeted {
                    let last = parts.console.last_lines(REPORTED_LINES);
                    return MachineState::Crashed(format!("the machine reset before its init said hello\n{last}"));
                }
                if lost {
                    return MachineState::Failed("a device was lost in a panic".into());
                }
                witness.rebooted();
            }
        }
    }
}

/// Has KVM make a machine while memory is filled: for the thread that KVM gives it Linux waits for grace periods of RCU, some ticks of doing
/// nothing (`kvm_vm_create_worker_thread` and `cgroup_attach_task_all`, up to Linux 6.13).
fn make_vm(
    name: &str,
    hypervisor: &Arc<Hypervisor>,
    mem: &Memory,
) -> Result<JoinHandle<Result<Vm, KvmError>>, BuildError> {
    let (hypervisor, mem) = (Arc::clone(hypervisor), mem.clone());
    let make = move || hypervisor.create_vm(&mem);
    runtime::spawn(Role::Machine, &format!("{name} kvm"), make).map_err(BuildError::Host)
}

/// A machine with vCPUs.
struct Running {
    /// Dropped last: vCPUs and devices use it.
    vm: Vm,
    mem: Memory,
    io_apic: Arc<Mutex<ioapic::IoApic>>,
    serial: Arc<Mutex<serial::SerialPort>>,
    transports: Vec<Arc<Mutex<MmioTransport>>>,
    shared: Arc<Shared>,
    /// By number, each with the CPUID that it was given.
    vcpus: Vec<Vcpu>,
    leaves: Vec<CpuId>,
    /// vCPUs are out of the guest and stay there.
    halted: bool,
    /// They were ordered to be.
    held: bool,
    /// The host's disk has no room for what the guest has written: until it has they stay there, too.
    no_room: bool,
}

/// How a machine begins.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Boot(Start),
    Saved(&'a Restored),
}

impl Running {
    fn build(
        parts: &mut Parts,
        hypervisor: &Arc<Hypervisor>,
        devices: &Arc<DeviceLoop>,
        sender: &Sender<Signal>,
        witness: &Arc<dyn Witness>,
    ) -> Result<Self, BuildError> {
        let saved = parts.saved.take();
        let GuestMemory { mem, page_size } = memory::map(&parts.name, parts.memory_bytes, parts.huge_pages)?;
        witness.mapped(page_size);
        let virtio: Vec<(u64, u32)> = (0..)
            .zip(layout::VIRTIO_FIRST_GSI..)
            .take(parts.devices.len())
            .map(|(index, gsi): (u64, u32)| (layout::VIRTIO + index * mmio::WINDOW_BYTES, gsi))
            .collect();
        let description = Description { cpu_count: parts.processors.count, virtio };

        let made = make_vm(&parts.name, hypervisor, &mem)?;
        let filled = match &saved {
            Some(restored) => restored.fill(&mem).map(|()| Origin::Saved(restored)).map_err(BuildError::from),
            None => {
                boot::load(&mem, page_size, &parts.images, &description).map(Origin::Boot).map_err(BuildError::from)
            }
        };
        let vm = made.join().map_err(|_| BuildError::Host(std::io::Error::other("making the machine panicked")))??;
        let origin = filled?;
        boot::write_generation(&mem, parts.generation)?;
        witness.loaded();

        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        let line = Arc::new(vm.line(layout::SERIAL_GSI)?);
        let serial = Arc::new(Mutex::new(serial::SerialPort::new(Arc::clone(&line) as _, parts.console.output())));
        ports.insert(layout::SERIAL_PORT, serial::WINDOW_BYTES, Arc::clone(&serial) as _)?;
        let wish = sender.clone();
        let power = Power::new(Box::new(move |event| {
            let _ = wish.send(Signal::Power(event)); // nobody listens any more when the machine is stopping anyway
        }));
        ports.insert(layout::POWER_PORT, power::WINDOW_BYTES, Arc::new(Mutex::new(power)))?;
        let (told, teller) = (AtomicBool::new(false), sender.clone());
        let panicked = Box::new(move || {
            // Once is enough, however often the guest says it.
            if !told.swap(true, Ordering::Relaxed) {
                let _ = teller.send(Signal::Panic); // as above
            }
        });
        let port = PvPanic::new(panicked);
        ports.insert(layout::PVPANIC_PORT, pvpanic::WINDOW_BYTES, Arc::new(Mutex::new(port)))?;
        parts.events.connect(Arc::new(vm.line(layout::EVENTS_GSI)?));
        let events = ged::Ged(Arc::clone(&parts.events));
        ports.insert(layout::EVENTS_PORT, ged::WINDOW_BYTES, Arc::new(Mutex::new(events)))?;
        let io_apic =
            Arc::new(Mutex::new(ioapic::IoApic::new(layout::lines(description.virtio.len()), vm.msi_routes())));
        mmio.insert(layout::IO_APIC.into(), ioapic::WINDOW_BYTES, Arc::clone(&io_apic) as _)?;

        // From here on devices are in transports; on an error they go with the machine, which has ended then.
        let mut transports = Vec::new();
        for (device, (address, gsi)) in parts.devices.drain(..).zip(&description.virtio) {
            let line = Box::new(vm.line(*gsi)?);
            let transport =
                MmioTransport::new(device, mem.clone(), line, Arc::clone(devices) as _).map_err(BuildError::Host)?;
            for (queue, kick) in (0..).zip(transport.kicks()) {
                vm.kick(kick, address + mmio::QUEUE_NOTIFY, queue)?;
            }
            let transport = Arc::new(Mutex::new(transport));
            mmio.insert(*address, mmio::WINDOW_BYTES, Arc::clone(&transport) as _)?;
            transports.push(transport);
        }

        let shared = Arc::new(Shared { ports, mmio, stop: AtomicBool::new(false) });
        let (vcpus, leaves) = (Vec::new(), Vec::new());
        let (halted, held, no_room) = (true, saved.is_some(), false);
        let mut machine = Self { vm, mem, io_apic, serial, transports, shared, vcpus, leaves, halted, held, no_room };
        let begun = machine.make_vcpus(parts, hypervisor, origin, sender, witness).and_then(|()| match origin {
            Origin::Boot(_) => {
                machine.run_vcpus(false);
                Ok(())
            }
            Origin::Saved(restored) => Ok(machine.take_back(restored, parts, line)?),
        });
        if let Err(error) = begun {
            machine.stop(parts);
            return Err(error);
        }
        Ok(machine)
    }

    fn make_vcpus(
        &mut self,
        parts: &Parts,
        hypervisor: &Hypervisor,
        origin: Origin<'_>,
        sender: &Sender<Signal>,
        witness: &Arc<dyn Witness>,
    ) -> Result<(), BuildError> {
        let mut vcpus = Vec::new();
        for index in 0..parts.processors.count {
            let vcpu = self.vm.create_vcpu(index)?;
            let start = match origin {
                Origin::Boot(start) => start,
                Origin::Saved(restored) => {
                    self.leaves.push(restored.set_vcpu(index, &vcpu)?);
                    vcpus.push(vcpu);
                    continue;
                }
            };
            let failed = |error| BuildError::Vcpu(index, error);
            let leaves = parts.processors.leaves(hypervisor.cpuid(), index);
            let leaves = leaves.ok_or_else(|| failed(kvm_ioctls::Error::new(libc::E2BIG)))?;
            vcpu.set_cpuid2(&leaves).map_err(failed)?;
            self.leaves.push(leaves);
            if let Some(msrs) = regs::model_specific() {
                vcpu.set_msrs(&msrs).map_err(failed)?;
            }
            let mut lapic = vcpu.get_lapic().map_err(failed)?;
            regs::local_apic(&mut lapic);
            vcpu.set_lapic(&lapic).map_err(failed)?;
            if index == 0 {
                let mut sregs = vcpu.get_sregs().map_err(failed)?;
                regs::special(start, &mut sregs);
                vcpu.set_sregs(&sregs).map_err(failed)?;
                vcpu.set_regs(&regs::general(start)).map_err(failed)?;
            }
            vcpus.push(vcpu);
        }
        for ((index, vcpu), exits) in (0..).zip(vcpus).zip(&parts.exits) {
            let witness = Arc::clone(witness);
            let first_run = move || {
                if index == 0 {
                    witness.first_run();
                }
            };
            let (shared, exits) = (Arc::clone(&self.shared), Arc::clone(exits));
            let with = vcpu::Parts { vcpu, shared, signals: sender.clone(), exits, msrs: hypervisor.msrs() };
            self.vcpus.push(vcpu::start(&parts.name, index, with, first_run).map_err(BuildError::Host)?);
        }
        Ok(())
    }

    /// Stops everything and gives the devices back. `true` where one was lost.
    fn stop(self, parts: &mut Parts) -> bool {
        let Self { vm, transports, shared, vcpus, .. } = self;
        parts.events.disconnect();
        shared.stop.store(true, Ordering::SeqCst);
        vcpus.iter().for_each(Vcpu::leave);
        vcpus.into_iter().for_each(Vcpu::join);
        drop(shared); // the buses' hold on the transports
        let count = transports.len();
        for transport in transports {
            if let Some(transport) = Arc::into_inner(transport) {
                let transport = transport.into_inner().unwrap_or_else(PoisonError::into_inner);
                parts.devices.extend(transport.into_device());
            }
        }
        drop(vm);
        parts.devices.len() < count
    }
}
