//! virtio-console (VIRTIO 1.2, §5.3): one port, `hvc0` in the guest.
//!
//! Queue 0 carries what a person types, queue 1 what the guest prints. Input waits in a bounded buffer until the guest
//! has room for it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::chain::{Chain, RingFault};
use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceType, Refused, VirtioDevice, wrong_queues};
use crate::Memory;
use crate::fault::Faults;
use crate::irq::{Interrupt, Line};
use crate::worker::{Activation, ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 64;
/// Bytes of input that wait at most; more is not taken.
pub const MAX_INPUT_BYTES: usize = 64 << 10;
/// Bytes of output that are copied at once.
const CHUNK: usize = 4096;

const TRANSMIT: Token = 1;
const INPUT: Token = 2;

/// Where the guest's output goes.
pub trait ConsoleOutput: Send {
    /// Takes all of `bytes`.
    fn write(&mut self, bytes: &[u8]);
}

/// What a person types, on its way to the guest.
pub struct ConsoleInput {
    /// Bytes that the guest has not taken. No other lock is taken under it.
    waiting: Mutex<VecDeque<u8>>,
    wake: EventFd,
}

impl ConsoleInput {
    /// Nothing typed yet.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { waiting: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK)? }))
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
}

impl Console {
    /// A console between `output` and `input`.
    pub fn new(output: Box<dyn ConsoleOutput>, input: Arc<ConsoleInput>) -> Self {
        Self { output, input, faults: Faults::new("console") }
    }
}

impl VirtioDevice for Console {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_type: DeviceType::Console,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config: ConfigSpace::new(Vec::new()),
        }
    }

    fn activate(self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let Some(([receive, transmit], mem, irq)) = with.queues() else { return Err(wrong_queues(self)) };
        let chain = Chain::with_capacity(QUEUE_SIZE);
        Ok(Box::new(ConsoleWorker { console: *self, receive, transmit, mem, irq, chain, chunk: Box::new([0; CHUNK]) }))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }
}

struct ConsoleWorker {
    console: Console,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    chunk: Box<[u8; CHUNK]>,
}

impl ConsoleWorker {
    fn print(&mut self) -> Result<(), RingFault> {
        let ring = &mut self.transmit.ring;
        loop {
            while ring.pop(&self.mem, &mut self.chain, &self.console.faults)? {
                let mut offset = 0u64;
                loop {
                    let n = self.chain.read_at(&self.mem, offset, &mut *self.chunk);
                    let Some(part) = self.chunk.get(..n).filter(|part| !part.is_empty()) else { break };
                    self.console.output.write(part);
                    offset = offset.saturating_add(n as u64);
                }
                ring.complete(&self.mem, self.chain.head(), 0)?;
            }
            if !ring.enable_kicks(&self.mem)? {
                break;
            }
        }
        ring.signal_if_needed(&self.mem, &*self.irq)
    }

    fn type_in(&mut self) -> Result<(), RingFault> {
        let ring = &mut self.receive.ring;
        let mut waiting = self.console.input.lock();
        while !waiting.is_empty() {
            if !ring.pop(&self.mem, &mut self.chain, &self.console.faults)? {
                if !ring.enable_kicks(&self.mem)? {
                    break;
                }
                continue;
            }
            let (typed, _) = waiting.as_slices();
            let written = self.chain.write_at(&self.mem, 0, typed.get(..CHUNK).unwrap_or(typed));
            if written == 0 {
                self.console.faults.note("a receive buffer without room");
            }
            waiting.drain(..written);
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
            if token == INPUT {
                let _ = self.console.input.wake.read(); // taken already is as good
            } else {
                self.receive.take_kick();
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
mod tests {
    use super::*;
    use crate::testing::{GuestDriver, readable, writable};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl ConsoleOutput for Paper {
        fn write(&mut self, bytes: &[u8]) {
            self.0.lock().expect("lock").extend_from_slice(bytes);
        }
    }

    fn console() -> (GuestDriver, Paper, Arc<ConsoleInput>) {
        let (paper, input) = (Paper::default(), ConsoleInput::new().expect("eventfd"));
        (GuestDriver::attach(Box::new(Console::new(Box::new(paper.clone()), input.clone()))), paper, input)
    }

    #[test]
    fn what_the_guest_prints_comes_out_whole_and_in_order() {
        let (mut guest, paper, _) = console();
        let text: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        guest.put(0x10000, &text);
        let head = guest.offer(1, &[readable(0x10000, 9000), readable(0x10000 + 9000, 1000)]);
        guest.kick(1);
        assert_eq!(guest.used(1), [(head, 0)]);
        assert_eq!(*paper.0.lock().expect("lock"), text);
    }

    #[test]
    fn what_is_typed_waits_for_room() {
        let (mut guest, _, input) = console();
        assert_eq!(input.push(b"hello world"), 11);
        guest.run();
        assert_eq!(guest.used(0), []);
        let first = guest.offer(0, &[writable(0x1000, 5)]);
        let second = guest.offer(0, &[writable(0x2000, 100)]);
        guest.kick(0);
        assert_eq!(guest.used(0), [(first, 5), (second, 6)]);
        assert_eq!([guest.bytes(0x1000, 5), guest.bytes(0x2000, 6)].concat(), b"hello world");
    }

    #[test]
    fn input_is_bounded() {
        let (_, _, input) = console();
        assert_eq!(input.push(&vec![b'x'; MAX_INPUT_BYTES + 5]), MAX_INPUT_BYTES);
        assert_eq!(input.push(b"y"), 0);
    }

    #[test]
    fn hostile_buffers_come_back_and_the_console_goes_on() {
        let (mut guest, paper, input) = console();
        let writable_for_output = guest.offer(1, &[writable(0x1000, 8)]);
        guest.kick(1);
        assert_eq!(guest.used(1), [(writable_for_output, 0)]);
        input.push(b"ab");
        let readable_for_input = guest.offer(0, &[readable(0x1000, 8)]);
        let good = guest.offer(0, &[writable(0x1000, 8)]);
        guest.kick(0);
        assert_eq!(guest.used(0), [(readable_for_input, 0), (good, 2)]);
        assert_eq!((paper.0.lock().expect("lock").len(), guest.faults()), (0, 1));
    }
}
