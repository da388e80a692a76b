//! virtio-rng: fills the guest's buffers with host randomness (VIRTIO 1.2, §5.4).
//!
//! One queue of device-writable buffers. The worker owns the queue; nothing is shared, so there is no lock.
//! The guest chooses the buffer length, so one request yields at most [`MAX_REQUEST`] bytes, and all requests together no more
//! than a [`Rate`]: what is beyond waits until its limiter lets it through.

use std::io;
use std::sync::Arc;

use super::chain::{Chain, RingFault};
use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceType, Refused, VirtioDevice, wrong_queues};
use crate::Memory;
use crate::counters::{Counters, Set};
use crate::fault::Faults;
use crate::irq::{Interrupt, Line};
use crate::limiter::{Bucket, Limiter, Limits, Rate};
use crate::worker::{Activation, ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// System calls beside what all devices make ([`crate::virtio::registry::Entry::calls`]).
pub(super) const CALLS: &[&str] = &["getrandom", "timerfd_create", "timerfd_settime"];
/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes that one request yields at most; the driver asks again for more.
pub const MAX_REQUEST: usize = 4096;

/// Requests that are served before the machine's other devices have their turn.
const MAX_TURN: u32 = 64;

/// Token of the limit: a request that was held back may go.
const ADMISSION: Token = 1;

/// Bytes that a guest gets: enough to seed hundreds of generators a second, and far below what the host's yields.
pub const DEFAULT_RATE: Rate = Rate { per_second: 1 << 20, burst: 256 << 10 };

/// What is counted, as positions: requests, their bytes, and how often the guest had to wait for its rate.
const COUNTS: [&str; 3] = ["requests", "bytes", "waits"];
const REQUESTS: usize = 0;
const BYTES: usize = 1;
const WAITS: usize = 2;

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
    /// Kept over resets, which renew no guest's share.
    bucket: Bucket,
    faults: Faults,
    counts: Arc<Set<{ COUNTS.len() }>>,
}

impl Rng {
    /// A device that yields the host's randomness.
    pub fn new() -> Self {
        Self::with_entropy(Box::new(HostEntropy), DEFAULT_RATE)
    }

    /// A device that yields what `entropy` gives, `rate` of it.
    pub fn with_entropy(entropy: Box<dyn Entropy>, rate: Rate) -> Self {
        let bucket = Bucket::new(Limits { bytes: Some(rate), operations: None });
        Self { entropy, bucket, faults: Faults::new("rng"), counts: Arc::new(Set::new(COUNTS)) }
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
        let limiter = match Limiter::new(vec![self.bucket.clone()]) {
            Ok(limiter) => limiter,
            Err(error) => return Err(Refused { why: format!("a timer: {error}"), device: self }),
        };
        let (chain, buffer) = (Chain::with_capacity(queue.ring.size()), Box::new([0; MAX_REQUEST]));
        Ok(Box::new(RngWorker { rng: *self, limiter, queue, mem, irq, chain, held: false, buffer }))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn counters(&self) -> Counters {
        Counters::of_faults(&self.faults).and(Arc::clone(&self.counts) as _)
    }
}

struct RngWorker {
    rng: Rng,
    limiter: Limiter,
    queue: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    /// The chain has a request that the limit has not let through yet.
    held: bool,
    buffer: Box<[u8; MAX_REQUEST]>,
}

impl RngWorker {
    fn serve(&mut self) -> Result<(), RingFault> {
        let ActiveQueue { ring, kick } = &mut self.queue;
        let mut turn = 0u32;
        loop {
            if turn == MAX_TURN {
                kick.raise();
                break;
            }
            if !self.held && !ring.pop(&self.mem, &mut self.chain, &self.rng.faults)? {
                if ring.enable_kicks(&self.mem)? {
                    continue;
                }
                break;
            }
            let want = usize::try_from(self.chain.writable_len()).unwrap_or(MAX_REQUEST).min(MAX_REQUEST);
            self.held = !self.limiter.admit(want as u64);
            if self.held {
                self.rng.counts.add(WAITS, 1);
                break;
            }
            turn = turn.saturating_add(1);
            let mut written = 0;
            match self.buffer.get_mut(..want) {
                Some(part) if want > 0 && self.chain.readable_len() == 0 => match self.rng.entropy.fill(part) {
                    Ok(()) => written = self.chain.write_at(&self.mem, 0, part),
                    Err(error) => log::error!("rng: the host's generator: {error}"),
                },
                _ => self.rng.faults.note("a request with nothing to fill, or with bytes for the device"),
            }
            self.rng.counts.add(REQUESTS, 1);
            self.rng.counts.add(BYTES, written as u64);
            ring.complete(&self.mem, self.chain.head(), u32::try_from(written).unwrap_or(0))?;
        }
        ring.signal_if_needed(&self.mem, &*self.irq)
    }
}

impl Worker for RngWorker {
    fn sources(&self) -> Vec<Source> {
        vec![self.queue.source(), Source { fd: self.limiter.source(), token: ADMISSION }]
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        if token == ADMISSION {
            self.limiter.woken()
        } else {
            self.queue.take_kick()
        }
        self.serve().map_err(|source| WorkerFault::Ring { queue: 0, source })
    }

    fn deactivate(mut self: Box<Self>) -> Rest {
        if self.held {
            // It was the last one that was taken.
            self.queue.ring.put_back();
        }
        Rest { device: Box::new(self.rng), queues: vec![self.queue] }
    }
}

#[cfg(test)]
mod tests;
