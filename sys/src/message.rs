//! Whole messages on a Unix stream socket: a little-endian `u32` length, that many bytes, and descriptors beside the first byte.
//!
//! The reader bounds the length before it takes memory. Blocking; a deadline is the socket's own (SO_RCVTIMEO).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::fdpass;

/// Sends one message.
///
/// # Errors
/// `InvalidInput` for a body longer than `u32` or too many descriptors; else what sendmsg(2) says.
pub fn send(socket: impl AsFd, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let len = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut bytes = Vec::with_capacity(body.len() + 4);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(body);
    let mut rest = bytes.as_slice();
    let mut descriptors = descriptors;
    while !rest.is_empty() {
        match fdpass::send(&socket, rest, descriptors) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                rest = rest.get(n..).unwrap_or_default();
                descriptors = &[];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Receives one message of at most `max_bytes`; `None` where the peer closed between two messages.
///
/// # Errors
/// `InvalidData` for a longer message or too many descriptors, `UnexpectedEof` for half a message; else what recvmsg(2) says.
pub fn recv(socket: impl AsFd, max_bytes: u32) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut descriptors = Vec::new();
    let mut header = [0; 4];
    if !fill(&socket, &mut header, &mut descriptors)? {
        return Ok(None);
    }
    let len = u32::from_le_bytes(header);
    if len > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message of {len} bytes, more than {max_bytes}"),
        ));
    }
    let mut body = vec![0; len as usize];
    if !fill(&socket, &mut body, &mut descriptors)? && len > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((body, descriptors)))
}

/// Fills the buffer; `false` where the peer had closed before the first byte.
fn fill(socket: impl AsFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match fdpass::recv(&socket, rest) {
            Ok((0, _)) if filled == 0 => return Ok(false),
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((n, more)) => {
                filled += n;
                descriptors.extend(more);
                if descriptors.len() > fdpass::MAX_DESCRIPTORS {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "more descriptors than one message may carry",
                    ));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_arrive_whole_with_their_descriptors() {
        let (here, there) = UnixStream::pair().expect("pair");
        let file = tempfile::tempfile().expect("file");
        send(&here, b"first", &[file.as_fd()]).expect("sent");
        send(&here, b"", &[]).expect("sent");
        drop(here);
        let (body, descriptors) = recv(&there, 16).expect("received").expect("a message");
        assert_eq!((body.as_slice(), descriptors.len()), (b"first".as_slice(), 1));
        assert_eq!(recv(&there, 16).expect("received").expect("a message").0, b"");
        assert!(recv(&there, 16).expect("closed").is_none());
    }

    #[test]
    fn a_long_or_cut_message_is_refused() {
        let (mut here, there) = UnixStream::pair().expect("pair");
        here.write_all(&u32::MAX.to_le_bytes()).expect("sent");
        assert_eq!(recv(&there, 1 << 20).expect_err("too long").kind(), io::ErrorKind::InvalidData);
        here.write_all(&[8, 0, 0, 0, 1]).expect("sent");
        drop(here);
        assert_eq!(recv(&there, 1 << 20).expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
    }
}
