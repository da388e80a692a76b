//! Frames that make sense, then spoilt a little: tags, IPv4 with options, IPv6 with extension headers, TCP and UDP, and claims about them.

use labyard_devices::switch::claim::NET_HEADER_BYTES;

use crate::input::Input;

/// For local experiments (IEEE 802): what honest guests say to each other.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
/// Both ports of what is to be cut and was not spoilt.
const SOUND: [u8; 4] = [0x77; 4];
/// TCP and UDP as IP numbers them.
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Extension headers of IPv6: hop by hop, destination options, routing, a fragment, and one that is none.
const EXTENSIONS: [u8; 8] = [0, 60, 0, 60, 60, 43, 44, 99];

/// The address of a port by its number.
pub(super) fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

/// What an honest guest says: all of it follows from who says it, to whom, and its number.
pub(super) fn numbered(to: [u8; 6], from: u8, number: u32) -> Vec<u8> {
    let mut frame = [&to, &mac(from), &EXPERIMENT[..], &number.to_be_bytes()].concat();
    let len = 60 + number as usize * 97 % 1454;
    let from_here = frame.len();
    frame.extend((from_here..len).map(|at| (at as u32 ^ number) as u8));
    frame
}

/// The number of what an honest guest says.
pub(super) fn number_of(frame: &[u8]) -> Option<u32> {
    (frame.get(12..14)? == EXPERIMENT).then_some(())?;
    Some(u32::from_be_bytes(*frame.get(14..)?.first_chunk()?))
}

/// A virtio header and a frame, or less than that.
pub(super) fn any(to: [u8; 6], from: [u8; 6], input: &mut Input<'_>) -> Vec<u8> {
    let (mut header, mut frame) = match input.byte() % 16 {
        0 => ([0; NET_HEADER_BYTES], [to, from].concat()[..input.below(13)].to_vec()),
        1 => ([0; NET_HEADER_BYTES], [&to[..], &from, &[8, 6], &[0; 28]].concat()),
        _ => {
            let payload = match input.byte() % 4 {
                0 => usize::from(input.short()) % 4200,
                1 => input.pick(&[20_000usize, 60_000, 65_600]),
                _ => input.pick(&[0usize, 1, 100, 1400, 3000]),
            };
            packet(to, from, payload, input)
        }
    };
    let spoilt = input.below(4);
    if spoilt == 0 && header[1] != 0 {
        let transport = usize::from(u16::from_le_bytes([header[6], header[7]]));
        frame[transport..transport + 4].copy_from_slice(&SOUND);
    }
    for _ in 0..spoilt {
        let (at, byte) = (input.below(NET_HEADER_BYTES + 100), input.byte());
        match at.checked_sub(NET_HEADER_BYTES) {
            None => header[at] = byte,
            // The addresses stay, mostly: without them a frame does not get far.
            Some(at) if at < frame.len() && (at >= 12 || input.one_in(8)) => frame[at] = byte,
            Some(_) => {}
        }
    }
    let mut bytes = [&header[..], &frame].concat();
    if input.one_in(32) {
        bytes.truncate(input.below(40) + 1);
    }
    bytes
}

/// TCP over IPv4, as much as a packet holds, to be cut.
pub(super) fn large(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let (header, frame) = packet(to, from, 65_000, &mut Input::new(&[]));
    [&header[..], &frame].concat()
}

/// TCP or UDP over IP, its checksum left undone, and the cutting where it is large.
fn packet(to: [u8; 6], from: [u8; 6], payload: usize, input: &mut Input<'_>) -> ([u8; NET_HEADER_BYTES], Vec<u8>) {
    let mut frame = [to, from].concat();
    for tag in input.pick(&[&[][..], &[], &[], &[0x81], &[0x88, 0x81]]) {
        frame.extend([*tag, if *tag == 0x88 { 0xa8 } else { 0 }, 0, 7]);
    }
    let is_ipv6 = input.one_in(2);
    let protocol = if input.one_in(2) { UDP } else { TCP };
    let options = if input.one_in(4) { input.below(11) * 4 } else { 0 };
    let transport_header = if protocol == UDP { 8 } else { 20 + options };
    let transport_len = transport_header + payload;
    let network = if is_ipv6 {
        let extensions: Vec<u8> = (0..input.below(3)).map(|_| input.pick(&EXTENSIONS)).collect();
        ipv6(&mut frame, protocol, &extensions, transport_len)
    } else {
        ipv4(&mut frame, protocol, if input.one_in(4) { input.below(11) } else { 0 }, transport_len)
    };
    let transport = frame.len();
    if protocol == UDP {
        frame.extend([0, 9, 0, 9]);
        frame.extend((transport_len as u16).to_be_bytes());
        frame.extend([0, 0]);
    } else {
        frame.extend([0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1]);
        // CWR, ACK, PSH and FIN.
        frame.extend([(transport_header as u8 / 4) << 4, 0x99, 1, 0, 0, 0, 0, 0]);
        frame.extend(vec![1; options]);
    }
    frame.resize(frame.len() + payload, 0x5a);

    let (gso_type, offset) = match (protocol, is_ipv6) {
        (UDP, _) => (5, 6u16),
        (_, true) => (4, 16),
        _ => (1, 16),
    };
    let is_large = payload > 1400 || input.one_in(4);
    let mut header = [0; NET_HEADER_BYTES];
    if is_large || input.one_in(2) {
        header[0] = 1;
        header[1] = if is_large { gso_type } else { 0 };
        header[2..4].copy_from_slice(&((transport + transport_header - network) as u16).to_le_bytes());
        header[4..6].copy_from_slice(&input.pick(&[1000u16, 1400, 1000, 536, 536, 8, 1, 0, 9000]).to_le_bytes());
        header[6..8].copy_from_slice(&(transport as u16).to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
    }
    (header, frame)
}

/// A frame as it is on a wire: if it was cut from something sound, its lengths and sums are right.
pub(super) fn check_piece(frame: &[u8]) {
    let Some((network, transport, protocol)) = parts(frame) else { return };
    if frame.get(transport..transport + 4) != Some(&SOUND) {
        return;
    }
    let (packet, segment) = (&frame[network..], &frame[transport..]);
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let addresses = if packet[0] >> 4 == 4 {
        assert_eq!((word(2), sum(&packet[..transport - network])), (packet.len(), 0xffff), "an IPv4 header");
        &packet[12..20]
    } else {
        assert_eq!(word(4) + 40, packet.len(), "an IPv6 header");
        &packet[8..40]
    };
    if protocol == UDP {
        assert_eq!(segment[4..6], (segment.len() as u16).to_be_bytes(), "the length of a datagram");
    }
    let pseudo = [addresses, &[0, protocol], &(segment.len() as u16).to_be_bytes(), segment].concat();
    assert_eq!(sum(&pseudo), 0xffff, "a checksum of protocol {protocol}");
}

/// Where a packet and its transport begin, and which one that is.
fn parts(frame: &[u8]) -> Option<(usize, usize, u8)> {
    let mut network = 14;
    while matches!(frame.get(network - 2..network)?, [0x81, 0] | [0x88, 0xa8]) {
        network += 4;
    }
    let (kind, packet) = (frame.get(network - 2..network)?, frame.get(network..)?);
    if kind == [8, 0] {
        return Some((network, network + usize::from(*packet.first()? & 0xf) * 4, *packet.get(9)?));
    }
    let (mut protocol, mut transport) = (*packet.get(6)?, network + 40);
    while matches!(protocol, 0 | 60) && kind == [0x86, 0xdd] {
        protocol = *frame.get(transport)?;
        transport += 8 + usize::from(*frame.get(transport + 1)?) * 8;
    }
    (kind == [0x86, 0xdd]).then_some((network, transport, protocol))
}

/// The sum of the Internet's checksum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(*two.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Where it begins.
fn ipv4(frame: &mut Vec<u8>, protocol: u8, option_words: usize, transport_len: usize) -> usize {
    frame.extend([8, 0]);
    let (network, header_len) = (frame.len(), 20 + option_words * 4);
    frame.extend([0x40 | (header_len / 4) as u8, 0]);
    frame.extend(((header_len + transport_len) as u16).to_be_bytes());
    frame.extend([0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 172, 16, 0, 1, 172, 16, 0, 2]);
    frame.extend(vec![1; option_words * 4]);
    network
}

fn ipv6(frame: &mut Vec<u8>, protocol: u8, extensions: &[u8], transport_len: usize) -> usize {
    frame.extend([0x86, 0xdd]);
    let network = frame.len();
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(((extensions.len() * 8 + transport_len) as u16).to_be_bytes());
    frame.extend([extensions.first().copied().unwrap_or(protocol), 64]);
    frame.extend([0xfd; 32]);
    for next in 1..=extensions.len() {
        frame.extend([extensions.get(next).copied().unwrap_or(protocol), 0, 0, 0, 0, 0, 0, 0]);
    }
    network
}
