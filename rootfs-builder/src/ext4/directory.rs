//! Blocks of a directory without an index: entries in a row, a checksum at the end of each block (kernel documentation,
//! filesystems/ext4, "linear directories").

use super::geometry::BLOCK;
use crate::bytes::{crc32c, put16, put32};

/// Bytes of the pretended entry that holds the checksum.
const TAIL: usize = 12;
/// Bytes of an entry before its name.
const HEADER: usize = 8;

/// File types in directory entries.
pub(super) mod entry_type {
    pub(in crate::ext4) const REGULAR: u8 = 1;
    pub(in crate::ext4) const DIRECTORY: u8 = 2;
    pub(in crate::ext4) const CHAR: u8 = 3;
    pub(in crate::ext4) const BLOCK: u8 = 4;
    pub(in crate::ext4) const FIFO: u8 = 5;
    pub(in crate::ext4) const SYMLINK: u8 = 7;
}

/// One name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) inode: u32,
    pub(super) entry_type: u8,
    pub(super) name: &'a [u8],
}

/// Bytes that an entry takes.
pub(super) fn entry_len(name: &[u8]) -> usize {
    (HEADER + name.len()).next_multiple_of(4)
}

/// Whether these fit into one block beside `.` and `..`; larger directories have an index ([`super::index`]), as the kernel does it.
pub(super) fn fits_one_block<'a>(entries: impl IntoIterator<Item = Entry<'a>>) -> bool {
    let mut left = BLOCK - TAIL - entry_len(b".") - entry_len(b"..");
    entries.into_iter().all(|entry| {
        let len = entry_len(entry.name);
        let fits = len <= left;
        left = left.saturating_sub(len);
        fits
    })
}

/// Lays entries out in blocks, at least `min_blocks`; `seed` is the directory's.
pub(super) fn blocks<'a>(entries: impl IntoIterator<Item = Entry<'a>>, min_blocks: usize, seed: u32) -> Vec<u8> {
    let mut all = Vec::with_capacity(min_blocks.max(1) * BLOCK);
    let mut block = Block::new();
    for entry in entries {
        if !block.has_room(entry.name) {
            block.finish_into(&mut all, seed);
            block = Block::new();
        }
        block.push(entry);
    }
    block.finish_into(&mut all, seed);
    while all.len() < min_blocks * BLOCK {
        Block::new().finish_into(&mut all, seed);
    }
    all
}

/// A block that is being filled.
#[derive(Debug)]
pub(super) struct Block {
    bytes: Vec<u8>,
    /// Where the last entry begins: its length will reach to the tail.
    last: usize,
}

impl Block {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(BLOCK), last: 0 }
    }

    pub(super) fn has_room(&self, name: &[u8]) -> bool {
        self.bytes.len() + entry_len(name) <= BLOCK - TAIL
    }

    pub(super) fn push(&mut self, entry: Entry<'_>) {
        self.last = self.bytes.len();
        let len = entry_len(entry.name);
        self.bytes.resize(self.last + len, 0);
        let slot = &mut self.bytes[self.last..];
        put32(slot, 0, entry.inode);
        put16(slot, 4, len as u16);
        slot[6] = entry.name.len() as u8;
        slot[7] = entry.entry_type;
        slot[HEADER..HEADER + entry.name.len()].copy_from_slice(entry.name);
    }

    pub(super) fn finish_into(mut self, all: &mut Vec<u8>, seed: u32) {
        self.bytes.resize(BLOCK, 0);
        put16(&mut self.bytes, self.last + 4, (BLOCK - TAIL - self.last) as u16);
        put16(&mut self.bytes, BLOCK - TAIL + 4, TAIL as u16);
        self.bytes[BLOCK - TAIL + 7] = 0xde; // EXT4_FT_DIR_CSUM
        let sum = crc32c(seed, &self.bytes[..BLOCK - TAIL]);
        put32(&mut self.bytes, BLOCK - 4, sum);
        all.extend_from_slice(&self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_255_bytes_fits_fifteen_times_into_a_block() {
        let name = [b'x'; 255];
        let entry = Entry { inode: 12, entry_type: entry_type::REGULAR, name: &name };
        assert_eq!(blocks([entry; 15], 1, 0).len(), BLOCK);
        assert_eq!(blocks([entry; 16], 1, 0).len(), 2 * BLOCK);
        assert_eq!(blocks([], 4, 0).len(), 4 * BLOCK);
    }
}
