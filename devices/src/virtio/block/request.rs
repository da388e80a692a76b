//! A request of a block driver (VIRTIO 1.2, §5.2.6): a header, data, and a status byte at the end of the writable part.

use super::super::chain::Chain;
use crate::Memory;
use crate::backend::raw::SECTOR_BYTES;

/// Bytes of type, reserved and sector.
pub const HEADER_BYTES: u64 = 16;

/// VIRTIO_BLK_S_OK.
pub const S_OK: u8 = 0;
/// VIRTIO_BLK_S_IOERR.
pub const S_IOERR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP.
pub const S_UNSUPP: u8 = 2;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;

/// What is asked for, checked against the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read `len` bytes at `offset`.
    Read {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Write `len` bytes at `offset`.
    Write {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Make writes durable.
    Flush,
    /// Tell the serial.
    Serial,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub kind: Kind,
    /// Guest address of the status byte.
    pub status_at: u64,
}

/// A request that cannot be carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nowhere to answer to.
    #[error("a request without room for a status")]
    NoStatus,
    /// Shorter than a header.
    #[error("a request with {0} bytes of header")]
    NoHeader(u64, u64),
    /// Not within the drive, or not whole sectors.
    #[error("{len} bytes at sector {sector} of a drive of {capacity} bytes")]
    OutOfDrive {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the drive.
        capacity: u64,
        /// Of the status byte.
        status_at: u64,
    },
    /// A type that was not offered.
    #[error("a request of type {0}")]
    Type(u32, u64),
}

impl Fault {
    /// Where the driver looks for the status; `None` where there is no such place.
    pub fn status_at(&self) -> Option<u64> {
        match self {
            Self::NoStatus => None,
            Self::NoHeader(_, at) | Self::Type(_, at) | Self::OutOfDrive { status_at: at, .. } => Some(*at),
        }
    }

    /// What it finds there.
    pub fn status(&self) -> u8 {
        if matches!(self, Self::Type(..)) { S_UNSUPP } else { S_IOERR }
    }
}

impl Request {
    /// Reads the header and checks the request against a drive of `capacity` bytes.
    pub fn parse(chain: &Chain, mem: &Memory, capacity: u64) -> Result<Self, Fault> {
        let room = chain.writable_len().checked_sub(1).ok_or(Fault::NoStatus)?;
        let status_at = chain.writable_address(room).ok_or(Fault::NoStatus)?;
        let mut header = [0; HEADER_BYTES as usize];
        if chain.read_at(mem, 0, &mut header) != header.len() {
            return Err(Fault::NoHeader(chain.readable_len(), status_at));
        }
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let within = |len: u64| {
            let refused = Fault::OutOfDrive { sector, len, capacity, status_at };
            let Some(offset) = sector.checked_mul(SECTOR_BYTES) else { return Err(refused) };
            let fits = offset.checked_add(len).is_some_and(|end| end <= capacity);
            if fits && len & SECTOR_BYTES.wrapping_sub(1) == 0 { Ok(offset) } else { Err(refused) }
        };
        let kind = match u32::from_le_bytes([t0, t1, t2, t3]) {
            T_IN => Kind::Read { offset: within(room)?, len: room },
            T_OUT => {
                let len = chain.readable_len().saturating_sub(HEADER_BYTES);
                Kind::Write { offset: within(len)?, len }
            }
            T_FLUSH => Kind::Flush,
            T_GET_ID => Kind::Serial,
            other => return Err(Fault::Type(other, status_at)),
        };
        Ok(Self { kind, status_at })
    }
}
