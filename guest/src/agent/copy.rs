//! Files to and from the caller: a tar in frames.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use labyard_archive::{MAX_BYTES, Packing, Unpacking, pack, place, unpack};
use labyard_spec::agent::{Exit, Kind, MAX_FRAME_BYTES, Pack, Unpack};
use rustix::event::{PollFd, PollFlags};

use super::call::{CallError, Talk, poll};
use super::frames::Moved;
use crate::console::chain;

/// Packs what the caller asks for.
pub(super) fn send(talk: Talk<'_>, asked: &Pack) -> Result<(), CallError> {
    let how = Packing { follow: asked.follow, specials: asked.archive, ..Packing::default() };
    send_packed(talk, absolute(&asked.path).as_ref(), &how)
}

/// Packs what is at `path`.
pub(super) fn send_packed(mut talk: Talk<'_>, path: &Path, how: &Packing) -> Result<(), CallError> {
    let mut notes = Vec::new();
    let out = io::BufWriter::with_capacity(MAX_FRAME_BYTES as usize, Output(&mut talk));
    let packed = pack(path, how, out, &mut |note| notes.push(note));
    for note in notes {
        talk.outgoing.push(Kind::Stderr, format!("{note}\n").as_bytes());
    }
    match packed {
        Ok(_) => talk.exit(Exit::Code(0)),
        Err(error) => talk.end(Kind::Error, chain(&error).as_bytes()),
    }
}

/// Unpacks what the caller sends.
pub(super) fn take(mut talk: Talk<'_>, asked: &Unpack) -> Result<(), CallError> {
    let path = absolute(&asked.path);
    let (folder, rename) = match place(path.as_ref()) {
        Ok(place) => place,
        Err(error) => return talk.end(Kind::Error, format!("{path}: {error}").as_bytes()),
    };
    // What is sent into a machine has the modes that it has outside, whatever the umask of who started this.
    let how = Unpacking { rename, owners: asked.archive, devices: asked.archive, umask: 0, max_bytes: MAX_BYTES };
    let mut input = Input { talk: &mut talk, bytes: Vec::new(), taken: 0, ended: false };
    match unpack(&mut input, folder.as_fd(), &how) {
        Ok(_) => talk.exit(Exit::Code(0)),
        Err(error) => talk.end(Kind::Error, chain(&error).as_bytes()),
    }
}

/// A path that begins nowhere begins at the root.
fn absolute(path: &str) -> String {
    if Path::new(path).is_absolute() { path.to_owned() } else { format!("/{path}") }
}

struct Output<'a, 'b>(&'a mut Talk<'b>);

impl Write for Output<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = bytes.get(..MAX_FRAME_BYTES as usize).unwrap_or(bytes);
        while !self.0.outgoing.has_room() {
            send_some(self.0)?;
        }
        // An empty one would say something else.
        if !now.is_empty() {
            self.0.outgoing.push(Kind::Stdout, now);
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.0.outgoing.is_empty() {
            send_some(self.0)?;
        }
        Ok(())
    }
}

fn send_some(talk: &mut Talk<'_>) -> io::Result<()> {
    match talk.outgoing.flush(talk.stream)? {
        Moved::Some(_) => Ok(()),
        Moved::End => Err(io::ErrorKind::BrokenPipe.into()),
        Moved::Wait => wait(talk, PollFlags::OUT),
    }
}

fn wait(talk: &Talk<'_>, what: PollFlags) -> io::Result<()> {
    let events = poll(&mut [PollFd::from_borrowed_fd(talk.stream, what)], None).map_err(io::Error::other)?;
    match events.first().is_some_and(|events| events.intersects(PollFlags::HUP | PollFlags::ERR)) {
        // What the caller sent before it left is still there to read.
        true if what != PollFlags::IN => Err(io::ErrorKind::BrokenPipe.into()),
        _ => Ok(()),
    }
}

struct Input<'a, 'b> {
    talk: &'a mut Talk<'b>,
    /// The last frame, and how much of it was read.
    bytes: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Read for Input<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut left = self.bytes.get(self.taken..).unwrap_or_default();
            if self.ended || !left.is_empty() {
                let n = left.read(into)?;
                self.taken = self.taken.saturating_add(n);
                return Ok(n);
            }
            match self.talk.incoming.next().map_err(io::Error::other)? {
                Some((Kind::Stdin, bytes)) => {
                    self.ended = bytes.is_empty();
                    (self.bytes, self.taken) = (bytes, 0);
                }
                Some((kind, _)) => return Err(io::Error::other(format!("{kind:?} frame in an archive"))),
                None => match self.talk.incoming.fill(self.talk.stream)? {
                    Moved::Some(_) => {}
                    Moved::End => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the caller hung up")),
                    Moved::Wait => wait(self.talk, PollFlags::IN)?,
                },
            }
        }
    }
}
