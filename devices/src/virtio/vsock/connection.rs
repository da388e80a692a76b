//! One connection: a Unix stream on the host's side, credit on the guest's.
//!
//! ```text
//!   Asked ── RESPONSE ──▶ Open ── both sides have shut down, or RST ──▶ gone
//! ```
//!
//! Credit (VIRTIO 1.2, §5.10.6.3): each side may have as many bytes under way as the other has room for. Bytes of the guest
//! that the host stream does not take wait here, never more than its room, or the guest has broken the rule. A guest that is
//! gone after it had said that it is done leaves its last bytes to be taken.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::hub::Answer;
use super::packet::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

pub(super) struct Connection {
    stream: UnixStream,
    /// Room for the guest's bytes. Never changes: a driver may not see less than it was promised.
    pub(super) room_bytes: u32,
    /// Until the guest has answered.
    pub(super) asked: Option<Answer>,
    /// Bytes of the guest that the stream has not taken.
    to_host: VecDeque<u8>,
    /// Bytes taken by the stream, and what the guest was last told of it.
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    /// The guest's room, bytes it has taken, bytes sent to it.
    peer_alloc: u32,
    peer_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    /// The guest will send no more.
    guest_done: bool,
    /// The guest will take no more.
    guest_deaf: bool,
    /// The host has closed its writing side, and the guest was told.
    pub(super) host_done: bool,
    /// What its stream is waited on for: readable, writable.
    pub(super) interest: (bool, bool),
    /// It may want something else.
    pub(super) touched: bool,
    /// The guest has forgotten it; what it sent is still on its way.
    pub(super) guest_gone: bool,
}

/// What became of bytes of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    All,
    /// There was no room, or it had said that no more will come.
    Unlawful,
    /// Nobody takes them any more.
    HungUp,
}

/// What reading the host's side gave.
pub(super) enum FromHost {
    Bytes(usize),
    Nothing,
    End,
}

impl Connection {
    /// `stream` must not block.
    pub(super) fn new(stream: UnixStream, asked: Option<Answer>, room_bytes: u32) -> Self {
        Self {
            stream,
            room_bytes,
            asked,
            to_host: VecDeque::new(),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            peer_alloc: 0,
            peer_forwarded: Wrapping(0),
            sent: Wrapping(0),
            guest_done: false,
            guest_deaf: false,
            host_done: false,
            interest: (false, false),
            touched: false,
            guest_gone: false,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// What every packet of the guest says about its room. `false` where it has taken bytes that were never sent.
    pub(super) fn learn(&mut self, header: &Header) -> bool {
        self.peer_alloc = header.buf_alloc;
        let (newly, under_way) = (Wrapping(header.fwd_cnt) - self.peer_forwarded, self.sent - self.peer_forwarded);
        if newly <= under_way {
            self.peer_forwarded = Wrapping(header.fwd_cnt);
            return true;
        }
        // A packet that another one overtook on its way into the queue tells of less: more than half way around.
        newly.0 > u32::MAX >> 1
    }

    /// Bytes that the guest has room for.
    pub(super) fn room(&self) -> usize {
        let under_way = (self.sent - self.peer_forwarded).0;
        self.peer_alloc.saturating_sub(under_way) as usize
    }

    /// What its stream should be waited on for: to read only what the guest can take, to write only what waits.
    pub(super) fn wants(&self) -> (bool, bool) {
        let open = self.asked.is_none();
        let read = open && !self.host_done && !self.guest_deaf && self.room() > 0;
        (read, open && !self.to_host.is_empty())
    }

    /// Takes bytes of the guest: straight into the stream, and what that has no room for waits.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Taken {
        if self.to_host.len().saturating_add(bytes.len()) > self.room_bytes as usize || self.guest_done {
            return Taken::Unlawful;
        }
        let mut rest = bytes;
        while self.to_host.is_empty() && !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(n) if n > 0 => {
                    self.forwarded += Wrapping(u32::try_from(n).unwrap_or(u32::MAX));
                    rest = rest.get(n..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return Taken::HungUp,
            }
        }
        self.to_host.extend(rest);
        Taken::All
    }

    /// Passes on to the stream what it takes. An error means that nobody is there any more.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.to_host.is_empty() {
            match self.stream.write(self.to_host.as_slices().0) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.to_host.drain(..n);
                    self.forwarded += Wrapping(u32::try_from(n).unwrap_or(u32::MAX));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Most connections rest: none of them keeps memory.
        self.to_host = VecDeque::new();
        if self.guest_done {
            let _ = self.stream.shutdown(Shutdown::Write); // gone already is as good
        }
        Ok(())
    }

    /// The guest has forgotten the connection. `true` where its last bytes are still to be taken.
    pub(super) fn outlives_guest(&mut self) -> bool {
        self.guest_gone = self.guest_done && !self.to_host.is_empty();
        self.guest_deaf |= self.guest_gone;
        self.guest_gone
    }

    /// Reads for the guest, as much as it has room for.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<FromHost> {
        let room = self.room().min(into.len());
        let Some(into) = into.get_mut(..room).filter(|into| !into.is_empty()) else { return Ok(FromHost::Nothing) };
        loop {
            match self.stream.read(into) {
                Ok(0) => return Ok(FromHost::End),
                Ok(n) => {
                    self.sent += Wrapping(u32::try_from(n).unwrap_or(u32::MAX));
                    return Ok(FromHost::Bytes(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(FromHost::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The guest shuts down (§5.10.6.5).
    pub(super) fn shut_down(&mut self, flags: u32) {
        self.guest_deaf |= flags & SHUTDOWN_RECEIVE != 0;
        self.guest_done |= flags & SHUTDOWN_SEND != 0;
        if self.guest_deaf {
            let _ = self.stream.shutdown(Shutdown::Read); // gone already is as good
        }
    }

    /// Nothing that the host's side could still send would reach the guest: once that side has hung up, it is over.
    pub(super) fn ends_with_host(&self) -> bool {
        self.asked.is_some() || self.guest_deaf || self.host_done
    }

    /// Nothing will pass any more, and what the guest sent has arrived.
    pub(super) fn is_over(&self) -> bool {
        self.guest_done && self.to_host.is_empty() && (self.guest_deaf || self.host_done)
    }

    /// Whether the guest should hear of the room that has become free: half of it.
    pub(super) fn has_news(&self) -> bool {
        (self.forwarded - self.told).0 >= self.room_bytes >> 1
    }

    /// Fills in what every packet to the guest says.
    pub(super) fn stamp(&mut self, header: &mut Header) {
        header.buf_alloc = self.room_bytes;
        header.fwd_cnt = self.forwarded.0;
        self.told = self.forwarded;
    }
}
