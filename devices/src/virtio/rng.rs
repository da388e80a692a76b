//! virtio-rng: fills the guest's buffers with host randomness (VIRTIO 1.2, §5.4).
//!
//! One queue of device-writable buffers. The worker owns the queue; nothing is shared, so there is no lock.
//! The guest chooses the buffer length, so one request yields at most [`MAX_REQUEST`] bytes.

use std::io;
use std::sync::Arc;

use super::chain::{Chain, RingFault};
use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceType, Refused, VirtioDevice, wrong_queues};
use crate::Memory;
use crate::fault::Faults;
use crate::irq::Interrupt;
use crate::worker::{Activation, ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes that one request yields at most; the driver asks again for more.
pub const MAX_REQUEST: usize = 4096;

/// Where the random bytes come from.
pub trait Entropy: Send {
    /// Fills all of `into`.
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()>;
}

/// The kernel's generator.
pub struct HostEntropy;

impl Entropy for HostEntropy {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        labyard_sys::random::fill(into)
    }
}

/// An entropy device at rest.
pub struct Rng {
    entropy: Box<dyn Entropy>,
    faults: Faults,
}

impl Rng {
    /// A device that yields the host's randomness.
    pub fn new() -> Self {
        Self::with_entropy(Box::new(HostEntropy))
    }

    /// A device that yields what `entropy` gives.
    pub fn with_entropy(entropy: Box<dyn Entropy>) -> Self {
        Self { entropy, faults: Faults::new("rng") }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_type: DeviceType::Rng,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            config: ConfigSpace::new(Vec::new()),
        }
    }

    fn activate(self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let Some(([queue], mem, irq)) = with.queues() else { return Err(wrong_queues(self)) };
        let chain = Chain::with_capacity(queue.ring.size());
        Ok(Box::new(RngWorker { rng: *self, queue, mem, irq, chain, buffer: Box::new([0; MAX_REQUEST]) }))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }
}

struct RngWorker {
    rng: Rng,
    queue: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    buffer: Box<[u8; MAX_REQUEST]>,
}

impl RngWorker {
    fn serve(&mut self) -> Result<(), RingFault> {
        let ring = &mut self.queue.ring;
        loop {
            while ring.pop(&self.mem, &mut self.chain, &self.rng.faults)? {
                let want = usize::try_from(self.chain.writable_len()).unwrap_or(MAX_REQUEST).min(MAX_REQUEST);
                let mut written = 0;
                match self.buffer.get_mut(..want) {
                    Some(part) if want > 0 && self.chain.readable_len() == 0 => match self.rng.entropy.fill(part) {
                        Ok(()) => written = self.chain.write_at(&self.mem, 0, part),
                        Err(error) => log::error!("rng: the host's generator: {error}"),
                    },
                    _ => self.rng.faults.note("a request with nothing to fill, or with bytes for the device"),
                }
                ring.complete(&self.mem, self.chain.head(), u32::try_from(written).unwrap_or(0))?;
            }
            if !ring.enable_kicks(&self.mem)? {
                break;
            }
        }
        ring.signal_if_needed(&self.mem, &*self.irq)
    }
}

impl Worker for RngWorker {
    fn sources(&self) -> Vec<Source> {
        vec![self.queue.source()]
    }

    fn on_event(&mut self, _: Token) -> Result<(), WorkerFault> {
        self.queue.take_kick();
        self.serve().map_err(|source| WorkerFault::Ring { queue: 0, source })
    }

    fn deactivate(self: Box<Self>) -> Rest {
        Rest { device: Box::new(self.rng), queues: vec![self.queue] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GuestDriver, readable, writable};

    struct Repeat(u8);

    impl Entropy for Repeat {
        fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
            into.fill(self.0);
            Ok(())
        }
    }

    fn guest() -> GuestDriver {
        GuestDriver::attach(Box::new(Rng::with_entropy(Box::new(Repeat(0xab)))))
    }

    #[test]
    fn a_buffer_comes_back_full() {
        let mut guest = guest();
        let head = guest.offer(0, &[writable(0x1000, 32), writable(0x2000, 32)]);
        guest.kick(0);
        assert_eq!(guest.used(0), [(head, 64)]);
        assert_eq!(guest.bytes(0x2000, 33), [[0xab; 32].as_slice(), &[0]].concat());
        assert_eq!(guest.interrupts(), 1);
    }

    #[test]
    fn one_request_yields_at_most_4096_bytes() {
        let mut guest = guest();
        let head = guest.offer(0, &[writable(0x1000, 1 << 20)]);
        guest.kick(0);
        assert_eq!(guest.used(0), [(head, 4096)]);
    }

    #[test]
    fn requests_that_cannot_be_filled_come_back_empty_and_are_counted() {
        for buffers in [vec![readable(0x1000, 8)], vec![readable(0x1000, 8), writable(0x2000, 8)], vec![writable(0, 0)]]
        {
            let mut guest = guest();
            let head = guest.offer(0, &buffers);
            guest.kick(0);
            assert_eq!((guest.used(0), guest.faults()), (vec![(head, 0)], 1), "{buffers:?}");
        }
    }
}
