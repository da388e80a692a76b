//! The extent tree of one inode: which blocks of the file lie where (kernel documentation, filesystems/ext4, "extent tree").

use std::ops::Range;

use super::geometry::BLOCK;
use crate::bytes::{high16, high32, low16, low32, put16, put32};

/// `EXT4_EXT_MAGIC`.
const MAGIC: u16 = 0xf30a;
/// `EXT_INIT_MAX_LEN`: longer lengths mean extents that are not initialised.
const MAX_LEN: u64 = 1 << 15;
/// Entries that fit into `i_block`.
const IN_INODE: usize = 4;
/// Entries that fit into a block, with room for the checksum behind them.
const IN_BLOCK: usize = (BLOCK - ENTRY - 4) / ENTRY;
/// Bytes of a header and of every entry.
const ENTRY: usize = 12;

/// One row of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    file_block: u64,
    len: u64,
    disk_block: u64,
}

/// Extents in rising order.
#[derive(Debug, Default)]
pub(super) struct Extents {
    list: Vec<Extent>,
    /// Blocks in all of them.
    pub(super) blocks: u64,
}

/// A tree ready to be stored.
#[derive(Debug)]
pub(super) struct Stored {
    /// `i_block`.
    pub(super) root: [u8; 60],
    /// Blocks beside it; the checksum goes behind the entries of each.
    pub(super) nodes: Vec<(u64, Vec<u8>)>,
}

impl Extents {
    /// The file goes on at `file_block` with these blocks.
    pub(super) fn push(&mut self, file_block: u64, disk: Range<u64>) {
        self.blocks += disk.end - disk.start;
        let (mut file_block, mut disk_block) = (file_block, disk.start);
        if let Some(last) = self.list.last_mut()
            && last.file_block + last.len == file_block
            && last.disk_block + last.len == disk_block
        {
            let more = (MAX_LEN - last.len).min(disk.end - disk_block);
            last.len += more;
            file_block += more;
            disk_block += more;
        }
        while disk_block < disk.end {
            let len = MAX_LEN.min(disk.end - disk_block);
            self.list.push(Extent { file_block, len, disk_block });
            file_block += len;
            disk_block += len;
        }
    }

    /// The block of the disk where block `file_block` of the file lies.
    pub(super) fn disk_block(&self, file_block: u64) -> Option<u64> {
        let at = self.list.partition_point(|extent| extent.file_block + extent.len <= file_block);
        let extent = self.list.get(at).filter(|extent| extent.file_block <= file_block)?;
        Some(extent.disk_block + (file_block - extent.file_block))
    }

    /// Lays the tree out; `block` gives one block of the disk for each node that does not fit into the inode.
    pub(super) fn store<E>(&self, mut block: impl FnMut() -> Result<u64, E>) -> Result<Stored, E> {
        let mut entries: Vec<(u64, [u8; ENTRY])> =
            self.list.iter().map(|extent| (extent.file_block, leaf_entry(extent))).collect();
        let mut depth = 0;
        let mut nodes = Vec::new();
        while entries.len() > IN_INODE {
            let mut above = Vec::new();
            for part in entries.chunks(IN_BLOCK) {
                let at = block()?;
                let mut node = vec![0; BLOCK];
                fill(&mut node, part, IN_BLOCK, depth);
                above.push((part[0].0, index_entry(part[0].0, at)));
                nodes.push((at, node));
            }
            entries = above;
            depth += 1;
        }
        let mut root = [0; 60];
        fill(&mut root, &entries, IN_INODE, depth);
        Ok(Stored { root, nodes })
    }
}

/// Where the checksum of a node lies.
pub(super) const CHECKSUM_AT: usize = ENTRY + IN_BLOCK * ENTRY;

fn fill(node: &mut [u8], entries: &[(u64, [u8; ENTRY])], room: usize, depth: u16) {
    put16(node, 0, MAGIC);
    put16(node, 2, entries.len() as u16);
    put16(node, 4, room as u16);
    put16(node, 6, depth);
    for (slot, (_, entry)) in node[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put32(&mut entry, 0, low32(extent.file_block));
    put16(&mut entry, 4, extent.len as u16);
    put16(&mut entry, 6, low16(high32(extent.disk_block)));
    put32(&mut entry, 8, low32(extent.disk_block));
    entry
}

fn index_entry(file_block: u64, disk_block: u64) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put32(&mut entry, 0, low32(file_block));
    put32(&mut entry, 4, low32(disk_block));
    put16(&mut entry, 8, low16(high32(disk_block)));
    debug_assert_eq!(high16(high32(disk_block)), 0, "48-bit block numbers");
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_touch_are_one_extent_up_to_its_longest() {
        let mut extents = Extents::default();
        extents.push(0, 100..110);
        extents.push(10, 110..120);
        assert_eq!(extents.list, [Extent { file_block: 0, len: 20, disk_block: 100 }]);
        extents.push(20, 120..120 + MAX_LEN);
        assert_eq!(extents.list.iter().map(|extent| extent.len).collect::<Vec<_>>(), [MAX_LEN, 20]);
        assert_eq!(extents.disk_block(MAX_LEN + 3), Some(100 + MAX_LEN + 3));
        assert_eq!(extents.disk_block(MAX_LEN + 20), None);
    }

    #[test]
    fn five_extents_need_a_block_and_more_than_four_blocks_a_second_level() {
        let mut next = 1000;
        let mut block = || {
            next += 1;
            Ok::<_, ()>(next)
        };
        let mut extents = Extents::default();
        for at in 0..5 {
            extents.push(at * 2, at * 2 + 50..at * 2 + 51);
        }
        assert_eq!(extents.store(&mut block).expect("a block").nodes.len(), 1);
        for at in 5..5 * IN_BLOCK as u64 {
            extents.push(at * 2, at * 2 + 50..at * 2 + 51);
        }
        let stored = extents.store(&mut block).expect("blocks");
        assert_eq!((stored.nodes.len(), stored.root[6]), (6, 2));
    }
}
