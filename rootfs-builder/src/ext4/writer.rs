//! The pass over the tree: each node's blocks, then its inode, then bitmaps, descriptors and superblocks.

use std::fs::File;
use std::io;

use super::directory::{self, Entry, entry_type};
use super::extents::{self, Extents};
use super::geometry::{BLOCK, FIRST_INODE, FLEX_GROUPS, GROUP_BLOCKS, Geometry, INODE};
use super::index::{self, INDEX_FLAG};
use super::inode::{self, EXTENTS_FLAG, Inode, MAX_LINKS, file_type};
use super::journal;
use super::plan::{LOST_FOUND_BLOCKS, Plan};
use super::space::Space;
use super::superblock::{Group, JOURNAL_INODE, ROOT_INODE, Superblock, group_flag};
use super::xattr::{self, Refused};
use super::{Ext4Error, Options, Size, Written};
use crate::bytes::{crc32c, put32};
use crate::disk::Follower;
use crate::earlier::places::{Place, Places, ZEROS};
use crate::output::{Output, is_zero};
use crate::tree::{Content, Kind, Meta, Node, NodeId, Spools, Tree};
use crate::watch::Watch;

/// Bytes of a file read at once; a whole number of [`HOLE`]s.
const CHUNK: usize = 1 << 20;
/// Aligned parts of a file that hold nothing but zeros are not stored.
const HOLE: usize = 64 << 10;
/// Symbolic links shorter than this lie in their inode.
const FAST_SYMLINK: usize = 60;
/// Longest symbolic link: a block, less the zero that the kernel puts behind it.
const MAX_SYMLINK: usize = BLOCK - 1;
/// Blocks of a file are counted in 32 bits.
const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK as u64;
/// Progress is told after so many bytes.
const TELL: u64 = 8 << 20;

/// A disk that is being written.
pub(super) struct Writer<'a> {
    tree: &'a Tree,
    spools: &'a Spools,
    options: &'a Options,
    plan: &'a Plan,
    watch: &'a Watch,
    geometry: Geometry,
    space: Space,
    groups: Vec<Group>,
    output: Output<'a>,
    /// The checksum that all others start from.
    seed: u32,
    table: Table,
    chunk: Vec<u8>,
    /// Where the data of the current chunk went: file, length and disk in bytes. Only who is followed notes it.
    put: Vec<(u64, u64, u64)>,
    places: Option<Places>,
    done: u64,
    told: u64,
}

/// The part of one group's inode table that is being filled.
#[derive(Debug, Default)]
struct Table {
    group: u32,
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        spools: &'a Spools,
        options: &'a Options,
        plan: &'a Plan,
        disk: &'a File,
        watch: &'a Watch,
        follower: Option<&'a Follower>,
    ) -> Result<Self, Ext4Error> {
        let geometry = plan.geometry(tree, options.size)?;
        let bytes = match options.size {
            Size::Bytes(bytes) => bytes,
            Size::Fit => geometry.blocks * BLOCK as u64,
        };
        let output = Output::new(disk, bytes, follower).map_err(write_failed)?;
        let (mut space, mut groups) = (Space::new(geometry.blocks), vec![Group::default(); geometry.groups as usize]);
        place_metadata(&geometry, &mut space, &mut groups).ok_or(Ext4Error::Inodes { bytes, inodes: plan.inodes() })?;
        Ok(Self {
            tree,
            spools,
            options,
            plan,
            watch,
            geometry,
            space,
            groups,
            output,
            seed: crc32c(!0, &options.uuid),
            table: Table::default(),
            chunk: vec![0; CHUNK],
            put: Vec::new(),
            places: follower.map(|_| Places::default()),
            done: 0,
            told: 0,
        })
    }

    pub(super) fn run(mut self) -> Result<(Written, Places), Ext4Error> {
        let journal = match self.options.size {
            Size::Bytes(_) => self.journal()?,
            Size::Fit => None,
        };
        for (id, parent) in &self.plan.order {
            self.node(*id, *parent)?;
        }
        self.flush_table()?;
        let used_inodes = u64::from(FIRST_INODE) - 1 + self.plan.order.len() as u64 - 1; // the root is one of the first
        self.bitmaps(used_inodes)?;
        self.superblocks(used_inodes, journal)?;
        self.output.flush().map_err(write_failed)?;
        let bytes = match self.options.size {
            Size::Bytes(bytes) => bytes,
            Size::Fit => self.geometry.blocks * BLOCK as u64,
        };
        Ok((Written { bytes, entries: self.plan.entries }, self.places.unwrap_or_default()))
    }

    /// An empty journal, or none on a disk that is too small for one. Gives `i_block` and size of its inode.
    fn journal(&mut self) -> Result<Option<([u8; 60], u64)>, Ext4Error> {
        let blocks = journal::blocks_for(self.geometry.blocks);
        if blocks == 0 {
            return Ok(None);
        }
        let mut extents = Extents::default();
        self.allocate(NodeId::ROOT, &mut extents, 0, blocks, &[])?;
        let first = extents.disk_block(0).expect("it has blocks");
        self.output.put(first, &journal::superblock(blocks, &self.options.uuid)).map_err(write_failed)?;
        let mut inode = Inode::new(file_type::REGULAR);
        inode.size = blocks * BLOCK as u64;
        self.store_extents(NodeId::ROOT, JOURNAL_INODE, &extents, &mut inode)?;
        let meta = Meta { mode: 0o600, ..Meta::default() };
        let raw = inode.bytes(&meta, inode::seed(self.seed, JOURNAL_INODE));
        self.put_inode(JOURNAL_INODE, &raw)?;
        Ok(Some((inode.i_block, inode.size)))
    }

    fn node(&mut self, id: NodeId, parent: NodeId) -> Result<(), Ext4Error> {
        self.watch.check()?;
        let tree = self.tree;
        let node = tree.node(id);
        let number = self.plan.numbers[id.index()];
        let mut inode = match &node.kind {
            Kind::Directory(_) => self.directory(id, parent, number)?,
            Kind::File(content) => self.file(id, number, content)?,
            Kind::Symlink(target) => self.symlink(id, number, target)?,
            Kind::CharDevice { major, minor } => device(file_type::CHAR, *major, *minor),
            Kind::BlockDevice { major, minor } => device(file_type::BLOCK, *major, *minor),
            Kind::Fifo => Inode::new(file_type::FIFO),
        };
        if !matches!(node.kind, Kind::Directory(_)) {
            inode.links = self.plan.links[id.index()].min(MAX_LINKS) as u16;
        }
        self.xattrs(id, node, &mut inode)?;
        let raw = inode.bytes(&node.meta, inode::seed(self.seed, number));
        self.put_inode(number, &raw)
    }

    fn directory(&mut self, id: NodeId, parent: NodeId, number: u32) -> Result<Inode, Ext4Error> {
        let (tree, plan) = (self.tree, self.plan);
        let dots = [(&b"."[..], id), (&b".."[..], parent)].map(|(name, node)| Entry {
            inode: plan.numbers[node.index()],
            entry_type: entry_type::DIRECTORY,
            name,
        });
        let children = tree.children(id).into_iter().flatten().map(|(name, child)| Entry {
            inode: plan.numbers[child.node.index()],
            entry_type: type_of(tree.node(child.node)),
            name,
        });
        let seed = inode::seed(self.seed, number);
        let mut inode = Inode::new(file_type::DIRECTORY);
        let blocks = if id == plan.lost_found {
            directory::blocks(dots.into_iter().chain(children), LOST_FOUND_BLOCKS, seed)
        } else if directory::fits_one_block(children.clone()) {
            directory::blocks(dots.into_iter().chain(children), 1, seed)
        } else {
            inode.flags |= INDEX_FLAG;
            let entries = children.clone().count();
            index::blocks(dots, children, &self.options.hash_seed, seed)
                .ok_or_else(|| Ext4Error::Directory { path: tree.path_of(id), entries })?
        };
        let mut extents = Extents::default();
        self.allocate(id, &mut extents, 0, (blocks.len() / BLOCK) as u64, &blocks)?;
        inode.size = blocks.len() as u64;
        // `.` and the name in the parent, and `..` of each subdirectory; 1 says that there are too many to count.
        let links = 2 + plan.links[id.index()];
        inode.links = if links > MAX_LINKS { 1 } else { links as u16 };
        self.store_extents(id, number, &extents, &mut inode)?;
        let group = self.group_of(number);
        self.groups[group].directories += 1;
        Ok(inode)
    }

    fn file(&mut self, id: NodeId, number: u32, content: &Content) -> Result<Inode, Ext4Error> {
        if content.len > MAX_FILE {
            return Err(Ext4Error::FileSize { path: self.tree.path_of(id), bytes: content.len });
        }
        let mut extents = Extents::default();
        let mut chunk = std::mem::take(&mut self.chunk);
        let mut next = 0;
        // Only chunks that some run reaches into are read: a file of holes costs nothing, however long it is.
        for run in &content.runs {
            next = next.max(run.at / CHUNK as u64 * CHUNK as u64);
            while next < run.at + run.len {
                self.watch.check()?;
                let len = (content.len - next).min(CHUNK as u64) as usize;
                let part = &mut chunk[..len.next_multiple_of(BLOCK)];
                self.spools
                    .read(content, next, part)
                    .map_err(|source| Ext4Error::Read { path: self.tree.path_of(id), source })?;
                self.put.clear();
                self.put_chunk(id, &mut extents, next / BLOCK as u64, part)?;
                self.note(content, next, &part[..len]);
                next += len as u64;
                self.tell(len as u64)?;
                if len < CHUNK {
                    break;
                }
            }
        }
        self.chunk = chunk;
        let mut inode = Inode::new(file_type::REGULAR);
        inode.size = content.len;
        self.store_extents(id, number, &extents, &mut inode)?;
        Ok(inode)
    }

    /// Notes where the runs of a chunk went.
    fn note(&mut self, content: &Content, chunk_at: u64, chunk: &[u8]) {
        let Some(places) = &mut self.places else { return };
        let end = chunk_at + chunk.len() as u64;
        let first = content.runs.partition_point(|run| run.at + run.len <= chunk_at);
        for run in content.runs[first..].iter().take_while(|run| run.at < end) {
            let (mut at, to) = (run.at.max(chunk_at), (run.at + run.len).min(end));
            let mut note = |from: u64, to: u64, disk: u64| {
                if from < to {
                    let bytes = &chunk[(from - chunk_at) as usize..(to - chunk_at) as usize];
                    let sum = if disk == ZEROS { 0 } else { crc32c::crc32c(bytes) };
                    let offset = run.offset + (from - run.at);
                    places.note(run.spool, Place { offset, len: (to - from) as u32, sum, disk });
                }
            };
            for (file, len, disk) in &self.put {
                let (from, until) = ((*file).clamp(at, to), (file + len).clamp(at, to));
                note(at, from, ZEROS);
                note(from, until, disk + from.saturating_sub(*file));
                at = until;
            }
            note(at, to, ZEROS);
        }
    }

    /// Stores the parts of a chunk that are not zero.
    fn put_chunk(&mut self, id: NodeId, extents: &mut Extents, first: u64, chunk: &[u8]) -> Result<(), Ext4Error> {
        let mut at = 0;
        while at < chunk.len() {
            let is_hole = |at: usize| is_zero(&chunk[at..(at + HOLE).min(chunk.len())]);
            let start = at;
            while at < chunk.len() && !is_hole(at) {
                at += HOLE;
            }
            let end = at.min(chunk.len());
            if end > start {
                let blocks = ((end - start) / BLOCK) as u64;
                self.allocate(id, extents, first + (start / BLOCK) as u64, blocks, &chunk[start..end])?;
            }
            while at < chunk.len() && is_hole(at) {
                at += HOLE;
            }
        }
        Ok(())
    }

    fn symlink(&mut self, id: NodeId, number: u32, target: &[u8]) -> Result<Inode, Ext4Error> {
        if target.len() > MAX_SYMLINK {
            return Err(Ext4Error::SymlinkSize { path: self.tree.path_of(id), bytes: target.len() });
        }
        let mut inode = Inode::new(file_type::SYMLINK);
        inode.size = target.len() as u64;
        if target.len() < FAST_SYMLINK {
            inode.i_block[..target.len()].copy_from_slice(target);
            return Ok(inode);
        }
        let mut block = target.to_vec();
        block.resize(BLOCK, 0);
        let mut extents = Extents::default();
        self.allocate(id, &mut extents, 0, 1, &block)?;
        self.store_extents(id, number, &extents, &mut inode)?;
        Ok(inode)
    }

    fn xattrs(&mut self, id: NodeId, node: &Node, inode: &mut Inode) -> Result<(), Ext4Error> {
        let stored = xattr::store(&node.meta.xattrs).map_err(|refused| {
            let path = self.tree.path_of(id);
            match refused {
                Refused::Name(name) => Ext4Error::XattrName { path, name },
                Refused::Acl(name) => Ext4Error::Acl { path, name },
                Refused::TooLong(bytes) => Ext4Error::XattrSize { path, bytes },
            }
        })?;
        inode.body = stored.body;
        if let Some(mut block) = stored.block {
            let at = self.one_block(id)?;
            xattr::seal(&mut block, at, self.seed);
            self.output.put(at, &block).map_err(write_failed)?;
            inode.xattr_block = at;
            inode.blocks += 1;
        }
        Ok(())
    }

    /// Finds room for `count` blocks of a file and puts `bytes` there (nothing where it is empty).
    fn allocate(
        &mut self,
        id: NodeId,
        extents: &mut Extents,
        mut file_block: u64,
        count: u64,
        bytes: &[u8],
    ) -> Result<(), Ext4Error> {
        let (mut left, mut bytes) = (count, bytes);
        while left > 0 {
            let range = self.space.take(left).ok_or_else(|| self.full(id))?;
            let blocks = range.end - range.start;
            if !bytes.is_empty() {
                let (now, later) = bytes.split_at(blocks as usize * BLOCK);
                self.output.put(range.start, now).map_err(write_failed)?;
                if self.places.is_some() {
                    self.put.push((file_block * BLOCK as u64, now.len() as u64, range.start * BLOCK as u64));
                }
                bytes = later;
            }
            extents.push(file_block, range);
            file_block += blocks;
            left -= blocks;
        }
        Ok(())
    }

    fn one_block(&mut self, id: NodeId) -> Result<u64, Ext4Error> {
        self.space.take(1).map(|range| range.start).ok_or_else(|| self.full(id))
    }

    fn full(&self, id: NodeId) -> Ext4Error {
        Ext4Error::Full { bytes: self.geometry.blocks * BLOCK as u64, path: self.tree.path_of(id) }
    }

    fn store_extents(
        &mut self,
        id: NodeId,
        number: u32,
        extents: &Extents,
        inode: &mut Inode,
    ) -> Result<(), Ext4Error> {
        let stored = extents.store(|| self.one_block(id))?;
        inode.flags |= EXTENTS_FLAG;
        inode.i_block = stored.root;
        inode.blocks += extents.blocks + stored.nodes.len() as u64;
        for (at, mut node) in stored.nodes {
            let sum = crc32c(inode::seed(self.seed, number), &node[..extents::CHECKSUM_AT]);
            put32(&mut node, extents::CHECKSUM_AT, sum);
            self.output.put(at, &node).map_err(write_failed)?;
        }
        Ok(())
    }

    fn group_of(&self, number: u32) -> usize {
        ((number - 1) / self.geometry.group_inodes) as usize
    }

    /// Inodes come by rising number, except for the first few, which share a group.
    fn put_inode(&mut self, number: u32, raw: &[u8; INODE]) -> Result<(), Ext4Error> {
        let group = self.group_of(number) as u32;
        if group != self.table.group {
            self.flush_table()?;
            self.table.group = group;
        }
        let at = ((number - 1) % self.geometry.group_inodes) as usize * INODE;
        if self.table.bytes.len() < at + INODE {
            self.table.bytes.resize((at + INODE).next_multiple_of(BLOCK), 0);
        }
        self.table.bytes[at..at + INODE].copy_from_slice(raw);
        Ok(())
    }

    fn flush_table(&mut self) -> Result<(), Ext4Error> {
        let at = self.groups[self.table.group as usize].inode_table;
        self.output.put(at, &self.table.bytes).map_err(write_failed)?;
        self.table.bytes.clear();
        Ok(())
    }

    /// Both bitmaps of every group, and the counts that follow from them. A group in which nothing was allocated says so
    /// instead of having bitmaps (`BLOCK_UNINIT`, `INODE_UNINIT`).
    fn bitmaps(&mut self, used_inodes: u64) -> Result<(), Ext4Error> {
        let group_inodes = u64::from(self.geometry.group_inodes);
        for number in 0..self.geometry.groups {
            let (start, end) = (self.geometry.start(number), self.geometry.end(number));
            let mut bitmap = vec![0; BLOCK];
            let mut taken = 0;
            for range in self.space.taken_in(start..end) {
                taken += range.end - range.start;
                set_bits(&mut bitmap, (range.start - start) as usize, (range.end - start) as usize);
            }
            let group = &mut self.groups[number as usize];
            group.flags = group_flag::INODE_ZEROED;
            group.free_blocks = (end - start - taken) as u32;
            let is_last = number + 1 == self.geometry.groups;
            if number > 0 && !is_last && taken == self.geometry.base_blocks(number) {
                group.flags |= group_flag::BLOCK_UNINIT;
            } else {
                set_bits(&mut bitmap, (end - start) as usize, GROUP_BLOCKS as usize);
                group.block_bitmap_sum = crc32c(self.seed, &bitmap);
                self.output.put(group.block_bitmap, &bitmap).map_err(write_failed)?;
            }
            let used = used_inodes.saturating_sub(u64::from(number) * group_inodes).min(group_inodes);
            group.free_inodes = (group_inodes - used) as u32;
            group.unused_inodes = group.free_inodes;
            if used == 0 {
                group.flags |= group_flag::INODE_UNINIT;
            } else {
                let mut bitmap = vec![0; BLOCK];
                set_bits(&mut bitmap, 0, used as usize);
                set_bits(&mut bitmap, group_inodes as usize, GROUP_BLOCKS as usize);
                group.inode_bitmap_sum = crc32c(self.seed, &bitmap[..group_inodes as usize / 8]);
                self.output.put(group.inode_bitmap, &bitmap).map_err(write_failed)?;
            }
        }
        Ok(())
    }

    /// Superblock and descriptors, and their copies.
    fn superblocks(&mut self, used_inodes: u64, journal: Option<([u8; 60], u64)>) -> Result<(), Ext4Error> {
        let mut descriptors: Vec<u8> =
            (0..).zip(&self.groups).flat_map(|(number, group)| group.bytes(number, self.seed)).collect();
        descriptors.resize(self.geometry.descriptor_blocks() as usize * BLOCK, 0);
        let superblock = Superblock {
            geometry: &self.geometry,
            free_blocks: self.groups.iter().map(|group| u64::from(group.free_blocks)).sum(),
            free_inodes: self.geometry.inodes() - used_inodes,
            uuid: self.options.uuid,
            hash_seed: self.options.hash_seed,
            label: self.options.label.as_bytes(),
            journal,
            checksum_seed: self.seed,
        };
        for group in (0..self.geometry.groups).filter(|group| self.geometry.has_super(*group)) {
            let start = self.geometry.start(group);
            self.output.put(start, &superblock.block(group)).map_err(write_failed)?;
            self.output.put(start + 1, &descriptors).map_err(write_failed)?;
        }
        Ok(())
    }

    fn tell(&mut self, bytes: u64) -> Result<(), Ext4Error> {
        self.done += bytes;
        if self.done - self.told >= TELL {
            self.told = self.done;
            self.watch.at("writing the disk", self.done, 0)?;
        }
        Ok(())
    }
}

/// Superblocks where they must be, then bitmaps and inode tables of each sixteen groups together.
fn place_metadata(geometry: &Geometry, space: &mut Space, groups: &mut [Group]) -> Option<()> {
    for group in 0..geometry.groups {
        let (start, blocks) = (geometry.start(group), geometry.base_blocks(group));
        if start + blocks > geometry.end(group) {
            return None;
        }
        space.reserve(start..start + blocks);
    }
    for (flex, members) in groups.chunks_mut(FLEX_GROUPS as usize).enumerate() {
        let from = geometry.start(flex as u32 * FLEX_GROUPS);
        for group in members.iter_mut() {
            group.block_bitmap = space.place(from, 1)?;
        }
        for group in members.iter_mut() {
            group.inode_bitmap = space.place(from, 1)?;
        }
        for group in members.iter_mut() {
            group.inode_table = space.place(from, geometry.table_blocks())?;
        }
    }
    Some(())
}

fn set_bits(bitmap: &mut [u8], from: usize, to: usize) {
    for bit in from..to {
        bitmap[bit / 8] |= 1 << (bit % 8);
    }
}

fn type_of(node: &Node) -> u8 {
    match node.kind {
        Kind::Directory(_) => entry_type::DIRECTORY,
        Kind::File(_) => entry_type::REGULAR,
        Kind::Symlink(_) => entry_type::SYMLINK,
        Kind::CharDevice { .. } => entry_type::CHAR,
        Kind::BlockDevice { .. } => entry_type::BLOCK,
        Kind::Fifo => entry_type::FIFO,
    }
}

fn device(file_type: u16, major: u32, minor: u32) -> Inode {
    Inode { i_block: inode::device(major, minor), ..Inode::new(file_type) }
}

fn write_failed(source: io::Error) -> Ext4Error {
    Ext4Error::Write { source }
}

const _: () = assert!(CHUNK.is_multiple_of(HOLE) && HOLE.is_multiple_of(BLOCK) && ROOT_INODE < FIRST_INODE);
