//! virtio-rng: fills the guest's buffers with host randomness (VIRTIO 1.2, §5.4).
//!
//! One queue of device-writable buffers. The worker owns the queue; nothing is shared, so there is no lock.
//! The guest chooses the buffer length, so one request yields at most [`MAX_REQUEST`] bytes, and all requests together no more
//! than a [`Rate`]: what is beyond waits in the queue until a timer says that there is more.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::chain::{Chain, RingFault};
use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceType, Refused, VirtioDevice, wrong_queues};
use crate::Memory;
use crate::counters::{Counters, Set};
use crate::fault::Faults;
use crate::irq::{Interrupt, Line};
use crate::worker::{Activation, ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes that one request yields at most; the driver asks again for more.
pub const MAX_REQUEST: usize = 4096;

/// Requests that are served before the machine's other devices have their turn.
const MAX_TURN: u32 = 64;

const TIMER: Token = 1;

/// What is counted, as positions: requests, their bytes, and how often the guest had to wait for its rate.
const COUNTS: [&str; 3] = ["requests", "bytes", "waits"];
const REQUESTS: usize = 0;
const BYTES: usize = 1;
const WAITS: usize = 2;

/// How many bytes a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once, after a rest; never less than [`MAX_REQUEST`].
    pub burst_bytes: u64,
    /// In the long run.
    pub bytes_per_second: u64,
}

/// Enough to seed hundreds of generators a second, and far below what the host's yields.
pub const DEFAULT_RATE: Rate = Rate { burst_bytes: 256 << 10, bytes_per_second: 1 << 20 };

/// What is left of a [`Rate`].
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    bytes: u64,
    filled: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        let burst_bytes = rate.burst_bytes.max(MAX_REQUEST as u64);
        let rate = Rate { burst_bytes, bytes_per_second: rate.bytes_per_second.max(1) };
        Self { rate, bytes: burst_bytes, filled: now }
    }

    /// Whether `bytes` are there; else how long it takes until they are.
    fn has(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let micros = u64::try_from(now.saturating_duration_since(self.filled).as_micros()).unwrap_or(u64::MAX);
        let new = micros.saturating_mul(self.rate.bytes_per_second).checked_div(1_000_000).unwrap_or(0);
        if new > 0 {
            self.bytes = self.bytes.saturating_add(new).min(self.rate.burst_bytes);
            self.filled = now;
        }
        match bytes.checked_sub(self.bytes) {
            None | Some(0) => Ok(()),
            Some(missing) => {
                let micros = missing.saturating_mul(1_000_000).checked_div(self.rate.bytes_per_second);
                // Rounded up, and never nothing, which would stop a timer.
                Err(Duration::from_micros(micros.unwrap_or(0).saturating_add(1)))
            }
        }
    }

    fn take(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

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
        let (faults, counts) = (Faults::new("rng"), Arc::new(Set::new(COUNTS)));
        Self { entropy, bucket: Bucket::full(rate, Instant::now()), faults, counts }
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
        let timer = match TimerFd::new() {
            Ok(timer) => timer,
            Err(error) => return Err(Refused { why: format!("a timer: {error}"), device: self }),
        };
        let chain = Chain::with_capacity(queue.ring.size());
        Ok(Box::new(RngWorker { rng: *self, timer, queue, mem, irq, chain, buffer: Box::new([0; MAX_REQUEST]) }))
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
    /// Fires when the bucket has enough for a request again.
    timer: TimerFd,
    queue: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    buffer: Box<[u8; MAX_REQUEST]>,
}

impl RngWorker {
    fn serve(&mut self) -> Result<(), RingFault> {
        let ActiveQueue { ring, kick } = &mut self.queue;
        let mut turn = 0u32;
        loop {
            // Whatever it asks for, a request finds enough: it is not taken before.
            if let Err(wait) = self.rng.bucket.has(MAX_REQUEST as u64, Instant::now()) {
                self.rng.counts.add(WAITS, 1);
                if let Err(error) = self.timer.reset(wait, None) {
                    log::error!("rng: setting its timer: {error}");
                }
                break;
            }
            if turn == MAX_TURN {
                kick.raise();
                break;
            }
            if !ring.pop(&self.mem, &mut self.chain, &self.rng.faults)? {
                if ring.enable_kicks(&self.mem)? {
                    continue;
                }
                break;
            }
            turn = turn.saturating_add(1);
            let want = usize::try_from(self.chain.writable_len()).unwrap_or(MAX_REQUEST).min(MAX_REQUEST);
            let mut written = 0;
            match self.buffer.get_mut(..want) {
                Some(part) if want > 0 && self.chain.readable_len() == 0 => match self.rng.entropy.fill(part) {
                    Ok(()) => written = self.chain.write_at(&self.mem, 0, part),
                    Err(error) => log::error!("rng: the host's generator: {error}"),
                },
                _ => self.rng.faults.note("a request with nothing to fill, or with bytes for the device"),
            }
            self.rng.bucket.take(written as u64);
            self.rng.counts.add(REQUESTS, 1);
            self.rng.counts.add(BYTES, written as u64);
            ring.complete(&self.mem, self.chain.head(), u32::try_from(written).unwrap_or(0))?;
        }
        ring.signal_if_needed(&self.mem, &*self.irq)
    }
}

impl Worker for RngWorker {
    fn sources(&self) -> Vec<Source> {
        vec![self.queue.source(), Source { fd: self.timer.as_raw_fd(), token: TIMER }]
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        if token == TIMER {
            // One shot; setting it to nothing also takes what it has told.
            if let Err(error) = self.timer.clear() {
                log::error!("rng: stopping its timer: {error}");
            }
        } else {
            self.queue.take_kick();
        }
        self.serve().map_err(|source| WorkerFault::Ring { queue: 0, source })
    }

    fn deactivate(self: Box<Self>) -> Rest {
        Rest { device: Box::new(self.rng), queues: vec![self.queue] }
    }
}

#[cfg(test)]
mod tests;
