//! One call: a loop over the caller's stream and the program's descriptors, none of which ever blocks.
//!
//! Backpressure goes both ways: input is read from the caller only when the program has taken what came before, output from
//! the program only when the caller has taken most of what came before. So neither side can make the other wait for ever,
//! and memory is bounded.
//!
//! ```text
//!   request ──> running ──(program ended)──> draining ──> exit frame sent
//!                  │                            │
//!                  └──(caller gone, bad frame)──┴──> SIGHUP, then SIGKILL to the process group
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use labyard_spec::agent::{Exec, Exit, Kind, MAX_FRAME_BYTES, Request};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use super::frames::{Incoming, Moved, Outgoing, read_now, write_now};
use super::process::{Process, never_block, waiting};
use super::{Agent, MAX_PROGRAMS, copy, forward, hosts, power};

/// How long a caller may take to say what it wants.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// Between SIGHUP and SIGKILL, once nobody listens any more.
const GRACE: Duration = Duration::from_secs(2);
/// How long a terminal's last output is waited for after its program has ended.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// Why a call ended without an exit frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("the caller's stream")]
    Stream { source: io::Error },
    #[error("waiting for events")]
    Poll { source: io::Error },
    #[error("the program's descriptors")]
    Program { source: io::Error },
}

/// Carries out the call on `stream`.
pub(super) fn serve(agent: &Agent, stream: BorrowedFd<'_>) -> Result<(), CallError> {
    let mut talk = Talk::on(stream)?;
    match talk.request()? {
        None => Ok(()),
        Some(Err(why)) => talk.end(Kind::Error, why.as_bytes()),
        Some(Ok(Request::PowerOff)) => {
            let way = power::ask(agent);
            let told = talk.exit(Exit::Code(0));
            way.go();
            told
        }
        Some(Ok(Request::Exec(exec))) => {
            let _counted = match Counted::begin(&agent.state.programs) {
                Some(counted) => counted,
                None => return talk.end(Kind::Error, TOO_MANY.as_bytes()),
            };
            match start(agent, &exec) {
                Ok(process) => Running::new(talk, process).run(),
                Err(why) => talk.end(Kind::Error, why.as_bytes()),
            }
        }
        Some(Ok(Request::Hosts(change))) => match hosts::change(agent, &change) {
            Ok(()) => talk.exit(Exit::Code(0)),
            Err(why) => talk.end(Kind::Error, why.as_bytes()),
        },
        Some(Ok(Request::Dial(dial))) => forward::dial(agent, talk, &dial),
        Some(Ok(Request::Listen(listen))) => forward::listen(agent, talk, &listen),
        Some(Ok(Request::Accept { id })) => forward::accept(agent, talk, id),
        Some(Ok(Request::Pack(pack))) => copy::send(talk, &pack),
        Some(Ok(Request::Unpack(unpack))) => copy::take(talk, &unpack),
        Some(Ok(Request::Bake { .. })) => talk.end(Kind::Error, b"this machine was not booted to be baked"),
    }
}

const TOO_MANY: &str = "too many programs run through calls already: try again when one has ended";

/// One of the programs that run.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let counted = Self(count);
        (count.fetch_add(1, Ordering::AcqRel) < MAX_PROGRAMS).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn start(agent: &Agent, exec: &Exec) -> Result<Process, String> {
    if exec.argv.is_empty() {
        return Err("no program was named: argv is empty".to_owned());
    }
    let strings = exec.argv.iter().chain(&exec.env).chain(&exec.working_dir);
    if strings.into_iter().any(|text| text.contains('\0')) {
        return Err("arguments, environment and folder may not contain a NUL".to_owned());
    }
    Process::start(agent, exec)
}

/// The caller's side.
pub(super) struct Talk<'a> {
    pub(super) stream: BorrowedFd<'a>,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
}

impl<'a> Talk<'a> {
    /// On a stream that nothing was said on.
    pub(super) fn on(stream: BorrowedFd<'a>) -> Result<Self, CallError> {
        never_block(stream).map_err(|source| CallError::Stream { source })?;
        Ok(Self { stream, incoming: Incoming::default(), outgoing: Outgoing::default() })
    }

    /// The first frame; `None` where the caller went away before.
    pub(super) fn request(&mut self) -> Result<Option<Result<Request, String>>, CallError> {
        let until = Instant::now() + REQUEST_WITHIN;
        loop {
            match self.incoming.next() {
                Ok(Some((Kind::Request, json))) => {
                    let request = serde_json::from_slice(&json).map_err(|error| format!("request: {error}"));
                    return Ok(Some(request));
                }
                Ok(Some((kind, _))) => return Ok(Some(Err(format!("{kind:?} came before the request")))),
                Err(why) => return Ok(Some(Err(why))),
                Ok(None) => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Some(Err(format!("no request within {} s", REQUEST_WITHIN.as_secs()))));
            }
            poll(&mut [PollFd::from_borrowed_fd(self.stream, PollFlags::IN)], Some(left))?;
            match self.incoming.fill(self.stream).map_err(|source| CallError::Stream { source })? {
                Moved::End => return Ok(None),
                Moved::Some(_) | Moved::Wait => {}
            }
        }
    }

    pub(super) fn exit(&mut self, exit: Exit) -> Result<(), CallError> {
        let json = serde_json::to_vec(&exit).map_err(|error| CallError::Stream { source: error.into() })?;
        self.end(Kind::Exit, &json)
    }

    /// Sends the last frame and everything before it.
    pub(super) fn end(&mut self, kind: Kind, payload: &[u8]) -> Result<(), CallError> {
        self.outgoing.push(kind, payload);
        while !self.outgoing.is_empty() {
            let flushed = self.outgoing.flush(self.stream).map_err(|source| CallError::Stream { source })?;
            match flushed {
                Moved::End => return Ok(()),
                Moved::Some(_) => {}
                Moved::Wait => {
                    let gone = poll(&mut [PollFd::from_borrowed_fd(self.stream, PollFlags::OUT)], None)?;
                    if gone.first().is_some_and(|events| events.intersects(PollFlags::HUP | PollFlags::ERR)) {
                        return Ok(());
                    }
                }
            }
        }
        // The caller may still be sending input; closing with that unread would reset the stream before it has read the end.
        let _ = rustix::net::shutdown(self.stream, rustix::net::Shutdown::Write);
        let until = Instant::now() + GRACE;
        let mut rest = [0; 4096];
        while Instant::now() < until {
            match read_now(self.stream, &mut rest) {
                Ok(Moved::Some(_)) => {}
                Ok(Moved::Wait) => {
                    let left = until.saturating_duration_since(Instant::now());
                    poll(&mut [PollFd::from_borrowed_fd(self.stream, PollFlags::IN)], Some(left))?;
                }
                Ok(Moved::End) | Err(_) => break,
            }
        }
        Ok(())
    }
}

/// Why the loop stopped.
enum Stop {
    Ended,
    CallerGone,
    BadFrame(String),
}

/// A call whose program runs.
struct Running<'a> {
    talk: Talk<'a>,
    process: Process,
    /// Input that the program has not taken yet, and how much of it was taken.
    input: (Vec<u8>, usize),
    /// The caller has closed the input.
    input_closed: bool,
}

impl<'a> Running<'a> {
    fn new(talk: Talk<'a>, process: Process) -> Self {
        Self { talk, process, input: (Vec::new(), 0), input_closed: false }
    }

    fn run(mut self) -> Result<(), CallError> {
        let stop = self.pump();
        match stop {
            Ok(Stop::Ended) => {
                let drained = self.drain();
                let exit = self.process.reap().map_err(|source| CallError::Program { source })?;
                if drained? { self.talk.exit(exit) } else { Ok(()) }
            }
            Ok(Stop::CallerGone) => self.kill(),
            Ok(Stop::BadFrame(why)) => {
                self.kill()?;
                self.talk.end(Kind::Error, why.as_bytes())
            }
            Err(error) => self.kill().and(Err(error)),
        }
    }

    /// Moves bytes until the program has ended or the caller is gone.
    fn pump(&mut self) -> Result<Stop, CallError> {
        loop {
            if let Some(stop) = self.take_frames() {
                return Ok(stop);
            }
            let wants_input = self.input.0.is_empty();
            let mut stream = PollFlags::RDHUP;
            stream.set(PollFlags::IN, wants_input);
            stream.set(PollFlags::OUT, !self.talk.outgoing.is_empty());
            let room = self.talk.outgoing.has_room();
            let stdin = self.process.stdin.as_ref().filter(|_| !wants_input);
            let (stdout, stderr) =
                (self.process.stdout.as_ref().filter(|_| room), self.process.stderr.as_ref().filter(|_| room));
            let mut set = vec![
                PollFd::from_borrowed_fd(self.talk.stream, stream),
                PollFd::new(&self.process.ended, PollFlags::IN),
            ];
            set.extend(stdin.map(|fd| PollFd::new(fd, PollFlags::OUT)));
            set.extend([stdout, stderr].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)));
            let events = poll(&mut set, None)?;
            let of = |place: usize| events.get(place).copied().unwrap_or(PollFlags::empty());
            if of(0).intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
                return Ok(Stop::CallerGone);
            }
            if of(0).contains(PollFlags::IN) {
                let filled =
                    self.talk.incoming.fill(self.talk.stream).map_err(|source| CallError::Stream { source })?;
                if filled == Moved::End {
                    return Ok(Stop::CallerGone);
                }
            }
            if of(0).contains(PollFlags::OUT) && !self.flush()? {
                return Ok(Stop::CallerGone);
            }
            // Cheap where nothing is there: each descriptor says so at once.
            self.give_input()?;
            if room {
                self.take_output()?;
            }
            if of(1).contains(PollFlags::IN) {
                return Ok(Stop::Ended);
            }
        }
    }

    /// Acts on the frames that are there, until one of input has to wait for the program.
    fn take_frames(&mut self) -> Option<Stop> {
        while self.input.0.is_empty() {
            let (kind, payload) = match self.talk.incoming.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err(why) => return Some(Stop::BadFrame(why)),
            };
            match (kind, payload.as_slice()) {
                (Kind::Stdin, []) => {
                    self.input_closed = true;
                    self.process.close_stdin();
                }
                (Kind::Stdin, _) if self.input_closed => {
                    return Some(Stop::BadFrame("input came after its end".to_owned()));
                }
                // A program that closed its input misses the rest of it, as in a pipe.
                (Kind::Stdin, _) if self.process.stdin.is_none() => {}
                (Kind::Stdin, _) => self.input = (payload, 0),
                (Kind::Signal, &[number]) => match Signal::from_named_raw(i32::from(number)) {
                    Some(signal) => self.process.signal(signal),
                    None => return Some(Stop::BadFrame(format!("{number} is not a signal"))),
                },
                (Kind::Resize, &[a, b, c, d]) => {
                    self.process.resize((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])));
                }
                (kind, bytes) => {
                    return Some(Stop::BadFrame(format!("{kind:?} frame of {} bytes during a call", bytes.len())));
                }
            }
        }
        None
    }

    fn give_input(&mut self) -> Result<(), CallError> {
        let (bytes, taken) = &mut self.input;
        let (Some(stdin), false) = (&self.process.stdin, bytes.is_empty()) else { return Ok(()) };
        match write_now(stdin.as_fd(), bytes.get(*taken..).unwrap_or_default()) {
            Ok(Moved::Some(count)) => {
                *taken = taken.saturating_add(count);
                if *taken >= bytes.len() {
                    bytes.clear();
                }
            }
            Ok(Moved::Wait) => {}
            Ok(Moved::End) => {
                bytes.clear();
                self.process.stdin = None;
            }
            Err(source) => return Err(CallError::Program { source }),
        }
        Ok(())
    }

    fn take_output(&mut self) -> Result<(), CallError> {
        take(&mut self.process.stdout, Kind::Stdout, usize::MAX, &mut self.talk.outgoing)?;
        take(&mut self.process.stderr, Kind::Stderr, usize::MAX, &mut self.talk.outgoing)?;
        Ok(())
    }

    /// Sends what the caller takes; false where it takes nothing any more.
    fn flush(&mut self) -> Result<bool, CallError> {
        let moved = self.talk.outgoing.flush(self.talk.stream).map_err(|source| CallError::Stream { source })?;
        Ok(moved != Moved::End)
    }

    /// Passes on what the program had written when it ended; false where the caller is gone. What lives on in the
    /// background and still holds a pipe is not waited for; of a terminal the end is, because the kernel hangs it up.
    fn drain(&mut self) -> Result<bool, CallError> {
        let until = Instant::now() + DRAIN_WITHIN;
        let terminal = self.process.on_terminal();
        let mut left = [&self.process.stdout, &self.process.stderr].map(|end| end.as_ref().map_or(0, waiting));
        if terminal {
            left[0] = usize::MAX;
        }
        loop {
            while !self.talk.outgoing.has_room() {
                let events = poll(&mut [PollFd::from_borrowed_fd(self.talk.stream, PollFlags::OUT)], None)?;
                let gone = events.first().is_some_and(|events| events.intersects(PollFlags::HUP | PollFlags::ERR));
                if gone || !self.flush()? {
                    return Ok(false);
                }
            }
            let out = &mut self.talk.outgoing;
            let mut moved = 0_usize;
            let ends = [(&mut self.process.stdout, Kind::Stdout), (&mut self.process.stderr, Kind::Stderr)];
            for ((end, kind), left) in ends.into_iter().zip(&mut left) {
                let count = take(end, kind, *left, out)?;
                *left = left.saturating_sub(count);
                moved = moved.saturating_add(count);
            }
            if moved > 0 {
                continue;
            }
            let (Some(stdout), true) = (&self.process.stdout, terminal && Instant::now() < until) else {
                return Ok(true);
            };
            poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(until.saturating_duration_since(Instant::now())))?;
        }
    }

    /// Ends the program's process group, because nobody is there for it any more.
    fn kill(&mut self) -> Result<(), CallError> {
        self.process.signal(Signal::HUP);
        self.process.signal(Signal::CONT); // a stopped program can not hang up
        self.process.let_go();
        let waited = poll(&mut [PollFd::new(&self.process.ended, PollFlags::IN)], Some(GRACE));
        self.process.signal(Signal::KILL);
        self.process.reap().map_err(|source| CallError::Program { source })?;
        waited.map(|_| ())
    }
}

/// Moves one frame of at most `limit` bytes from the program to the caller; returns how many bytes it was.
fn take(end: &mut Option<OwnedFd>, kind: Kind, limit: usize, out: &mut Outgoing) -> Result<usize, CallError> {
    let Some(fd) = end.as_ref().filter(|_| limit > 0) else { return Ok(0) };
    let mut buffer = vec![0; limit.min(MAX_FRAME_BYTES as usize)];
    match read_now(fd.as_fd(), &mut buffer).map_err(|source| CallError::Program { source })? {
        Moved::Some(count) => {
            out.push(kind, buffer.get(..count).unwrap_or_default());
            Ok(count)
        }
        Moved::Wait => Ok(0),
        Moved::End => {
            *end = None;
            Ok(0)
        }
    }
}

/// Waits for one of `set`; what happened, in the same order. A signal in between counts as nothing.
pub(super) fn poll(set: &mut [PollFd<'_>], within: Option<Duration>) -> Result<Vec<PollFlags>, CallError> {
    let within = within.and_then(|within| Timespec::try_from(within).ok());
    match rustix::event::poll(set, within.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(set.iter().map(PollFd::revents).collect()),
        Err(error) => Err(CallError::Poll { source: error.into() }),
    }
}
