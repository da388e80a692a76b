//! Tap devices: frames of a network device of the kernel, through a descriptor (Linux, Documentation/networking/tuntap.rst).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes of the virtio header in front of each frame.
const HEADER_BYTES: libc::c_int = 12;
/// Finished checksums may be missing, and large TCP segments whole (linux/if_tun.h: TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6).
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04;

/// Makes a tap device in the caller's network namespace, with a virtio header in front of each frame, and all that it can leave to others
/// left. It goes with its descriptor, which never blocks.
///
/// # Errors
/// What opening `/dev/net/tun` or its ioctl(2) says; a name of more than 15 bytes is `InvalidInput`.
pub fn create(name: &str) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let tap = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid ifreq: numbers, and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.bytes().any(|byte| byte == 0 || byte == b'%') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until it returns.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let bytes = HEADER_BYTES;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives until it returns.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })?;
    // SAFETY: TUNSETOFFLOAD takes a number and touches no memory.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) })?;
    Ok(tap)
}

/// Reads one frame with its header; `None` where there is none now.
///
/// # Errors
/// What read(2) says.
pub fn receive(tap: impl AsFd, into: &mut [u8]) -> io::Result<Option<usize>> {
    match rustix::io::retry_on_intr(|| rustix::io::read(&tap, &mut *into)) {
        Ok(read) => Ok(Some(read)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes one frame with its header.
///
/// # Errors
/// What write(2) says; `EIO` where the device is down.
pub fn send(tap: impl AsFd, frame: &[u8]) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::io::write(&tap, frame))?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
