//! Connections of the guest's network, carried over calls: those that the agent opens, and those that it takes for a caller.
//!
//! ```text
//!   caller ──Stdin──> input ──> socket      an empty frame ends this direction (shutdown)
//!   caller <─Stdout── outgoing <── socket   an empty frame says that the other side has ended it
//!   both ended: Exit 0; reset or refused: Error; the caller hangs up: the socket is reset
//! ```

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use labyard_spec::agent::{Arrival, Dial, Exit, Kind, Listen, MAX_FRAME_BYTES, Protocol};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};

use super::Agent;
use super::call::{CallError, Talk, poll};
use super::frames::Moved;
use super::resolve;

/// How long one address may take to answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// Connections of one listener that nobody has asked for yet; the kernel holds further ones back.
const MAX_PENDING: usize = 64;
/// Connections that the kernel holds.
const BACKLOG: i32 = 64;

/// Datagrams of one sender that wait for a call; further ones are lost, as datagrams are.
const MAX_DATAGRAMS: usize = 64;

/// Connections that were taken and wait for a call, by number.
#[derive(Default)]
pub(super) struct Arrivals {
    next: AtomicU64,
    /// Never held while something is waited for.
    waiting: Mutex<HashMap<u64, Waiting>>,
}

struct Waiting {
    /// The listener that took it.
    listener: u64,
    socket: OwnedFd,
    sender: Option<Sender>,
}

/// Who sends datagrams, and those that came so far.
struct Sender {
    address: SocketAddr,
    datagrams: Vec<Vec<u8>>,
}

impl Arrivals {
    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn change<T>(&self, change: impl FnOnce(&mut HashMap<u64, Waiting>) -> T) -> T {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Connects, and carries.
pub(super) fn dial(agent: &Agent, mut talk: Talk<'_>, dial: &Dial) -> Result<(), CallError> {
    let addresses = match resolve::addresses(&agent.root, &dial.host, dial.port) {
        Ok(addresses) => addresses,
        Err(why) => return talk.end(Kind::Error, why.as_bytes()),
    };
    let mut why = String::new();
    for address in addresses {
        match connect(&talk, dial.protocol, address)? {
            Ok(Some(socket)) => return carry(talk, &socket, dial.protocol),
            Ok(None) => return Ok(()),
            Err(error) => why = format!("{} {address}: {error}", dial.protocol.name()),
        }
    }
    talk.end(Kind::Error, why.as_bytes())
}

/// A socket that is connected; nothing where the caller hung up meanwhile.
fn connect(talk: &Talk<'_>, protocol: Protocol, address: SocketAddr) -> Result<io::Result<Option<OwnedFd>>, CallError> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match rustix::net::socket_with(family, kind(protocol), flags, None) {
        Ok(socket) => socket,
        Err(error) => return Ok(Err(error.into())),
    };
    match rustix::net::connect(&socket, &address) {
        Ok(()) => return Ok(Ok(Some(socket))),
        Err(Errno::INPROGRESS) => {}
        Err(error) => return Ok(Err(error.into())),
    }
    let until = Instant::now() + CONNECT_WITHIN;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")));
        }
        let mut set = [PollFd::new(&socket, PollFlags::OUT), PollFd::from_borrowed_fd(talk.stream, PollFlags::RDHUP)];
        let events = poll(&mut set, Some(left))?;
        if events.get(1).is_some_and(|events| !events.is_empty()) {
            // It may be connected by now, and an end that looks orderly would be a lie.
            let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
            return Ok(Ok(None));
        }
        if events.first().is_some_and(|events| !events.is_empty()) {
            return Ok(match sockopt::socket_error(&socket) {
                Ok(Ok(())) => Ok(Some(socket)),
                Ok(Err(error)) | Err(error) => Err(error.into()),
            });
        }
    }
}

/// Takes connections until the caller hangs up.
pub(super) fn listen(agent: &Agent, mut talk: Talk<'_>, listen: &Listen) -> Result<(), CallError> {
    let host = if listen.host.is_empty() { "127.0.0.1" } else { &listen.host };
    let bound = resolve::addresses(&agent.root, host, listen.port).and_then(|addresses| {
        let address = addresses.first().copied().ok_or_else(|| "no address".to_owned())?;
        let name = listen.protocol.name();
        bind(listen.protocol, address).map_err(|error| format!("listening on {address}/{name}: {error}"))
    });
    let (socket, at) = match bound {
        Ok(bound) => bound,
        Err(why) => return talk.end(Kind::Error, why.as_bytes()),
    };
    let own = agent.state.arrivals.number();
    let taken = take_all(agent, &mut talk, &Listener { socket, at, protocol: listen.protocol, own });
    agent.state.arrivals.change(|waiting| waiting.retain(|_, waiting| waiting.listener != own));
    taken
}

/// A socket of this kind at the address that it got.
fn bind(protocol: Protocol, address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind(protocol), flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((socket, bound))
}

fn kind(protocol: Protocol) -> SocketType {
    match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    }
}

struct Listener {
    socket: OwnedFd,
    at: SocketAddr,
    protocol: Protocol,
    own: u64,
}

impl Listener {
    /// Takes what has come; the number of a connection where it is a new one.
    fn take(&self, arrivals: &Arrivals) -> io::Result<Option<u64>> {
        let (socket, sender) = match self.protocol {
            Protocol::Tcp => {
                (rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?, None)
            }
            Protocol::Udp => match self.first_of_sender(arrivals)? {
                Some((socket, sender)) => (socket, Some(sender)),
                None => return Ok(None),
            },
        };
        let id = arrivals.number();
        arrivals.change(|waiting| waiting.insert(id, Waiting { listener: self.own, socket, sender }));
        Ok(Some(id))
    }

    /// A socket of its own for who has sent the next datagram, to which the kernel gives all further ones of that sender; nothing where
    /// there is such a socket, and this datagram came before it.
    fn first_of_sender(&self, arrivals: &Arrivals) -> io::Result<Option<(OwnedFd, Sender)>> {
        let mut buffer = vec![0; MAX_FRAME_BYTES as usize];
        let (len, _, from) = rustix::net::recvfrom(&self.socket, &mut *buffer, RecvFlags::empty())?;
        let Some(from) = from.and_then(|from| SocketAddr::try_from(from).ok()) else { return Ok(None) };
        buffer.truncate(len);
        let known = arrivals.change(|waiting| {
            let mut senders = waiting.values_mut().filter(|waiting| waiting.listener == self.own);
            let known = senders.find_map(|waiting| waiting.sender.as_mut().filter(|sender| sender.address == from));
            let Some(Sender { datagrams, .. }) = known else { return false };
            if datagrams.len() < MAX_DATAGRAMS {
                datagrams.push(std::mem::take(&mut buffer));
            }
            true
        });
        if known {
            return Ok(None);
        }
        let (socket, _) = bind(Protocol::Udp, self.at)?;
        rustix::net::connect(&socket, &from)?;
        Ok(Some((socket, Sender { address: from, datagrams: vec![buffer] })))
    }
}

fn take_all(agent: &Agent, talk: &mut Talk<'_>, listener: &Listener) -> Result<(), CallError> {
    say(talk, &Arrival::Listening(listener.at.port()));
    loop {
        if talk.outgoing.flush(talk.stream).map_err(|source| CallError::Stream { source })? == Moved::End {
            return Ok(());
        }
        let own = listener.own;
        let waits = agent.state.arrivals.change(|all| all.values().filter(|waiting| waiting.listener == own).count());
        let room = waits < MAX_PENDING && talk.outgoing.has_room();
        let mut stream = PollFlags::RDHUP;
        stream.set(PollFlags::OUT, !talk.outgoing.is_empty());
        let mut set = vec![PollFd::from_borrowed_fd(talk.stream, stream)];
        if room {
            set.push(PollFd::new(&listener.socket, PollFlags::IN));
        }
        // Whoever takes a connection away rings no bell here; a full listener looks again soon.
        let events = poll(&mut set, (!room).then_some(Duration::from_millis(100)))?;
        let hung_up = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        if events.first().is_some_and(|events| events.intersects(hung_up)) {
            return Ok(());
        }
        if events.get(1).is_some_and(|events| !events.is_empty()) {
            match listener.take(&agent.state.arrivals) {
                Ok(Some(id)) => say(talk, &Arrival::Connection(id)),
                Ok(None) => {}
                // An answer that found nobody (icmp(7)) is reported to who listens for datagrams, too.
                Err(error) if is_passing(&error) => {}
                Err(error) => return talk.end(Kind::Error, format!("taking a connection: {error}").as_bytes()),
            }
        }
    }
}

/// The listener is none the worse for it.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted | ConnectionRefused)
}

fn say(talk: &mut Talk<'_>, arrival: &Arrival) {
    talk.outgoing.push(Kind::Stdout, &serde_json::to_vec(arrival).unwrap_or_default());
}

/// Carries a connection that a listener has taken.
pub(super) fn accept(agent: &Agent, mut talk: Talk<'_>, id: u64) -> Result<(), CallError> {
    match agent.state.arrivals.change(|waiting| waiting.remove(&id)) {
        Some(Waiting { socket, sender: None, .. }) => carry(talk, &socket, Protocol::Tcp),
        Some(Waiting { socket, sender: Some(Sender { datagrams, .. }), .. }) => {
            for datagram in datagrams {
                talk.outgoing.push(Kind::Stdout, &datagram);
            }
            carry(talk, &socket, Protocol::Udp)
        }
        None => talk.end(Kind::Error, format!("no connection {id} waits").as_bytes()),
    }
}

/// How far a connection is.
struct Connection<'a> {
    socket: BorrowedFd<'a>,
    protocol: Protocol,
    /// What the caller sent and the socket has not taken yet; a datagram where it is one.
    input: Option<Vec<u8>>,
    /// How much of it was taken.
    taken: usize,
    /// The caller has ended its direction.
    caller_ended: bool,
    /// And the socket was told so.
    shut: bool,
    /// The other side has ended its direction.
    other_ended: bool,
}

/// Why a connection is over.
enum Over {
    Both,
    CallerGone,
    Broken(String),
}

fn carry(mut talk: Talk<'_>, socket: &OwnedFd, protocol: Protocol) -> Result<(), CallError> {
    if protocol == Protocol::Tcp {
        // What is typed must not wait for more.
        let _ = sockopt::set_tcp_nodelay(socket, true);
    }
    let mut connection = Connection {
        socket: socket.as_fd(),
        protocol,
        input: None,
        taken: 0,
        caller_ended: false,
        shut: false,
        other_ended: false,
    };
    let over = connection.run(&mut talk);
    if !matches!(over, Ok(Over::Both)) {
        // A close without a word would look like an orderly end.
        let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    }
    match over? {
        Over::Both => talk.exit(Exit::Code(0)),
        Over::CallerGone => Ok(()),
        Over::Broken(why) => talk.end(Kind::Error, why.as_bytes()),
    }
}

impl Connection<'_> {
    fn run(&mut self, talk: &mut Talk<'_>) -> Result<Over, CallError> {
        let stream_error = |source| CallError::Stream { source };
        loop {
            if let Some(over) = self.take_frames(talk) {
                return Ok(over);
            }
            if self.shut && self.other_ended {
                return Ok(Over::Both);
            }
            let room = talk.outgoing.has_room() && !self.other_ended;
            let mut stream = PollFlags::RDHUP;
            stream.set(PollFlags::IN, self.input.is_none());
            stream.set(PollFlags::OUT, !talk.outgoing.is_empty());
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, room);
            wanted.set(PollFlags::OUT, self.input.is_some());
            let mut set = vec![PollFd::from_borrowed_fd(talk.stream, stream)];
            // A socket that nothing is wanted of would still report its end, again and again.
            if !wanted.is_empty() {
                set.push(PollFd::from_borrowed_fd(self.socket, wanted));
            }
            let events = poll(&mut set, None)?;
            let of = |place: usize| events.get(place).copied().unwrap_or(PollFlags::empty());
            if of(0).intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
                return Ok(Over::CallerGone);
            }
            if of(0).contains(PollFlags::IN) && talk.incoming.fill(talk.stream).map_err(stream_error)? == Moved::End {
                return Ok(Over::CallerGone);
            }
            if of(0).contains(PollFlags::OUT) && talk.outgoing.flush(talk.stream).map_err(stream_error)? == Moved::End {
                return Ok(Over::CallerGone);
            }
            if !of(1).is_empty() {
                if let Some(over) = self.give() {
                    return Ok(over);
                }
                if room && let Some(over) = self.take(talk) {
                    return Ok(over);
                }
            }
        }
    }

    /// Acts on the frames that are there, until one has to wait for the socket.
    fn take_frames(&mut self, talk: &mut Talk<'_>) -> Option<Over> {
        while self.input.is_none() {
            match talk.incoming.next() {
                Ok(None) => return None,
                Err(why) => return Some(Over::Broken(why)),
                Ok(Some((Kind::Stdin, _))) if self.caller_ended => {
                    return Some(Over::Broken("data came after its end".to_owned()));
                }
                Ok(Some((Kind::Stdin, bytes))) if bytes.is_empty() && self.protocol == Protocol::Tcp => {
                    self.caller_ended = true;
                    self.shut = true;
                    // One that is gone already says so when it is read.
                    let _ = rustix::net::shutdown(self.socket, Shutdown::Write);
                }
                Ok(Some((Kind::Stdin, bytes))) => {
                    (self.input, self.taken) = (Some(bytes), 0);
                    if let Some(over) = self.give() {
                        return Some(over);
                    }
                }
                Ok(Some((kind, _))) => return Some(Over::Broken(format!("{kind:?} frame in a connection"))),
            }
        }
        None
    }

    /// Gives the socket what it takes.
    fn give(&mut self) -> Option<Over> {
        let bytes = self.input.as_ref()?;
        let sent = rustix::net::send(self.socket, bytes.get(self.taken..).unwrap_or_default(), SendFlags::NOSIGNAL);
        match (sent, self.protocol) {
            (Err(Errno::AGAIN | Errno::INTR), _) => return None,
            // A datagram that cannot be sent is lost, as datagrams are.
            (_, Protocol::Udp) => self.input = None,
            (Ok(n), Protocol::Tcp) => {
                self.taken = self.taken.saturating_add(n);
                if self.taken >= bytes.len() {
                    self.input = None;
                }
            }
            (Err(error), Protocol::Tcp) => return Some(Over::Broken(error.to_string())),
        }
        None
    }

    /// Takes what the socket has.
    fn take(&mut self, talk: &mut Talk<'_>) -> Option<Over> {
        let mut buffer = vec![0; MAX_FRAME_BYTES as usize];
        match (rustix::net::recv(self.socket, &mut *buffer, RecvFlags::empty()), self.protocol) {
            (Ok((0, _)), Protocol::Tcp) => {
                self.other_ended = true;
                talk.outgoing.push(Kind::Stdout, &[]);
            }
            (Ok((n, _)), _) => talk.outgoing.push(Kind::Stdout, buffer.get(..n).unwrap_or_default()),
            (Err(Errno::AGAIN | Errno::INTR), _) => {}
            // Nobody took the last datagram (icmp(7)); the next one may find somebody.
            (Err(_), Protocol::Udp) => {}
            (Err(error), Protocol::Tcp) => return Some(Over::Broken(error.to_string())),
        }
        None
    }
}
