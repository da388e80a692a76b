//! The gateway's resolver (RFC 1035): machines of the network by name, everything else from the host's resolver.
//!
//! Questions come from guests and answers from outside: neither is believed. A question is looked at as far as its name and type; what is
//! passed on waits in a socket of its own, so that only the resolver that was asked can answer, and is one of so many at most.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::tables::Known;

/// Bytes of a message over UDP, also with EDNS (RFC 6891, 6.2.5).
const MAX_MESSAGE_BYTES: usize = 4096;
/// Questions that wait for the host's resolver at one time; more are refused.
const MAX_PENDING: usize = 128;
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(5);
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
const HEADER_BYTES: usize = 12;
/// Types and class (RFC 1035, 3.2.2 and 3.2.4; RFC 3596).
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
/// Codes of answers (RFC 1035, 4.1.1).
const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NAME_ERROR: u8 = 3;
/// Seconds that an answer may be kept: machines come and go.
const TTL: u32 = 5;

/// One resolver for each network.
pub(super) struct Names {
    gateways: Vec<Gateway>,
    pending: Vec<Pending>,
}

struct Gateway {
    socket: UdpSocket,
    names: Known,
}

/// A question that the host's resolver has.
struct Pending {
    socket: UdpSocket,
    gateway: usize,
    guest: SocketAddr,
    id: [u8; 2],
    until: Instant,
}

impl Names {
    /// Answers at these sockets, in the order of the networks, and those know these names.
    pub(super) fn new(known: &[Known], sockets: Vec<OwnedFd>) -> std::io::Result<Self> {
        let gateways = known.iter().zip(sockets).map(|(names, socket)| {
            let socket = UdpSocket::from(socket);
            socket.set_nonblocking(true)?;
            Ok(Gateway { socket, names: names.clone() })
        });
        Ok(Self { gateways: gateways.collect::<std::io::Result<_>>()?, pending: Vec::new() })
    }

    /// Answers for ever. The process ends around it.
    pub(super) fn serve(mut self) {
        loop {
            if let Err(error) = self.turn() {
                eprintln!("error: uplink: names: {error}");
                return;
            }
        }
    }

    fn turn(&mut self) -> std::io::Result<()> {
        let now = Instant::now();
        self.pending.retain(|pending| pending.until > now);
        let next = self.pending.iter().map(|pending| pending.until.saturating_duration_since(now)).min();
        let limit = next.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        let sockets = self.gateways.iter().map(|gateway| &gateway.socket);
        let sockets = sockets.chain(self.pending.iter().map(|pending| &pending.socket));
        let mut fds: Vec<_> = sockets.map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)).collect();
        match poll(&mut fds, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (asked, answered) = ready.split_at_checked(self.gateways.len()).unwrap_or_default();
        self.pass_answers(answered);
        for (gateway, _) in asked.iter().enumerate().filter(|(_, ready)| **ready) {
            self.hear(gateway);
        }
        Ok(())
    }

    /// Answers of the host's resolver go to who asked.
    fn pass_answers(&mut self, ready: &[bool]) {
        let mut ready = ready.iter().copied().chain(std::iter::repeat(false));
        let gateways = &self.gateways;
        self.pending.retain(|pending| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            let mut message = [0; MAX_MESSAGE_BYTES];
            let Ok(len) = pending.socket.recv(&mut message) else { return false };
            if let (Some(message), Some(gateway)) = (message.get_mut(..len), gateways.get(pending.gateway))
                && len >= HEADER_BYTES
            {
                if let Some(id) = message.first_chunk_mut() {
                    *id = pending.id;
                }
                let _ = gateway.socket.send_to(message, pending.guest); // it asks again
            }
            false
        });
    }

    /// Hears what guests of one network ask.
    fn hear(&mut self, index: usize) {
        let mut message = [0; MAX_MESSAGE_BYTES];
        let Some(gateway) = self.gateways.get(index) else { return };
        let Ok((len, guest)) = gateway.socket.recv_from(&mut message) else { return };
        let Some(message) = message.get(..len) else { return };
        let answer = match Question::read(message) {
            // Not a question: nobody waits for an answer.
            None => return,
            Some(question) => match gateway.find(&question) {
                Found::Here(address) => question.answer(NO_ERROR, address),
                Found::Nobody => question.answer(NAME_ERROR, None),
                Found::Elsewhere => match self.pass_on(index, guest, message) {
                    Ok(()) => return,
                    Err(_) => question.answer(SERVER_FAILURE, None),
                },
            },
        };
        if let Some(gateway) = self.gateways.get(index) {
            let _ = gateway.socket.send_to(&answer, guest); // it asks again
        }
    }

    fn pass_on(&mut self, gateway: usize, guest: SocketAddr, message: &[u8]) -> std::io::Result<()> {
        let resolver = resolver(&std::fs::read_to_string(RESOLV_CONF)?).ok_or(std::io::ErrorKind::NotFound)?;
        let id = message.first_chunk().copied().unwrap_or_default();
        if self.pending.len() >= MAX_PENDING {
            return Err(std::io::ErrorKind::QuotaExceeded.into());
        }
        let own: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect((resolver, 53))?;
        socket.send(message)?;
        self.pending.push(Pending { socket, gateway, guest, id, until: Instant::now() + PATIENCE });
        Ok(())
    }
}

enum Found {
    /// The network has it, and perhaps an address of the type that was asked for.
    Here(Option<IpAddr>),
    /// It would be the network's, and is not there.
    Nobody,
    /// Somebody else's.
    Elsewhere,
}

impl Gateway {
    fn find(&self, question: &Question<'_>) -> Found {
        let name = question.name.as_str();
        match self.names.get(name) {
            Some((four, six)) if question.class == CLASS_IN => Found::Here(match question.kind {
                TYPE_A | TYPE_ANY => Some(four.into()),
                TYPE_AAAA => six.map(Into::into),
                _ => None,
            }),
            // A name without a dot means nothing to anybody else.
            _ if !name.contains('.') && !name.is_empty() => Found::Nobody,
            _ => Found::Elsewhere,
        }
    }
}

/// A message with one question.
struct Question<'a> {
    /// Header and question.
    bytes: &'a [u8],
    /// In lower case, without the last dot.
    name: String,
    kind: u16,
    class: u16,
}

impl<'a> Question<'a> {
    fn read(message: &'a [u8]) -> Option<Self> {
        let [_, _, flags, _, q0, q1, ..] = *message.first_chunk::<HEADER_BYTES>()?;
        // A standard query with one question (RFC 1035, 4.1.1).
        if flags & 0xf8 != 0 || [q0, q1] != [0, 1] {
            return None;
        }
        let (mut name, mut at) = (String::new(), HEADER_BYTES);
        loop {
            let len = usize::from(*message.get(at)?);
            at += 1;
            if len == 0 {
                break;
            }
            // Longer ones would be pointers, for which there is no reason here.
            if len > 63 || name.len() > 255 {
                return None;
            }
            let label = message.get(at..at + len)?;
            at += len;
            if !name.is_empty() {
                name.push('.');
            }
            // What is no letter of a host's name is none of ours, and goes on as it came.
            name.extend(
                label
                    .iter()
                    .map(|byte| if byte.is_ascii_graphic() { char::from(*byte).to_ascii_lowercase() } else { '?' }),
            );
        }
        let [k0, k1, c0, c1] = *message.get(at..)?.first_chunk()?;
        let (kind, class) = (u16::from_be_bytes([k0, k1]), u16::from_be_bytes([c0, c1]));
        Some(Self { bytes: message.get(..at + 4)?, name, kind, class })
    }

    fn answer(&self, code: u8, address: Option<IpAddr>) -> Vec<u8> {
        let mut answer = self.bytes.to_vec();
        if let Some([_, _, flags, more, _, _, a0, a1, n0, n1, x0, x1]) = answer.first_chunk_mut::<HEADER_BYTES>() {
            // An authoritative answer; recursion as it was wished for, and there.
            *flags = 0x84 | (*flags & 1);
            *more = 0x80 | code;
            [*a0, *a1, *n0, *n1, *x0, *x1] = [0, u8::from(address.is_some()), 0, 0, 0, 0];
        }
        if let Some(address) = address {
            // The name is that of the question, at byte 12 (RFC 1035, 4.1.4).
            let (kind, octets) = match address {
                IpAddr::V4(address) => (TYPE_A, address.octets().to_vec()),
                IpAddr::V6(address) => (TYPE_AAAA, address.octets().to_vec()),
            };
            answer.extend([0xc0, 12]);
            [kind, CLASS_IN].iter().for_each(|word| answer.extend(word.to_be_bytes()));
            answer.extend(TTL.to_be_bytes());
            answer.extend([0, if address.is_ipv4() { 4 } else { 16 }]);
            answer.extend(octets);
        }
        answer
    }
}

/// The first resolver of a resolv.conf(5).
fn resolver(text: &str) -> Option<IpAddr> {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.into_iter().find_map(|words| match words.as_slice() {
        ["nameserver", address, ..] => address.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 5);

    fn ask(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.bytes());
        }
        message.extend([0]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    fn gateway() -> Gateway {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let names = ["web", "six"].map(|name| (name.to_owned(), Ipv4Addr::new(172, 16, 0, 10)));
        Gateway { socket, names: Known::new(&names, &[("six".to_owned(), SIX)]) }
    }

    #[test]
    fn a_machine_is_known_and_others_are_not_or_are_somebody_else_s() {
        let gateway = gateway();
        let find = |name, kind| gateway.find(&Question::read(&ask(name, kind)).expect("a question"));
        let four = IpAddr::from([172, 16, 0, 10]);
        assert!(matches!(find("WEB", TYPE_A), Found::Here(Some(address)) if address == four));
        assert!(matches!(find("web", TYPE_AAAA), Found::Here(None)), "it has no address of IPv6");
        assert!(matches!(find("Six", TYPE_AAAA), Found::Here(Some(address)) if address == SIX));
        assert!(matches!(find("six", TYPE_ANY), Found::Here(Some(address)) if address == four), "one of them");
        assert!(matches!(find("six", 15), Found::Here(None)));
        assert!(matches!(find("db", TYPE_A), Found::Nobody));
        assert!(matches!(find("deb.debian.org", TYPE_A), Found::Elsewhere));
    }

    #[test]
    fn an_answer_is_the_question_with_an_address_behind_it() {
        let message = ask("web", TYPE_A);
        let question = Question::read(&message).expect("a question");
        let answer = question.answer(NO_ERROR, Some([172, 16, 0, 10].into()));
        assert_eq!(answer[..12], [0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(answer[12..message.len()], message[12..]);
        assert_eq!(answer[message.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 172, 16, 0, 10]);
        assert_eq!(question.answer(NAME_ERROR, None)[3], 0x83);
        let message = ask("six", TYPE_AAAA);
        let answer = Question::read(&message).expect("a question").answer(NO_ERROR, Some(SIX.into()));
        let record = [&[0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 5, 0, 16][..], &SIX.octets()].concat();
        assert_eq!((answer[7], &answer[message.len()..]), (1, &record[..]));
    }

    #[test]
    fn what_is_no_question_is_no_question() {
        let good = ask("web.example", TYPE_A);
        assert!(Question::read(&good).is_some());
        for len in 0..good.len() {
            assert!(Question::read(&good[..len]).is_none(), "{len} bytes");
        }
        let with = |at: usize, value: u8| {
            let mut message = good.clone();
            message[at] = value;
            message
        };
        for message in [with(2, 0x80), with(2, 0x28), with(5, 2), with(5, 0), with(12, 0xc0), with(12, 64)] {
            assert!(Question::read(&message).is_none(), "{message:?}");
        }
        let mut long = ask("web", TYPE_A)[..12].to_vec();
        (0..100).for_each(|_| long.extend([3, b'a', b'b', b'c']));
        assert!(Question::read(&long).is_none());
    }

    #[test]
    fn the_host_s_resolver_is_the_first_that_is_one() {
        assert_eq!(
            resolver("# x\nsearch a\nnameserver 10.0.0.53\nnameserver 10.0.0.54\n"),
            Some([10, 0, 0, 53].into())
        );
        assert_eq!(resolver("nameserver fe80::1%eth0\nnameserver ::1\n"), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(resolver("search a\n"), None);
    }

    #[test]
    fn whatever_a_guest_asks_is_answered_as_what_it_is_or_not_at_all() {
        let gateway = gateway();
        // From a seed (xorshift64): each run tries the same.
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        let mut throw = |most: usize| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            (dice % most as u64) as usize
        };
        let names = ["web", "six", "deb.debian.org", "x".repeat(63).leak(), "a.b.c.d.e.f", ""];
        for _ in 0..100_000 {
            let mut message = ask(names[throw(names.len())], [TYPE_A, TYPE_AAAA, TYPE_ANY, 15][throw(4)]);
            for _ in 0..throw(4) {
                let at = throw(message.len());
                message[at] = throw(256) as u8;
            }
            if throw(4) == 0 {
                message.truncate(throw(message.len() + 1));
            }
            let Some(question) = Question::read(&message) else { continue };
            assert!(question.name.len() <= 255 + 64 && message.starts_with(question.bytes), "{message:?}");
            let answer = match gateway.find(&question) {
                Found::Here(address) => question.answer(NO_ERROR, address),
                Found::Nobody => question.answer(NAME_ERROR, None),
                Found::Elsewhere => question.answer(SERVER_FAILURE, None),
            };
            assert!(answer.len() <= question.bytes.len() + 28, "it grows: {message:?}");
            assert_eq!(answer[..2], message[..2], "another's number");
            assert_eq!(answer[2] & 0x80, 0x80, "no answer");
        }
    }
}
