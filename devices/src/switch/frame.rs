//! An Ethernet frame on its way through a switch: the header was copied out once, the rest stays where it is.

use crate::Memory;
use crate::virtio::chain::Chain;

/// Destination, source, type (IEEE 802.3, clause 3).
pub const HEADER_BYTES: usize = 14;
/// An 802.1Q tag may make a frame longer.
pub const VLAN_TAG_BYTES: u64 = 4;

/// Whether an address is a group's: broadcast or multicast (IEEE 802, the lowest bit of the first octet).
pub fn is_group(mac: [u8; 6]) -> bool {
    let [first, ..] = mac;
    first & 1 != 0
}

/// A frame.
pub struct Frame<'a> {
    header: [u8; HEADER_BYTES],
    len: u64,
    mem: &'a Memory,
    chain: &'a Chain,
    start: u64,
}

impl<'a> Frame<'a> {
    /// The frame at byte `start` of a driver's chain; `None` where it is shorter than a header.
    pub fn in_chain(mem: &'a Memory, chain: &'a Chain, start: u64) -> Option<Self> {
        let mut header = [0; HEADER_BYTES];
        let len = chain.readable_len().checked_sub(start)?;
        (chain.read_at(mem, start, &mut header) == HEADER_BYTES).then_some(Self { header, len, mem, chain, start })
    }

    /// Where it goes.
    pub fn destination(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.header;
        [a, b, c, d, e, f]
    }

    /// Where it says that it comes from.
    pub fn source(&self) -> [u8; 6] {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = self.header;
        [a, b, c, d, e, f]
    }

    /// Bytes, header included.
    #[expect(clippy::len_without_is_empty, reason = "a frame has at least a header")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Copies the frame into the receiver's chain at `offset`, the header as it was checked. `false` where it did not fit.
    pub fn copy_to(&self, chain: &Chain, mem: &Memory, offset: u64) -> bool {
        let header = HEADER_BYTES as u64;
        let rest = self.len.saturating_sub(header);
        let (from, to) = (self.start.saturating_add(header), offset.saturating_add(header));
        chain.write_at(mem, offset, &self.header) == HEADER_BYTES
            && self.chain.copy_to(self.mem, from, rest, chain, mem, to) == rest
    }

    /// The frame's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        bytes.resize(usize::try_from(self.len).unwrap_or(HEADER_BYTES), 0);
        if let Some(rest) = bytes.get_mut(HEADER_BYTES..) {
            self.chain.read_at(self.mem, self.start.saturating_add(HEADER_BYTES as u64), rest);
        }
        bytes
    }
}
