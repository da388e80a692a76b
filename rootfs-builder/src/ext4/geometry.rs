//! How a disk is divided: groups, their copies of the superblock, and the sizes that follow (kernel documentation,
//! filesystems/ext4, "layout" and "group descriptors").

use super::Ext4Error;

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;
/// Blocks of a group: as many as one bitmap block has bits.
pub(super) const GROUP_BLOCKS: u64 = 8 * BLOCK as u64;
/// Bytes of an inode.
pub(super) const INODE: usize = 256;
/// Bytes of a group descriptor (64bit).
pub(super) const DESCRIPTOR: usize = 64;
/// Groups whose bitmaps and inode tables lie together (flex_bg).
pub(super) const FLEX_GROUPS: u32 = 16;
/// log2 of [`FLEX_GROUPS`], as the superblock has it.
pub(super) const LOG_FLEX_GROUPS: u8 = 4;
/// Inodes below this are the file system's own.
pub(super) const FIRST_INODE: u32 = 11;
/// mke2fs's default: one inode for so many bytes.
const BYTES_PER_INODE: u64 = 16384;
/// Inodes of a group at most: as many as one bitmap block has bits.
const MAX_GROUP_INODES: u64 = 8 * BLOCK as u64;
/// A last group with less room than this beside its own copies is left off.
const SMALLEST_GROUP: u64 = 64;
/// 16 TiB: every count below still fits into its field.
const MAX_BYTES: u64 = 16 << 40;
/// Less than this is no disk.
const MIN_BYTES: u64 = 1 << 20;

/// The division of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) blocks: u64,
    pub(super) groups: u32,
    pub(super) group_inodes: u32,
}

impl Geometry {
    /// A disk of `bytes` with room for at least `inodes` inodes, and as many as mke2fs would make where `spare` is asked for.
    pub(super) fn new(bytes: u64, inodes: u64, spare: bool) -> Result<Self, Ext4Error> {
        if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) || !bytes.is_multiple_of(BLOCK as u64) {
            return Err(Ext4Error::Size { bytes });
        }
        let mut blocks = bytes / BLOCK as u64;
        let mut groups = blocks.div_ceil(GROUP_BLOCKS) as u32;
        let last = Self { blocks, groups, group_inodes: 0 };
        let last_blocks = blocks - u64::from(groups - 1) * GROUP_BLOCKS;
        if groups > 1 && last_blocks < last.base_blocks(groups - 1) + SMALLEST_GROUP {
            groups -= 1;
            blocks = u64::from(groups) * GROUP_BLOCKS;
        }
        let wanted = if spare { inodes.max(bytes / BYTES_PER_INODE) } else { inodes };
        let per_block = (BLOCK / INODE) as u64;
        let group_inodes = wanted.div_ceil(u64::from(groups)).next_multiple_of(per_block);
        if group_inodes > MAX_GROUP_INODES {
            return Err(Ext4Error::Inodes { bytes, inodes });
        }
        Ok(Self { blocks, groups, group_inodes: group_inodes as u32 })
    }

    /// Whether the group has a copy of superblock and descriptors (sparse_super).
    pub(super) fn has_super(&self, group: u32) -> bool {
        let power_of = |base: u32| {
            let mut power = base;
            while power < group {
                power = power.saturating_mul(base);
            }
            power == group
        };
        group <= 1 || power_of(3) || power_of(5) || power_of(7)
    }

    /// Blocks of the descriptor table.
    pub(super) fn descriptor_blocks(&self) -> u64 {
        (u64::from(self.groups) * DESCRIPTOR as u64).div_ceil(BLOCK as u64)
    }

    /// Blocks at the start of a group that hold superblock and descriptors.
    pub(super) fn base_blocks(&self, group: u32) -> u64 {
        if self.has_super(group) { 1 + self.descriptor_blocks() } else { 0 }
    }

    /// First block of a group.
    pub(super) fn start(&self, group: u32) -> u64 {
        u64::from(group) * GROUP_BLOCKS
    }

    /// One past the last block of a group.
    pub(super) fn end(&self, group: u32) -> u64 {
        (self.start(group) + GROUP_BLOCKS).min(self.blocks)
    }

    /// Blocks of one group's inode table.
    pub(super) fn table_blocks(&self) -> u64 {
        u64::from(self.group_inodes) * INODE as u64 / BLOCK as u64
    }

    /// Inodes in all.
    pub(super) fn inodes(&self) -> u64 {
        u64::from(self.groups) * u64::from(self.group_inodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_lie_in_the_groups_that_sparse_super_names() {
        let geometry = Geometry::new(64 << 30, 0, true).expect("a disk");
        let copies: Vec<u32> = (0..130).filter(|group| geometry.has_super(*group)).collect();
        assert_eq!(copies, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn a_tail_too_short_for_a_group_is_left_off() {
        let geometry = Geometry::new((128 << 20) + (1 << 16), 0, true).expect("a disk");
        assert_eq!((geometry.groups, geometry.blocks), (1, GROUP_BLOCKS));
        assert_eq!(Geometry::new((128 << 20) + (1 << 20), 0, true).expect("a disk").groups, 2);
    }

    #[test]
    fn sizes_that_are_no_disk_are_refused() {
        for bytes in [0, 4096, (1 << 20) + 1, MAX_BYTES + 4096] {
            assert!(Geometry::new(bytes, 0, true).is_err(), "{bytes}");
        }
        assert!(Geometry::new(1 << 20, 40_000, true).is_err(), "too many inodes for one group");
    }
}
