//! The vsock device at work.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Asked, BUFFER_BYTES, Connection, FromHost};
use super::hub::{ConnectError, Wish};
use super::packet::{HEADER_BYTES, Header, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::{HOST_CID, MAX_CONNECTIONS, QUEUE_SIZE, Vsock};
use crate::Memory;
use crate::irq::Interrupt;
use crate::virtio::chain::{Chain, RingFault};
use crate::virtio::device::Refused;
use crate::worker::{ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

const RX: Token = 0;
const TX: Token = 1;
const STREAMS: Token = 3;
const WISHES: Token = 4;

/// Packets that wait for a buffer of the guest; when as many wait, no packet of the guest is looked at.
const MAX_WAITING: usize = 256;
/// Bytes of one packet to the guest at most.
const CHUNK: usize = 16 << 10;
/// Host ports of connections that the host opens start here; the guest's well-known ones lie below.
const FIRST_PORT: u32 = 1 << 31;

/// Host's port and guest's port.
type Key = (u32, u32);

pub(super) struct VsockWorker {
    device: Vsock,
    rx: ActiveQueue,
    tx: ActiveQueue,
    /// The driver's buffers for events, of which there are none.
    events: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    chunk: Box<[u8; CHUNK]>,
    connections: BTreeMap<Key, Connection>,
    /// Headers without bytes that wait for a buffer of the guest.
    waiting: VecDeque<Header>,
    streams: Epoll,
    next_port: u32,
    /// The guest has no buffer for us; streams are not read until it kicks. Only then: a stream that hung up is ready each
    /// time that it is waited on for reading, and would keep us busy.
    starved: bool,
}

impl VsockWorker {
    pub(super) fn start(
        device: Vsock,
        [rx, tx, events]: [ActiveQueue; 3],
        mem: Memory,
        irq: Arc<dyn Interrupt>,
    ) -> Result<Self, Refused> {
        let streams = match Epoll::new() {
            Ok(streams) => streams,
            Err(error) => {
                return Err(Refused { why: format!("an epoll descriptor: {error}"), device: Box::new(device) });
            }
        };
        device.hub.set_at_work(true);
        Ok(Self {
            device,
            rx,
            tx,
            events,
            mem,
            irq,
            chain: Chain::with_capacity(QUEUE_SIZE),
            chunk: Box::new([0; CHUNK]),
            connections: BTreeMap::new(),
            waiting: VecDeque::with_capacity(MAX_WAITING),
            streams,
            next_port: FIRST_PORT,
            starved: false,
        })
    }

    /// Everything that can be done now: packets of the guest, packets to the guest, and again while one makes room for the other.
    fn serve(&mut self) -> Result<(), WorkerFault> {
        loop {
            let took = self.take_packets().map_err(|source| WorkerFault::Ring { queue: 1, source })?;
            self.give_packets().map_err(|source| WorkerFault::Ring { queue: 0, source })?;
            if !took {
                break;
            }
        }
        self.update_interest();
        Ok(())
    }

    // From the guest.

    fn take_packets(&mut self) -> Result<bool, RingFault> {
        let mut took = false;
        while self.waiting.len() < MAX_WAITING {
            if !self.tx.ring.pop(&self.mem, &mut self.chain, &self.device.faults)? {
                if !self.tx.ring.enable_kicks(&self.mem)? {
                    break;
                }
                continue;
            }
            took = true;
            let mut header = [0; HEADER_BYTES];
            if self.chain.read_at(&self.mem, 0, &mut header) == HEADER_BYTES {
                self.packet(&Header::decode(&header));
            } else {
                self.device.faults.note("a packet shorter than its header");
            }
            self.tx.ring.complete(&self.mem, self.chain.head(), 0)?;
        }
        self.tx.ring.signal_if_needed(&self.mem, &*self.irq)?;
        Ok(took)
    }

    fn packet(&mut self, header: &Header) {
        let key = (header.dst_port, header.src_port);
        if header.src_cid != self.device.cid || header.dst_cid != HOST_CID {
            let (from, to) = (header.src_cid, header.dst_cid);
            return self.device.faults.note(format_args!("a packet from {from} to {to}"));
        }
        if header.kind != TYPE_STREAM {
            self.device.faults.note(format_args!("a packet of socket type {}", header.kind));
            return self.reset(key);
        }
        if header.op == op::REQUEST {
            return self.accept(key, header);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            // §5.10.6.4: no answer to an RST, an RST to everything else.
            if header.op != op::RST {
                self.reset(key);
            }
            return;
        };
        connection.learn(header);
        match header.op {
            op::RESPONSE => match connection.asked.take() {
                // A caller that has given up drops its end, which the stream tells like any other end.
                Some(Asked { answer, theirs }) => drop(answer.try_send(Ok(theirs))),
                None => self.break_off(key, "a second response"),
            },
            op::RST => self.drop_connection(key),
            op::SHUTDOWN => {
                connection.shut_down(header.flags);
                self.flush(key);
            }
            op::RW => self.bytes(key, header.len),
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => self.send(key, op::CREDIT_UPDATE, 0),
            other => self.device.faults.note(format_args!("a packet of operation {other}")),
        }
    }

    fn accept(&mut self, key: Key, header: &Header) {
        if self.connections.contains_key(&key) {
            return self.break_off(key, "a second request for one connection");
        }
        let stream = (self.connections.len() < MAX_CONNECTIONS).then(|| self.device.incoming.accept(key.0)).flatten();
        let Some(stream) = stream.and_then(|stream| self.admit(key, stream)) else { return self.reset(key) };
        let mut connection = Connection::new(stream, None);
        connection.learn(header);
        self.connections.insert(key, connection);
        self.send(key, op::RESPONSE, 0);
    }

    fn bytes(&mut self, key: Key, len: u32) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let claimed = u64::from(len).saturating_add(HEADER_BYTES as u64);
        if connection.asked.is_some() || len > BUFFER_BYTES || claimed > self.chain.readable_len() {
            return self.break_off(key, "bytes that cannot be there");
        }
        let mut offset = HEADER_BYTES as u64;
        while offset < claimed {
            let part = usize::try_from(claimed.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK);
            let Some(chunk) = self.chunk.get_mut(..part) else { break };
            if self.chain.read_at(&self.mem, offset, chunk) != part || !connection.take(chunk) {
                return self.break_off(key, "more bytes than there is room for");
            }
            offset = offset.saturating_add(part as u64);
        }
        self.flush(key);
    }

    // To the guest.

    fn give_packets(&mut self) -> Result<(), RingFault> {
        self.give_waiting()?;
        let keys: Vec<Key> = if self.starved { Vec::new() } else { self.readable() };
        for key in keys {
            self.read_stream(key)?;
        }
        self.give_waiting()?; // what reading the streams has added
        self.rx.ring.signal_if_needed(&self.mem, &*self.irq)
    }

    fn give_waiting(&mut self) -> Result<(), RingFault> {
        while let Some(header) = self.waiting.front().copied() {
            if !self.give(&header)? {
                break;
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Puts one packet without bytes into the guest's next buffer; `false` where it has none.
    fn give(&mut self, header: &Header) -> Result<bool, RingFault> {
        while self.next_buffer()? {
            let written = self.chain.write_at(&self.mem, 0, &header.encode());
            let fits = written == HEADER_BYTES;
            if !fits {
                self.device.faults.note("a receive buffer that a packet does not fit into");
            }
            let len = if fits { HEADER_BYTES as u32 } else { 0 };
            self.rx.ring.complete(&self.mem, self.chain.head(), len)?;
            if fits {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the guest's next buffer; `false` where it has none and will kick when it has.
    fn next_buffer(&mut self) -> Result<bool, RingFault> {
        loop {
            if self.rx.ring.pop(&self.mem, &mut self.chain, &self.device.faults)? {
                return Ok(true);
            }
            if !self.rx.ring.enable_kicks(&self.mem)? {
                self.starved = true;
                return Ok(false);
            }
        }
    }

    /// Connections with something to read now.
    fn readable(&self) -> Vec<Key> {
        let mut events = [EpollEvent::default(); 64];
        let ready = self.streams.wait(0, &mut events).unwrap_or(0);
        events.iter().take(ready).map(|event| key_of(event.data())).collect()
    }

    /// Moves one chunk from a stream to the guest. The buffer is looked for first, so that nothing is read that has no place.
    fn read_stream(&mut self, key: Key) -> Result<(), RingFault> {
        self.flush(key);
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        if !connection.wants(true).0 {
            return Ok(());
        }
        if !self.next_buffer()? {
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        let room = usize::try_from(self.chain.writable_len()).unwrap_or(CHUNK).saturating_sub(HEADER_BYTES).min(CHUNK);
        let Some(chunk) = self.chunk.get_mut(..room).filter(|chunk| !chunk.is_empty()) else {
            self.device.faults.note("a receive buffer without room");
            return self.rx.ring.complete(&self.mem, self.chain.head(), 0);
        };
        match connection.read(chunk) {
            Ok(FromHost::Bytes(n)) => {
                let mut header = self.header(key, op::RW);
                header.len = u32::try_from(n).unwrap_or(u32::MAX);
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.stamp(&mut header);
                }
                self.chain.write_at(&self.mem, 0, &header.encode());
                self.chain.write_at(&self.mem, HEADER_BYTES as u64, self.chunk.get(..n).unwrap_or_default());
                let total = header.len.saturating_add(HEADER_BYTES as u32);
                return self.rx.ring.complete(&self.mem, self.chain.head(), total);
            }
            Ok(FromHost::Nothing) => {}
            Ok(FromHost::End) => {
                connection.host_done = true;
                if connection.is_over() {
                    self.finish(key);
                } else {
                    self.send(key, op::SHUTDOWN, SHUTDOWN_SEND);
                }
            }
            Err(_) => self.finish(key),
        }
        self.rx.ring.put_back();
        Ok(())
    }

    // Both.

    /// Asks the guest for a connection.
    fn ask(&mut self, Wish { port, answer }: Wish) {
        let local = self.next_port;
        self.next_port = local.checked_add(1).unwrap_or(FIRST_PORT);
        let key = (local, port);
        let free = self.connections.len() < MAX_CONNECTIONS && !self.connections.contains_key(&key);
        let pair = free.then(UnixStream::pair).and_then(Result::ok);
        let admitted = pair.and_then(|(ours, theirs)| Some((self.admit(key, ours)?, theirs)));
        let Some((ours, theirs)) = admitted else {
            drop(answer.try_send(Err(ConnectError::Refused(port))));
            return;
        };
        self.connections.insert(key, Connection::new(ours, Some(Asked { answer, theirs })));
        self.send(key, op::REQUEST, 0);
    }

    /// Makes a stream one that this worker waits on.
    fn admit(&mut self, key: Key, stream: UnixStream) -> Option<UnixStream> {
        stream.set_nonblocking(true).ok()?;
        let event = EpollEvent::new(EventSet::ONE_SHOT, data_of(key));
        self.streams.ctl(ControlOperation::Add, stream.as_raw_fd(), event).ok()?;
        Some(stream)
    }

    /// Passes a connection's bytes on to its stream.
    fn flush(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.flush().is_err() || connection.is_over() {
            return self.finish(key);
        }
        if connection.has_news() {
            self.send(key, op::CREDIT_UPDATE, 0);
        }
    }

    /// Ends a connection and tells the guest.
    fn finish(&mut self, key: Key) {
        self.drop_connection(key);
        self.reset(key);
    }

    fn break_off(&mut self, key: Key, fault: &str) {
        self.device.faults.note(fault);
        self.finish(key);
    }

    fn drop_connection(&mut self, key: Key) {
        let Some(connection) = self.connections.remove(&key) else { return };
        let event = EpollEvent::default();
        let _ = self.streams.ctl(ControlOperation::Delete, connection.stream().as_raw_fd(), event); // closing does the same
        if let Some(Asked { answer, .. }) = connection.asked {
            drop(answer.try_send(Err(ConnectError::Refused(key.1))));
        }
    }

    fn header(&self, (host, guest): Key, op: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.device.cid,
            src_port: host,
            dst_port: guest,
            kind: TYPE_STREAM,
            op,
            ..Header::default()
        }
    }

    fn send(&mut self, key: Key, op: u16, flags: u32) {
        let mut header = Header { flags, ..self.header(key, op) };
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.stamp(&mut header);
        }
        self.waiting.push_back(header);
    }

    fn reset(&mut self, key: Key) {
        self.send(key, op::RST, 0);
    }

    /// Waits on each stream for what can be done with it.
    fn update_interest(&mut self) {
        for (key, connection) in &mut self.connections {
            let wants = connection.wants(!self.starved);
            if wants == connection.interest {
                continue;
            }
            let mut events = EventSet::empty();
            events.set(EventSet::IN, wants.0);
            events.set(EventSet::OUT, wants.1);
            // A hang-up is always reported: once is enough while nothing is wanted.
            events.set(EventSet::ONE_SHOT, wants == (false, false));
            let event = EpollEvent::new(events, data_of(*key));
            match self.streams.ctl(ControlOperation::Modify, connection.stream().as_raw_fd(), event) {
                Ok(()) => connection.interest = wants,
                Err(error) => log::error!("vsock: waiting on a stream: {error}"),
            }
        }
    }

    /// Ends connections whose host side is gone, once all that it sent has been read.
    fn reap(&mut self) {
        let mut events = [EpollEvent::default(); 64];
        let ready = self.streams.wait(0, &mut events).unwrap_or(0);
        for event in events.iter().take(ready) {
            let key = key_of(event.data());
            let hung_up = event.event_set().contains(EventSet::HANG_UP);
            if hung_up && self.connections.get(&key).is_some_and(|connection| connection.is_deaf_or_done()) {
                self.finish(key);
            }
        }
    }
}

fn data_of((host, guest): Key) -> u64 {
    u64::from(host) << 32 | u64::from(guest)
}

fn key_of(data: u64) -> Key {
    ((data >> 32) as u32, (data & 0xffff_ffff) as u32)
}

impl Worker for VsockWorker {
    fn sources(&self) -> Vec<Source> {
        vec![
            self.rx.source(),
            self.tx.source(),
            self.events.source(),
            Source { fd: self.streams.as_raw_fd(), token: STREAMS },
            Source { fd: self.device.hub.wake.as_raw_fd(), token: WISHES },
        ]
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        match token {
            RX => {
                self.rx.take_kick();
                self.starved = false;
            }
            TX => self.tx.take_kick(),
            STREAMS => self.reap(),
            WISHES => {
                for wish in self.device.hub.take() {
                    self.ask(wish);
                }
            }
            _ => self.events.take_kick(),
        }
        self.serve()
    }

    fn deactivate(self: Box<Self>) -> Rest {
        self.device.hub.set_at_work(false);
        // Connections end with the driver: their streams close, and who waits for an answer hears that nobody is there.
        Rest { device: Box::new(self.device), queues: vec![self.rx, self.tx, self.events] }
    }
}
