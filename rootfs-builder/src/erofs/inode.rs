//! One extended inode (`struct erofs_inode_extended`).

use crate::bytes::{put16, put32, put64};
use crate::output::BLOCK;
use crate::tree::Meta;

/// Bytes of it.
pub(super) const LEN: usize = 64;
/// Inodes are numbered by their place in units of so many bytes (`EROFS_ISLOTBITS`).
pub(super) const SLOT: u64 = 32;
/// `i_format`: the inode is an extended one.
const EXTENDED: u16 = 1;

/// File type bits of `i_mode`.
pub(super) mod file_type {
    pub(in crate::erofs) const FIFO: u16 = 0x1000;
    pub(in crate::erofs) const CHAR: u16 = 0x2000;
    pub(in crate::erofs) const DIRECTORY: u16 = 0x4000;
    pub(in crate::erofs) const BLOCK: u16 = 0x6000;
    pub(in crate::erofs) const REGULAR: u16 = 0x8000;
    pub(in crate::erofs) const SYMLINK: u16 = 0xa000;
}

/// Where the content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In a row of blocks.
    Plain,
    /// In a row of blocks, and the last part behind the inode and its attributes.
    Inline,
    /// In chunks of two to the power of so many bytes, whose first blocks are listed behind the inode and its attributes.
    Chunked(u8),
}

/// What goes into an inode beside owner, mode and times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    pub(super) file_type: u16,
    pub(super) number: u32,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) layout: Layout,
    /// The first block of the content, or the device's number.
    pub(super) place: u32,
    /// Bytes of attributes, their header included.
    pub(super) xattr_bytes: usize,
}

impl Inode {
    pub(super) fn bytes(&self, meta: &Meta) -> [u8; LEN] {
        let mut raw = [0; LEN];
        let (layout, place) = match self.layout {
            Layout::Plain => (0, self.place),
            Layout::Inline => (2, self.place),
            Layout::Chunked(bits) => (4, u32::from(bits) - BLOCK.trailing_zeros()),
        };
        put16(&mut raw, 0x00, layout << 1 | EXTENDED);
        // The header of twelve bytes counts as one, then each four.
        let count = self.xattr_bytes.checked_sub(super::xattr::HEADER).map_or(0, |bytes| bytes / 4 + 1);
        put16(&mut raw, 0x02, count as u16);
        put16(&mut raw, 0x04, self.file_type | (meta.mode & 0o7777));
        put64(&mut raw, 0x08, self.size);
        put32(&mut raw, 0x10, place);
        put32(&mut raw, 0x14, self.number);
        put32(&mut raw, 0x18, meta.uid);
        put32(&mut raw, 0x1c, meta.gid);
        put64(&mut raw, 0x20, meta.mtime.seconds.cast_unsigned());
        put32(&mut raw, 0x28, meta.mtime.nanoseconds);
        put32(&mut raw, 0x2c, self.links);
        raw
    }
}

/// A device's number as Linux packs it (`new_encode_dev`).
pub(super) fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}
