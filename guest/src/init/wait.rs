//! Waiting for devices: the kernel says when one appears (uevents), and a look now and then covers what was missed.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

/// Generous: an emulated machine is fifty times slower than a real one.
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Looks until `found` has an answer, at most [`DEADLINE`] long.
pub(super) fn until<T>(mut found: impl FnMut() -> Option<T>) -> Option<T> {
    // Most find everything at the first look; listening starts before the second, so that no device falls in between.
    let mut events = None;
    let end = Instant::now() + DEADLINE;
    let mut first = true;
    loop {
        if let Some(answer) = found() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        if std::mem::take(&mut first) {
            events = listen().ok();
        } else {
            pause(events.as_ref());
        }
    }
}

fn listen() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, 1))?; // group 1: the kernel's own events
    Ok(socket)
}

fn pause(events: Option<&OwnedFd>) {
    let Some(events) = events else { return std::thread::sleep(LOOK_AGAIN) };
    let within = Timespec { tv_sec: 0, tv_nsec: LOOK_AGAIN.subsec_nanos().into() };
    let _ = rustix::event::poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&within));
    // The events' content does not matter, only that there were some.
    while rustix::io::read(events, &mut [0_u8; 4096]).is_ok_and(|count| count > 0) {}
}
