//! An Ethernet frame on its way through a switch: its headers were copied out once and checked, its payload stays where it is.

use super::checksum::Sum;
use super::claim::{self, BadClaim, ETHERNET_BYTES, MAX_HEADERS, MAX_TAGS_BYTES, NET_HEADER_BYTES, NetHeader, Undone};
use super::offload::Shape;
use crate::Memory;
use crate::virtio::chain::Chain;

/// A payload that is summed goes through a buffer of so many bytes, an even number.
const SUMMED_BYTES: usize = 4096;

/// Whether an address is a group's: broadcast or multicast (IEEE 802, the lowest bit of the first octet).
pub fn is_group(mac: [u8; 6]) -> bool {
    let [first, ..] = mac;
    first & 1 != 0
}

/// A frame.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// All that anybody looks at; at least an Ethernet header.
    headers: &'a [u8],
    undone: Undone,
    len: u64,
    payload: Payload<'a>,
}

#[derive(Clone, Copy)]
enum Payload<'a> {
    /// Bytes of the sender's chain from `start` on.
    Sent { mem: &'a Memory, chain: &'a Chain, start: u64 },
    /// Bytes of a frame that waited.
    Kept(&'a [u8]),
}

/// Where a sender's headers are copied to: the virtio header and whatever may be a header of the frame.
pub struct Scratch([u8; NET_HEADER_BYTES + MAX_HEADERS]);

impl Default for Scratch {
    fn default() -> Self {
        Self([0; NET_HEADER_BYTES + MAX_HEADERS])
    }
}

impl<'a> Frame<'a> {
    /// The frame in a driver's chain, behind its virtio header; `features` are those that the driver has accepted.
    pub fn in_chain(
        mem: &'a Memory,
        chain: &'a Chain,
        features: u64,
        scratch: &'a mut Scratch,
    ) -> Result<Self, BadClaim> {
        let copied = chain.read_at(mem, 0, &mut scratch.0);
        let len = chain.readable_len().checked_sub(NET_HEADER_BYTES as u64).ok_or(BadClaim::Short)?;
        let (net_header, rest) = scratch.0.split_first_chunk_mut::<NET_HEADER_BYTES>().ok_or(BadClaim::Short)?;
        let copied = copied.checked_sub(NET_HEADER_BYTES).and_then(|copied| rest.get_mut(..copied));
        let headers = copied.ok_or(BadClaim::Short)?;
        let (undone, used) = NetHeader::read(net_header).check(headers, len, features)?;
        // A small frame was copied whole, and goes on as such.
        let whole = usize::try_from(len).ok().filter(|len| undone.is_whole() && *len <= headers.len());
        let used = whole.unwrap_or(used);
        let headers = headers.get_mut(..used).ok_or(BadClaim::Short)?;
        if let Undone::Segments(cut) = undone {
            // The driver has put a sum of its own there; whoever gets the frame whole gets ours.
            let transport_len = usize::try_from(len).unwrap_or(usize::MAX).saturating_sub(cut.transport);
            let sum = cut.pseudo_header(headers, transport_len).folded();
            put(headers, cut.transport.saturating_add(cut.kind.checksum_offset().into()), &sum.to_be_bytes());
        }
        let start = (NET_HEADER_BYTES as u64).saturating_add(used as u64);
        Ok(Self { headers, undone, len, payload: Payload::Sent { mem, chain, start } })
    }

    /// The frame that somebody on this side of the switch has handed over behind a virtio header.
    pub fn in_bytes(bytes: &'a mut [u8], features: u64) -> Result<Self, BadClaim> {
        let (net_header, bytes) = bytes.split_first_chunk_mut::<NET_HEADER_BYTES>().ok_or(BadClaim::Short)?;
        let len = bytes.len() as u64;
        let front = bytes.get(..bytes.len().min(MAX_HEADERS)).unwrap_or_default();
        let (undone, used) = NetHeader::read(net_header).check(front, len, features)?;
        let used = if undone.is_whole() && bytes.len() <= MAX_HEADERS { bytes.len() } else { used };
        if let Undone::Segments(cut) = undone {
            let sum = cut.pseudo_header(bytes, bytes.len().saturating_sub(cut.transport)).folded();
            put(bytes, cut.transport.saturating_add(cut.kind.checksum_offset().into()), &sum.to_be_bytes());
        }
        let (headers, payload) = bytes.split_at_checked(used).ok_or(BadClaim::Short)?;
        Ok(Self { headers, undone, len, payload: Payload::Kept(payload) })
    }

    /// Where it goes.
    pub fn destination(&self) -> [u8; 6] {
        self.address(0)
    }

    /// Where it says that it comes from.
    pub fn source(&self) -> [u8; 6] {
        self.address(6)
    }

    fn address(&self, at: usize) -> [u8; 6] {
        self.headers.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
    }

    /// Bytes, headers included.
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least a header")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Its headers, as they were checked.
    pub fn headers(&self) -> &'a [u8] {
        self.headers
    }

    /// Bytes behind its headers.
    pub fn payload_len(&self) -> u64 {
        self.len.saturating_sub(self.headers.len() as u64)
    }

    /// What its sender left to others.
    pub fn undone(&self) -> Undone {
        self.undone
    }

    /// Frames on a wire that it stands for.
    pub fn segments(&self) -> u32 {
        match self.undone {
            Undone::Segments(cut) => cut.segments(self.payload_len()),
            Undone::Nothing | Undone::Checksum { .. } => 1,
        }
    }

    /// Bytes of `segments` of those frames, the first of them number `from`.
    pub fn wire_bytes(&self, from: u32, segments: u32) -> u64 {
        let Undone::Segments(cut) = self.undone else { return self.len.saturating_mul(segments.into()) };
        let start = u64::from(from).saturating_mul(cut.size.into());
        let most = u64::from(segments).saturating_mul(cut.size.into());
        let payload = self.payload_len().saturating_sub(start).min(most);
        u64::from(segments).saturating_mul(cut.headers as u64).saturating_add(payload)
    }

    /// Bytes of the longest of those frames, without Ethernet header and tags: what an MTU is held against.
    pub fn longest_packet(&self) -> u64 {
        // Behind a first tag there may be a second, which nobody has looked at.
        let tags = if claim::is_tagged(self.headers) { MAX_TAGS_BYTES } else { 0 };
        let longest = match self.undone {
            Undone::Segments(cut) => (cut.headers as u64).saturating_add(self.payload_len().min(cut.size.into())),
            Undone::Nothing | Undone::Checksum { .. } => self.len,
        };
        longest.saturating_sub((ETHERNET_BYTES as u64).saturating_add(tags))
    }

    /// Copies `len` bytes of the payload from `from` on into `to` at `at`: one copy. `false` where they did not fit.
    pub fn copy_payload(&self, from: u64, len: u64, to: &Chain, mem: &Memory, at: u64) -> bool {
        match self.payload {
            Payload::Sent { mem: own, chain, start } => {
                chain.copy_to(own, start.saturating_add(from), len, to, mem, at) == len
            }
            Payload::Kept(bytes) => {
                let bytes = part(bytes, from, len);
                bytes.len() as u64 == len && to.write_at(mem, at, bytes) == bytes.len()
            }
        }
    }

    /// The same, and adds exactly the bytes that were delivered to `sum`, whatever their sender does to its own meanwhile.
    pub fn copy_summed(&self, from: u64, len: u64, to: &Chain, mem: &Memory, at: u64, sum: &mut Sum) -> bool {
        let mut buffer = [0; SUMMED_BYTES];
        let mut done = 0u64;
        while done < len {
            let piece_len = len.saturating_sub(done).min(SUMMED_BYTES as u64);
            let offset = from.saturating_add(done);
            let piece = match self.payload {
                Payload::Sent { mem: own, chain, start } => {
                    let into = buffer.get_mut(..piece_len as usize).unwrap_or_default();
                    let read = chain.read_at(own, start.saturating_add(offset), into);
                    buffer.get(..read).unwrap_or_default()
                }
                Payload::Kept(bytes) => part(bytes, offset, piece_len),
            };
            let whole = piece.len() as u64 == piece_len;
            if !whole || to.write_at(mem, at.saturating_add(done), piece) != piece.len() {
                return false;
            }
            sum.add(piece);
            done = done.saturating_add(piece_len);
        }
        true
    }

    /// Copies bytes of the payload from `from` on; `false` where there are not as many.
    pub fn read_payload(&self, from: u64, into: &mut [u8]) -> bool {
        match self.payload {
            Payload::Sent { mem, chain, start } => chain.read_at(mem, start.saturating_add(from), into) == into.len(),
            Payload::Kept(bytes) => {
                let bytes = part(bytes, from, into.len() as u64);
                let whole = bytes.len() == into.len();
                if whole {
                    into.copy_from_slice(bytes);
                }
                whole
            }
        }
    }

    /// Frame `number` of those on a wire that it stands for, as it would be there: nothing is left undone.
    pub fn on_wire(&self, number: u32) -> Option<Kept> {
        let bytes = match self.undone {
            Undone::Segments(cut) => Shape::segment(self, cut, number, 0).bytes(self),
            Undone::Nothing | Undone::Checksum { .. } => Shape::whole(self, 0).bytes(self),
        }?;
        // What anybody looks at is copied out again with each receiver; a complete frame's headers are all of a short one.
        let headers = if bytes.len() <= MAX_HEADERS { bytes.len() } else { ETHERNET_BYTES };
        Some(Kept { bytes, headers, undone: Undone::Nothing })
    }

    /// A copy that can wait.
    pub fn keep(&self) -> Kept {
        let mut bytes = self.headers.to_vec();
        match self.payload {
            Payload::Sent { mem, chain, start } => {
                bytes.resize(usize::try_from(self.len).unwrap_or(self.headers.len()), 0);
                chain.read_at(mem, start, bytes.get_mut(self.headers.len()..).unwrap_or_default());
            }
            Payload::Kept(payload) => bytes.extend_from_slice(payload),
        }
        Kept { bytes, headers: self.headers.len(), undone: self.undone }
    }
}

/// A frame that waits, on its own.
pub struct Kept {
    bytes: Vec<u8>,
    headers: usize,
    undone: Undone,
}

impl Kept {
    /// As a driver would send it: a virtio header, and the frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = NetHeader::of(self.undone).encode().to_vec();
        bytes.extend_from_slice(&self.bytes);
        bytes
    }

    /// The other way; what it claims is checked as a driver's claim is.
    ///
    /// # Errors
    /// The claim does not hold.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadClaim> {
        let (net_header, bytes) = bytes.split_first_chunk::<NET_HEADER_BYTES>().ok_or(BadClaim::Short)?;
        let front = bytes.get(..bytes.len().min(MAX_HEADERS)).unwrap_or_default();
        let (undone, used) = NetHeader::read(net_header).check(front, bytes.len() as u64, claim::SENDER_OFFLOADS)?;
        let is_small = undone.is_whole() && bytes.len() <= MAX_HEADERS;
        let headers = if is_small { bytes.len() } else { used };
        Ok(Self { bytes: bytes.to_vec(), headers, undone })
    }

    /// Its bytes, from the Ethernet header on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The frame.
    pub fn frame(&self) -> Frame<'_> {
        let (headers, payload) = self.bytes.split_at_checked(self.headers).unwrap_or_default();
        Frame { headers, undone: self.undone, len: self.bytes.len() as u64, payload: Payload::Kept(payload) }
    }
}

fn part(bytes: &[u8], from: u64, len: u64) -> &[u8] {
    let start = usize::try_from(from).unwrap_or(usize::MAX);
    let end = start.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
    bytes.get(start..end.min(bytes.len())).unwrap_or_default()
}

/// Writes bytes into headers; nothing where they do not fit.
pub(super) fn put(headers: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = headers.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
        place.copy_from_slice(bytes);
    }
}
