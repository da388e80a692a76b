//! Frames for whoever listens to a network, as a file that tcpdump reads (pcap, draft-ietf-opsawg-pcap).
//!
//! A capture is a bounded queue: the threads of guests put copies of frames into it, each one frame on a wire with its checksum
//! finished, and one thread of its own takes them out. What does not fit is missed, and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::frame::Frame;

/// Bytes of frames that wait for a capture's thread at most.
pub const MAX_WAITING_BYTES: usize = 8 << 20;
/// Captures of one network at most.
pub const MAX_CAPTURES: usize = 16;
/// Times in nanoseconds, in this machine's byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
/// Longer than any frame.
const SNAP_BYTES: u32 = 256 << 10;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// The head of the file.
pub fn head() -> Vec<u8> {
    let mut head = MAGIC.to_ne_bytes().to_vec();
    for version in [2u16, 4] {
        head.extend(version.to_ne_bytes());
    }
    for number in [0, 0, SNAP_BYTES, ETHERNET] {
        head.extend(number.to_ne_bytes());
    }
    head
}

/// What is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Everything that is sent on the network, once.
    Network,
    /// What one port sends and what it is given.
    Port(usize),
}

/// One who listens.
pub struct Capture {
    pub(super) of: Of,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    missed: AtomicU64,
    over: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Capture {
    pub(super) fn new(of: Of) -> Self {
        Self {
            of,
            waiting: Mutex::default(),
            changed: Condvar::new(),
            missed: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Frames that were missed so far.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Its port has left the network: no more comes.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether no more comes.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Records of frames that came since the last look, waiting for the first at most so long.
    pub fn take(&self, wait: Duration) -> Vec<Vec<u8>> {
        let waited = self.changed.wait_timeout_while(self.lock(), wait, |waiting| waiting.records.is_empty());
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        waiting.bytes = 0;
        std::mem::take(&mut waiting.records).into()
    }

    pub(super) fn record(&self, frame: &Frame<'_>) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for number in 0..frame.segments() {
            let Some(kept) = frame.on_wire(number) else { continue };
            self.put(record(kept.bytes(), at));
        }
    }

    fn put(&self, record: Vec<u8>) {
        let mut waiting = self.lock();
        let after = waiting.bytes.saturating_add(record.len());
        if after > MAX_WAITING_BYTES {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes = after;
        waiting.records.push_back(record);
        drop(waiting);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn record(frame: &[u8], at: Duration) -> Vec<u8> {
    let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    // Seconds in 32 bits, until 2106: the format has no more.
    let mut record = Vec::with_capacity(frame.len().saturating_add(16));
    for number in [at.as_secs() as u32, at.subsec_nanos(), len, len] {
        record.extend(number.to_ne_bytes());
    }
    record.extend_from_slice(frame);
    record
}
