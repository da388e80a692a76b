//! A request of a block driver (VIRTIO 1.2, §5.2.6): a header, data, and a status byte at the end of the writable part.
//!
//! Everything that the driver says is copied out once and checked here; what is left is a [`Kind`] that the drive can do.

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
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Bytes of a segment of a discard or write-zeroes: sector, number of sectors, flags.
const SEGMENT_BYTES: u64 = 16;
/// Sectors that one discard may give back: 2 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Sectors that one write-zeroes may cover: 16 MiB, because some file systems make zeros only by writing them.
pub const MAX_ZEROES_SECTORS: u32 = 1 << 15;
/// The flag `unmap` of a segment; all others are reserved.
const FLAG_UNMAP: u32 = 1;

/// The drive that a request is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Drive {
    /// Its size.
    pub capacity_bytes: u64,
    /// Nothing on it may change.
    pub read_only: bool,
}

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
    /// Give `len` bytes at `offset` back.
    Discard {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Make `len` bytes at `offset` zeros.
    WriteZeroes {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
        /// Their space may go back.
        unmap: bool,
    },
    /// Tell the serial.
    Serial,
}

impl Kind {
    /// Bytes that a limit counts: those that travel, and zeros that may have to.
    pub fn moved_bytes(&self) -> u64 {
        match *self {
            Self::Read { len, .. } | Self::Write { len, .. } | Self::WriteZeroes { len, unmap: false, .. } => len,
            Self::Flush | Self::Serial | Self::Discard { .. } | Self::WriteZeroes { .. } => 0,
        }
    }
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
    /// A change of a drive that only reads.
    #[error("a request of type {0} to a drive that is read-only")]
    ReadOnly(u32, u64),
    /// A discard or write-zeroes of another number of segments than one.
    #[error("{0} bytes of segments, one of {SEGMENT_BYTES} bytes is taken")]
    Segments(u64, u64),
    /// Of no sector, or longer than the configuration allows.
    #[error("{sectors} sectors in a segment, 1 to {most} are taken")]
    SegmentLength {
        /// How many.
        sectors: u32,
        /// How many may be.
        most: u32,
        /// Of the status byte.
        status_at: u64,
    },
    /// A flag that is reserved, or not this request's.
    #[error("flags {0:#x} in a segment")]
    Flags(u32, u64),
}

impl Fault {
    /// Where the driver looks for the status; `None` where there is no such place.
    pub fn status_at(&self) -> Option<u64> {
        match self {
            Self::NoStatus => None,
            Self::NoHeader(_, at) | Self::Segments(_, at) => Some(*at),
            Self::Type(_, at) | Self::ReadOnly(_, at) | Self::Flags(_, at) => Some(*at),
            Self::OutOfDrive { status_at: at, .. } | Self::SegmentLength { status_at: at, .. } => Some(*at),
        }
    }

    /// What it finds there.
    pub fn status(&self) -> u8 {
        // §5.2.6.2: unknown flags, and `unmap` in a discard, are not supported.
        if matches!(self, Self::Type(..) | Self::Flags(..)) { S_UNSUPP } else { S_IOERR }
    }
}

impl Request {
    /// Reads the header and checks the request against a drive.
    pub fn parse(chain: &Chain, mem: &Memory, drive: Drive) -> Result<Self, Fault> {
        let room = chain.writable_len().checked_sub(1).ok_or(Fault::NoStatus)?;
        let status_at = chain.writable_address(room).ok_or(Fault::NoStatus)?;
        let mut header = [0; HEADER_BYTES as usize];
        if chain.read_at(mem, 0, &mut header) != header.len() {
            return Err(Fault::NoHeader(chain.readable_len(), status_at));
        }
        let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let len = chain.readable_len().saturating_sub(HEADER_BYTES);
        let kind = match u32::from_le_bytes([t0, t1, t2, t3]) {
            T_IN => Kind::Read { offset: drive.within(sector, room, status_at)?, len: room },
            // §5.2.6.2: a write to a drive that offers VIRTIO_BLK_F_RO is an I/O error; so is all else that would change it.
            kind @ (T_OUT | T_DISCARD | T_WRITE_ZEROES) if drive.read_only => {
                return Err(Fault::ReadOnly(kind, status_at));
            }
            T_OUT => Kind::Write { offset: drive.within(sector, len, status_at)?, len },
            T_FLUSH => Kind::Flush,
            T_GET_ID => Kind::Serial,
            T_DISCARD => {
                let Segment { offset, len, .. } = Segment::parse(chain, mem, drive, 0, MAX_DISCARD_SECTORS, status_at)?;
                Kind::Discard { offset, len }
            }
            T_WRITE_ZEROES => {
                let Segment { offset, len, flags } =
                    Segment::parse(chain, mem, drive, FLAG_UNMAP, MAX_ZEROES_SECTORS, status_at)?;
                Kind::WriteZeroes { offset, len, unmap: flags & FLAG_UNMAP != 0 }
            }
            other => return Err(Fault::Type(other, status_at)),
        };
        Ok(Self { kind, status_at })
    }
}

impl Drive {
    /// The offset of `sector`, if `len` bytes from there are whole sectors of the drive.
    fn within(self, sector: u64, len: u64, status_at: u64) -> Result<u64, Fault> {
        let capacity = self.capacity_bytes;
        let refused = Fault::OutOfDrive { sector, len, capacity, status_at };
        let Some(offset) = sector.checked_mul(SECTOR_BYTES) else { return Err(refused) };
        let fits = offset.checked_add(len).is_some_and(|end| end <= capacity);
        if fits && len & SECTOR_BYTES.wrapping_sub(1) == 0 { Ok(offset) } else { Err(refused) }
    }
}

/// struct virtio_blk_discard_write_zeroes, §5.2.6.
struct Segment {
    offset: u64,
    len: u64,
    flags: u32,
}

impl Segment {
    /// The one segment behind the header: the configuration offers no more than one in a request.
    fn parse(
        chain: &Chain,
        mem: &Memory,
        drive: Drive,
        flags_allowed: u32,
        most: u32,
        status_at: u64,
    ) -> Result<Self, Fault> {
        let len = chain.readable_len().saturating_sub(HEADER_BYTES);
        let mut bytes = [0; SEGMENT_BYTES as usize];
        if len != SEGMENT_BYTES || chain.read_at(mem, HEADER_BYTES, &mut bytes) != bytes.len() {
            return Err(Fault::Segments(len, status_at));
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let (sectors, flags) = (u32::from_le_bytes([n0, n1, n2, n3]), u32::from_le_bytes([f0, f1, f2, f3]));
        if flags & !flags_allowed != 0 {
            return Err(Fault::Flags(flags, status_at));
        }
        if !(1..=most).contains(&sectors) {
            return Err(Fault::SegmentLength { sectors, most, status_at });
        }
        let len = u64::from(sectors).saturating_mul(SECTOR_BYTES);
        Ok(Self { offset: drive.within(sector, len, status_at)?, len, flags })
    }
}
