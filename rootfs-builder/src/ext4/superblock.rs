//! The superblock and the group descriptors (kernel documentation, filesystems/ext4, "super block", "block group descriptors").

use super::geometry::{BLOCK, DESCRIPTOR, FIRST_INODE, GROUP_BLOCKS, Geometry, INODE, LOG_FLEX_GROUPS};
use crate::bytes::{crc32c, high16, high32, low16, low32, put16, put32};

/// The root directory's inode.
pub(super) const ROOT_INODE: u32 = 2;
/// The journal's inode.
pub(super) const JOURNAL_INODE: u32 = 8;
/// Where the superblock lies in block 0; in a copy it is at the start of its block.
const PRIMARY_AT: usize = 1024;
const LEN: usize = 1024;

const HAS_JOURNAL: u32 = 0x4;
const EXT_ATTR: u32 = 0x8;
const DIR_INDEX: u32 = 0x20;
/// filetype, extents, 64bit, flex_bg, metadata_csum_seed (so that a clone can be given its own UUID while mounted).
const INCOMPAT: u32 = 0x2 | 0x40 | 0x80 | 0x200 | 0x2000;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// `EXT4_BG_INODE_UNINIT`, `EXT4_BG_BLOCK_UNINIT`, `EXT4_BG_INODE_ZEROED`.
pub(super) mod group_flag {
    pub(in crate::ext4) const INODE_UNINIT: u16 = 1;
    pub(in crate::ext4) const BLOCK_UNINIT: u16 = 2;
    pub(in crate::ext4) const INODE_ZEROED: u16 = 4;
}

/// Everything in the superblock that is not the same in every image.
#[derive(Debug)]
pub(super) struct Superblock<'a> {
    pub(super) geometry: &'a Geometry,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u64,
    pub(super) uuid: [u8; 16],
    pub(super) hash_seed: [u8; 16],
    pub(super) label: &'a [u8],
    /// `i_block` and size of the journal's inode.
    pub(super) journal: Option<([u8; 60], u64)>,
    pub(super) checksum_seed: u32,
}

impl Superblock<'_> {
    /// The block that holds the superblock of `group`.
    pub(super) fn block(&self, group: u32) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let at = if group == 0 { PRIMARY_AT } else { 0 };
        block[at..at + LEN].copy_from_slice(&self.bytes(group));
        block
    }

    fn bytes(&self, group: u32) -> [u8; LEN] {
        let mut raw = [0; LEN];
        let geometry = self.geometry;
        put32(&mut raw, 0x00, geometry.inodes() as u32);
        put32(&mut raw, 0x04, low32(geometry.blocks));
        put32(&mut raw, 0x0c, low32(self.free_blocks));
        put32(&mut raw, 0x10, self.free_inodes as u32);
        put32(&mut raw, 0x18, 2); // log2 of the block size in KiB
        put32(&mut raw, 0x1c, 2); // the same for clusters
        put32(&mut raw, 0x20, GROUP_BLOCKS as u32);
        put32(&mut raw, 0x24, GROUP_BLOCKS as u32);
        put32(&mut raw, 0x28, geometry.group_inodes);
        put16(&mut raw, 0x36, u16::MAX); // no check after so many mounts
        put16(&mut raw, 0x38, 0xef53);
        put16(&mut raw, 0x3a, 1); // cleanly unmounted
        put16(&mut raw, 0x3c, 1); // on errors: continue
        put32(&mut raw, 0x4c, 1); // dynamic inode sizes
        put32(&mut raw, 0x54, FIRST_INODE);
        put16(&mut raw, 0x58, INODE as u16);
        put16(&mut raw, 0x5a, low16(group));
        put32(&mut raw, 0x5c, EXT_ATTR | DIR_INDEX | if self.journal.is_some() { HAS_JOURNAL } else { 0 });
        put32(&mut raw, 0x60, INCOMPAT);
        put32(&mut raw, 0x64, RO_COMPAT);
        raw[0x68..0x78].copy_from_slice(&self.uuid);
        let label = &self.label[..self.label.len().min(16)];
        raw[0x78..0x78 + label.len()].copy_from_slice(label);
        raw[0xec..0xfc].copy_from_slice(&self.hash_seed);
        raw[0xfc] = 1; // half MD4
        put16(&mut raw, 0xfe, DESCRIPTOR as u16);
        put32(&mut raw, 0x100, 0x4 | 0x8); // mount with user_xattr and acl
        if let Some((i_block, size)) = &self.journal {
            put32(&mut raw, 0xe0, JOURNAL_INODE);
            raw[0xfd] = 1; // the journal's inode is repeated here
            raw[0x10c..0x148].copy_from_slice(i_block);
            put32(&mut raw, 0x148, high32(*size));
            put32(&mut raw, 0x14c, low32(*size));
        }
        put32(&mut raw, 0x150, high32(geometry.blocks));
        put32(&mut raw, 0x158, high32(self.free_blocks));
        put16(&mut raw, 0x15c, 32); // what inodes must and should have behind their first 128 bytes
        put16(&mut raw, 0x15e, 32);
        put32(&mut raw, 0x160, 1); // directory hashes take bytes as signed, as on x86
        raw[0x174] = LOG_FLEX_GROUPS;
        raw[0x175] = 1; // CRC-32C
        put32(&mut raw, 0x268, FIRST_INODE); // lost+found
        put32(&mut raw, 0x270, self.checksum_seed);
        let sum = crc32c(!0, &raw[..LEN - 4]);
        put32(&mut raw, LEN - 4, sum);
        raw
    }
}

/// One group.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Group {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
    pub(super) free_blocks: u32,
    pub(super) free_inodes: u32,
    pub(super) directories: u32,
    /// Inodes at the end of the table that were never used.
    pub(super) unused_inodes: u32,
    pub(super) flags: u16,
    pub(super) block_bitmap_sum: u32,
    pub(super) inode_bitmap_sum: u32,
}

impl Group {
    /// The descriptor of group `number`.
    pub(super) fn bytes(&self, number: u32, file_system: u32) -> [u8; DESCRIPTOR] {
        let mut raw = [0; DESCRIPTOR];
        for (at, block) in [(0x00, self.block_bitmap), (0x04, self.inode_bitmap), (0x08, self.inode_table)] {
            put32(&mut raw, at, low32(block));
            put32(&mut raw, at + 0x20, high32(block));
        }
        let split = [
            (0x0c, 0x2c, self.free_blocks),
            (0x0e, 0x2e, self.free_inodes),
            (0x10, 0x30, self.directories),
            (0x18, 0x38, self.block_bitmap_sum),
            (0x1a, 0x3a, self.inode_bitmap_sum),
            (0x1c, 0x32, self.unused_inodes),
        ];
        for (low, high, value) in split {
            put16(&mut raw, low, low16(value));
            put16(&mut raw, high, high16(value));
        }
        put16(&mut raw, 0x12, self.flags);
        let sum = crc32c(crc32c(file_system, &number.to_le_bytes()), &raw);
        put16(&mut raw, 0x1e, low16(sum));
        raw
    }
}
