//! virtio-balloon (VIRTIO 1.2, §5.5): memory that a guest does not need goes back to the host.
//!
//! ```text
//!   free page reporting   the guest names free pages by itself, whenever its driver can
//!   the balloon           the guest fills it to the size that the host asks for ([`BalloonControl::set_target_pages`])
//!   statistics            the guest's buffer waits here until the host wants news
//! ```
//!
//! Pages are the guest's claim: only whole ones within its own memory are given back. A guest that names pages which it uses
//! loses their content, which is its own.
//!
//! A machine whose memory the host cannot take back gets a balloon for its statistics alone ([`Balloon::without_reclaim`]).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddress, GuestMemory, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::{Chain, RingFault};
use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceState, DeviceType, Refused, StateError, VirtioDevice, wrong_queues};
use crate::Memory;
use crate::counters::{Counters, Snapshot};
use crate::fault::Faults;
use crate::irq::{Interrupt, Line};
use crate::worker::{Activation, ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// System calls beside what all devices make ([`crate::virtio::registry::Entry::calls`]).
pub(super) const CALLS: &[&str] = &["fallocate", "madvise:MADV_NOHUGEPAGE"];
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 128;
/// Queues at most (§5.5.2).
const QUEUES: usize = 5;
/// Bytes of a page, whatever the guest's own pages are (§5.5.6, VIRTIO_BALLOON_PFN_SHIFT).
pub const PAGE_BYTES: u64 = 4096;
/// Pages that one request names at most; Linux names 256.
const MAX_PAGES: u64 = 1 << 16;
/// Bytes of page numbers that are looked at together.
const CHUNK: usize = 4096;
const CHUNK_PAGES: usize = CHUNK / 4;
/// Requests that are served before the machine's other devices have their turn.
const MAX_TURN: u32 = 64;

/// VIRTIO_BALLOON_F_STATS_VQ, §5.5.3.
const F_STATS_VQ: u64 = 1 << 1;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: the guest may take pages back when it runs out of memory.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_REPORTING.
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Token of the host's wishes.
const WISHES: Token = QUEUES as Token;

/// struct virtio_balloon_config, §5.5.4: num_pages, actual. What follows belongs to features that are not offered.
const CONFIG_BYTES: usize = 8;
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;

/// Names of the statistics by their tag (§5.5.6.4).
pub const STATISTICS: [&str; 10] = [
    "swapped-in-bytes",
    "swapped-out-bytes",
    "major-faults",
    "minor-faults",
    "free-bytes",
    "total-bytes",
    "available-bytes",
    "cached-bytes",
    "huge-pages-allocated",
    "huge-pages-failed",
];
/// struct virtio_balloon_stat: a tag of 16 bits and a value of 64.
const STATISTIC_BYTES: usize = 10;
/// Bytes of statistics that are looked at: each of today's and tomorrow's tags once.
const MAX_STATISTICS_BYTES: usize = 32 * STATISTIC_BYTES;

/// Takes memory from a guest.
pub trait Reclaim: Send {
    /// Gives `len_bytes` from guest address `start` back to the host: whole pages, all of them in `mem`. What the guest
    /// finds there later is not defined, but its own.
    ///
    /// # Errors
    /// The memory is still the guest's.
    fn give_back(&mut self, mem: &Memory, start: u64, len_bytes: u64) -> io::Result<()>;

    /// A driver begins anew, perhaps over other memory.
    fn begin(&mut self) {}
}

/// The host's hand on a balloon.
pub struct BalloonControl {
    config: ConfigSpace,
    wake: EventFd,
    resized: AtomicBool,
    asked: AtomicBool,
    given_back: AtomicU64,
    /// As last told, by tag. No other lock is taken under it.
    statistics: Mutex<[Option<u64>; STATISTICS.len()]>,
}

impl BalloonControl {
    /// Asks the guest to fill or empty the balloon to this many pages of 4 KiB.
    pub fn set_target_pages(&self, pages: u32) {
        self.config.update(NUM_PAGES, &pages.to_le_bytes());
        self.resized.store(true, Ordering::SeqCst);
        self.wake.raise();
    }

    /// What the host has asked for.
    pub fn target_pages(&self) -> u32 {
        self.field(NUM_PAGES)
    }

    /// What the guest says is in the balloon; a claim.
    pub fn actual_pages(&self) -> u32 {
        self.field(ACTUAL)
    }

    /// Bytes that went back to the host since the machine was made, reported free or put into the balloon. Pages that the
    /// guest used again in between count each time.
    pub fn given_back_bytes(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }

    /// What the guest has said of its memory when it was asked last, and asks it again. Nothing where its driver tells nothing.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        self.asked.store(true, Ordering::SeqCst);
        self.wake.raise();
        STATISTICS.into_iter().zip(*self.lock()).filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn field(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.config.read(offset as u64, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, [Option<u64>; STATISTICS.len()]> {
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot for BalloonControl {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        vec![("given_back_bytes", self.given_back_bytes())]
    }
}

/// A balloon at rest.
pub struct Balloon {
    control: Arc<BalloonControl>,
    /// Nothing where memory stays with the guest.
    reclaim: Option<Box<dyn Reclaim>>,
    faults: Faults,
    /// The host's failure to take memory was logged.
    failed: bool,
}

impl Balloon {
    /// An empty balloon.
    ///
    /// # Errors
    /// No eventfd was to be had.
    pub fn new(reclaim: Box<dyn Reclaim>) -> io::Result<Self> {
        Self::with(Some(reclaim))
    }

    /// A balloon that takes nothing and asks for no reports.
    ///
    /// # Errors
    /// No eventfd was to be had.
    pub fn without_reclaim() -> io::Result<Self> {
        Self::with(None)
    }

    fn with(reclaim: Option<Box<dyn Reclaim>>) -> io::Result<Self> {
        let control = BalloonControl {
            config: ConfigSpace::with_writable(vec![0; CONFIG_BYTES], ACTUAL..CONFIG_BYTES)?,
            wake: EventFd::new(EFD_NONBLOCK)?,
            resized: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            given_back: AtomicU64::new(0),
            statistics: Mutex::default(),
        };
        Ok(Self { control: Arc::new(control), reclaim, faults: Faults::new("balloon"), failed: false })
    }

    /// The host's hand on it.
    pub fn control(&self) -> Arc<BalloonControl> {
        Arc::clone(&self.control)
    }

    /// Gives whole pages back, or notes that they are not the guest's.
    fn give(&mut self, mem: &Memory, start: u64, len_bytes: u64) {
        let fits = usize::try_from(len_bytes)
            .is_ok_and(|len| len > 0 && mem.check_range(GuestAddress(start), len, Permissions::Write));
        if !fits {
            return self.faults.note(format_args!("{len_bytes} bytes at {start:#x} are not in memory"));
        }
        let Some(reclaim) = &mut self.reclaim else { return };
        match reclaim.give_back(mem, start, len_bytes) {
            Ok(()) => {
                self.control.given_back.fetch_add(len_bytes, Ordering::Relaxed);
            }
            Err(error) if !self.failed => {
                self.failed = true;
                log::error!("balloon: taking {len_bytes} bytes at {start:#x} from the guest: {error}");
            }
            Err(_) => {}
        }
    }
}

impl VirtioDevice for Balloon {
    fn info(&self) -> DeviceInfo {
        let reports = if self.reclaim.is_some() { F_PAGE_REPORTING } else { 0 };
        DeviceInfo {
            device_type: DeviceType::Balloon,
            features: F_STATS_VQ | F_DEFLATE_ON_OOM | reports,
            queue_sizes: vec![QUEUE_SIZE; QUEUES],
            config: self.control.config.clone(),
        }
    }

    fn activate(mut self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let features = with.features;
        let Some((queues, mem, irq)) = with.queues::<QUEUES>() else { return Err(wrong_queues(self)) };
        if let Some(reclaim) = &mut self.reclaim {
            reclaim.begin();
        }
        Ok(Box::new(BalloonWorker {
            balloon: *self,
            features,
            queues: queues.into(),
            mem,
            irq,
            chain: Chain::with_capacity(QUEUE_SIZE),
            bytes: Box::new([0; CHUNK]),
            pages: Vec::with_capacity(CHUNK_PAGES),
            held: None,
        }))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn counters(&self) -> Counters {
        Counters::of_faults(&self.faults).and(Arc::clone(&self.control) as _)
    }

    fn reset(&mut self) {
        // A driver that begins anew has an empty balloon and has said nothing.
        self.control.config.update(ACTUAL, &[0; 4]);
        *self.control.lock() = Default::default();
    }

    fn save(&self) -> DeviceState {
        let bytes = [self.control.target_pages(), self.control.actual_pages()];
        let bytes = bytes.into_iter().flat_map(u32::to_le_bytes).collect();
        DeviceState { device_type: DeviceType::Balloon, version: 1, bytes }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let bytes = state.bytes_of(DeviceType::Balloon, CONFIG_BYTES, "not a target and an actual size")?;
        self.control.config.update(NUM_PAGES, bytes);
        Ok(())
    }
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reports,
}

/// §5.5.2 numbers the queues 0 to 4 whatever was agreed on; Linux leaves out the numbers of those that do not exist, so that
/// its reports come on queue 3 here. Statistics have one number by both ways where there are any, and only reports remain.
fn role_of(queue: usize, features: u64) -> Option<Role> {
    match queue {
        0 => Some(Role::Inflate),
        1 => Some(Role::Deflate),
        2 if features & F_STATS_VQ != 0 => Some(Role::Statistics),
        _ if features & F_PAGE_REPORTING != 0 => Some(Role::Reports),
        _ => None,
    }
}

struct BalloonWorker {
    balloon: Balloon,
    features: u64,
    queues: Vec<ActiveQueue>,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    /// Page numbers as they lie in memory, and as numbers. Reused, so that nothing is allocated.
    bytes: Box<[u8; CHUNK]>,
    pages: Vec<u32>,
    /// The statistics' chain, with us until news is wanted (§5.5.6.3): the number of its queue and its head.
    held: Option<(usize, u16)>,
}

impl BalloonWorker {
    fn serve(&mut self, number: usize) -> Result<(), RingFault> {
        let role = role_of(number, self.features);
        let mut turn = 0u32;
        loop {
            if role == Some(Role::Statistics) && self.held.is_some() {
                break;
            }
            let Some(queue) = self.queues.get_mut(number) else { return Ok(()) };
            if turn == MAX_TURN {
                queue.kick.raise();
                break;
            }
            if !queue.ring.pop(&self.mem, &mut self.chain, &self.balloon.faults)? {
                if queue.ring.enable_kicks(&self.mem)? {
                    continue;
                }
                break;
            }
            turn = turn.saturating_add(1);
            match role {
                Some(Role::Inflate) => self.inflate(),
                // The guest takes them back by using them.
                Some(Role::Deflate) => {}
                Some(Role::Reports) => self.report(),
                Some(Role::Statistics) => {
                    self.learn();
                    self.held = Some((number, self.chain.head()));
                    continue;
                }
                None => self.balloon.faults.note(format_args!("a request on queue {number}, which has no use")),
            }
            self.give_head_back(number, self.chain.head())?;
        }
        self.signal(number)
    }

    fn give_head_back(&mut self, number: usize, head: u16) -> Result<(), RingFault> {
        match self.queues.get_mut(number) {
            Some(queue) => queue.ring.complete(&self.mem, head, 0),
            None => Ok(()),
        }
    }

    fn signal(&mut self, number: usize) -> Result<(), RingFault> {
        match self.queues.get_mut(number) {
            Some(queue) => queue.ring.signal_if_needed(&self.mem, &*self.irq),
            None => Ok(()),
        }
    }

    /// Pages by number (§5.5.6): an array of 32-bit numbers.
    fn inflate(&mut self) {
        let len = self.chain.readable_len();
        let whole = len.checked_rem(4) == Some(0) && (4..=MAX_PAGES.saturating_mul(4)).contains(&len);
        if !whole || self.chain.writable_len() > 0 {
            return self.balloon.faults.note(format_args!("{len} bytes of page numbers"));
        }
        let mut offset = 0u64;
        loop {
            let n = self.chain.read_at(&self.mem, offset, &mut *self.bytes);
            let (numbers, _) = self.bytes.get(..n).unwrap_or_default().as_chunks::<4>();
            self.pages.clear();
            self.pages.extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
            self.pages.sort_unstable();
            for run in self.pages.chunk_by(|page, next| next.saturating_sub(*page) <= 1) {
                let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
                let pages = u64::from(last.saturating_sub(*first)).saturating_add(1);
                let start = u64::from(*first).saturating_mul(PAGE_BYTES);
                self.balloon.give(&self.mem, start, pages.saturating_mul(PAGE_BYTES));
            }
            offset = offset.saturating_add(n as u64);
            if n == 0 || offset >= len {
                return;
            }
        }
    }

    /// Free pages (§5.5.6.7): each buffer is a range of them, which is the guest's own again when it comes back.
    fn report(&mut self) {
        if self.chain.readable_len() > 0 || self.chain.writable_len() == 0 {
            return self.balloon.faults.note("a report of free pages with bytes for the device, or of none");
        }
        for (address, len) in self.chain.writable_ranges() {
            let end = address.saturating_add(len.into());
            let end = end & !(PAGE_BYTES.saturating_sub(1));
            // An empty buffer may have any address.
            let start = address.checked_next_multiple_of(PAGE_BYTES);
            match start.and_then(|start| Some((start, end.checked_sub(start)?))) {
                Some((start, whole)) if whole > 0 => self.balloon.give(&self.mem, start, whole),
                _ => self.balloon.faults.note(format_args!("a free page of {len} bytes at {address:#x}")),
            }
        }
    }

    /// The guest's statistics (§5.5.6.4): pairs of a tag and a value. What we have no name for is left.
    fn learn(&mut self) {
        let len = self.chain.readable_len();
        if len > MAX_STATISTICS_BYTES as u64 || len.checked_rem(STATISTIC_BYTES as u64) != Some(0) {
            self.balloon.faults.note(format_args!("{len} bytes of statistics"));
            return;
        }
        let mut told = [0; MAX_STATISTICS_BYTES];
        let n = self.chain.read_at(&self.mem, 0, &mut told);
        let (entries, _) = told.get(..n).unwrap_or_default().as_chunks::<STATISTIC_BYTES>();
        let mut known = self.balloon.control.lock();
        for [t0, t1, value @ ..] in entries {
            if let Some(place) = known.get_mut(usize::from(u16::from_le_bytes([*t0, *t1]))) {
                *place = Some(u64::from_le_bytes(*value));
            }
        }
    }

    fn wishes(&mut self) -> Result<(), RingFault> {
        let control = Arc::clone(&self.balloon.control);
        let _ = control.wake.read(); // taken already is as good
        if control.resized.swap(false, Ordering::SeqCst) {
            self.irq.signal_config();
        }
        if control.asked.swap(false, Ordering::SeqCst)
            && let Some((number, head)) = self.held.take()
        {
            self.give_head_back(number, head)?;
            return self.serve(number);
        }
        Ok(())
    }
}

impl Worker for BalloonWorker {
    fn sources(&self) -> Vec<Source> {
        let wishes = Source { fd: self.balloon.control.wake.as_raw_fd(), token: WISHES };
        self.queues.iter().map(ActiveQueue::source).chain([wishes]).collect()
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        let number = token as usize;
        let done = match self.queues.get(number) {
            Some(queue) => {
                queue.take_kick();
                self.serve(number)
            }
            None => self.wishes(),
        };
        let queue = u16::try_from(token).unwrap_or(u16::MAX);
        done.map_err(|source| WorkerFault::Ring { queue, source })
    }

    fn deactivate(mut self: Box<Self>) -> Rest {
        if let Some((number, _)) = self.held.take()
            && let Some(queue) = self.queues.get_mut(number)
        {
            // No other chain of this queue was taken since.
            queue.ring.put_back();
        }
        Rest { device: Box::new(self.balloon), queues: self.queues }
    }
}

/// A balloon whose pages go nowhere, for tests and fuzzing.
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), expect(clippy::expect_used, reason = "for tests and fuzzing"))]
pub(super) fn sample() -> Balloon {
    struct Nowhere;
    impl Reclaim for Nowhere {
        fn give_back(&mut self, _: &Memory, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
    }
    let balloon = Balloon::new(Box::new(Nowhere)).expect("eventfds");
    balloon.control().set_target_pages(256);
    balloon
}

#[cfg(test)]
mod tests;
