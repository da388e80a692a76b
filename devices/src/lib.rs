//! What the guest sees: buses, legacy devices, virtio devices, their backends, and the switch between NICs.
//!
//! No unsafe, no KVM, nothing is opened: every file and socket arrives open. What a guest writes is a claim that is checked
//! once; a wrong one is counted ([`fault`]) or stops that device, never the process.
//!
//! - [`bus`]: which device answers at an address.
//! - [`irq`]: how a device signals its guest.
//! - [`worker`], [`host`]: devices at work, and the threads that run them.
//! - [`virtio`]: the devices, their transport, and [`REGISTRY`].
//! - [`backend`]: what is behind a drive.
//! - [`limiter`]: bytes and operations per second.
//! - [`switch`]: an L2 network between the NICs of one process.
//! - [`legacy`]: serial port, I/O APIC, power registers and button, pvpanic.
//! - [`counters`]: what devices count.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, clippy::expect_used)
)]

pub mod backend;
pub mod bus;
pub mod counters;
pub mod fault;
pub mod host;
pub mod irq;
pub mod legacy;
pub mod limiter;
pub mod switch;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;
pub mod worker;

pub use virtio::REGISTRY;

/// A guest's memory: regions shared by everyone who holds a clone.
pub type Memory = vm_memory::GuestMemoryMmap<()>;

/// The guide to adding a device, compiled and run.
#[cfg(all(doctest, feature = "testing"))]
#[doc = include_str!("../../docs/add-a-device.md")]
struct AddADevice;
