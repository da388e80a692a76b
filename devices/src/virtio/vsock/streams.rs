//! The connections of one guest, and what their streams are waited on for.
//!
//! ```text
//!   all ──┬── reads ──── each stream that the guest has room for        (left out while the guest has no buffer)
//!         └── writes ─── each stream that has not taken all of the guest's bytes
//! ```
//!
//! Streams have their turn: those that were found ready are served before any is looked for again, also where the guest has one
//! buffer at a time. Only connections that were touched are
//! looked at when a round ends, so its cost does not grow with their number.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::MAX_CONNECTIONS;
use super::connection::Connection;

/// Host's port and guest's port.
pub(super) type Key = (u32, u32);

/// Streams that are looked at in one round.
const ROUND: usize = 64;
/// Room for the guest's bytes, of all connections together: each new one gets a part of what is left.
const ROOM_BYTES: u32 = 16 << 20;
const ROOM_PARTS: u32 = 64;
/// Room of a connection at least, also when all of it is given away.
const MIN_ROOM_BYTES: u32 = 16 << 10;

pub(super) struct Streams {
    connections: BTreeMap<Key, Connection>,
    reads: Epoll,
    writes: Epoll,
    all: Epoll,
    /// `reads` is left out of `all`: a stream that hung up is ready each time that it is waited on for reading, and would keep us
    /// busy.
    starved: bool,
    /// Found ready to be read, and not yet served.
    turn: VecDeque<Ready>,
    touched: Vec<Key>,
    room: u32,
}

/// A stream that something can be done with.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    pub(super) key: Key,
    pub(super) hung_up: bool,
}

impl Streams {
    pub(super) fn new() -> io::Result<Self> {
        let (reads, writes, all) = (Epoll::new()?, Epoll::new()?, Epoll::new()?);
        for inner in [&reads, &writes] {
            all.ctl(ControlOperation::Add, inner.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
        }
        let connections = BTreeMap::new();
        let turn = VecDeque::with_capacity(ROUND);
        Ok(Self { connections, reads, writes, all, starved: false, turn, touched: Vec::new(), room: ROOM_BYTES })
    }

    /// What is ready when any stream is.
    pub(super) fn descriptor(&self) -> RawFd {
        self.all.as_raw_fd()
    }

    pub(super) fn has_room_for(&self, key: Key) -> bool {
        self.connections.len() < MAX_CONNECTIONS && !self.connections.contains_key(&key)
    }

    /// Room for the guest's bytes that the next connection is given.
    pub(super) fn next_room(&self) -> u32 {
        self.room.checked_div(ROOM_PARTS).unwrap_or(0).max(MIN_ROOM_BYTES)
    }

    /// Waits on a connection's stream, which must not block. An error: it is not waited on, and dropped.
    pub(super) fn insert(&mut self, key: Key, connection: Connection) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::ONE_SHOT, data_of(key));
        self.reads.ctl(ControlOperation::Add, connection.stream().as_raw_fd(), event)?;
        self.room = self.room.saturating_sub(connection.room_bytes);
        self.connections.insert(key, connection);
        self.touch(key);
        Ok(())
    }

    pub(super) fn get(&self, key: Key) -> Option<&Connection> {
        self.connections.get(&key)
    }

    /// A connection that may change what its stream is waited on for.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(&key)?;
        if !std::mem::replace(&mut connection.touched, true) {
            self.touched.push(key);
        }
        Some(connection)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Connection> {
        let connection = self.connections.remove(&key)?;
        for epoll in [&self.reads, &self.writes] {
            // Not waited on there is as good; closing does the same.
            let _ = epoll.ctl(ControlOperation::Delete, connection.stream().as_raw_fd(), EpollEvent::default());
        }
        self.room = self.room.saturating_add(connection.room_bytes).min(ROOM_BYTES);
        Some(connection)
    }

    /// Whether the guest has no buffer for us.
    pub(super) fn is_starved(&self) -> bool {
        self.starved
    }

    pub(super) fn set_starved(&mut self, starved: bool) {
        if self.starved != starved {
            self.starved = starved;
            let events = if starved { EventSet::empty() } else { EventSet::IN };
            control(&self.all, ControlOperation::Modify, self.reads.as_raw_fd(), EpollEvent::new(events, 0));
        }
    }

    /// Looks for streams to read from, or that have hung up, where all that were found have had their turn.
    pub(super) fn look(&mut self) {
        if self.turn.is_empty() {
            self.turn.extend(ready(&self.reads));
        }
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<Ready> {
        self.turn.pop_front()
    }

    /// It could not be served.
    pub(super) fn still_its_turn(&mut self, ready: Ready) {
        self.turn.push_front(ready);
    }

    /// Streams that take bytes again.
    pub(super) fn writable(&self) -> impl Iterator<Item = Ready> + use<> {
        ready(&self.writes)
    }

    /// Waits on each stream that was touched for what can be done with it now.
    pub(super) fn update(&mut self) {
        for key in std::mem::take(&mut self.touched) {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.touched = false;
            let (before, now) = (connection.interest, connection.wants());
            let (stream, data) = (connection.stream().as_raw_fd(), data_of(key));
            if now.0 != before.0 {
                // A hang-up is always reported: once is enough while nothing is wanted.
                let events = if now.0 { EventSet::IN } else { EventSet::ONE_SHOT };
                control(&self.reads, ControlOperation::Modify, stream, EpollEvent::new(events, data));
            }
            if now.1 != before.1 {
                let operation = if now.1 { ControlOperation::Add } else { ControlOperation::Delete };
                control(&self.writes, operation, stream, EpollEvent::new(EventSet::OUT, data));
            }
            connection.interest = now;
        }
    }

    fn touch(&mut self, key: Key) {
        let _ = self.get_mut(key);
    }
}

fn ready(epoll: &Epoll) -> impl Iterator<Item = Ready> + use<> {
    let mut events = [EpollEvent::default(); ROUND];
    let count = epoll.wait(0, &mut events).unwrap_or(0);
    let ready =
        |event: EpollEvent| Ready { key: key_of(event.data()), hung_up: event.event_set().contains(EventSet::HANG_UP) };
    events.into_iter().take(count).map(ready)
}

fn control(epoll: &Epoll, operation: ControlOperation, descriptor: RawFd, event: EpollEvent) {
    if let Err(error) = epoll.ctl(operation, descriptor, event) {
        log::error!("vsock: waiting on a stream: {error}");
    }
}

fn data_of((host, guest): Key) -> u64 {
    u64::from(host) << 32 | u64::from(guest)
}

fn key_of(data: u64) -> Key {
    ((data >> 32) as u32, (data & 0xffff_ffff) as u32)
}
