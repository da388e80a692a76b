//! virtio-console (VIRTIO 1.2, §5.3): one port, `hvc0` in the guest.
//!
//! Queue 0 carries what a person types, queue 1 what the guest prints. Input waits in a bounded buffer until the guest
//! has room for it. Whoever looks at the console tells its size, which the guest learns as a change of configuration.
//! A guest that prints without end gets its buffers back as fast as the output takes them, in turns with its other devices.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::{Chain, RingFault};
use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceState, DeviceType, Refused, StateError, VirtioDevice, wrong_queues};
use crate::Memory;
use crate::counters::{Counters, Set};
use crate::fault::Faults;
use crate::irq::{Interrupt, Line};
use crate::worker::{Activation, ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// System calls beside what all devices make ([`crate::virtio::registry::Entry::calls`]).
pub(super) const CALLS: &[&str] = &["sendto", "fallocate"];
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of input that wait at most; more is not taken.
pub const MAX_INPUT_BYTES: usize = 64 << 10;
/// Bytes of output that are copied at once.
const CHUNK: usize = 4096;
/// Bytes of one request that are printed at most; Linux sends a page.
pub const MAX_OUTPUT_BYTES: u64 = 64 << 10;
/// Requests that are served before the machine's other devices have their turn.
const MAX_TURN: u32 = 16;

/// VIRTIO_CONSOLE_F_SIZE, §5.3.3.
const F_SIZE: u64 = 1 << 0;
/// struct virtio_console_config, §5.3.4: cols, rows. What follows belongs to features that are not offered.
const CONFIG_BYTES: usize = 4;
/// Columns and rows until somebody looks.
const FIRST_SIZE: (u16, u16) = (80, 24);

const RECEIVE: Token = 0;

const TRANSMIT: Token = 1;
const INPUT: Token = 2;

/// What is counted, as positions.
const COUNTS: [&str; 2] = ["printed_bytes", "typed_bytes"];
const PRINTED: usize = 0;
const TYPED: usize = 1;

/// Where the guest's output goes.
pub trait ConsoleOutput: Send {
    /// Takes all of `bytes`.
    fn write(&mut self, bytes: &[u8]);
}

/// What a person types, and the size of their terminal, on their way to the guest.
pub struct ConsoleInput {
    /// Bytes that the guest has not taken. No other lock is taken under it.
    waiting: Mutex<VecDeque<u8>>,
    config: ConfigSpace,
    resized: AtomicBool,
    wake: EventFd,
}

fn size_bytes((cols, rows): (u16, u16)) -> [u8; CONFIG_BYTES] {
    let ([c0, c1], [r0, r1]) = (cols.to_le_bytes(), rows.to_le_bytes());
    [c0, c1, r0, r1]
}

impl ConsoleInput {
    /// Nothing typed yet.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            waiting: Mutex::default(),
            config: ConfigSpace::new(size_bytes(FIRST_SIZE).into()),
            resized: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        }))
    }

    /// Tells the guest how large the terminal is. Of several changes it may see the last only.
    pub fn set_size(&self, cols: u16, rows: u16) {
        self.config.update(0, &size_bytes((cols, rows)));
        self.resized.store(true, Ordering::SeqCst);
        self.wake.raise();
    }

    /// Appends what was typed; how many bytes were taken.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.lock();
        let room = MAX_INPUT_BYTES.saturating_sub(waiting.len());
        let taken = bytes.len().min(room);
        waiting.extend(bytes.iter().take(taken));
        drop(waiting);
        self.wake.raise();
        taken
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A console at rest.
pub struct Console {
    output: Box<dyn ConsoleOutput>,
    input: Arc<ConsoleInput>,
    faults: Faults,
    counts: Arc<Set<{ COUNTS.len() }>>,
}

impl Console {
    /// A console between `output` and `input`.
    pub fn new(output: Box<dyn ConsoleOutput>, input: Arc<ConsoleInput>) -> Self {
        Self { output, input, faults: Faults::new("console"), counts: Arc::new(Set::new(COUNTS)) }
    }
}

impl VirtioDevice for Console {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_type: DeviceType::Console,
            features: F_SIZE,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config: self.input.config.clone(),
        }
    }

    fn activate(self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let tells_size = with.features & F_SIZE != 0;
        let Some(([receive, transmit], mem, irq)) = with.queues() else { return Err(wrong_queues(self)) };
        Ok(Box::new(ConsoleWorker {
            console: *self,
            tells_size,
            receive,
            transmit,
            mem,
            irq,
            chain: Chain::with_capacity(QUEUE_SIZE),
            chunk: Box::new([0; CHUNK]),
        }))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn counters(&self) -> Counters {
        Counters::of_faults(&self.faults).and(Arc::clone(&self.counts) as _)
    }

    /// The size of the terminal, and what was typed that the guest has not taken.
    fn save(&self) -> DeviceState {
        let mut bytes = vec![0; CONFIG_BYTES];
        self.input.config.read(0, &mut bytes);
        bytes.extend(self.input.lock().iter());
        DeviceState { device_type: DeviceType::Console, version: 1, bytes }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let len = state.bytes.len().clamp(CONFIG_BYTES, CONFIG_BYTES.saturating_add(MAX_INPUT_BYTES));
        let bytes = state.bytes_of(DeviceType::Console, len, "not a size and what was typed")?;
        if let Some((size, typed)) = bytes.split_at_checked(CONFIG_BYTES) {
            self.input.config.update(0, size);
            let mut waiting = self.input.lock();
            // Before whatever somebody has typed since.
            typed.iter().rev().for_each(|byte| waiting.push_front(*byte));
        }
        Ok(())
    }
}

struct ConsoleWorker {
    console: Console,
    /// The driver has agreed to be told of sizes.
    tells_size: bool,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    chunk: Box<[u8; CHUNK]>,
}

impl ConsoleWorker {
    fn print(&mut self) -> Result<(), RingFault> {
        let ActiveQueue { ring, kick } = &mut self.transmit;
        let mut turn = 0u32;
        loop {
            if turn == MAX_TURN {
                kick.raise();
                break;
            }
            if !ring.pop(&self.mem, &mut self.chain, &self.console.faults)? {
                if ring.enable_kicks(&self.mem)? {
                    continue;
                }
                break;
            }
            turn = turn.saturating_add(1);
            let len = self.chain.readable_len();
            if len > MAX_OUTPUT_BYTES || self.chain.writable_len() > 0 {
                self.console.faults.note(format_args!("{len} bytes to print at once, or a buffer to be filled"));
            }
            let (mut offset, end) = (0u64, len.min(MAX_OUTPUT_BYTES));
            while offset < end {
                let n = self.chain.read_at(&self.mem, offset, &mut *self.chunk);
                let Some(part) = self.chunk.get(..n).filter(|part| !part.is_empty()) else { break };
                self.console.output.write(part);
                offset = offset.saturating_add(n as u64);
            }
            self.console.counts.add(PRINTED, offset);
            ring.complete(&self.mem, self.chain.head(), 0)?;
        }
        ring.signal_if_needed(&self.mem, &*self.irq)
    }

    fn type_in(&mut self) -> Result<(), RingFault> {
        let ActiveQueue { ring, kick } = &mut self.receive;
        let mut waiting = self.console.input.lock();
        let mut turn = 0u32;
        while !waiting.is_empty() {
            if turn == MAX_TURN {
                kick.raise();
                break;
            }
            if !ring.pop(&self.mem, &mut self.chain, &self.console.faults)? {
                if !ring.enable_kicks(&self.mem)? {
                    break;
                }
                continue;
            }
            turn = turn.saturating_add(1);
            let (typed, _) = waiting.as_slices();
            let written = self.chain.write_at(&self.mem, 0, typed.get(..CHUNK).unwrap_or(typed));
            if written == 0 {
                self.console.faults.note("a receive buffer without room");
            }
            waiting.drain(..written);
            self.console.counts.add(TYPED, written as u64);
            ring.complete(&self.mem, self.chain.head(), u32::try_from(written).unwrap_or(0))?;
        }
        drop(waiting);
        ring.signal_if_needed(&self.mem, &*self.irq)
    }
}

impl Worker for ConsoleWorker {
    fn sources(&self) -> Vec<Source> {
        let input = Source { fd: self.console.input.wake.as_raw_fd(), token: INPUT };
        vec![self.receive.source(), self.transmit.source(), input]
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        let (queue, done) = if token == TRANSMIT {
            self.transmit.take_kick();
            (1, self.print())
        } else {
            if token == RECEIVE {
                self.receive.take_kick();
            } else {
                let _ = self.console.input.wake.read(); // taken already is as good
                if self.console.input.resized.swap(false, Ordering::SeqCst) && self.tells_size {
                    self.irq.signal_config();
                }
            }
            (0, self.type_in())
        };
        done.map_err(|source| WorkerFault::Ring { queue, source })
    }

    fn deactivate(self: Box<Self>) -> Rest {
        Rest { device: Box::new(self.console), queues: vec![self.receive, self.transmit] }
    }
}

/// A console that prints to nowhere, for tests and fuzzing.
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), expect(clippy::expect_used, reason = "for tests and fuzzing"))]
pub(super) fn sample() -> Console {
    struct Nowhere;
    impl ConsoleOutput for Nowhere {
        fn write(&mut self, _: &[u8]) {}
    }
    let input = ConsoleInput::new().expect("an eventfd");
    input.push(b"typed before the driver came\n");
    Console::new(Box::new(Nowhere), input)
}

#[cfg(test)]
mod tests;
