//! Directories: blocks of entries with their names behind them, all in the order of their bytes (`struct erofs_dirent`).

use crate::bytes::{put16, put64};
use crate::output::BLOCK;

/// Bytes of an entry without its name.
const ENTRY: usize = 12;

/// File types in entries.
pub(super) mod entry_type {
    pub(in crate::erofs) const REGULAR: u8 = 1;
    pub(in crate::erofs) const DIRECTORY: u8 = 2;
    pub(in crate::erofs) const CHAR: u8 = 3;
    pub(in crate::erofs) const BLOCK: u8 = 4;
    pub(in crate::erofs) const FIFO: u8 = 5;
    pub(in crate::erofs) const SYMLINK: u8 = 7;
}

/// One name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    /// The inode's place in slots.
    pub(super) nid: u64,
    pub(super) entry_type: u8,
}

/// Bytes of a directory with these names, dots included, in their order. All blocks but the last are full.
pub(super) fn len<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in names {
        let len = ENTRY + name.len();
        if used + len > BLOCK {
            (blocks, used) = (blocks + 1, 0);
        }
        used += len;
    }
    blocks * BLOCK as u64 + used as u64
}

/// The bytes of a directory. The entries have the order of their names.
pub(super) fn bytes(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut all = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        let len = ENTRY + entry.name.len();
        if used + len > BLOCK {
            put_block(&mut all, &entries[start..at]);
            all.resize(all.len().next_multiple_of(BLOCK), 0);
            (start, used) = (at, 0);
        }
        used += len;
    }
    put_block(&mut all, &entries[start..]);
    all
}

fn put_block(all: &mut Vec<u8>, entries: &[Entry<'_>]) {
    let start = all.len();
    all.resize(start + entries.len() * ENTRY, 0);
    for (at, entry) in entries.iter().enumerate() {
        let name_at = all.len() - start;
        let slot = &mut all[start + at * ENTRY..];
        put64(slot, 0, entry.nid);
        put16(slot, 8, name_at as u16);
        slot[10] = entry.entry_type;
        all.extend_from_slice(entry.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_bytes() {
        let names: Vec<Vec<u8>> = (0..1000u32).map(|at| vec![b'n'; 1 + (at * 37 % 255) as usize]).collect();
        for count in [2, 3, 15, 16, 31, 500, 1000] {
            let entries: Vec<_> =
                names[..count].iter().map(|name| Entry { name, nid: 36, entry_type: entry_type::FIFO }).collect();
            assert_eq!(len(entries.iter().map(|entry| entry.name)), bytes(&entries).len() as u64, "{count} names");
        }
    }
}
