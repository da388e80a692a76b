//! The vsock device at work.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::connection::{Connection, FromHost, Taken};
use super::hub::{Answer, ConnectError, Wish};
use super::packet::{EVENT_TRANSPORT_RESET, HEADER_BYTES, Header, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::streams::{Key, Ready, Streams};
use super::{Count, HOST_CID, QUEUE_SIZE, Vsock};
use crate::Memory;
use crate::irq::{Interrupt, Line};
use crate::virtio::chain::{Chain, RingFault};
use crate::virtio::device::Refused;
use crate::worker::{ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

const RX: Token = 0;
const TX: Token = 1;
const STREAMS: Token = 3;
const WISHES: Token = 4;

/// Packets that wait for a buffer of the guest; when as many wait, no packet of the guest is looked at.
const MAX_WAITING: usize = 256;
/// Packets of the guest that are looked at before the machine's other devices have their turn.
const MAX_TURN: u32 = 256;
/// Bytes of one packet to the guest at most.
const CHUNK: usize = 16 << 10;
/// Host ports of connections that the host opens start here; the guest's well-known ones lie below.
const FIRST_PORT: u32 = 1 << 31;

/// What the worker has beside its queues; outlasts a stop.
pub(super) struct Traffic {
    streams: Streams,
    /// Headers without bytes that wait for a buffer of the guest.
    waiting: VecDeque<Header>,
    next_port: u32,
}

impl Traffic {
    fn new() -> io::Result<Self> {
        let waiting = VecDeque::with_capacity(MAX_WAITING);
        Ok(Self { streams: Streams::new()?, waiting, next_port: FIRST_PORT })
    }
}

pub(super) struct VsockWorker {
    device: Vsock,
    rx: ActiveQueue,
    tx: ActiveQueue,
    /// The driver's buffers for events.
    events: ActiveQueue,
    /// The driver has yet to hear that its connections are gone.
    event_due: bool,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    chunk: Box<[u8; CHUNK]>,
    streams: Streams,
    waiting: VecDeque<Header>,
    next_port: u32,
}

impl VsockWorker {
    pub(super) fn start(
        mut device: Vsock,
        [rx, tx, events]: [ActiveQueue; 3],
        mem: Memory,
        irq: Arc<dyn Interrupt>,
    ) -> Result<Self, Refused> {
        let traffic = match device.kept.take().map_or_else(Traffic::new, Ok) {
            Ok(traffic) => traffic,
            Err(error) => {
                return Err(Refused { why: format!("epoll descriptors: {error}"), device: Box::new(device) });
            }
        };
        let Traffic { streams, waiting, next_port } = traffic;
        let event_due = std::mem::take(&mut device.restored);
        device.hub.set_at_work(true);
        Ok(Self {
            device,
            rx,
            tx,
            events,
            event_due,
            mem,
            irq,
            chain: Chain::with_capacity(QUEUE_SIZE),
            chunk: Box::new([0; CHUNK]),
            streams,
            waiting,
            next_port,
        })
    }

    /// Everything that can be done now: packets of the guest, packets to the guest, and again while one makes room for the other.
    fn serve(&mut self) -> Result<(), WorkerFault> {
        let of_queue = |queue| move |source| WorkerFault::Ring { queue, source };
        self.tell_event().map_err(of_queue(2))?;
        let mut turn = 0;
        loop {
            let before = turn;
            self.take_packets(&mut turn).map_err(of_queue(1))?;
            self.give_packets().map_err(of_queue(0))?;
            if turn >= MAX_TURN {
                self.tx.kick.raise();
                break;
            }
            if turn == before {
                break;
            }
        }
        self.streams.update();
        Ok(())
    }

    /// Tells the driver that the connections it knows are gone, once it has a buffer for that.
    fn tell_event(&mut self) -> Result<(), RingFault> {
        let ring = &mut self.events.ring;
        while self.event_due {
            if ring.pop(&self.mem, &mut self.chain, &self.device.faults)? {
                let event = EVENT_TRANSPORT_RESET.to_le_bytes();
                let written = self.chain.write_at(&self.mem, 0, &event);
                let whole = written == event.len();
                self.event_due = !whole;
                if !whole {
                    self.device.faults.note("a buffer that an event does not fit into");
                }
                ring.complete(&self.mem, self.chain.head(), if whole { event.len() as u32 } else { 0 })?;
            } else if !ring.enable_kicks(&self.mem)? {
                break;
            }
        }
        ring.signal_if_needed(&self.mem, &*self.irq)
    }

    // From the guest.

    fn take_packets(&mut self, turn: &mut u32) -> Result<(), RingFault> {
        while self.waiting.len() < MAX_WAITING && *turn < MAX_TURN {
            if !self.tx.ring.pop(&self.mem, &mut self.chain, &self.device.faults)? {
                if !self.tx.ring.enable_kicks(&self.mem)? {
                    break;
                }
                continue;
            }
            *turn = turn.saturating_add(1);
            let mut header = [0; HEADER_BYTES];
            if self.chain.read_at(&self.mem, 0, &mut header) == HEADER_BYTES {
                self.packet(&Header::decode(&header));
            } else {
                self.device.faults.note("a packet shorter than its header");
            }
            self.tx.ring.complete(&self.mem, self.chain.head(), 0)?;
        }
        self.tx.ring.signal_if_needed(&self.mem, &*self.irq)
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
        let Some(connection) = self.streams.get_mut(key).filter(|connection| !connection.guest_gone) else {
            // §5.10.6.4: no answer to an RST, an RST to everything else.
            if header.op != op::RST {
                self.reset(key);
            }
            return;
        };
        if !connection.learn(header) {
            return self.break_off(key, "room for bytes that were never sent");
        }
        match header.op {
            op::RESPONSE => match connection.asked.take() {
                // A caller that has given up has dropped its end, which the stream tells like any other end.
                Some(answer) => drop(answer.try_send(Ok(()))),
                None => self.break_off(key, "a second response"),
            },
            op::RST if connection.outlives_guest() => {}
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
        match self.streams.get(key) {
            // Its number is used again before its last bytes were taken.
            Some(old) if old.guest_gone => self.drop_connection(key),
            Some(_) => return self.break_off(key, "a second request for one connection"),
            None => {}
        }
        let stream = self.streams.has_room_for(key).then(|| self.device.incoming.accept(key.0)).flatten();
        let admitted = stream.is_some_and(|stream| self.admit(key, stream, None, Some(header)).is_ok());
        self.send(key, if admitted { op::RESPONSE } else { op::RST }, 0);
    }

    fn bytes(&mut self, key: Key, len: u32) {
        let Some(connection) = self.streams.get_mut(key) else { return };
        let claimed = u64::from(len).saturating_add(HEADER_BYTES as u64);
        if connection.asked.is_some() || len > connection.room_bytes || claimed > self.chain.readable_len() {
            return self.break_off(key, "bytes that cannot be there");
        }
        let mut offset = HEADER_BYTES as u64;
        while offset < claimed {
            let part = usize::try_from(claimed.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK);
            let Some(chunk) = self.chunk.get_mut(..part) else { break };
            let there = self.chain.read_at(&self.mem, offset, chunk) == part;
            self.device.counts.add(Count::BytesToHost as usize, part as u64);
            match if there { connection.take(chunk) } else { Taken::Unlawful } {
                Taken::All => {}
                Taken::Unlawful => return self.break_off(key, "more bytes than there is room for"),
                Taken::HungUp => return self.finish(key),
            }
            offset = offset.saturating_add(part as u64);
        }
        self.flush(key);
    }

    // To the guest.

    fn give_packets(&mut self) -> Result<(), RingFault> {
        self.give_waiting()?;
        for Ready { key, .. } in self.streams.writable() {
            self.flush(key);
        }
        if !self.streams.is_starved() {
            self.streams.look();
        }
        while !self.streams.is_starved()
            && let Some(ready) = self.streams.next()
        {
            if ready.hung_up && self.streams.get(ready.key).is_some_and(Connection::ends_with_host) {
                self.end(ready.key);
            } else {
                self.read_stream(ready)?;
            }
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
        for _ in 0..QUEUE_SIZE {
            if !self.next_buffer()? {
                return Ok(false);
            }
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
        // A driver that offers useless buffers without end must not keep us here.
        self.rx.kick.raise();
        Ok(false)
    }

    /// Takes the guest's next buffer; `false` where it has none and will kick when it has.
    fn next_buffer(&mut self) -> Result<bool, RingFault> {
        loop {
            if self.rx.ring.pop(&self.mem, &mut self.chain, &self.device.faults)? {
                return Ok(true);
            }
            if !self.rx.ring.enable_kicks(&self.mem)? {
                self.streams.set_starved(true);
                return Ok(false);
            }
        }
    }

    /// Moves one chunk from a stream to the guest. The buffer is looked for first, so that nothing is read that has no place.
    fn read_stream(&mut self, ready: Ready) -> Result<(), RingFault> {
        let key = ready.key;
        if !self.streams.get(key).is_some_and(|connection| connection.wants().0) {
            return Ok(());
        }
        if !self.next_buffer()? {
            self.streams.still_its_turn(ready);
            return Ok(());
        }
        let Some(connection) = self.streams.get_mut(key) else { return Ok(()) };
        let room = usize::try_from(self.chain.writable_len()).unwrap_or(CHUNK).saturating_sub(HEADER_BYTES).min(CHUNK);
        let Some(chunk) = self.chunk.get_mut(..room).filter(|chunk| !chunk.is_empty()) else {
            self.device.faults.note("a receive buffer without room");
            return self.rx.ring.complete(&self.mem, self.chain.head(), 0);
        };
        match connection.read(chunk) {
            Ok(FromHost::Bytes(n)) => {
                self.device.counts.add(Count::BytesToGuest as usize, n as u64);
                let mut header = self.header(key, op::RW);
                header.len = u32::try_from(n).unwrap_or(u32::MAX);
                if let Some(connection) = self.streams.get_mut(key) {
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
    fn ask(&mut self, Wish { port, stream, answer }: Wish) {
        let local = self.next_port;
        self.next_port = local.checked_add(1).unwrap_or(FIRST_PORT);
        let key = (local, port);
        if !self.streams.has_room_for(key) {
            return drop(answer.try_send(Err(ConnectError::Refused(port))));
        }
        match self.admit(key, stream, Some(answer.clone()), None) {
            Ok(()) => self.send(key, op::REQUEST, 0),
            Err(source) => drop(answer.try_send(Err(ConnectError::Host { port, source }))),
        }
    }

    /// Makes a stream a connection. `request` is the guest's, where it began.
    fn admit(
        &mut self,
        key: Key,
        stream: UnixStream,
        asked: Option<Answer>,
        request: Option<&Header>,
    ) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut connection = Connection::new(stream, asked, self.streams.next_room());
        if let Some(header) = request
            && !connection.learn(header)
        {
            self.device.faults.note("a request that has taken bytes already");
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.streams.insert(key, connection)?;
        let count = if request.is_some() { Count::FromGuest } else { Count::FromHost };
        self.device.counts.add(count as usize, 1);
        Ok(())
    }

    /// Passes a connection's bytes on to its stream.
    fn flush(&mut self, key: Key) {
        let Some(connection) = self.streams.get_mut(key) else { return };
        if connection.flush().is_err() || connection.is_over() {
            return self.end(key);
        }
        if connection.has_news() && !connection.guest_gone {
            self.send(key, op::CREDIT_UPDATE, 0);
        }
    }

    /// Ends a connection and tells the guest, if it does not know.
    fn end(&mut self, key: Key) {
        if self.streams.get(key).is_some_and(|connection| connection.guest_gone) {
            self.drop_connection(key);
        } else {
            self.finish(key);
        }
    }

    fn finish(&mut self, key: Key) {
        self.drop_connection(key);
        self.reset(key);
    }

    fn break_off(&mut self, key: Key, fault: &str) {
        self.device.faults.note(fault);
        self.finish(key);
    }

    fn drop_connection(&mut self, key: Key) {
        if let Some(answer) = self.streams.remove(key).and_then(|connection| connection.asked) {
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
        if op == op::RST {
            self.device.counts.add(Count::Resets as usize, 1);
        }
        let mut header = Header { flags, ..self.header(key, op) };
        if let Some(connection) = self.streams.get_mut(key) {
            connection.stamp(&mut header);
        }
        self.waiting.push_back(header);
    }

    fn reset(&mut self, key: Key) {
        self.send(key, op::RST, 0);
    }
}

impl Worker for VsockWorker {
    fn sources(&self) -> Vec<Source> {
        vec![
            self.rx.source(),
            self.tx.source(),
            self.events.source(),
            Source { fd: self.streams.descriptor(), token: STREAMS },
            Source { fd: self.device.hub.wake.as_raw_fd(), token: WISHES },
        ]
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        match token {
            RX => {
                self.rx.take_kick();
                self.streams.set_starved(false);
            }
            TX => self.tx.take_kick(),
            STREAMS => {}
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
        let Self { mut device, rx, tx, events, event_due, streams, waiting, next_port, .. } = *self;
        device.kept = Some(Traffic { streams, waiting, next_port });
        device.restored = event_due;
        Rest { device: Box::new(device), queues: vec![rx, tx, events] }
    }
}
