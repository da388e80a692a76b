//! The header of a vsock packet (VIRTIO 1.2, §5.10.6, struct virtio_vsock_hdr).

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub const TYPE_STREAM: u16 = 1;

/// Operations (§5.10.6, `op`).
pub mod op {
    /// Opens a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts it.
    pub const RESPONSE: u16 = 2;
    /// Ends or refuses it.
    pub const RST: u16 = 3;
    /// Says that no more will come, or be taken.
    pub const SHUTDOWN: u16 = 4;
    /// Carries bytes.
    pub const RW: u16 = 5;
    /// Tells free space.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for it.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (§5.10.6.7, struct virtio_vsock_event): connections are gone, the cid may be another.
pub const EVENT_TRANSPORT_RESET: u32 = 0;

/// VIRTIO_VSOCK_SHUTDOWN_RCV: the sender will take no more bytes (§5.10.6.5).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_SEND: the sender will send no more bytes.
pub const SHUTDOWN_SEND: u32 = 2;

/// A header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Sender.
    pub src_cid: u64,
    /// Receiver.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes that follow.
    pub len: u32,
    /// Socket type.
    pub kind: u16,
    /// Operation.
    pub op: u16,
    /// Depends on the operation.
    pub flags: u32,
    /// Size of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of it, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// As it lies in memory.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// As it was read from memory.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = bytes.as_slice();
        fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
            match rest.split_first_chunk() {
                Some((first, others)) => {
                    *rest = others;
                    *first
                }
                None => [0; N],
            }
        }
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was_made() {
        let header = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x8000_0001,
            dst_port: 1024,
            len: 17,
            kind: TYPE_STREAM,
            op: op::RW,
            flags: 2,
            buf_alloc: 65536,
            fwd_cnt: u32::MAX,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!((bytes[28], bytes[30]), (1, 5), "type and op are where the specification has them");
    }
}
