//! The map of an overlay layer as bytes: header and pages (`docs/formats.md`, "Overlay layer"). Pure; who reads or writes the file
//! is elsewhere.
//!
//! A map is a file of our own, but it outlives power cuts and bad disks: everything read is checked, and nothing is computed from it
//! that could leave the file.

use std::fmt;

pub mod fit;
pub mod runs;

/// Bytes of a block, the unit of allocation.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes of a page of the map, and of its header with what follows it.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of the header, and of each part of a page that has a checksum: what a disk writes whole.
pub const SECTOR_BYTES: usize = 512;
/// Blocks of one page: eight sectors of 508 bytes of bits.
pub const PAGE_BLOCKS: u64 = 32_512;
/// Words of 64 bits that hold a page's bits.
pub const PAGE_WORDS: usize = 508;
/// Longest name of what a layer lies on.
pub const MAX_NAME_BYTES: usize = 64;
/// Largest drive: its map has an offset for every page.
pub const MAX_CAPACITY_BYTES: u64 = 1 << 46;

const MAGIC: &[u8; 8] = b"LABYOVL\n";
const VERSION: u32 = 1;
const SETTLED: u32 = 1;
/// Bytes of a sector's bits.
const BITS_BYTES: usize = 508;

/// The bits of one page, lowest block first.
pub type Words = [u64; PAGE_WORDS];

/// A layer's random name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerId(pub [u8; 16]);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a layer says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub layer: LayerId,
    /// Bytes of the drive.
    pub capacity_bytes: u64,
    /// Bytes of the base below all layers; 0 where there is none.
    pub base_bytes: u64,
    /// Name of what it lies on; empty where that is nothing.
    pub below: String,
    /// All layers below have been synced since this one was put on them.
    pub settled: bool,
}

/// A map that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum MapError {
    #[error("not the map of an overlay layer")]
    Magic,
    #[error("its header is damaged")]
    Header,
    #[error("it is of format {0}, this labyard reads format {VERSION}")]
    Version(u32),
    #[error("its drive would have {0} bytes")]
    Capacity(u64),
    #[error("sector {sector} of page {page} is damaged")]
    Sector { page: u64, sector: usize },
    #[error("page {0} has bits behind the end of the drive")]
    Beyond(u64),
}

impl Header {
    /// As it is written. A name that is too long is cut, and will not be recognised.
    pub fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        let flags = if self.settled { SETTLED } else { 0 };
        let name = self.below.as_bytes();
        let name = name.get(..MAX_NAME_BYTES).unwrap_or(name);
        let fields: [&[u8]; 7] = [
            MAGIC,
            &VERSION.to_le_bytes(),
            &flags.to_le_bytes(),
            &self.layer.0,
            &self.capacity_bytes.to_le_bytes(),
            &self.base_bytes.to_le_bytes(),
            name,
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        if let Some((body, sum)) = bytes.split_last_chunk_mut::<4>() {
            *sum = crc32c::crc32c(body).to_le_bytes();
        }
        bytes
    }

    /// From what was read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8; SECTOR_BYTES]) -> Result<Self, MapError> {
        let mut rest = bytes.as_slice();
        if take::<8>(&mut rest) != *MAGIC {
            return Err(MapError::Magic);
        }
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or(MapError::Header)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(MapError::Header);
        }
        let version = u32::from_le_bytes(take(&mut rest));
        if version != VERSION {
            return Err(MapError::Version(version));
        }
        let flags = u32::from_le_bytes(take(&mut rest));
        let layer = LayerId(take(&mut rest));
        let capacity_bytes = u64::from_le_bytes(take(&mut rest));
        let base_bytes = u64::from_le_bytes(take(&mut rest));
        if capacity_bytes > MAX_CAPACITY_BYTES || capacity_bytes % SECTOR_BYTES as u64 != 0 {
            return Err(MapError::Capacity(capacity_bytes));
        }
        let name = take::<MAX_NAME_BYTES>(&mut rest);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let below = std::str::from_utf8(name).map_err(|_| MapError::Header)?.to_owned();
        Ok(Self { layer, capacity_bytes, base_bytes, below, settled: flags & SETTLED != 0 })
    }

    /// Pages that its drive needs.
    pub fn pages(&self) -> u64 {
        pages(self.capacity_bytes)
    }

    /// Bytes of its map.
    pub fn map_bytes(&self) -> u64 {
        map_bytes(self.capacity_bytes)
    }
}

/// The next bytes; zeros behind the end, which no caller reaches.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((first, behind)) => {
            *rest = behind;
            *first
        }
        None => [0; N],
    }
}

/// Blocks of a drive.
pub fn blocks(capacity_bytes: u64) -> u64 {
    capacity_bytes.div_ceil(BLOCK_BYTES)
}

/// Pages of a drive's map.
pub fn pages(capacity_bytes: u64) -> u64 {
    blocks(capacity_bytes).div_ceil(PAGE_BLOCKS)
}

/// Bytes of a drive's map.
pub fn map_bytes(capacity_bytes: u64) -> u64 {
    page_offset(pages(capacity_bytes).saturating_mul(2))
}

/// Where a page is in the map; final pages count on from the flushed ones.
pub fn page_offset(page: u64) -> u64 {
    page.saturating_add(1).saturating_mul(PAGE_BYTES as u64)
}

/// A page as it is written: number `page` of `layer`'s map.
pub fn encode_page(layer: LayerId, page: u64, words: &Words, into: &mut [u8; PAGE_BYTES]) {
    let mut from = words.iter().flat_map(|word| word.to_le_bytes());
    for (number, sector) in (0..).zip(into.chunks_exact_mut(SECTOR_BYTES)) {
        let Some((sum, bits)) = sector.split_first_chunk_mut::<4>() else { return };
        let mut any = 0;
        for (to, byte) in bits.iter_mut().zip(&mut from) {
            *to = byte;
            any |= byte;
        }
        *sum = if any == 0 { [0; 4] } else { checksum(layer, page, number, bits) };
    }
}

/// The bits of a page that was read. `page` counts as in [`page_offset`]; `first` is the page's number among those of its kind.
///
/// # Errors
/// Where a sector is damaged, or a bit says something of a block that the drive has not.
pub fn decode_page(
    header: &Header,
    page: u64,
    first: u64,
    from: &[u8; PAGE_BYTES],
    words: &mut Words,
) -> Result<(), MapError> {
    let mut bytes = [0; PAGE_WORDS * 8];
    for ((number, sector), to) in (0..).zip(from.chunks_exact(SECTOR_BYTES)).zip(bytes.chunks_exact_mut(BITS_BYTES)) {
        let damaged = MapError::Sector { page, sector: number as usize };
        let Some((sum, bits)) = sector.split_first_chunk::<4>() else { return Err(damaged) };
        let empty = *sum == [0; 4] && bits.iter().all(|byte| *byte == 0);
        if !empty && *sum != checksum(header.layer, page, number, bits) {
            return Err(damaged);
        }
        to.copy_from_slice(bits);
    }
    let behind = blocks(header.capacity_bytes).saturating_sub(first.saturating_mul(PAGE_BLOCKS));
    for ((word, bytes), start) in words.iter_mut().zip(bytes.chunks_exact(8)).zip((0..).step_by(64)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let valid = behind.saturating_sub(start);
        if valid < 64 && *word >> valid != 0 {
            return Err(MapError::Beyond(page));
        }
    }
    Ok(())
}

fn checksum(layer: LayerId, page: u64, sector: u64, bits: &[u8]) -> [u8; 4] {
    let sum = crc32c::crc32c(&layer.0);
    let sum = crc32c::crc32c_append(sum, &page.to_le_bytes());
    let sum = crc32c::crc32c_append(sum, &sector.to_le_bytes());
    crc32c::crc32c_append(sum, bits).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            layer: LayerId([7; 16]),
            capacity_bytes: 4 << 30,
            base_bytes: 1 << 30,
            below: "a1b2".into(),
            settled: false,
        }
    }

    #[test]
    fn a_header_comes_back_as_it_was_and_no_bit_of_it_can_change() {
        for settled in [false, true] {
            let header = Header { settled, ..header() };
            let bytes = header.encode();
            assert_eq!(Header::decode(&bytes), Ok(header));
            for bit in 0..SECTOR_BYTES * 8 {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(Header::decode(&damaged).is_err(), "bit {bit}");
            }
        }
        let newer = {
            let mut bytes = header().encode();
            bytes[8] = 2;
            let sum = crc32c::crc32c(&bytes[..508]).to_le_bytes();
            bytes[508..].copy_from_slice(&sum);
            bytes
        };
        assert_eq!(Header::decode(&newer), Err(MapError::Version(2)));
    }

    #[test]
    fn every_mixture_of_old_and_new_sectors_is_a_page_between_them() {
        let (header, mut old, mut new) = (header(), [0; PAGE_WORDS], [0; PAGE_WORDS]);
        for (n, (old, new)) in old.iter_mut().zip(&mut new).enumerate() {
            *old = if n % 3 == 0 { 0x00f0_0000_0000_0001 } else { 0 };
            *new = *old | 1 << (n % 64);
        }
        let pages = [old, new].map(|words| {
            let mut page = [0; PAGE_BYTES];
            encode_page(header.layer, 5, &words, &mut page);
            page
        });
        for mixture in 0..256 {
            let mut torn = [0; PAGE_BYTES];
            for (sector, to) in torn.chunks_mut(SECTOR_BYTES).enumerate() {
                to.copy_from_slice(&pages[mixture >> sector & 1][sector * SECTOR_BYTES..][..SECTOR_BYTES]);
            }
            let mut words = [0; PAGE_WORDS];
            decode_page(&header, 5, 5, &torn, &mut words).expect("every sector is valid");
            assert!(
                words.iter().zip(&old).zip(&new).all(|((word, old), new)| word & old == *old && word | new == *new)
            );
        }
    }

    #[test]
    fn a_page_of_another_place_or_layer_or_with_a_torn_sector_is_damaged() {
        let header = header();
        let mut words = [0; PAGE_WORDS];
        words[100] = 1 << 40;
        let mut page = [0; PAGE_BYTES];
        encode_page(header.layer, 5, &words, &mut page);
        let read = |header: &Header, number, page: &[u8; PAGE_BYTES]| {
            let mut words = [0; PAGE_WORDS];
            decode_page(header, number, 5, page, &mut words).map(|()| words)
        };
        assert_eq!(read(&header, 5, &page), Ok(words));
        assert_eq!(read(&header, 6, &page), Err(MapError::Sector { page: 6, sector: 1 }));
        let other = Header { layer: LayerId([8; 16]), ..header.clone() };
        assert!(read(&other, 5, &page).is_err());
        page[SECTOR_BYTES + 4 + 300] ^= 0x10;
        assert!(read(&header, 5, &page).is_err());
    }

    #[test]
    fn bits_behind_the_end_of_the_drive_are_refused() {
        let header = Header { capacity_bytes: 100 * BLOCK_BYTES, ..header() };
        for (block, fine) in [(99, true), (100, false), (32_511, false)] {
            let mut words = [0; PAGE_WORDS];
            words[block / 64] |= 1 << (block % 64);
            let mut page = [0; PAGE_BYTES];
            encode_page(header.layer, 0, &words, &mut page);
            assert_eq!(decode_page(&header, 0, 0, &page, &mut [0; PAGE_WORDS]).is_ok(), fine, "{block}");
        }
    }

    #[test]
    fn a_page_is_about_127_mib_of_the_drive() {
        assert_eq!(PAGE_BLOCKS as usize, PAGE_WORDS * 64);
        assert_eq!((pages(0), pages(1), pages(PAGE_BLOCKS * BLOCK_BYTES), pages(30 << 30)), (0, 1, 1, 242));
        assert_eq!(Header { capacity_bytes: 1, ..header() }.map_bytes(), 3 * 4096);
    }
}
