//! virtio-vsock (VIRTIO 1.2, §5.10): stream connections between the host and the guest, each one end of a Unix stream.
//!
//! ```text
//!   Host::connect(port) ──▶ [commands] ──▶ worker ── REQUEST ──▶ guest ── RESPONSE ──▶ stream handed over
//!   guest connects      ── REQUEST ──▶ worker ──▶ Incoming::accept(port) ──▶ RESPONSE or RST
//! ```
//!
//! The worker owns every connection. What it waits on changes, so all streams are behind one epoll descriptor of its own, which
//! also gives each its turn. Everything is bounded: connections, bytes that wait for a host stream, packets that wait for the
//! guest's buffers; nothing is looked through for a packet.
//!
//! Connections outlast a stop for a save, and end with a reset. A restored device has none: it tells its driver so
//! (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET).

mod connection;
#[cfg(test)]
mod hostile;
mod hub;
pub mod packet;
mod streams;
#[cfg(test)]
mod tests;
mod worker;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceState, DeviceType, Refused, StateError, VirtioDevice, wrong_queues};
use crate::counters::{Counters, Set};
use crate::fault::Faults;
use crate::worker::{Activation, Worker};
pub use hub::{ConnectError, Hub};

/// System calls beside what all devices make ([`crate::virtio::registry::Entry::calls`]).
pub(super) const CALLS: &[&str] =
    &["socketpair:AF_UNIX stream", "epoll_create1", "ioctl:FIONBIO", "recvfrom", "sendto", "shutdown"];
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 128;
/// The host's context id (§5.10.4, VMADDR_CID_HOST).
pub const HOST_CID: u64 = 2;
/// Connections of one guest at most.
pub const MAX_CONNECTIONS: usize = 4096;

/// What is counted: connections by who began them, connections that were refused or broken off, and bytes by direction.
#[derive(Clone, Copy)]
enum Count {
    FromGuest,
    FromHost,
    Resets,
    BytesToHost,
    BytesToGuest,
}

impl Count {
    const NAMES: [&str; 5] = ["from_guest", "from_host", "resets", "bytes_to_host", "bytes_to_guest"];
}

/// Decides about connections that the guest opens.
pub trait Incoming: Send {
    /// One end of a stream for the guest's connection to `port` of the host; `None` refuses it.
    fn accept(&mut self, port: u32) -> Option<UnixStream>;
}

/// A vsock device at rest.
pub struct Vsock {
    cid: u64,
    hub: Arc<Hub>,
    incoming: Box<dyn Incoming>,
    faults: Faults,
    counts: Arc<Set<{ Count::NAMES.len() }>>,
    /// What the worker had when it stopped without a reset.
    kept: Option<worker::Traffic>,
    /// The driver's connections were another device's.
    restored: bool,
}

impl Vsock {
    /// The device of the guest with context id `cid`. Connections to the guest are asked for at `hub`.
    pub fn new(cid: u32, hub: Arc<Hub>, incoming: Box<dyn Incoming>) -> Self {
        let (faults, counts) = (Faults::new("vsock"), Arc::new(Set::new(Count::NAMES)));
        Self { cid: cid.into(), hub, incoming, faults, counts, kept: None, restored: false }
    }
}

impl VirtioDevice for Vsock {
    fn info(&self) -> DeviceInfo {
        // struct virtio_vsock_config, §5.10.4: guest_cid.
        let config = self.cid.to_le_bytes().to_vec();
        DeviceInfo {
            device_type: DeviceType::Vsock,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE; 3],
            config: ConfigSpace::new(config),
        }
    }

    fn activate(self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let Some((queues, mem, irq)) = with.queues() else { return Err(wrong_queues(self)) };
        worker::VsockWorker::start(*self, queues, mem, irq).map(|worker| Box::new(worker) as _)
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn counters(&self) -> Counters {
        Counters::of_faults(&self.faults).and(Arc::clone(&self.counts) as _)
    }

    fn reset(&mut self) {
        // Streams close, and who waits for an answer hears that nobody is there.
        self.hub.set_at_work(false);
        (self.kept, self.restored) = (None, false);
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        state.bytes_of(DeviceType::Vsock, 0, "bytes where none belong")?;
        self.restored = true;
        Ok(())
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.hub.set_at_work(false);
    }
}

/// A device that refuses every connection, for tests and fuzzing.
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), expect(clippy::expect_used, reason = "for tests and fuzzing"))]
pub(super) fn sample() -> Vsock {
    struct Nobody;
    impl Incoming for Nobody {
        fn accept(&mut self, port: u32) -> Option<UnixStream> {
            port.is_multiple_of(2).then(|| UnixStream::pair().expect("a socket pair").0)
        }
    }
    Vsock::new(3, Hub::new().expect("an eventfd"), Box::new(Nobody))
}
