//! Descriptors beside bytes on a Unix stream socket (`SCM_RIGHTS`, unix(7)).
//!
//! Both ends treat the other as someone who may send anything: what was received is closed when dropped, and a message whose
//! ancillary data did not fit is an error.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors that the kernel lets travel in one message (SCM_MAX_FD in `include/net/scm.h`).
pub const MAX_DESCRIPTORS: usize = 253;

/// Sends `bytes` with `descriptors` beside the first of them. Returns how many bytes were taken; where it is fewer than given, the
/// descriptors have left and the rest is sent without any.
///
/// # Errors
/// `InvalidInput` for more than [`MAX_DESCRIPTORS`] or for descriptors without a byte; else what sendmsg(2) says.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.len() > MAX_DESCRIPTORS || (bytes.is_empty() && !descriptors.is_empty()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} descriptors beside {} bytes", descriptors.len(), bytes.len()),
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(fits, "space for {MAX_DESCRIPTORS} was reserved");
    }
    // A peer that is gone is an error to return, not a signal to die of.
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Sends all of `bytes` without waiting.
///
/// # Errors
/// `WouldBlock` where not all of them fit; some may have been taken. Else what send(2) says.
pub fn send_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let taken = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    if taken == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
}

/// Receives into `buffer`; returns the number of bytes (0: the peer has closed) and the descriptors that came beside them, each with
/// close-on-exec set.
///
/// # Errors
/// `InvalidData` where more descriptors came than fit; else what recvmsg(2) says.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            descriptors.extend(more);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than one message may carry"));
    }
    Ok((got.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_full_load_of_descriptors_arrives_in_order() {
        let (here, there) = UnixStream::pair().expect("a socket pair");
        let files: Vec<_> = (0..MAX_DESCRIPTORS).map(|_| tempfile::tempfile().expect("a file")).collect();
        for (number, mut file) in files.iter().enumerate() {
            file.write_all(number.to_string().as_bytes()).expect("writing");
        }
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        assert_eq!(send(&here, b"x", &borrowed).expect("sending"), 1);
        let mut buffer = [0; 8];
        let (bytes, received) = recv(&there, &mut buffer).expect("receiving");
        assert_eq!((bytes, received.len()), (1, MAX_DESCRIPTORS));
        for (number, descriptor) in received.into_iter().enumerate() {
            let mut file = std::fs::File::from(descriptor);
            let mut text = String::new();
            file.rewind().expect("rewinding");
            file.read_to_string(&mut text).expect("reading");
            assert_eq!(text, number.to_string());
        }
    }

    #[test]
    fn too_many_descriptors_or_no_byte_to_carry_them_is_refused() {
        let (here, _there) = UnixStream::pair().expect("a socket pair");
        let many = vec![here.as_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(send(&here, b"x", &many).expect_err("too many").kind(), io::ErrorKind::InvalidInput);
        assert_eq!(send(&here, b"", &many[..1]).expect_err("no byte").kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_closed_peer_reads_as_zero_bytes() {
        let (here, there) = UnixStream::pair().expect("a socket pair");
        drop(here);
        assert_eq!(recv(&there, &mut [0; 8]).expect("receiving").0, 0);
    }
}
