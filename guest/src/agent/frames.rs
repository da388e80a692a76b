//! Frames over a stream that never blocks: bytes in, at most one frame's worth kept; bytes out, a bounded backlog.

use std::io;
use std::os::fd::BorrowedFd;

use labyard_spec::agent::{HEADER_BYTES, Kind, MAX_FRAME_BYTES, header, parse_header};
use rustix::io::Errno;

/// One whole frame and its header.
const FRAME_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES as usize;
/// Above this much unsent, no more output is taken from the program.
const MAX_UNSENT: usize = 4 * FRAME_BYTES;

/// Outcome of one read or write that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes, at least one.
    Some(usize),
    /// Nothing now.
    Wait,
    /// Nothing ever again.
    End,
}

/// Reads what is there.
pub(super) fn read_now(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Moved> {
    match rustix::io::read(fd, into) {
        Ok(0) => Ok(Moved::End),
        Ok(count) => Ok(Moved::Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::Wait),
        // A terminal whose other side is gone (ioctl_tty(2)), and a caller that went away.
        Err(Errno::IO | Errno::CONNRESET) => Ok(Moved::End),
        Err(error) => Err(error.into()),
    }
}

/// Writes what there is room for.
pub(super) fn write_now(fd: BorrowedFd<'_>, from: &[u8]) -> io::Result<Moved> {
    match rustix::io::write(fd, from) {
        Ok(count) => Ok(Moved::Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Moved::Wait),
        Err(Errno::PIPE | Errno::IO | Errno::CONNRESET) => Ok(Moved::End),
        Err(error) => Err(error.into()),
    }
}

/// Frames from the caller.
#[derive(Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
}

impl Incoming {
    /// Takes what the stream has, at most up to one whole frame in memory.
    pub(super) fn fill(&mut self, stream: BorrowedFd<'_>) -> io::Result<Moved> {
        let (old, room) = (self.bytes.len(), FRAME_BYTES.saturating_sub(self.bytes.len()));
        if room == 0 {
            return Ok(Moved::Wait);
        }
        self.bytes.resize(old.saturating_add(room), 0);
        let moved = read_now(stream, self.bytes.get_mut(old..).unwrap_or_default());
        self.bytes.truncate(old.saturating_add(if let Ok(Moved::Some(count)) = moved { count } else { 0 }));
        moved
    }

    /// The next whole frame, or the text of what is wrong with it.
    pub(super) fn next(&mut self) -> Result<Option<(Kind, Vec<u8>)>, String> {
        let Some(head) = self.bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let (kind, len) = parse_header(*head)?;
        let whole = HEADER_BYTES.saturating_add(len as usize);
        if self.bytes.len() < whole {
            return Ok(None);
        }
        let rest = self.bytes.split_off(whole);
        let mut payload = std::mem::replace(&mut self.bytes, rest);
        payload.drain(..HEADER_BYTES);
        Ok(Some((kind, payload)))
    }
}

/// Frames to the caller.
#[derive(Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Adds one frame; a payload beyond the limit is cut, which only happens to the text of an error.
    pub(super) fn push(&mut self, kind: Kind, payload: &[u8]) {
        let payload = payload.get(..MAX_FRAME_BYTES as usize).unwrap_or(payload);
        self.bytes.extend_from_slice(&header(kind, u32::try_from(payload.len()).unwrap_or(MAX_FRAME_BYTES)));
        self.bytes.extend_from_slice(payload);
    }

    /// Whether another frame of output may be added.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() <= MAX_UNSENT
    }

    /// Whether everything has been sent.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Sends what the stream takes.
    pub(super) fn flush(&mut self, stream: BorrowedFd<'_>) -> io::Result<Moved> {
        let moved = write_now(stream, self.bytes.get(self.sent..).unwrap_or_default())?;
        if let Moved::Some(count) = moved {
            self.sent = self.sent.saturating_add(count);
            if self.sent >= self.bytes.len() {
                self.bytes.clear();
                self.sent = 0;
            }
        }
        Ok(moved)
    }
}

/// Sends one error frame to a stream that nothing was sent to yet; it fits in the socket's buffer.
pub(super) fn refuse(stream: BorrowedFd<'_>, why: &str) {
    let mut out = Outgoing::default();
    out.push(Kind::Error, why.as_bytes());
    let _ = out.flush(stream);
}
