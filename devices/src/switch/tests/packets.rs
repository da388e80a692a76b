//! Packets for tests, and what a receiver's network stack would check of them, written as plainly as can be.

use super::mac;

/// A transport over a network, perhaps behind a tag or extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) ipv6: bool,
    pub(super) udp: bool,
    pub(super) tagged: bool,
    /// Bytes of TCP options or of an IPv6 extension header.
    pub(super) extras: usize,
}

pub(super) const FORMS: [Form; 6] = [
    Form { ipv6: false, udp: false, tagged: false, extras: 0 },
    Form { ipv6: true, udp: false, tagged: false, extras: 0 },
    Form { ipv6: false, udp: true, tagged: false, extras: 0 },
    Form { ipv6: true, udp: true, tagged: false, extras: 0 },
    Form { ipv6: false, udp: false, tagged: true, extras: 12 },
    Form { ipv6: true, udp: false, tagged: true, extras: 16 },
];

/// A frame, and where its parts are.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) form: Form,
    pub(super) bytes: Vec<u8>,
    pub(super) network: usize,
    pub(super) transport: usize,
    pub(super) headers: usize,
}

/// A packet from guest 1 whose checksum is left undone, as Linux sends it: the field holds the pseudo header's sum.
pub(super) fn packet(form: Form, to: [u8; 6], payload: &[u8]) -> Packet {
    let mut bytes = [&to[..], &mac(1)].concat();
    if form.tagged {
        bytes.extend([0x81, 0x00, 0x00, 0x07]);
    }
    bytes.extend(if form.ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    let network = bytes.len();
    let transport_header = if form.udp { 8 } else { 20 };
    let (options, extension) = if form.ipv6 { (0, form.extras) } else { (form.extras, 0) };
    let transport_len = transport_header + options + payload.len();
    let protocol = if form.udp { 17u8 } else { 6 };
    if form.ipv6 {
        let len = (extension + transport_len) as u16;
        bytes.extend([0x60, 0, 0, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend([if extension == 0 { protocol } else { 60 }, 64]);
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfc; 16]);
        if extension != 0 {
            bytes.extend([protocol, (extension / 8 - 1) as u8]);
            bytes.extend(vec![0; extension - 2]);
        }
    } else {
        let len = (20 + transport_len) as u16;
        bytes.extend([0x45, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend([0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 172, 16, 0, 1, 172, 16, 0, 2]);
        let sum = !sum(&bytes[network..]);
        bytes[network + 10..network + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let transport = bytes.len();
    if form.udp {
        bytes.extend([0x30, 0x39, 0x14, 0x51]);
        bytes.extend((transport_len as u16).to_be_bytes());
        bytes.extend([0, 0]);
    } else {
        bytes.extend([0x30, 0x39, 0x14, 0x51, 0xff, 0xff, 0xf0, 0x00, 0, 0, 0, 9]);
        // CWR, ACK, PSH and FIN.
        bytes.extend([((5 + options / 4) << 4) as u8, 0x99, 0x01, 0xf5, 0, 0, 0, 0]);
        bytes.extend(vec![1; options]);
    }
    let headers = bytes.len();
    bytes.extend(payload);
    let mut packet = Packet { form, bytes, network, transport, headers };
    let partial = packet.pseudo_sum();
    let at = packet.checksum_at();
    packet.bytes[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    packet
}

impl Packet {
    pub(super) fn checksum_at(&self) -> usize {
        self.transport + usize::from(self.checksum_offset())
    }

    pub(super) fn checksum_offset(&self) -> u16 {
        if self.form.udp { 6 } else { 16 }
    }

    /// The virtio header that leaves the checksum, and with a size the cutting, to the device.
    pub(super) fn claim(&self, size: u16) -> [u8; 12] {
        let gso_type = match (size, self.form.udp, self.form.ipv6) {
            (0, ..) => 0,
            (_, true, _) => 5,
            (_, _, true) => 4,
            _ => 1,
        };
        claim(1, gso_type, self.headers as u16, size, self.transport as u16, self.checksum_offset())
    }

    fn pseudo_sum(&self) -> u16 {
        let addresses = if self.form.ipv6 { 8..40 } else { 12..20 };
        let mut pseudo = self.bytes[self.network..][addresses].to_vec();
        pseudo.extend([0, if self.form.udp { 17 } else { 6 }]);
        pseudo.extend(((self.bytes.len() - self.transport) as u16).to_be_bytes());
        sum(&pseudo)
    }

    /// What a stack sees that got these bytes for a frame of the same form; panics with what is wrong with them.
    pub(super) fn same_form(&self, bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), ..self.clone() }
    }

    /// Lengths in the headers are those of the frame, and the network's checksum is right.
    pub(super) fn check_lengths(&self) {
        let packet = &self.bytes[self.network..];
        let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        if self.form.ipv6 {
            assert_eq!(word(4), packet.len() - 40, "payload length");
        } else {
            assert_eq!(word(2), packet.len(), "total length");
            assert_eq!(sum(&packet[..20]), 0xffff, "checksum of the IPv4 header");
        }
        if self.form.udp {
            let at = self.transport - self.network + 4;
            assert_eq!(word(at), self.bytes.len() - self.transport, "length of the datagram");
        }
    }

    /// The transport's checksum is right.
    pub(super) fn check_finished(&self) {
        let total = u32::from(self.pseudo_sum()) + u32::from(sum(&self.bytes[self.transport..]));
        assert_eq!((total & 0xffff) + (total >> 16), 0xffff, "checksum of the transport");
    }

    /// The transport's checksum is what is to be finished.
    pub(super) fn check_undone(&self) {
        let at = self.checksum_at();
        assert_eq!(self.bytes[at..at + 2], self.pseudo_sum().to_be_bytes(), "sum of the pseudo header");
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[self.headers..]
    }

    pub(super) fn sequence(&self) -> u32 {
        u32::from_be_bytes(self.bytes[self.transport + 4..][..4].try_into().expect("four bytes"))
    }

    pub(super) fn flags(&self) -> u8 {
        self.bytes[self.transport + 13]
    }
}

/// struct virtio_net_hdr.
pub(super) fn claim(flags: u8, gso_type: u8, hdr_len: u16, gso_size: u16, start: u16, offset: u16) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = flags;
    header[1] = gso_type;
    for (at, word) in [(2, hdr_len), (4, gso_size), (6, start), (8, offset)] {
        header[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
    header
}

/// RFC 1071, word by word.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    words.fold(0u32, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    }) as u16
}

/// Bytes without a period.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}
