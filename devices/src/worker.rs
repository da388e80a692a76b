//! A device at work.
//!
//! ```text
//!            activate(Activation)
//!   VirtioDevice ───────────────▶ Worker ──▶ on_event(token) … on_event(token)
//!     (at rest) ◀───────────────    │
//!            deactivate(self)       └─ error or panic: the device stops, the guest sees DEVICE_NEEDS_RESET
//! ```
//!
//! A worker owns its queues and runs on one thread at a time; it waits for nothing itself but names the descriptors
//! to wait on.

use std::os::fd::RawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::Memory;
use crate::irq::Interrupt;
use crate::virtio::chain::{RingFault, VirtQueue};
use crate::virtio::device::VirtioDevice;

/// Which source of a worker is ready. Tokens below the number of queues are kicks.
pub type Token = u32;

/// A descriptor to wait on until it can be read, level-triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The descriptor; the worker keeps it open.
    pub fd: RawFd,
    /// What `on_event` is told.
    pub token: Token,
}

/// Everything that moves into a device when its driver has set it up.
pub struct Activation {
    /// The guest's memory.
    pub mem: Memory,
    /// Features that both sides have agreed on.
    pub features: u64,
    /// One for each queue of the device, in order.
    pub queues: Vec<ActiveQueue>,
    /// How to signal the guest.
    pub irq: Arc<dyn Interrupt>,
}

impl Activation {
    /// The queues as an array of the number that the device declared; `None` where the transport passed another number.
    pub fn queues<const N: usize>(self) -> Option<([ActiveQueue; N], Memory, Arc<dyn Interrupt>)> {
        let queues = self.queues.try_into().ok()?;
        Some((queues, self.mem, self.irq))
    }
}

/// A queue that its driver has set up, and the eventfd that the driver's notifications arrive on.
pub struct ActiveQueue {
    /// The ring.
    pub ring: VirtQueue,
    /// The kick.
    pub kick: Arc<EventFd>,
}

impl ActiveQueue {
    /// The kick as a source: its token is the number of the queue.
    pub fn source(&self) -> Source {
        Source { fd: std::os::fd::AsRawFd::as_raw_fd(&*self.kick), token: self.ring.index().into() }
    }

    /// Takes the kick back, so that a level-triggered wait sleeps again.
    pub fn take_kick(&self) {
        // WouldBlock: somebody else took it, which is as good.
        let _ = self.kick.read();
    }
}

/// What stops a device, but nothing else.
#[derive(Debug, thiserror::Error)]
pub enum WorkerFault {
    /// The ring itself cannot be trusted any more.
    #[error("queue {queue}")]
    Ring {
        /// Number of the queue.
        queue: u16,
        /// What is wrong with it.
        source: RingFault,
    },
    /// The host's side failed.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A device back at rest, with the queues that it gives back.
pub struct Rest {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Its queues, in order, with nothing in flight.
    pub queues: Vec<ActiveQueue>,
}

/// A device at work.
pub trait Worker: Send {
    /// What to wait on. Asked once, after activation; what changes later is behind an epoll descriptor of the worker.
    fn sources(&self) -> Vec<Source>;
    /// A source is ready.
    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault>;
    /// Back to rest: nothing is in flight any more, nothing that was taken from a queue is lost.
    fn deactivate(self: Box<Self>) -> Rest;
}

/// Waits until a descriptor of a backend can be read, for a worker that must not return before its requests have ended.
pub fn wait_readable(fd: RawFd) {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    let waited = Epoll::new().and_then(|epoll| {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        loop {
            // io_uring interrupts its own thread to complete a request.
            match epoll.wait(-1, &mut [EpollEvent::default()]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    });
    if let Err(error) = waited {
        log::error!("waiting for a backend: {error}");
    }
}
