//! How a device signals its guest.
//!
//! A device knows queues and configuration ([`Interrupt`]); a transport turns that into a line ([`Line`]), which in
//! production is an irqfd, so that a signal is one write to an eventfd that the kernel turns into an MSI.

use vmm_sys_util::eventfd::EventFd;

/// Signals of one virtio device (VIRTIO 1.2, §2.3).
pub trait Interrupt: Send + Sync {
    /// Buffers of `queue` were used.
    fn signal_queue(&self, queue: u16);
    /// The configuration changed.
    fn signal_config(&self);
    /// The device gave up and needs a reset (VIRTIO 1.2, §2.1.2).
    fn needs_reset(&self);
}

/// An edge-triggered line.
pub trait Line: Send + Sync {
    /// Raises one edge.
    fn raise(&self);
}

impl Line for EventFd {
    fn raise(&self) {
        // The counter could only be full after 2^64 - 2 signals that nobody took.
        if let Err(error) = self.write(1) {
            log::error!("raising an interrupt: {error}");
        }
    }
}
