//! Decided before the first byte is written: where each inode lies, how its content is laid out, and where that begins.

use std::convert::Infallible;

use super::ErofsError;
use super::directory;
use super::inode::{LEN, Layout, SLOT};
use super::superblock;
use super::xattr::{self, Refused};
use crate::output::BLOCK;
use crate::tree::{Content, Kind, Node, NodeId, Tree};

/// A chunk of a file with holes, as a power of two: at least so long, and longer where there would be more chunks than this.
const CHUNK_BITS: u8 = 16;
const MAX_CHUNKS: u64 = 1 << 18;
/// Bytes of a chunk's place in the list.
pub(super) const CHUNK_ENTRY: u64 = 4;
/// The end of a file goes behind its inode if both are no longer than this, or if there is room in the block anyway.
const INLINE: u64 = BLOCK as u64 / 2;

/// The place of one node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Bytes from the image's start.
    pub(super) at: u64,
    /// The first block of the content.
    pub(super) block: u64,
    pub(super) layout: Layout,
    /// Length of the content.
    pub(super) size: u64,
    pub(super) links: u32,
}

impl Place {
    /// The inode's number.
    pub(super) fn nid(&self) -> u64 {
        self.at / SLOT
    }
}

/// The order of things.
#[derive(Debug)]
pub(super) struct Plan {
    /// Nodes with their parent directory, in the order of their inodes.
    pub(super) order: Vec<(NodeId, NodeId)>,
    /// By node; for those that no name leads to it means nothing.
    pub(super) places: Vec<Place>,
    /// Names in the tree, the root among them.
    pub(super) entries: u64,
    pub(super) blocks: u32,
    pub(super) chunked: bool,
}

impl Plan {
    pub(super) fn of(tree: &Tree) -> Result<Self, ErofsError> {
        let nowhere = Place { at: 0, block: 0, layout: Layout::Plain, size: 0, links: 0 };
        let mut plan =
            Self { order: Vec::new(), places: vec![nowhere; tree.nodes_made()], entries: 0, blocks: 0, chunked: false };
        plan.put_in_order(tree);
        let mut at = (superblock::AT + superblock::LEN) as u64;
        for (id, _) in &plan.order {
            let (node, place) = (tree.node(*id), &mut plan.places[id.index()]);
            let attributes = attributes(tree, *id, node)?.len() as u64;
            place.size = size(node);
            (place.at, place.layout) = lay_out(at, LEN as u64 + attributes, node, place.size);
            plan.chunked |= matches!(place.layout, Layout::Chunked(_));
            at = (place.at + LEN as u64 + attributes + behind(place)).next_multiple_of(SLOT);
        }
        let mut block = at.div_ceil(BLOCK as u64);
        for (id, _) in &plan.order {
            let place = &mut plan.places[id.index()];
            place.block = block;
            block += match (place.layout, &tree.node(*id).kind) {
                (Layout::Chunked(bits), Kind::File(content)) => chunks(content, bits).map(|(_, blocks)| blocks).sum(),
                (Layout::Inline, _) => place.size / BLOCK as u64,
                _ => place.size.div_ceil(BLOCK as u64),
            };
            // The last number says "hole".
            if block >= u64::from(u32::MAX) {
                return Err(ErofsError::Full { path: tree.path_of(*id) });
            }
        }
        plan.blocks = block as u32;
        Ok(plan)
    }

    fn put_in_order(&mut self, tree: &Tree) {
        let walked: Result<(), Infallible> = tree.walk(&mut |id, parent, met| {
            self.entries += 1;
            if tree.children(id).is_none() {
                self.places[id.index()].links += 1;
            } else {
                // Its own name and `.`, then `..` of each subdirectory.
                self.places[id.index()].links += 2;
                if id != NodeId::ROOT {
                    self.places[parent.index()].links += 1;
                }
            }
            if !met {
                self.order.push((id, parent));
            }
            Ok(())
        });
        let Ok(()) = walked;
    }
}

/// Attributes of a node, as they stand in the image.
pub(super) fn attributes(tree: &Tree, id: NodeId, node: &Node) -> Result<Vec<u8>, ErofsError> {
    xattr::bytes(&node.meta.xattrs).map_err(|refused| {
        let path = tree.path_of(id);
        match refused {
            Refused::Name(name) => ErofsError::XattrName { path, name },
            Refused::TooLong(bytes) => ErofsError::XattrSize { path, bytes },
        }
    })
}

/// A directory's names in their order, with its dots.
pub(super) fn names(node: &Node) -> Vec<(&[u8], Option<NodeId>)> {
    let Kind::Directory(children) = &node.kind else { return Vec::new() };
    let mut names: Vec<(&[u8], Option<NodeId>)> = vec![(b".", None), (b"..", None)];
    names.extend(children.iter().map(|(name, child)| (&**name, Some(child.node))));
    names.sort_unstable_by_key(|(name, _)| *name);
    names
}

fn size(node: &Node) -> u64 {
    match &node.kind {
        Kind::Directory(_) => directory::len(names(node).into_iter().map(|(name, _)| name)),
        Kind::File(content) => content.len,
        Kind::Symlink(target) => target.len() as u64,
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => 0,
    }
}

/// Where an inode of `head` bytes with its attributes goes, from `at` on, and its layout. What lies behind an inode may not cross
/// into another block than the inode's end.
fn lay_out(at: u64, head: u64, node: &Node, size: u64) -> (u64, Layout) {
    if let Kind::File(content) = &node.kind
        && let Some(bits) = chunk_bits(content)
    {
        return (at, Layout::Chunked(bits));
    }
    let block = BLOCK as u64;
    let tail = size % block;
    let fits = |at: u64| (at + head) % block + tail <= block && (at + head) / block == (at + head + tail - 1) / block;
    if tail == 0 {
        (at, Layout::Plain)
    } else if fits(at) {
        (at, Layout::Inline)
    } else if head + tail <= INLINE {
        (at.next_multiple_of(block), Layout::Inline)
    } else {
        (at, Layout::Plain)
    }
}

/// Bytes behind an inode and its attributes.
fn behind(place: &Place) -> u64 {
    match place.layout {
        Layout::Plain => 0,
        Layout::Inline => place.size % BLOCK as u64,
        Layout::Chunked(bits) => place.size.div_ceil(1 << bits) * CHUNK_ENTRY,
    }
}

/// The length of chunks, where holes make them worth it.
fn chunk_bits(content: &Content) -> Option<u8> {
    let stored: u64 = content.runs.iter().map(|run| run.len).sum();
    if content.len - stored < 1 << CHUNK_BITS {
        return None;
    }
    (CHUNK_BITS..).find(|bits| content.len.div_ceil(1 << bits) <= MAX_CHUNKS)
}

/// The chunks of a file that some run reaches into, by number, each with its blocks.
pub(super) fn chunks(content: &Content, bits: u8) -> impl Iterator<Item = (u64, u64)> {
    let mut next = 0;
    let touched = content.runs.iter().filter(|run| run.len > 0).flat_map(move |run| {
        let (first, last) = ((run.at >> bits).max(next), (run.at + run.len - 1) >> bits);
        next = last + 1;
        first..=last
    });
    touched.map(move |chunk| {
        let bytes = (content.len - (chunk << bits)).min(1 << bits);
        (chunk, bytes.div_ceil(BLOCK as u64))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Run;

    fn content(len: u64, runs: &[(u64, u64)]) -> Content {
        let runs = runs.iter().map(|(at, len)| Run { at: *at, len: *len, spool: 0, offset: 0 }).collect();
        Content { len, runs }
    }

    #[test]
    fn only_files_with_holes_worth_a_chunk_are_in_chunks_and_long_ones_in_longer_ones() {
        assert_eq!(chunk_bits(&content(1 << 20, &[(0, 1 << 20)])), None);
        assert_eq!(chunk_bits(&content(1 << 20, &[(0, (1 << 20) - 65_535)])), None);
        assert_eq!(chunk_bits(&content(1 << 20, &[(0, 1 << 19)])), Some(16));
        assert_eq!(chunk_bits(&content(1 << 40, &[])), Some(22));
    }

    #[test]
    fn a_chunk_that_two_runs_share_is_there_once_and_the_last_one_is_short() {
        let content = content(200_000, &[(0, 10), (20, 10), (60_000, 10_000), (199_999, 1)]);
        assert_eq!(chunks(&content, 16).collect::<Vec<_>>(), [(0, 16), (1, 16), (3, 1)]);
    }
}
