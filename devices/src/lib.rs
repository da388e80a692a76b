//! What the guest sees: buses, legacy devices, virtio devices, their backends, and the switch between NICs.
//!
//! No unsafe, no KVM, nothing is opened: every file and socket arrives open. What a guest writes is a claim that is checked
//! once; a wrong one is counted ([`fault`]) or stops that device, never the process.
//!
//! # Where to begin
//!
//! A guest reaches everything here through a [`bus::BusDevice`]: a chip of [`legacy`], or a virtio device behind
//! [`virtio::transport::mmio::MmioTransport`]. [`virtio::rng`] is the smallest whole device, `docs/add-a-device.md` builds another one.
//! The tests look at devices as a driver does, and so may you:
//!
//! ```
//! use labyard_devices::testing::{GuestDriver, writable};
//! use labyard_devices::virtio::rng::Rng;
//!
//! let mut guest = GuestDriver::attach(Box::new(Rng::new())); // negotiated, queues set up, at work
//! let head = guest.offer(0, &[writable(0x1000, 16)]);
//! guest.kick(0);
//! assert_eq!(guest.used(0), [(head, 16)]);
//! assert!(!guest.needs_reset());
//! ```
//!
//! # The life of a device
//!
//! [`virtio::device::VirtioDevice`] is a device at rest, [`worker::Worker`] one at work, and two moves join them: `activate` takes
//! memory, queues and signals in, `deactivate` gives them back. A reset, a pause and a snapshot are that way back, so nothing is at
//! work and half set up. The [`host::Host`] runs workers: threads in the monitor, the caller's own thread in tests.
//! What of a device outlives both is a handle that its owner keeps, such as [`virtio::block::handle::Handle`],
//! [`virtio::net::Link`] or [`virtio::balloon::BalloonControl`].
//!
//! # Errors
//!
//! There are three kinds, and each stays where it belongs:
//!
//! - A request that makes no sense is the guest's mistake: it is answered as VIRTIO wants, counted by [`fault::Faults`], and logged
//!   at a limited rate.
//! - A ring that makes no sense is a [`worker::WorkerFault`]: that device stops and says DEVICE_NEEDS_RESET.
//! - What the host cannot do is an error of the backend (an I/O error to the guest), or of whoever builds the device.
//!
//! # The map
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
