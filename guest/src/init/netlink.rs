//! The few rtnetlink requests that bring an interface up (rtnetlink(7), include/uapi/linux/rtnetlink.h).
//!
//! Messages are encoded by hand: a header, a fixed part, attributes padded to four bytes, all in the machine's byte order.
//! Each is sent with a wish for an answer, and the answer is an error number or 0.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
/// REQUEST and ACK.
const ASK: u16 = 0x1 | 0x4;
/// REPLACE and CREATE.
const SET: u16 = 0x100 | 0x400;
const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// Nobody is asked whether the address is taken (include/uapi/linux/if_addr.h).
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;

/// Brings the interface up, with a new MTU where one is given.
pub(super) fn link_up(index: u32, mtu: Option<u32>) -> Vec<u8> {
    // ifinfomsg: family, padding, device type, index, flags, mask of the flags that change.
    let mut message = Message::new(RTM_NEWLINK, ASK);
    message.bytes(&[0, 0, 0, 0]).word(index).word(IFF_UP).word(IFF_UP);
    if let Some(mtu) = mtu {
        message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
    }
    message.finish()
}

/// Gives the interface an address.
pub(super) fn address(index: u32, address: Ipv4Addr, prefix: u8) -> Vec<u8> {
    // ifaddrmsg: family, prefix length, flags, scope, index.
    let mut message = Message::new(RTM_NEWADDR, ASK | SET);
    message.bytes(&[AF_INET, prefix, 0, RT_SCOPE_UNIVERSE]).word(index);
    message.attribute(IFA_LOCAL, &address.octets()).attribute(IFA_ADDRESS, &address.octets());
    if let Some(hosts) = u32::MAX.checked_shr(prefix.into()).filter(|hosts| *hosts > 1) {
        message.attribute(IFA_BROADCAST, &(address.to_bits() | hosts).to_be_bytes());
    }
    message.finish()
}

/// Gives the interface an address of IPv6, which is used from this moment on: nobody else has it, so nobody is asked (RFC 4862, 5.4).
pub(super) fn address6(index: u32, address: Ipv6Addr, prefix: u8) -> Vec<u8> {
    let mut message = Message::new(RTM_NEWADDR, ASK | SET);
    message.bytes(&[AF_INET6, prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE]).word(index);
    message.attribute(IFA_LOCAL, &address.octets()).attribute(IFA_ADDRESS, &address.octets());
    message.finish()
}

/// Sends everything of IPv6 that is not local to `gateway`.
pub(super) fn default_route6(index: u32, gateway: Ipv6Addr) -> Vec<u8> {
    let mut message = Message::new(RTM_NEWROUTE, ASK | SET);
    message.bytes(&[AF_INET6, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST]).word(0);
    message.attribute(RTA_GATEWAY, &gateway.octets()).attribute(RTA_OIF, &index.to_ne_bytes());
    message.finish()
}

/// Sends everything that is not local to `gateway`.
pub(super) fn default_route(index: u32, gateway: Ipv4Addr) -> Vec<u8> {
    // rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
    let mut message = Message::new(RTM_NEWROUTE, ASK | SET);
    message.bytes(&[AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST]).word(0);
    message.attribute(RTA_GATEWAY, &gateway.octets()).attribute(RTA_OIF, &index.to_ne_bytes());
    message.finish()
}

/// A socket to the kernel's routing.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    /// Carries out one request.
    pub(super) fn ask(&self, request: &[u8]) -> io::Result<()> {
        rustix::io::write(&self.0, request)?;
        let mut answer = vec![0; 8192];
        let count = rustix::io::read(&self.0, &mut answer)?;
        outcome(answer.get(..count).unwrap_or_default())
    }
}

/// What an answer says: nlmsgerr begins with a negative error number, or 0 for success (netlink(7)).
fn outcome(answer: &[u8]) -> io::Result<()> {
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement");
    let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk()).copied().map(u16::from_ne_bytes);
    let code = answer.get(HEADER_BYTES..).and_then(|bytes| bytes.first_chunk()).copied().map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(strange()),
    }
}

struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        // nlmsghdr: length (at the end), type, flags, sequence, port; one request at a time needs no sequence.
        let mut message = Self(vec![0; 4]);
        message.bytes(&kind.to_ne_bytes()).bytes(&flags.to_ne_bytes()).word(0).word(0);
        message
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn word(&mut self, word: u32) -> &mut Self {
        self.bytes(&word.to_ne_bytes())
    }

    fn attribute(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        // rtattr: its length counts the header but not the padding. Payloads here are at most sixteen bytes.
        let len = u16::try_from(payload.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.bytes(&len.to_ne_bytes()).bytes(&kind.to_ne_bytes()).bytes(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.0.first_chunk_mut() {
            *place = len.to_ne_bytes();
        }
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // As `strace -x ip …` shows them on a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn requests_have_the_kernels_layout() {
        let up = [
            &[40, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
            &[8, 0, 4, 0, 0xdc, 5, 0, 0],
        ];
        assert_eq!(link_up(2, Some(1500)), up.concat());
        let addr = [
            &[48, 0, 0, 0, 20, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 24, 0, 0, 3, 0, 0, 0],
            &[8, 0, 2, 0, 172, 16, 0, 2, 8, 0, 1, 0, 172, 16, 0, 2, 8, 0, 4, 0, 172, 16, 0, 255],
        ];
        assert_eq!(address(3, [172, 16, 0, 2].into(), 24), addr.concat());
        let route = [
            &[44, 0, 0, 0, 24, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0],
            &[8, 0, 5, 0, 172, 16, 0, 1, 8, 0, 4, 0, 3, 0, 0, 0],
        ];
        assert_eq!(default_route(3, [172, 16, 0, 1].into()), route.concat());

        let six = [0xfd, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
        let addr = [
            &[64, 0, 0, 0, 20, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[10, 64, 2, 0, 3, 0, 0, 0],
            &[20, 0, 2, 0],
            &six,
            &[20, 0, 1, 0],
            &six,
        ];
        assert_eq!(address6(3, six.into(), 64), addr.concat());
        let route = [
            &[56, 0, 0, 0, 24, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[10, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0],
            &[20, 0, 5, 0],
            &six,
            &[8, 0, 4, 0, 3, 0, 0, 0],
        ];
        assert_eq!(default_route6(3, six.into()), route.concat());
    }

    #[test]
    fn a_point_to_point_prefix_has_no_broadcast_address() {
        for (prefix, bytes) in [(30, 48), (31, 40), (32, 40)] {
            assert_eq!(address(1, [10, 0, 0, 1].into(), prefix).len(), bytes, "/{prefix}");
        }
    }

    #[test]
    fn an_answer_is_success_an_error_number_or_nonsense() {
        let answer = |kind: u8, code: i32| {
            let mut bytes = vec![36, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes
        };
        assert!(outcome(&answer(2, 0)).is_ok());
        assert_eq!(outcome(&answer(2, -17)).expect_err("EEXIST").raw_os_error(), Some(17));
        for strange in [answer(3, 0), answer(2, 0)[..18].to_vec(), Vec::new()] {
            assert_eq!(outcome(&strange).expect_err("nonsense").kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn the_kernel_understands_the_requests() {
        let netlink = Netlink::open().expect("a routing socket");
        // No interface has this number; anything but "no such device" (or no right to ask) means a request it cannot read.
        for request in [link_up(0x7fff_0000, Some(1500)), address(0x7fff_0000, [192, 0, 2, 1].into(), 24)] {
            let code = netlink.ask(&request).expect_err("an interface that is not there").raw_os_error();
            assert!(matches!(code, Some(1 | 19)), "{code:?}");
        }
    }
}
