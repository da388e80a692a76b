//! Decided before the first block is written: the order of inodes, their numbers, links, and how much room all of it takes.

use std::convert::Infallible;

use super::directory::entry_len;
use super::geometry::{BLOCK, FIRST_INODE, Geometry};
use super::superblock::ROOT_INODE;
use super::{Ext4Error, Size};
use crate::tree::{Child, Kind, Meta, Node, NodeId, Tree};

/// The name that ext4 needs in its root.
const LOST_FOUND: &[u8] = b"lost+found";
/// Blocks of an empty `lost+found`, as mke2fs makes it: room for what a check finds.
pub(super) const LOST_FOUND_BLOCKS: usize = 4;

/// The order of things.
#[derive(Debug)]
pub(super) struct Plan {
    /// Nodes with their parent directory, by rising inode number.
    pub(super) order: Vec<(NodeId, NodeId)>,
    /// Inode numbers by node; 0 for nodes that no name leads to.
    pub(super) numbers: Vec<u32>,
    /// Names that lead to each node; for a directory its subdirectories.
    pub(super) links: Vec<u64>,
    pub(super) lost_found: NodeId,
    pub(super) entries: u64,
}

impl Plan {
    pub(super) fn of(tree: &mut Tree) -> Result<Self, Ext4Error> {
        let lost_found = lost_found(tree)?;
        let mut order = vec![(NodeId::ROOT, NodeId::ROOT), (lost_found, NodeId::ROOT)];
        let mut links = vec![0; tree.nodes_made()];
        let mut entries = 0;
        let walked: Result<(), Infallible> = tree.walk(&mut |id, parent, met| {
            entries += 1;
            if tree.children(id).is_none() {
                links[id.index()] += 1;
            } else if id != NodeId::ROOT {
                links[parent.index()] += 1;
            }
            if !met && id != NodeId::ROOT && id != lost_found {
                order.push((id, parent));
            }
            Ok(())
        });
        let Ok(()) = walked;
        let mut numbers = vec![0; tree.nodes_made()];
        for (position, (id, _)) in order.iter().enumerate() {
            // The root has a number of its own; the others follow `lost+found`.
            numbers[id.index()] = if position == 0 { ROOT_INODE } else { FIRST_INODE + position as u32 - 1 };
        }
        Ok(Self { order, numbers, links, lost_found, entries })
    }

    /// Inodes that must exist, the file system's own among them.
    pub(super) fn inodes(&self) -> u64 {
        self.order.len() as u64 + u64::from(FIRST_INODE)
    }

    /// The division of the disk that this tree goes to.
    pub(super) fn geometry(&self, tree: &Tree, size: Size) -> Result<Geometry, Ext4Error> {
        match size {
            Size::Bytes(bytes) => Geometry::new(bytes, self.inodes(), true),
            Size::Fit => {
                let needed = self.order.iter().map(|(id, _)| most_blocks(tree.node(*id))).sum::<u64>()
                    + LOST_FOUND_BLOCKS as u64;
                let mut blocks = needed;
                loop {
                    let bytes = (blocks * BLOCK as u64).next_multiple_of(1 << 20);
                    let geometry = Geometry::new(bytes, self.inodes(), false)?;
                    let own = (0..geometry.groups).map(|group| geometry.base_blocks(group)).sum::<u64>()
                        + u64::from(geometry.groups) * (2 + geometry.table_blocks());
                    if own + needed <= geometry.blocks {
                        return Ok(geometry);
                    }
                    blocks = bytes / BLOCK as u64 + own;
                }
            }
        }
    }
}

/// The directory `lost+found`, made where it is missing.
fn lost_found(tree: &mut Tree) -> Result<NodeId, Ext4Error> {
    if let Some(child) = tree.child(NodeId::ROOT, LOST_FOUND) {
        return tree.children(child.node).map(|_| child.node).ok_or(Ext4Error::LostFound);
    }
    let meta = Meta { mode: 0o700, mtime: tree.node(NodeId::ROOT).meta.mtime, ..Meta::default() };
    let node = tree.add(Node { meta, kind: Kind::Directory(Default::default()) });
    let children = tree.children_mut(NodeId::ROOT).expect("the root is a directory");
    children.insert(LOST_FOUND.into(), Child { node, layer: 0 });
    Ok(node)
}

/// Blocks that a node takes at most.
fn most_blocks(node: &Node) -> u64 {
    let data = match &node.kind {
        Kind::File(content) => content.len.div_ceil(BLOCK as u64),
        Kind::Symlink(_) => 1,
        // A block is at least half full: no entry is longer than 264 bytes. An index has some 500 blocks to each of its own.
        Kind::Directory(children) => {
            let bytes: u64 = children.keys().map(|name| entry_len(name) as u64).sum();
            let leaves = 1 + bytes.div_ceil(BLOCK as u64 / 2);
            leaves + 2 + leaves / 500
        }
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => 0,
    };
    // One extent for each 64 KiB in the worst case, 340 of them to a block.
    let extent_tree = if data > 4 * 16 { 2 + data / 16 / 300 } else { 0 };
    data + extent_tree + u64::from(!node.meta.xattrs.is_empty())
}
