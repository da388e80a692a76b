//! A NIC's place in a switch. It owns the NIC's receive queue.
//!
//! ```text
//!             plug(receiver)                    the receiver's ring is broken
//!   Unplugged ─────────────▶ Up ───────────────────────────────────▶ Broken
//!       ▲                    │                                         │
//!       └────── unplug ──────┴───────────────── unplug ────────────────┘
//! ```
//!
//! Without buffers from the guest, frames wait in a backlog that is counted in bytes; a full one drops the newest.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::PortSpec;
use super::frame::Frame;
use crate::Memory;
use crate::fault::Faults;
use crate::irq::Interrupt;
use crate::virtio::chain::{Chain, RingFault};
use crate::worker::ActiveQueue;

/// Bytes of frames that wait for a guest at most.
pub const MAX_BACKLOG_BYTES: usize = 256 << 10;

/// struct virtio_net_hdr of a device without offloads (VIRTIO 1.2, §5.1.6): all zero but num_buffers, which is 1.
const NET_HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// The receiving side of a NIC at work.
pub struct Receiver {
    /// Its receive queue.
    pub queue: ActiveQueue,
    /// Its guest's memory.
    pub mem: Memory,
    /// Its signals.
    pub irq: Arc<dyn Interrupt>,
    /// Its counter.
    pub faults: Faults,
    chain: Chain,
}

impl Receiver {
    /// The receiving side of a NIC.
    pub fn new(queue: ActiveQueue, mem: Memory, irq: Arc<dyn Interrupt>, faults: Faults) -> Self {
        let chain = Chain::with_capacity(queue.ring.size());
        Self { queue, mem, irq, faults, chain }
    }
}

enum Place {
    Unplugged,
    Up(Receiver),
    Broken(Receiver),
}

/// What the lock of a port guards.
struct Inbox {
    place: Place,
    backlog: VecDeque<Vec<u8>>,
    backlog_bytes: usize,
}

/// Frames and bytes of a port.
#[derive(Debug, Default)]
pub struct Counters {
    sent_frames: AtomicU64,
    sent_bytes: AtomicU64,
    received_frames: AtomicU64,
    dropped_frames: AtomicU64,
}

impl Counters {
    pub(super) fn sent(&self, bytes: u64) {
        self.sent_frames.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Frames from the guest that were forwarded.
    pub fn sent_frames(&self) -> u64 {
        self.sent_frames.load(Ordering::Relaxed)
    }

    /// Frames that the guest has got.
    pub fn received_frames(&self) -> u64 {
        self.received_frames.load(Ordering::Relaxed)
    }

    /// Frames for the guest that were dropped.
    pub fn dropped_frames(&self) -> u64 {
        self.dropped_frames.load(Ordering::Relaxed)
    }
}

/// A port.
pub struct Port {
    spec: PortSpec,
    counters: Counters,
    /// The receive queue and what waits for it. No other lock is taken under it.
    inbox: Mutex<Inbox>,
}

/// What became of one frame.
enum Delivery {
    Done,
    NoBuffer,
}

impl Port {
    pub(super) fn new(spec: PortSpec) -> Self {
        let inbox = Inbox { place: Place::Unplugged, backlog: VecDeque::new(), backlog_bytes: 0 };
        Self { spec, counters: Counters::default(), inbox: Mutex::new(inbox) }
    }

    /// What the switch knows of the NIC.
    pub fn spec(&self) -> PortSpec {
        self.spec
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The NIC goes to work.
    pub fn plug(&self, receiver: Receiver) {
        self.lock().place = Place::Up(receiver);
    }

    /// The NIC goes back to rest; what waited for it is dropped.
    pub fn unplug(&self) -> Option<Receiver> {
        let mut inbox = self.lock();
        let waiting = inbox.backlog.len() as u64;
        self.counters.dropped_frames.fetch_add(waiting, Ordering::Relaxed);
        inbox.backlog.clear();
        inbox.backlog_bytes = 0;
        match std::mem::replace(&mut inbox.place, Place::Unplugged) {
            Place::Up(receiver) | Place::Broken(receiver) => Some(receiver),
            Place::Unplugged => None,
        }
    }

    /// Delivers a frame; `true` where the guest has something new to look at. Called by the sender's thread.
    pub(super) fn deliver(&self, frame: &Frame<'_>) -> bool {
        // A panic here would be the receiver's, not the sender's.
        catch_unwind(AssertUnwindSafe(|| self.try_deliver(frame))).unwrap_or_else(|_| {
            self.break_down("a panic while delivering");
            false
        })
    }

    fn try_deliver(&self, frame: &Frame<'_>) -> bool {
        let mut inbox = self.lock();
        let Inbox { place, backlog, backlog_bytes } = &mut *inbox;
        let Place::Up(receiver) = place else {
            self.counters.dropped_frames.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        if backlog.is_empty() {
            match receiver.give(frame.len(), |chain, mem, offset| frame.copy_to(chain, mem, offset)) {
                Ok(Delivery::Done) => {
                    self.counters.received_frames.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
                Ok(Delivery::NoBuffer) => {}
                Err(fault) => {
                    drop(inbox);
                    self.break_down(&fault.to_string());
                    return false;
                }
            }
        }
        let len = usize::try_from(frame.len()).unwrap_or(usize::MAX);
        if backlog_bytes.saturating_add(len) > MAX_BACKLOG_BYTES {
            self.counters.dropped_frames.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        *backlog_bytes = backlog_bytes.saturating_add(len);
        backlog.push_back(frame.to_bytes());
        false
    }

    /// The guest has added buffers: what waits is delivered. Called by the receiver's own thread.
    pub fn kicked(&self) -> Result<(), RingFault> {
        let mut inbox = self.lock();
        let Inbox { place, backlog, backlog_bytes } = &mut *inbox;
        let Place::Up(receiver) = place else { return Ok(()) };
        receiver.queue.take_kick();
        while let Some(frame) = backlog.front() {
            let len = frame.len();
            let given = receiver.give(len as u64, |chain, mem, offset| chain.write_at(mem, offset, frame) == len)?;
            if matches!(given, Delivery::NoBuffer) {
                break;
            }
            self.counters.received_frames.fetch_add(1, Ordering::Relaxed);
            *backlog_bytes = backlog_bytes.saturating_sub(len);
            backlog.pop_front();
        }
        if backlog.is_empty() {
            receiver.queue.ring.disable_kicks(&receiver.mem)?;
        }
        receiver.queue.ring.signal_if_needed(&receiver.mem, &*receiver.irq)
    }

    /// Signals the guest, if it wants to be.
    pub(super) fn signal(&self) {
        let mut inbox = self.lock();
        let Place::Up(receiver) = &mut inbox.place else { return };
        if let Err(fault) = receiver.queue.ring.signal_if_needed(&receiver.mem, &*receiver.irq) {
            drop(inbox);
            self.break_down(&fault.to_string());
        }
    }

    /// The receiver's ring cannot be used any more: its device says so, the sender sees a drop.
    fn break_down(&self, why: &str) {
        let mut inbox = self.lock();
        self.counters.dropped_frames.fetch_add(1, Ordering::Relaxed);
        if let Place::Up(receiver) = std::mem::replace(&mut inbox.place, Place::Unplugged) {
            receiver.faults.note(why);
            receiver.irq.needs_reset();
            inbox.place = Place::Broken(receiver);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver {
    /// Puts one frame of `len` bytes into the next buffer of the guest.
    fn give(&mut self, len: u64, fill: impl Fn(&Chain, &Memory, u64) -> bool) -> Result<Delivery, RingFault> {
        let ring = &mut self.queue.ring;
        let header = NET_HEADER.len() as u64;
        let need = len.saturating_add(header);
        loop {
            if !ring.pop(&self.mem, &mut self.chain, &self.faults)? {
                // Asked to be kicked, looked again, found nothing: the frame waits.
                if !ring.enable_kicks(&self.mem)? {
                    return Ok(Delivery::NoBuffer);
                }
                continue;
            }
            let fits = self.chain.writable_len() >= need && self.chain.readable_len() == 0;
            let filled = fits
                && self.chain.write_at(&self.mem, 0, &NET_HEADER) == NET_HEADER.len()
                && fill(&self.chain, &self.mem, header);
            if filled {
                ring.complete(&self.mem, self.chain.head(), u32::try_from(need).unwrap_or(u32::MAX))?;
                return Ok(Delivery::Done);
            }
            self.faults.note(format_args!("a receive buffer that a frame of {len} bytes does not fit into"));
            ring.complete(&self.mem, self.chain.head(), 0)?;
        }
    }
}
