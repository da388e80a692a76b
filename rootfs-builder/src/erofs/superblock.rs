//! The superblock, 1 KiB into the image (`struct erofs_super_block`).

use crate::bytes::{crc32c, put16, put32, put64};
use crate::output::BLOCK;

/// Where it lies in block 0.
pub(super) const AT: usize = 1024;
/// Its length; inodes follow it.
pub(super) const LEN: usize = 128;

const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum; times are those of the last change.
const COMPAT: u32 = 0x1 | 0x2;
/// Files may be in chunks (`EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`).
const CHUNKED: u32 = 0x4;

/// What differs from image to image.
#[derive(Debug)]
pub(super) struct Superblock<'a> {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) chunked: bool,
    pub(super) uuid: [u8; 16],
    pub(super) label: &'a [u8],
}

impl Superblock<'_> {
    /// Puts it into the image's first block, whose rest is complete: the checksum goes over that, too.
    pub(super) fn put(&self, block: &mut [u8]) {
        let raw = &mut block[AT..BLOCK];
        put32(raw, 0x00, MAGIC);
        put32(raw, 0x08, COMPAT);
        raw[0x0c] = BLOCK.trailing_zeros() as u8;
        put16(raw, 0x0e, self.root);
        put64(raw, 0x10, self.inodes);
        put32(raw, 0x24, self.blocks);
        raw[0x30..0x40].copy_from_slice(&self.uuid);
        // One byte stays zero.
        let label = &self.label[..self.label.len().min(15)];
        raw[0x40..0x40 + label.len()].copy_from_slice(label);
        put32(raw, 0x50, if self.chunked { CHUNKED } else { 0 });
        let sum = crc32c(!0, raw);
        put32(raw, 0x04, sum);
    }
}
