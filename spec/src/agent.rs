//! The conversation with the agent in a guest: one vsock stream for each call.
//!
//! A frame is one kind byte, a little-endian `u32` length of at most [`MAX_FRAME_BYTES`], and the payload. The caller sends
//! one [`Kind::Request`]; then both sides send frames until the agent's [`Kind::Exit`] or [`Kind::Error`], which is the last.
//! Everything that the agent sends comes from a hostile guest: lengths are checked before memory is taken, unknown kinds end
//! the call. This module is the codec only; both ends bring their own stream.
//!
//! A caller that closes its stream, or only its sending half, before the last frame has hung up: the program's process group
//! gets SIGHUP and soon SIGKILL. So the caller keeps both halves open until the last frame, and then closes at once. The
//! exit is the program's own: what it left running in the background lives on and is not waited for.
//!
//! A connection ([`Request::Dial`], [`Request::Accept`]) has the same frames: [`Kind::Stdin`] towards the guest, [`Kind::Stdout`] from
//! it. Of TCP an empty frame ends that direction and the other goes on; once both have ended comes [`Exit::Code`] 0. A connection that
//! was refused or reset ends by [`Kind::Error`], and a caller that hangs up resets it. Of UDP each frame is a datagram, and the caller
//! ends it by hanging up.

use serde::{Deserialize, Serialize};

use crate::guest::HostEntry;

/// Longest payload of a frame in bytes.
pub const MAX_FRAME_BYTES: u32 = 64 << 10;
/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Caller: [`Request`] as JSON, first and once.
    Request = 1,
    /// Caller: bytes for standard input; an empty frame closes it (on a terminal it is an end-of-file character).
    /// Frames are taken in order, so a signal behind input waits until the program has read that input.
    Stdin = 2,
    /// Caller: a signal number as one byte.
    Signal = 3,
    /// Caller: terminal size, columns and rows as two little-endian `u16`.
    Resize = 4,
    /// Agent: bytes of standard output.
    Stdout = 16,
    /// Agent: bytes of standard error.
    Stderr = 17,
    /// Agent: [`Exit`] as JSON, last.
    Exit = 18,
    /// Agent: why the call could not be carried out, as text, last.
    Error = 19,
}

impl Kind {
    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Self> {
        use Kind::*;
        [Request, Stdin, Signal, Resize, Stdout, Stderr, Exit, Error].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The header of a frame with `len` bytes of payload. Callers split payloads at [`MAX_FRAME_BYTES`].
pub fn header(kind: Kind, len: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = len.to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// Kind and payload length of a frame, or the text of what is wrong with its header.
pub fn parse_header(bytes: [u8; HEADER_BYTES]) -> Result<(Kind, u32), String> {
    let [kind, a, b, c, d] = bytes;
    let len = u32::from_le_bytes([a, b, c, d]);
    let kind = Kind::from_byte(kind).ok_or_else(|| format!("frame of unknown kind {kind}"))?;
    if len > MAX_FRAME_BYTES {
        return Err(format!("frame of {len} bytes, more than {MAX_FRAME_BYTES}"));
    }
    Ok((kind, len))
}

/// What the agent is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Runs a program.
    Exec(Exec),
    /// Asks the guest's init to power off; answered by an exit code of 0 when the request was taken.
    PowerOff,
    /// Changes lines of `/etc/hosts`; answered by an exit code of 0 when they are there.
    Hosts(Hosts),
    /// Connects to an address as the guest reaches it.
    Dial(Dial),
    /// Takes connections in the guest. Each line of [`Kind::Stdout`] is an [`Arrival`]; it ends when the caller hangs up.
    Listen(Listen),
    /// Carries a connection that a [`Request::Listen`] which still runs has told of.
    Accept {
        /// Its number.
        id: u64,
    },
    /// Sends files as a tar on [`Kind::Stdout`]. Lines on [`Kind::Stderr`] say what was passed over.
    Pack(Pack),
    /// Takes a tar on [`Kind::Stdin`], which an empty frame ends, and makes the files in it.
    Unpack(Unpack),
    /// Sends all files of a drive as a tar on [`Kind::Stdout`], with all that an image keeps of them. Only a machine that was booted for it
    /// ([`crate::guest::MachineConfig::bake`]) does, and nothing else but to power off. Lines on [`Kind::Stderr`] say what was passed over.
    Bake {
        /// The drive's.
        serial: String,
    },
}

/// Machines that the guest finds by name. Done twice, the second time changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    /// Lines that are to be there.
    pub here: Vec<HostEntry>,
    /// Names whose lines go, but for those of `here`.
    pub gone: Vec<String>,
}

/// A connection into or through the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dial {
    /// Over what.
    pub protocol: Protocol,
    /// Address, or a name as the guest knows it.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// What connections are carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Where connections are taken in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Over what; of datagrams each sender is a connection.
    pub protocol: Protocol,
    /// Address of the guest.
    pub host: String,
    /// Port; any that is free where 0.
    pub port: u16,
}

/// What a listener says: first where it listens, then each connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// It listens on this port.
    Listening(u16),
    /// Somebody has connected; the number is for [`Request::Accept`].
    Connection(u64),
}

/// Files to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// A file, or a folder with all that is in it; `FOLDER/.` is what is in it alone.
    pub path: String,
    /// Where `path` is a link, send what it leads to.
    pub follow: bool,
    /// Devices and named pipes, too.
    pub archive: bool,
}

/// Files to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpack {
    /// A folder, in which they keep their names; or the new name of the only one, in a folder that is there.
    pub path: String,
    /// With the owners in the archive, else root's.
    pub archive: bool,
}

/// A program to run in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program (looked up in the guest's PATH) and arguments; at least one.
    pub argv: Vec<String>,
    /// Added to the environment, `KEY=value`.
    pub env: Vec<String>,
    /// Where it starts; the user's home where missing.
    pub working_dir: Option<String>,
    /// User name or uid, `root` where missing.
    pub user: Option<String>,
    /// Run it on a terminal of this size (columns, rows); standard error then comes with standard output.
    pub tty: Option<(u16, u16)>,
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// With this code.
    Code(u8),
    /// By this signal; callers exit with 128 + signal.
    Signal(u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was_made() {
        for kind in [
            Kind::Request,
            Kind::Stdin,
            Kind::Signal,
            Kind::Resize,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Exit,
            Kind::Error,
        ] {
            assert_eq!(parse_header(header(kind, MAX_FRAME_BYTES)), Ok((kind, MAX_FRAME_BYTES)));
        }
    }

    #[test]
    fn a_hostile_header_is_refused_before_memory_is_taken() {
        for bytes in [[0, 0, 0, 0, 0], [255, 1, 0, 0, 0], [16, 1, 0, 1, 0], [16, 255, 255, 255, 255]] {
            assert!(parse_header(bytes).is_err(), "{bytes:?}");
        }
    }
}
