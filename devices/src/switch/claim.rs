//! What a sender left undone: a checksum, or the cutting into segments (VIRTIO 1.2, §5.1.6.2).
//!
//! The virtio header in front of a frame is a claim about the frame. Here it is held against the frame's own headers, all of
//! which lie in bytes that were copied out of guest memory before. What comes out names offsets within those bytes, so that
//! whoever works on the frame later asks nothing again. `hdr_len` is a hint that drivers get wrong; it is not looked at.

use super::checksum::Sum;

/// Bytes of struct virtio_net_hdr with VIRTIO_F_VERSION_1 (§5.1.6).
pub const NET_HEADER_BYTES: usize = 12;
/// Bytes of a frame that may be headers: Ethernet, two tags, IPv6 with extensions, TCP with options, or as much of a tunnel.
pub const MAX_HEADERS: usize = 256;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
pub const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4.
pub const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// Destination, source, type (IEEE 802.3, clause 3).
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of a tag (IEEE 802.1Q); two may follow each other.
const TAG_BYTES: usize = 4;
/// Bytes of two.
pub const MAX_TAGS_BYTES: u64 = 8;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_CTAG: u16 = 0x8100;
const ETHERTYPE_STAG: u16 = 0x88a8;

/// Protocol numbers (IANA): those that we cut, and extension headers of IPv6 that may stand before them (RFC 8200, §4).
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers at most.
const MAX_EXTENSIONS: usize = 8;

pub(super) const IPV4_BYTES: usize = 20;
pub(super) const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
/// Where the checksum lies in a TCP header (RFC 9293, §3.1) and in a UDP header (RFC 768).
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// Segments that one frame may stand for: Linux sends none with less than 8 bytes (TCP_MIN_SND_MSS without options).
const MAX_SEGMENTS: u32 = 8192;

/// Feature bits that let a sender leave work undone (§5.1.3).
pub const F_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_HOST_TSO4.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_HOST_TSO6.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// VIRTIO_NET_F_HOST_USO.
pub const F_HOST_USO: u64 = 1 << 56;

/// All that a driver can leave to others.
pub const SENDER_OFFLOADS: u64 = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_USO;

/// What is to be done before a frame is as it would be on a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// Nothing.
    Nothing,
    /// The sum from `start` on belongs at `start + offset`.
    Checksum {
        /// First byte that is summed.
        start: u16,
        /// Where the sum goes, from there.
        offset: u16,
    },
    /// Cutting into segments, each with checksums of its own.
    Segments(Cut),
}

impl Undone {
    /// Whether the frame is one on a wire, too.
    pub fn is_whole(&self) -> bool {
        !matches!(self, Self::Segments(_))
    }
}

/// How a large segment is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Network and transport.
    pub kind: Kind,
    /// Payload bytes of each segment; not 0.
    pub size: u16,
    /// Where the IP header begins.
    pub network: usize,
    /// Where the TCP or UDP header begins.
    pub transport: usize,
    /// Where the payload begins: bytes of all headers.
    pub headers: usize,
}

/// Networks and transports that can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

impl Kind {
    /// gso_type of the virtio header.
    pub fn gso_type(self) -> u8 {
        match self {
            Self::Tcp4 => GSO_TCPV4,
            Self::Tcp6 => GSO_TCPV6,
            Self::Udp4 | Self::Udp6 => GSO_UDP_L4,
        }
    }

    /// Where the checksum lies in the transport's header.
    pub fn checksum_offset(self) -> u16 {
        match self {
            Self::Tcp4 | Self::Tcp6 => TCP_CHECKSUM,
            Self::Udp4 | Self::Udp6 => UDP_CHECKSUM,
        }
    }
}

/// A claim that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadClaim {
    /// Shorter than a virtio header and an Ethernet header.
    #[error("a frame shorter than its headers")]
    Short,
    /// Room for the device to write to.
    #[error("a frame with room for an answer")]
    Answer,
    /// A feature that was not negotiated, or that we do not have.
    #[error("work is left to us that was not agreed on: flags {flags:#x}, type {gso_type:#x}")]
    NotAgreed {
        /// flags.
        flags: u8,
        /// gso_type.
        gso_type: u8,
    },
    /// Not IPv4 or IPv6, or a header that does not fit.
    #[error("work is left to us in a packet that is not whole IPv4 or IPv6, or a fragment")]
    Network,
    /// Not TCP or UDP as the type says.
    #[error("type {0:#x} in a packet of another protocol, or with a header that is cut off")]
    Transport(u8),
    /// csum_start or csum_offset.
    #[error("a checksum at {start} + {offset} that has no place there")]
    Checksum {
        /// csum_start.
        start: u16,
        /// csum_offset.
        offset: u16,
    },
    /// gso_size.
    #[error("{payload} bytes in segments of {size}")]
    SegmentSize {
        /// Bytes of payload.
        payload: u64,
        /// gso_size.
        size: u16,
    },
    /// Lengths in the headers.
    #[error("a length in the packet's header is not the packet's")]
    Length,
}

/// struct virtio_net_hdr (§5.1.6), as the sender wrote it.
#[derive(Debug, Clone, Copy)]
pub struct NetHeader {
    flags: u8,
    gso_type: u8,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl NetHeader {
    /// Decodes.
    pub fn read(bytes: &[u8; NET_HEADER_BYTES]) -> Self {
        // hdr_len is bytes 2 and 3, num_buffers 10 and 11: both mean nothing towards the device.
        let [flags, gso_type, _, _, s0, s1, c0, c1, o0, o1, _, _] = *bytes;
        let word = |low, high| u16::from_le_bytes([low, high]);
        Self { flags, gso_type, gso_size: word(s0, s1), csum_start: word(c0, c1), csum_offset: word(o0, o1) }
    }

    /// The claim that leaves just this undone.
    pub fn of(undone: Undone) -> Self {
        let none = Self { flags: 0, gso_type: GSO_NONE, gso_size: 0, csum_start: 0, csum_offset: 0 };
        match undone {
            Undone::Nothing => none,
            Undone::Checksum { start, offset } => {
                Self { flags: NEEDS_CSUM, csum_start: start, csum_offset: offset, ..none }
            }
            Undone::Segments(Cut { kind, size, transport, .. }) => Self {
                flags: NEEDS_CSUM,
                gso_type: kind.gso_type(),
                gso_size: size,
                csum_start: u16::try_from(transport).unwrap_or(u16::MAX), // within MAX_HEADERS
                csum_offset: kind.checksum_offset(),
            },
        }
    }

    /// As [`Self::read`] reads it.
    pub fn encode(&self) -> [u8; NET_HEADER_BYTES] {
        let ([s0, s1], [c0, c1]) = (self.gso_size.to_le_bytes(), self.csum_start.to_le_bytes());
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, 0, 0, s0, s1, c0, c1, o0, o1, 0, 0]
    }

    /// Holds the claim against the headers at the beginning of a frame of `len` bytes. What was left undone, and how many
    /// bytes of `headers` that speaks of.
    pub fn check(&self, headers: &[u8], len: u64, features: u64) -> Result<(Undone, usize), BadClaim> {
        if headers.len() < ETHERNET_BYTES {
            return Err(BadClaim::Short);
        }
        let not_agreed = BadClaim::NotAgreed { flags: self.flags, gso_type: self.gso_type };
        let needs_checksum = self.flags & NEEDS_CSUM != 0;
        if needs_checksum && features & F_CSUM == 0 {
            return Err(not_agreed);
        }
        if self.gso_type == GSO_NONE {
            return match needs_checksum {
                false => Ok((Undone::Nothing, ETHERNET_BYTES)),
                true => self.check_checksum(headers),
            };
        }
        let needed = match self.gso_type {
            GSO_TCPV4 => F_HOST_TSO4,
            GSO_TCPV6 => F_HOST_TSO6,
            GSO_UDP_L4 => F_HOST_USO,
            _ => return Err(not_agreed),
        };
        // §5.1.6.2.1: a segment to be cut always needs its checksum.
        if features & needed == 0 || !needs_checksum {
            return Err(not_agreed);
        }
        self.check_cut(headers, len).map(|cut| (Undone::Segments(cut), cut.headers))
    }

    /// A guest may run tunnels, so the checksum may be an inner one. It lies behind an IP header and within what was copied.
    fn check_checksum(&self, headers: &[u8]) -> Result<(Undone, usize), BadClaim> {
        let (start, offset) = (self.csum_start, self.csum_offset);
        let bad = BadClaim::Checksum { start, offset };
        let packet = Packet::read(headers).ok_or(BadClaim::Network)?;
        let end = usize::from(start).saturating_add(offset.into()).saturating_add(2);
        if usize::from(start) < packet.transport || end > headers.len() {
            return Err(bad);
        }
        let expected = match packet.protocol {
            TCP => Some(TCP_CHECKSUM),
            UDP => Some(UDP_CHECKSUM),
            _ => None,
        };
        if usize::from(start) == packet.transport && expected.is_some_and(|expected| expected != offset) {
            return Err(bad);
        }
        Ok((Undone::Checksum { start, offset }, end))
    }

    fn check_cut(&self, headers: &[u8], len: u64) -> Result<Cut, BadClaim> {
        let packet = Packet::read(headers).ok_or(BadClaim::Network)?;
        let not_it = BadClaim::Transport(self.gso_type);
        let kind = match (self.gso_type, packet.version, packet.protocol) {
            (GSO_TCPV4, 4, TCP) => Kind::Tcp4,
            (GSO_TCPV6, 6, TCP) => Kind::Tcp6,
            (GSO_UDP_L4, 4, UDP) => Kind::Udp4,
            (GSO_UDP_L4, 6, UDP) => Kind::Udp6,
            _ => return Err(not_it),
        };
        // The final destination is another address than the header's, so the segments' checksums would be wrong.
        if packet.routed {
            return Err(BadClaim::Network);
        }
        let transport = packet.transport;
        let header_bytes = match packet.protocol {
            UDP => UDP_BYTES,
            // Data offset, in words, in the upper half of byte 12 (RFC 9293, §3.1).
            _ => usize::from(byte(headers, transport.saturating_add(12)).ok_or(not_it)? >> 4).saturating_mul(4),
        };
        let end = transport.saturating_add(header_bytes);
        if (packet.protocol == TCP && header_bytes < TCP_BYTES) || end > headers.len() {
            return Err(not_it);
        }
        if usize::from(self.csum_start) != transport || self.csum_offset != kind.checksum_offset() {
            return Err(BadClaim::Checksum { start: self.csum_start, offset: self.csum_offset });
        }
        if len.checked_sub(packet.network as u64) != Some(packet.len.into()) {
            return Err(BadClaim::Length);
        }
        let payload = len.saturating_sub(end as u64);
        let cut = Cut { kind, size: self.gso_size, network: packet.network, transport, headers: end };
        if cut.size == 0 || payload == 0 || cut.segments(payload) > MAX_SEGMENTS {
            return Err(BadClaim::SegmentSize { payload, size: self.gso_size });
        }
        Ok(cut)
    }
}

impl Cut {
    /// Segments for so much payload.
    pub fn segments(&self, payload: u64) -> u32 {
        let segments = payload.checked_add(u64::from(self.size).saturating_sub(1)).unwrap_or(payload);
        u32::try_from(segments.checked_div(self.size.into()).unwrap_or(1)).unwrap_or(u32::MAX).max(1)
    }

    /// The sum over what a checksum covers beside the transport's own bytes, `len` of them: addresses, protocol and length
    /// (RFC 9293, §3.1; RFC 8200, §8.1).
    pub fn pseudo_header(&self, headers: &[u8], len: usize) -> Sum {
        let mut sum = Sum::default();
        let (addresses, protocol) = match self.kind {
            Kind::Tcp4 => (12..IPV4_BYTES, TCP),
            Kind::Udp4 => (12..IPV4_BYTES, UDP),
            Kind::Tcp6 => (8..IPV6_BYTES, TCP),
            Kind::Udp6 => (8..IPV6_BYTES, UDP),
        };
        sum.add(headers.get(self.network..).and_then(|packet| packet.get(addresses)).unwrap_or_default());
        sum.add_u16(protocol.into());
        // A packet has at most 65,535 bytes, so the upper half of the length in IPv6 is 0.
        sum.add_u16(u16::try_from(len).unwrap_or(u16::MAX));
        sum
    }
}

/// Whether a frame has a tag.
pub fn is_tagged(headers: &[u8]) -> bool {
    matches!(word(headers, ETHERNET_BYTES.saturating_sub(2)), Some(ETHERTYPE_CTAG | ETHERTYPE_STAG))
}

/// A network header that makes sense.
struct Packet {
    version: u8,
    network: usize,
    transport: usize,
    protocol: u8,
    /// Bytes of the packet by its own account.
    len: u32,
    /// It goes to another address first (RFC 8200, §4.4).
    routed: bool,
}

impl Packet {
    /// The packet in a frame: behind at most two tags, IPv4 or IPv6, not a fragment.
    fn read(headers: &[u8]) -> Option<Self> {
        let (mut network, mut kind) = (ETHERNET_BYTES, word(headers, ETHERNET_BYTES.saturating_sub(2))?);
        for _ in 0..2 {
            if kind == ETHERTYPE_CTAG || kind == ETHERTYPE_STAG {
                kind = word(headers, network.saturating_add(2))?;
                network = network.saturating_add(TAG_BYTES);
            }
        }
        match kind {
            ETHERTYPE_IPV4 => Self::read_ipv4(headers, network),
            ETHERTYPE_IPV6 => Self::read_ipv6(headers, network),
            _ => None,
        }
    }

    /// RFC 791, §3.1.
    fn read_ipv4(headers: &[u8], network: usize) -> Option<Self> {
        let at = |offset: usize| network.saturating_add(offset);
        let first = byte(headers, network)?;
        let header_bytes = usize::from(first & 0xf).saturating_mul(4);
        // More fragments, or an offset.
        let fragment = word(headers, at(6))? & 0x3fff != 0;
        if first >> 4 != 4 || header_bytes < IPV4_BYTES || fragment || at(header_bytes) > headers.len() {
            return None;
        }
        let (protocol, len) = (byte(headers, at(9))?, word(headers, at(2))?.into());
        Some(Self { version: 4, network, transport: at(header_bytes), protocol, len, routed: false })
    }

    /// RFC 8200, §3 and §4.
    fn read_ipv6(headers: &[u8], network: usize) -> Option<Self> {
        let at = |offset: usize| network.saturating_add(offset);
        if byte(headers, network)? >> 4 != 6 {
            return None;
        }
        let len = u32::from(word(headers, at(4))?).saturating_add(IPV6_BYTES as u32);
        let (mut protocol, mut transport, mut routed) = (byte(headers, at(6))?, at(IPV6_BYTES), false);
        for _ in 0..MAX_EXTENSIONS {
            match protocol {
                HOP_BY_HOP | DESTINATION_OPTIONS => {}
                ROUTING => routed = true,
                FRAGMENT => return None,
                _ => break,
            }
            // In units of 8 bytes, without the first 8 (RFC 8200, §4.3).
            let units = usize::from(byte(headers, transport.saturating_add(1))?).saturating_add(1);
            protocol = byte(headers, transport)?;
            transport = transport.saturating_add(units.saturating_mul(8));
        }
        let extension = matches!(protocol, HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING | FRAGMENT);
        (!extension && transport <= headers.len()).then_some(Self {
            version: 6,
            network,
            transport,
            protocol,
            len,
            routed,
        })
    }
}

fn byte(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// A number in network byte order.
fn word(bytes: &[u8], at: usize) -> Option<u16> {
    match bytes.get(at..)? {
        [high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}
