//! Directories with an index: names sorted by their hash into blocks, and a tree of one or two levels over them (kernel
//! documentation, filesystems/ext4, "hash tree directories").
//!
//! ```text
//!   block 0: root ─┬─▶ leaves                       up to 507 of them
//!                  └─▶ nodes ─▶ leaves              beyond
//! ```

use super::directory::{Block, Entry, entry_len};
use super::geometry::BLOCK;
use super::hash::half_md4;
use crate::bytes::{crc32c, put16, put32};

/// `EXT4_INDEX_FL`.
pub(super) const INDEX_FLAG: u32 = 0x1000;
/// `dx_root_info`: half MD4, with its length.
const HALF_MD4: u8 = 1;
const INFO_LEN: u8 = 8;
/// Where limit and count of a root and of a node lie; the first pair of hash and block has its hash there.
const ROOT_AT: usize = 0x20;
const NODE_AT: usize = 0x08;
/// Bytes of a pair of hash and block, and of the checksum at the end (`dx_tail`).
const PAIR: usize = 8;
const TAIL: usize = 8;
/// A leaf begins with a hash whose other names end the leaf before.
const CONTINUED: u32 = 1;
/// Bytes of a leaf that are filled: the rest is for names to come, before a guest has to split it.
const FILLED: usize = BLOCK * 4 / 5;

/// One block of names.
struct Leaf<'a> {
    /// Hash of its first name; the lowest bit says that names of that hash are in the leaf before, too.
    first: u32,
    /// Hash of its last name.
    last: u32,
    names: Vec<Entry<'a>>,
}

/// Lays out a directory whose names do not fit into one block; `seed` is the directory's. `None` for more names than two levels hold.
pub(super) fn blocks<'a>(
    dots: [Entry<'a>; 2],
    entries: impl IntoIterator<Item = Entry<'a>>,
    hash_seed: &[u8; 16],
    seed: u32,
) -> Option<Vec<u8>> {
    let leaves = leaves(entries, hash_seed);
    let nodes = if leaves.len() <= limit(ROOT_AT) { 0 } else { leaves.len().div_ceil(limit(NODE_AT)) };
    if nodes > limit(ROOT_AT) {
        return None;
    }
    let first_leaf = 1 + nodes as u32;
    let pairs: Vec<(u32, u32)> = leaves.iter().map(|leaf| leaf.first).zip(first_leaf..).collect();
    let mut all = Vec::with_capacity((first_leaf as usize + leaves.len()) * BLOCK);
    if nodes == 0 {
        all.extend(root(dots, 0, &pairs, seed));
    } else {
        let below: Vec<&[(u32, u32)]> = pairs.chunks(limit(NODE_AT)).collect();
        let above: Vec<(u32, u32)> = below.iter().map(|pairs| pairs[0].0).zip(1..).collect();
        all.extend(root(dots, 1, &above, seed));
        all.extend(below.into_iter().flat_map(|pairs| node(pairs, seed)));
    }
    for leaf in leaves {
        let mut block = Block::new();
        leaf.names.into_iter().for_each(|entry| block.push(entry));
        block.finish_into(&mut all, seed);
    }
    Some(all)
}

fn leaves<'a>(entries: impl IntoIterator<Item = Entry<'a>>, hash_seed: &[u8; 16]) -> Vec<Leaf<'a>> {
    let mut sorted: Vec<_> = entries.into_iter().map(|entry| (half_md4(entry.name, hash_seed), entry)).collect();
    sorted.sort_unstable_by(|(hash, one), (other, two)| (hash, one.name).cmp(&(other, two.name)));
    let mut leaves: Vec<Leaf<'a>> = Vec::new();
    let mut bytes = 0;
    for ((hash, _), entry) in sorted {
        let len = entry_len(entry.name);
        match leaves.last_mut() {
            Some(leaf) if bytes + len <= FILLED => {
                leaf.names.push(entry);
                leaf.last = hash;
                bytes += len;
            }
            before => {
                let continued = before.is_some_and(|leaf| leaf.last == hash);
                let first = hash | if continued { CONTINUED } else { 0 };
                leaves.push(Leaf { first, last: hash, names: vec![entry] });
                bytes = len;
            }
        }
    }
    leaves
}

/// Pairs that fit behind `at`.
fn limit(at: usize) -> usize {
    (BLOCK - at - TAIL) / PAIR
}

fn root(dots: [Entry<'_>; 2], levels: u8, pairs: &[(u32, u32)], seed: u32) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    // Each dot takes 12 bytes; the second one's length spans the rest, so that it looks like a block of two names.
    for (at, len, entry) in [(0, 12, dots[0]), (12, BLOCK - 12, dots[1])] {
        put32(&mut block, at, entry.inode);
        put16(&mut block, at + 4, len as u16);
        block[at + 6] = entry.name.len() as u8;
        block[at + 7] = entry.entry_type;
        block[at + 8..at + 8 + entry.name.len()].copy_from_slice(entry.name);
    }
    block[0x1c] = HALF_MD4;
    block[0x1d] = INFO_LEN;
    block[0x1e] = levels;
    seal(block, ROOT_AT, pairs, seed)
}

fn node(pairs: &[(u32, u32)], seed: u32) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    put16(&mut block, 4, BLOCK as u16); // one empty entry as long as the block
    seal(block, NODE_AT, pairs, seed)
}

/// Puts limit, count, pairs and checksum into a block. The first pair's hash is where limit and count are.
fn seal(mut block: Vec<u8>, at: usize, pairs: &[(u32, u32)], seed: u32) -> Vec<u8> {
    for (index, (hash, to)) in pairs.iter().enumerate() {
        put32(&mut block, at + index * PAIR, *hash);
        put32(&mut block, at + index * PAIR + 4, *to);
    }
    put16(&mut block, at, limit(at) as u16);
    put16(&mut block, at + 2, pairs.len() as u16);
    // What is in use, then the tail with a zero for the sum itself (`ext4_dx_csum`).
    let sum = crc32c(crc32c(seed, &block[..at + pairs.len() * PAIR]), &[0; TAIL]);
    put32(&mut block, BLOCK - 4, sum);
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ext4::directory::entry_type;

    fn dots() -> [Entry<'static>; 2] {
        [&b"."[..], b".."].map(|name| Entry { inode: 2, entry_type: entry_type::DIRECTORY, name })
    }

    #[test]
    fn limits_are_the_kernels() {
        assert_eq!((limit(ROOT_AT), limit(NODE_AT)), (507, 510));
    }

    #[test]
    fn names_of_one_hash_in_two_leaves_are_said_to_go_on() {
        // The same name again and again is no directory, but the surest way to one hash.
        let name = [b'x'; 255];
        let entry = Entry { inode: 12, entry_type: entry_type::REGULAR, name: &name };
        let hash = half_md4(&name, &[7; 16]).0;
        let found: Vec<u32> = leaves([entry; 30], &[7; 16]).iter().map(|leaf| leaf.first).collect();
        assert_eq!(found, [hash, hash | CONTINUED, hash | CONTINUED]);
    }

    #[test]
    fn more_leaves_than_a_root_holds_get_a_level_between() {
        let names: Vec<String> = (0..20_000).map(|at| format!("{at:0>200}")).collect();
        let entries = |count: usize| {
            names[..count].iter().map(|name| Entry {
                inode: 12,
                entry_type: entry_type::REGULAR,
                name: name.as_bytes(),
            })
        };
        let small = blocks(dots(), entries(100), &[7; 16], 1).expect("it fits");
        assert_eq!((small[0x1e], small.len() / BLOCK), (0, 1 + 100usize.div_ceil(15)));
        let large = blocks(dots(), entries(20_000), &[7; 16], 1).expect("it fits");
        let leaves = 20_000usize.div_ceil(15);
        assert_eq!((large[0x1e], large.len() / BLOCK), (1, 1 + leaves.div_ceil(510) + leaves));
    }
}
