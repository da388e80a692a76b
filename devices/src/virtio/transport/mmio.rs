//! virtio over MMIO (VIRTIO 1.2, §4.2): the registers that a driver sets a device up with.
//!
//! ```text
//!   0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK ── a worker runs
//!   ▲                                                │
//!   └──────────── a write of 0, from anywhere ───────┘   (returns when the worker has given everything back)
//! ```
//!
//! Called from vCPU threads under the bus's lock. Every value is the guest's claim: registers out of order, of the wrong
//! width or for a queue that is not there change nothing and are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Memory;
use crate::bus::BusDevice;
use crate::fault::Faults;
use crate::host::{Host, Running};
use crate::irq::{Interrupt, Line};
use crate::virtio::chain::{RingState, VirtQueue};
use crate::virtio::device::{DeviceInfo, VirtioDevice};
use crate::virtio::feature;
use crate::worker::{Activation, ActiveQueue, Rest};

mod state;
pub use state::State;

/// Length of the register window; the configuration space is its end, from 0x100 on.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Where a driver's notification is written (QueueNotify); an ioeventfd for each queue waits there.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Start of the configuration space (§4.2.2).
const CONFIG: u64 = 0x100;
/// "virt" (§4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// Not legacy (§4.2.2).
const VERSION: u32 = 2;
/// "LABY"; drivers do not look at it.
const VENDOR: u32 = 0x5942_414c;

/// Bits of the device status (§2.1).
pub mod status {
    /// The driver has seen the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The driver knows it.
    pub const DRIVER: u32 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u32 = 4;
    /// Features are settled.
    pub const FEATURES_OK: u32 = 8;
    /// The device gave up.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver gave up.
    pub const FAILED: u32 = 128;
    /// All that a driver may set.
    pub const OF_DRIVERS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// InterruptStatus (§4.2.2): a queue, the configuration.
const INTERRUPT_QUEUE: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// Signals of one device: status bits that the driver reads, and its line.
struct MmioInterrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    line: Box<dyn Line>,
}

impl Interrupt for MmioInterrupt {
    fn signal_queue(&self, _: u16) {
        self.status.fetch_or(INTERRUPT_QUEUE, Ordering::SeqCst);
        self.line.raise();
    }

    fn signal_config(&self) {
        self.status.fetch_or(INTERRUPT_CONFIG, Ordering::SeqCst);
        self.line.raise();
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.signal_config();
    }
}

/// Where the device is.
enum Place {
    Rest(Box<dyn VirtioDevice>),
    Work(Box<dyn Running>),
    /// Lost in a panic of its worker; the guest sees DEVICE_NEEDS_RESET for ever.
    Lost,
}

/// Registers that a driver writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<RingState>,
}

/// One device behind its registers.
pub struct MmioTransport {
    place: Place,
    info: DeviceInfo,
    mem: Memory,
    host: Arc<dyn Host>,
    irq: Arc<MmioInterrupt>,
    kicks: Vec<Arc<EventFd>>,
    faults: Faults,
    registers: Registers,
    /// Whatever its driver does, the device stays at rest (`state`).
    held: bool,
}

impl MmioTransport {
    /// Puts a device behind registers. `line` is its interrupt.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        mem: Memory,
        line: Box<dyn Line>,
        host: Arc<dyn Host>,
    ) -> std::io::Result<Self> {
        let info = device.info();
        let kicks: std::io::Result<_> =
            info.queue_sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new)).collect();
        let irq = MmioInterrupt { status: AtomicU32::new(0), needs_reset: AtomicBool::new(false), line };
        let faults = device.faults().clone();
        let registers = unset(&info);
        let (place, irq) = (Place::Rest(device), Arc::new(irq));
        Ok(Self { place, info, mem, host, irq, kicks: kicks?, faults, registers, held: false })
    }

    /// What the device told about itself.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The eventfds that kicks arrive on, by queue: for KVM's ioeventfds at [`QUEUE_NOTIFY`].
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// The device's counter of guest's mistakes.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The power goes: stops the worker and gives the device back; `None` where it was lost in a panic.
    pub fn into_device(mut self) -> Option<Box<dyn VirtioDevice>> {
        self.reset();
        match self.place {
            Place::Rest(device) => Some(device),
            Place::Work(_) | Place::Lost => None,
        }
    }

    fn status(&self) -> u32 {
        let gave_up = if self.irq.needs_reset.load(Ordering::SeqCst) { status::NEEDS_RESET } else { 0 };
        self.registers.status | gave_up
    }

    /// Moves the device to work with what the driver has set up; later where it is held.
    fn start(&mut self) {
        if self.held {
            return;
        }
        let device = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Rest(device) => device,
            other => {
                self.place = other;
                return;
            }
        };
        let mut queues = Vec::with_capacity(self.kicks.len());
        for ((index, max_size), (ring, kick)) in
            (0u16..).zip(&self.info.queue_sizes).zip(self.registers.queues.iter().zip(&self.kicks))
        {
            match VirtQueue::new(index, *max_size, *ring, self.registers.driver_features, &self.mem) {
                Ok(ring) => queues.push(ActiveQueue { ring, kick: Arc::clone(kick) }),
                Err(fault) => {
                    self.faults.note(format_args!("queue {index} cannot be used: {fault}"));
                    self.place = Place::Rest(device);
                    self.irq.needs_reset();
                    return;
                }
            }
        }
        let irq: Arc<dyn Interrupt> = self.irq.clone();
        let features = self.registers.driver_features;
        match device.activate(Activation { mem: self.mem.clone(), features, queues, irq }) {
            Ok(worker) => {
                let (irq, faults) = (Arc::clone(&self.irq), self.faults.clone());
                let gave_up = Box::new(move |reason: &str| {
                    faults.note(reason);
                    irq.needs_reset();
                });
                self.place = Place::Work(self.host.start(worker, gave_up));
                // Whatever the driver offered before there was a worker is looked at now.
                for kick in &self.kicks {
                    kick.raise();
                }
            }
            Err(refused) => {
                self.faults.note(refused.why);
                self.place = Place::Rest(refused.device);
                self.irq.needs_reset();
            }
        }
    }

    /// Moves the device back to rest, keeping where its rings stand.
    fn stop(&mut self) {
        match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Work(running) => {
                if let Some(Rest { device, queues }) = running.stop() {
                    self.place = Place::Rest(device);
                    for queue in queues {
                        if let Some(ring) = self.registers.queues.get_mut(usize::from(queue.ring.index())) {
                            *ring = queue.ring.state();
                        }
                    }
                }
            }
            other => self.place = other,
        }
    }

    fn reset(&mut self) {
        self.stop();
        if let Place::Rest(device) = &mut self.place {
            device.reset();
        }
        self.registers = unset(&self.info);
        self.irq.status.store(0, Ordering::SeqCst);
        self.irq.needs_reset.store(matches!(self.place, Place::Lost), Ordering::SeqCst);
        for kick in &self.kicks {
            let _ = kick.read(); // nothing pending is as good
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // The device's own bit may be among what the driver read. One that is none is not kept: no state has it.
        if value & !(status::OF_DRIVERS | status::NEEDS_RESET) != 0 {
            self.faults.note("a status bit that there is not");
        }
        let (had, mut value) = (self.registers.status, value & status::OF_DRIVERS);
        if had & !value != 0 {
            return self.faults.note("a status bit was cleared without a reset");
        }
        let new = value & !had;
        if new & status::FEATURES_OK != 0 && !self.features_fit() {
            // §3.1.1: the driver reads the status again and finds the bit missing.
            value &= !status::FEATURES_OK;
        }
        self.registers.status = value;
        if new & status::DRIVER_OK != 0 {
            if value & status::FEATURES_OK == 0 {
                self.faults.note("DRIVER_OK before FEATURES_OK");
                self.registers.status &= !status::DRIVER_OK;
            } else {
                self.start();
            }
        }
    }

    fn features_fit(&self) -> bool {
        let (offered, chosen) = (self.info.features | feature::COMMON, self.registers.driver_features);
        let fit = chosen & !offered == 0 && chosen & feature::VERSION_1 != 0;
        let refusal = match &self.place {
            _ if !fit => "not all of them were offered, or it is a legacy driver",
            Place::Rest(device) => match device.accepts(chosen) {
                Ok(()) => return true,
                Err(why) => why,
            },
            Place::Work(_) | Place::Lost => return fit,
        };
        self.faults.note(format_args!("features {chosen:#x} of {offered:#x} are not acceptable: {refusal}"));
        false
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.registers.queues.get(self.registers.queue_sel as usize);
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.info.device_type as u32,
            0x0c => VENDOR,
            0x10 => half(self.info.features | feature::COMMON, self.registers.device_features_sel),
            0x34 => {
                let size = self.info.queue_sizes.get(self.registers.queue_sel as usize);
                size.copied().map_or(0, u32::from)
            }
            0x44 => queue.is_some_and(|queue| queue.ready).into(),
            0x60 => self.irq.status.load(Ordering::SeqCst),
            0x70 => self.status(),
            // SHMLen and SHMBase: no shared memory region has a length of all ones (§4.2.2.1).
            0xb0 | 0xb4 | 0xb8 | 0xbc => u32::MAX,
            0xfc => self.info.config.generation(),
            _ => {
                self.faults.note(format_args!("read of register {offset:#x}"));
                0
            }
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.registers.device_features_sel = value,
            0x24 => self.registers.driver_features_sel = value,
            0x20 => self.set_driver_features(value),
            0x30 => self.registers.queue_sel = value,
            QUEUE_NOTIFY => match self.kicks.get(value as usize) {
                Some(kick) => kick.raise(),
                None => self.faults.note(format_args!("kick of queue {value}")),
            },
            0x64 => {
                self.irq.status.fetch_and(!value, Ordering::SeqCst);
            }
            0x70 => self.set_status(value),
            0x38 | 0x44 | 0x80..=0xa4 => self.write_queue(offset, value),
            // SHMSel: there are none to select.
            0xac => {}
            _ => self.faults.note(format_args!("write of {value:#x} to register {offset:#x}")),
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.registers.status & status::FEATURES_OK != 0 {
            return self.faults.note("features changed after FEATURES_OK");
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_sel {
            0 => *features = *features & !0xffff_ffff | u64::from(value),
            1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
            other if value != 0 => self.faults.note(format_args!("features of word {other}")),
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let select = self.registers.queue_sel as usize;
        let at_work = self.registers.status & status::DRIVER_OK != 0;
        let max_size = self.info.queue_sizes.get(select).copied();
        let (Some(queue), Some(max_size)) = (self.registers.queues.get_mut(select), max_size) else {
            return self.faults.note(format_args!("register {offset:#x} of queue {select}"));
        };
        if at_work || (queue.ready && offset != 0x44) {
            return self.faults.note(format_args!("register {offset:#x} of queue {select}, which is in use"));
        }
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            0x38 => match u16::try_from(value) {
                Ok(size) if size.is_power_of_two() && size <= max_size => queue.size = size,
                _ => self.faults.note(format_args!("size {value} for queue {select} of at most {max_size}")),
            },
            0x44 => queue.ready = value & 1 != 0,
            0x80 => queue.desc_table = low(queue.desc_table),
            0x84 => queue.desc_table = high(queue.desc_table),
            0x90 => queue.avail_ring = low(queue.avail_ring),
            0x94 => queue.avail_ring = high(queue.avail_ring),
            0xa0 => queue.used_ring = low(queue.used_ring),
            0xa4 => queue.used_ring = high(queue.used_ring),
            _ => self.faults.note(format_args!("write of {value:#x} to register {offset:#x}")),
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(from) = offset.checked_sub(CONFIG) {
            return self.info.config.read(from, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(register) if offset & 3 == 0 => *register = self.read_register(offset).to_le_bytes(),
            _ => {
                self.faults.note(format_args!("read of {} bytes at register {offset:#x}", data.len()));
                data.fill(0);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            if !self.info.config.write(at, data) {
                self.faults.note(format_args!("write of {} bytes at {at:#x} of the configuration", data.len()));
            }
            return;
        }
        match <[u8; 4]>::try_from(data) {
            Ok(register) if offset & 3 == 0 => self.write_register(offset, u32::from_le_bytes(register)),
            _ => self.faults.note(format_args!("write of {} bytes at register {offset:#x}", data.len())),
        }
    }
}

/// Registers as they are after a reset.
fn unset(info: &DeviceInfo) -> Registers {
    let queue = |size: &u16| RingState {
        size: *size,
        ready: false,
        desc_table: 0,
        avail_ring: 0,
        used_ring: 0,
        next_avail: 0,
        next_used: 0,
    };
    Registers {
        status: 0,
        device_features_sel: 0,
        driver_features_sel: 0,
        driver_features: 0,
        queue_sel: 0,
        queues: info.queue_sizes.iter().map(queue).collect(),
    }
}

/// Word `select` of the features.
fn half(features: u64, select: u32) -> u32 {
    let shifted = match select {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    (shifted & 0xffff_ffff) as u32
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
