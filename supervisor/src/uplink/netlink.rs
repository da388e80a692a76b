//! What the kernel says of devices and addresses as they change (rtnetlink(7)): that something has, not what.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// Multicast groups (linux/rtnetlink.h): RTMGRP_LINK; RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR,
/// RTMGRP_IPV4_ROUTE and RTMGRP_IPV6_ROUTE.
pub(super) const DEVICES: u32 = 1;
pub(super) const ADDRESSES: u32 = 0x10 | 0x100 | 0x40 | 0x400;

/// Can be read when something of these groups has changed in the caller's network namespace.
pub(super) fn follow(groups: u32) -> rustix::io::Result<OwnedFd> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Takes a message away. What is missed for lack of room does not matter: everything is looked at anew.
pub(super) fn take(socket: impl AsFd) {
    let _ = recv(socket, &mut [0; 8192][..], RecvFlags::empty());
}

/// Whether there is a device of this name where the socket is.
pub(super) fn has_device(socket: impl AsFd, name: &str) -> bool {
    rustix::net::netdevice::name_to_index(socket, name).is_ok()
}
