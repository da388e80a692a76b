//! What a frame becomes for one receiver: each gets what its own driver negotiated.
//!
//! ```text
//!   left undone    the receiver takes it               it does not
//!   nothing        as it is                            as it is
//!   a checksum     as it is, the checksum to be done   the checksum is finished
//!   segments       as it is, one large frame           cut, each with a checksum to be done or finished
//! ```
//!
//! The virtio header in front is always ours (VIRTIO 1.2, §5.1.6.4), and so are the bytes of the headers: the checked copy.

use super::checksum::Sum;
use super::claim::{Cut, IPV4_BYTES, Kind, MAX_HEADERS, NEEDS_CSUM, NET_HEADER_BYTES, Undone};
use super::frame::{Frame, put};
use crate::Memory;
use crate::virtio::chain::Chain;

/// VIRTIO_NET_F_GUEST_CSUM (§5.1.3): the driver takes frames whose checksum is not finished.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_GUEST_TSO4: the driver takes large segments of TCP over IPv4.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_GUEST_TSO6.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// VIRTIO_NET_F_GUEST_USO4.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// VIRTIO_NET_F_GUEST_USO6.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// All that a driver may turn on and off while it works (§5.1.6.5.6).
pub const GUEST_OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_USO4 | F_GUEST_USO6;

/// Where num_buffers lies in the virtio header (§5.1.6).
const NUM_BUFFERS: usize = 10;
/// TCP flags in byte 13 of its header (RFC 9293, §3.1).
const TCP_FLAGS: usize = 13;
const FIN_PSH: u8 = 0x01 | 0x08;
/// Congestion window reduced (RFC 3168, §6.1.2).
const CWR: u8 = 0x80;

/// One frame as a receiver gets it.
pub struct Shape {
    /// The virtio header, and behind it the frame's.
    front: [u8; NET_HEADER_BYTES + MAX_HEADERS],
    /// Bytes of the frame's headers.
    headers_len: usize,
    /// Part of the payload.
    from: u64,
    len: u64,
    /// A sum to be finished over the payload: where it starts so far, and where it goes.
    finish: Option<(Sum, usize)>,
}

/// Whether a receiver with these offloads gets the frame as one.
pub fn takes_whole(frame: &Frame<'_>, offloads: u64) -> bool {
    let Undone::Segments(cut) = frame.undone() else { return true };
    let kind = match cut.kind {
        Kind::Tcp4 => F_GUEST_TSO4,
        Kind::Tcp6 => F_GUEST_TSO6,
        Kind::Udp4 => F_GUEST_USO4,
        Kind::Udp6 => F_GUEST_USO6,
    };
    // A driver that has turned checksums off cannot take what depends on them.
    offloads & F_GUEST_CSUM != 0 && offloads & kind != 0
}

impl Shape {
    /// The whole frame.
    pub fn whole(frame: &Frame<'_>, offloads: u64) -> Self {
        let mut shape = Self::plain(frame, 0, frame.payload_len());
        match frame.undone() {
            Undone::Nothing => {}
            Undone::Checksum { start, offset } => shape.checksum(start.into(), offset, offloads),
            Undone::Segments(cut) => {
                shape.leave_checksum(cut.transport, cut.kind.checksum_offset());
                let [_, gso_type, h0, h1, s0, s1, ..] = &mut shape.front;
                *gso_type = cut.kind.gso_type();
                [*h0, *h1] = (cut.headers as u16).to_le_bytes(); // at most MAX_HEADERS
                [*s0, *s1] = cut.size.to_le_bytes();
            }
        }
        shape
    }

    /// Segment `number` of a large frame.
    pub fn segment(frame: &Frame<'_>, cut: Cut, number: u32, offloads: u64) -> Self {
        let from = u64::from(number).saturating_mul(cut.size.into());
        let len = frame.payload_len().saturating_sub(from).min(cut.size.into());
        let mut shape = Self::plain(frame, from, len);
        let last = number.saturating_add(1) >= cut.segments(frame.payload_len());
        let packet_len = shape.headers_len.saturating_sub(cut.network).saturating_add(len as usize);
        let transport_len = shape.headers_len.saturating_sub(cut.transport).saturating_add(len as usize);
        let headers = shape.headers();
        match cut.kind {
            Kind::Tcp4 | Kind::Udp4 => ipv4(headers, cut, packet_len, number),
            // Payload length: without the fixed header (RFC 8200, §3).
            Kind::Tcp6 | Kind::Udp6 => {
                let payload = packet_len.saturating_sub(super::claim::IPV6_BYTES) as u16;
                put(headers, cut.network.saturating_add(4), &payload.to_be_bytes());
            }
        }
        match cut.kind {
            Kind::Tcp4 | Kind::Tcp6 => tcp(headers, cut, from, number == 0, last),
            // RFC 768.
            Kind::Udp4 | Kind::Udp6 => {
                put(headers, cut.transport.saturating_add(4), &(transport_len as u16).to_be_bytes());
            }
        }
        let sum = cut.pseudo_header(headers, transport_len).folded();
        put(headers, cut.transport.saturating_add(cut.kind.checksum_offset().into()), &sum.to_be_bytes());
        shape.checksum(cut.transport, cut.kind.checksum_offset(), offloads);
        shape
    }

    /// The headers as they are, a part of the payload, nothing left undone.
    fn plain(frame: &Frame<'_>, from: u64, len: u64) -> Self {
        let mut front = [0; NET_HEADER_BYTES + MAX_HEADERS];
        put(&mut front, NET_HEADER_BYTES, frame.headers());
        Self { front, headers_len: frame.headers().len(), from, len, finish: None }
    }

    fn headers(&mut self) -> &mut [u8] {
        let headers = self.front.get_mut(NET_HEADER_BYTES..).unwrap_or_default();
        headers.get_mut(..self.headers_len).unwrap_or_default()
    }

    /// The sum from `start` on, which so far is what the header holds, goes to `start + offset`: by the receiver or by us.
    fn checksum(&mut self, start: usize, offset: u16, offloads: u64) {
        if offloads & F_GUEST_CSUM != 0 {
            return self.leave_checksum(start, offset);
        }
        let mut sum = Sum::default();
        sum.add(self.headers().get(start..).unwrap_or_default());
        self.finish = Some((sum, start.saturating_add(offset.into())));
    }

    fn leave_checksum(&mut self, start: usize, offset: u16) {
        let [flags, _, _, _, _, _, s0, s1, o0, o1, ..] = &mut self.front;
        *flags = NEEDS_CSUM;
        [*s0, *s1] = (start as u16).to_le_bytes(); // less than MAX_HEADERS
        [*o0, *o1] = offset.to_le_bytes();
    }

    /// Bytes with the virtio header.
    pub fn room(&self) -> u64 {
        (NET_HEADER_BYTES as u64).saturating_add(self.headers_len as u64).saturating_add(self.len)
    }

    /// Puts it, behind its virtio header, into `to`, in place of what is there. `false` where the payload is not there any more.
    pub fn write_to(&mut self, frame: &Frame<'_>, to: &mut Vec<u8>) -> bool {
        let front_len = NET_HEADER_BYTES.saturating_add(self.headers_len);
        to.clear();
        to.resize(front_len.saturating_add(usize::try_from(self.len).unwrap_or(0)), 0);
        let Some(payload) = to.get_mut(front_len..) else { return false };
        if !frame.read_payload(self.from, payload) {
            return false;
        }
        if let Some((mut sum, place)) = self.finish {
            sum.add(payload);
            put(self.headers(), place, &sum.finish().to_be_bytes());
        }
        put(&mut self.front, NUM_BUFFERS, &1u16.to_le_bytes());
        let front = self.front.get(..front_len).unwrap_or_default();
        put(to, 0, front);
        true
    }

    /// The frame without a virtio header, its checksum finished where one was to be.
    pub fn bytes(&mut self, frame: &Frame<'_>) -> Option<Vec<u8>> {
        let headers_len = self.headers_len;
        let mut bytes = vec![0; headers_len.saturating_add(usize::try_from(self.len).ok()?)];
        let payload = bytes.get_mut(headers_len..)?;
        if !frame.read_payload(self.from, payload) {
            return None;
        }
        if let Some((mut sum, place)) = self.finish {
            sum.add(payload);
            put(self.headers(), place, &sum.finish().to_be_bytes());
        }
        bytes.get_mut(..headers_len)?.copy_from_slice(self.headers());
        Some(bytes)
    }

    /// Puts it into `buffers` buffers of the receiver, which have the room. `false` where they had not.
    pub fn write(&mut self, frame: &Frame<'_>, buffers: u16, to: &Chain, mem: &Memory) -> bool {
        // num_buffers is 1 also for a driver that merges nothing (§5.1.6.4.1).
        put(&mut self.front, NUM_BUFFERS, &buffers.to_le_bytes());
        let front_len = NET_HEADER_BYTES.saturating_add(self.headers_len);
        let at = front_len as u64;
        let copied = match self.finish {
            None => frame.copy_payload(self.from, self.len, to, mem, at),
            Some((mut sum, place)) => {
                let copied = frame.copy_summed(self.from, self.len, to, mem, at, &mut sum);
                put(self.headers(), place, &sum.finish().to_be_bytes());
                copied
            }
        };
        let front = self.front.get(..front_len).unwrap_or_default();
        copied && to.write_at(mem, 0, front) == front.len()
    }
}

/// Total length, identification and checksum (RFC 791, §3.1; each segment is a packet of its own).
fn ipv4(headers: &mut [u8], cut: Cut, packet_len: usize, number: u32) {
    let at = |offset: usize| cut.network.saturating_add(offset);
    put(headers, at(2), &(packet_len as u16).to_be_bytes());
    let id = u16::from_be_bytes(take(headers, at(4))).wrapping_add(number as u16);
    put(headers, at(4), &id.to_be_bytes());
    put(headers, at(10), &[0, 0]);
    let mut sum = Sum::default();
    sum.add(headers.get(cut.network..cut.transport.max(at(IPV4_BYTES))).unwrap_or_default());
    put(headers, at(10), &(!sum.folded()).to_be_bytes());
}

/// Sequence number and flags: only the last segment ends or pushes, only the first tells of a reduced window.
fn tcp(headers: &mut [u8], cut: Cut, from: u64, first: bool, last: bool) {
    let at = |offset: usize| cut.transport.saturating_add(offset);
    let sequence = u32::from_be_bytes(take(headers, at(4))).wrapping_add(from as u32);
    put(headers, at(4), &sequence.to_be_bytes());
    let [mut flags] = take(headers, at(TCP_FLAGS));
    if !first {
        flags &= !CWR;
    }
    if !last {
        flags &= !FIN_PSH;
    }
    put(headers, at(TCP_FLAGS), &[flags]);
}

/// Bytes of headers that were checked to be there.
fn take<const N: usize>(headers: &[u8], at: usize) -> [u8; N] {
    headers.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}
