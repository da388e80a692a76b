//! The pass over the tree: each node's inode with what lies behind it, then its blocks; the superblock at the end.

use std::fs::File;
use std::io;

use super::directory::{self, Entry, entry_type};
use super::inode::{self, Inode, Layout, SLOT, file_type};
use super::plan::{self, Place, Plan};
use super::superblock::Superblock;
use super::{ErofsError, Options};
use crate::ext4::Written;
use crate::output::{BLOCK, Output};
use crate::tree::{Content, Kind, Node, NodeId, Spools, Tree};
use crate::watch::Watch;

/// Bytes of a file read at once.
const CHUNK: usize = 1 << 20;
/// Inodes are collected up to so many bytes.
const COLLECTED: usize = 1 << 20;
/// A chunk that is a hole (`EROFS_NULL_ADDR`).
const HOLE: u32 = u32::MAX;
/// Progress is told after so many bytes.
const TELL: u64 = 8 << 20;

/// An image that is being written.
pub(super) struct Writer<'a> {
    tree: &'a Tree,
    spools: &'a Spools,
    options: &'a Options,
    plan: &'a Plan,
    watch: &'a Watch,
    output: Output<'a>,
    /// Block 0, which has the superblock and the first inodes.
    first: Vec<u8>,
    /// Inodes that are not written yet, and where they begin.
    inodes: Vec<u8>,
    inodes_at: u64,
    chunk: Vec<u8>,
    done: u64,
    told: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        spools: &'a Spools,
        options: &'a Options,
        plan: &'a Plan,
        disk: &'a File,
        watch: &'a Watch,
    ) -> Result<Self, ErofsError> {
        let output = Output::new(disk, u64::from(plan.blocks) * BLOCK as u64, None).map_err(write_failed)?;
        let (first, inodes, chunk) = (Vec::new(), Vec::new(), vec![0; CHUNK]);
        Ok(Self { tree, spools, options, plan, watch, output, first, inodes, inodes_at: 0, chunk, done: 0, told: 0 })
    }

    pub(super) fn run(mut self) -> Result<Written, ErofsError> {
        for (number, (id, parent)) in (1..).zip(&self.plan.order) {
            self.node(number, *id, *parent)?;
        }
        let end = self.inodes.len().next_multiple_of(BLOCK);
        self.inodes.resize(end, 0);
        self.flush_inodes(end)?;
        let superblock = Superblock {
            root: self.plan.places[NodeId::ROOT.index()].nid() as u16,
            inodes: self.plan.order.len() as u64,
            blocks: self.plan.blocks,
            chunked: self.plan.chunked,
            uuid: self.options.uuid,
            label: self.options.label.as_bytes(),
        };
        superblock.put(&mut self.first);
        self.output.put(0, &self.first).map_err(write_failed)?;
        self.output.flush().map_err(write_failed)?;
        Ok(Written { bytes: u64::from(self.plan.blocks) * BLOCK as u64, entries: self.plan.entries })
    }

    fn node(&mut self, number: u32, id: NodeId, parent: NodeId) -> Result<(), ErofsError> {
        self.watch.check()?;
        let (node, place) = (self.tree.node(id), self.plan.places[id.index()]);
        let attributes = plan::attributes(self.tree, id, node)?;
        let (file_type, device) = match &node.kind {
            Kind::Directory(_) => (file_type::DIRECTORY, None),
            Kind::File(_) => (file_type::REGULAR, None),
            Kind::Symlink(_) => (file_type::SYMLINK, None),
            Kind::CharDevice { major, minor } => (file_type::CHAR, Some(inode::device(*major, *minor))),
            Kind::BlockDevice { major, minor } => (file_type::BLOCK, Some(inode::device(*major, *minor))),
            Kind::Fifo => (file_type::FIFO, Some(0)),
        };
        let inode = Inode {
            file_type,
            number,
            links: place.links,
            size: place.size,
            layout: place.layout,
            place: device.unwrap_or(place.block as u32),
            xattr_bytes: attributes.len(),
        };
        let start = (place.at - self.inodes_at) as usize;
        self.inodes.resize(start, 0);
        self.inodes.extend_from_slice(&inode.bytes(&node.meta));
        self.inodes.extend_from_slice(&attributes);
        match &node.kind {
            Kind::Directory(_) => {
                let bytes = self.directory(node, id, parent);
                self.content(&place, &bytes)?;
            }
            Kind::Symlink(target) => self.content(&place, target)?,
            Kind::File(content) => match place.layout {
                Layout::Chunked(bits) => self.chunks(id, &place, content, bits)?,
                Layout::Plain | Layout::Inline => self.file(id, &place, content)?,
            },
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => {}
        }
        if self.inodes.len() >= COLLECTED {
            self.flush_inodes(self.inodes.len() / BLOCK * BLOCK)?;
        }
        Ok(())
    }

    fn directory(&self, node: &Node, id: NodeId, parent: NodeId) -> Vec<u8> {
        let entries: Vec<_> = plan::names(node)
            .into_iter()
            .map(|(name, child)| {
                let node = child.unwrap_or(if name == b"." { id } else { parent });
                let nid = self.plan.places[node.index()].nid();
                Entry { name, nid, entry_type: type_of(self.tree.node(node)) }
            })
            .collect();
        directory::bytes(&entries)
    }

    /// Puts content that is in memory: whole blocks where the plan says, the rest behind the inode or into a block of its own.
    fn content(&mut self, place: &Place, bytes: &[u8]) -> Result<(), ErofsError> {
        let (blocks, tail) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
        self.output.put(place.block, blocks).map_err(write_failed)?;
        self.tail(place, (blocks.len() / BLOCK) as u64, tail)
    }

    fn tail(&mut self, place: &Place, block: u64, tail: &[u8]) -> Result<(), ErofsError> {
        if place.layout == Layout::Inline {
            self.inodes.extend_from_slice(tail);
        } else if !tail.is_empty() {
            let mut last = tail.to_vec();
            last.resize(BLOCK, 0);
            self.output.put(place.block + block, &last).map_err(write_failed)?;
        }
        Ok(())
    }

    fn file(&mut self, id: NodeId, place: &Place, content: &Content) -> Result<(), ErofsError> {
        let mut chunk = std::mem::take(&mut self.chunk);
        let mut at = 0;
        while at < content.len {
            let len = (content.len - at).min(CHUNK as u64) as usize;
            self.read(id, content, at, &mut chunk[..len])?;
            let (blocks, tail) = chunk[..len].split_at(len / BLOCK * BLOCK);
            let block = at / BLOCK as u64;
            self.output.put(place.block + block, blocks).map_err(write_failed)?;
            self.tail(place, block + (blocks.len() / BLOCK) as u64, tail)?;
            at += len as u64;
        }
        self.chunk = chunk;
        Ok(())
    }

    /// A file with holes: a list of its chunks behind the inode, and those that are none in a row.
    fn chunks(&mut self, id: NodeId, place: &Place, content: &Content, bits: u8) -> Result<(), ErofsError> {
        let list = self.inodes.len();
        let count = place.size.div_ceil(1 << bits) as usize;
        self.inodes.resize(list + count * plan::CHUNK_ENTRY as usize, 0xff);
        debug_assert_eq!(HOLE.to_le_bytes(), [0xff; 4]);
        let mut chunk = std::mem::take(&mut self.chunk);
        let mut block = place.block;
        for (number, blocks) in plan::chunks(content, bits) {
            let entry = list + number as usize * plan::CHUNK_ENTRY as usize;
            self.inodes[entry..entry + 4].copy_from_slice(&(block as u32).to_le_bytes());
            let mut left = blocks * BLOCK as u64;
            let mut at = number << bits;
            while left > 0 {
                let part = &mut chunk[..left.min(CHUNK as u64) as usize];
                self.read(id, content, at, part)?;
                self.output.put(block, part).map_err(write_failed)?;
                (at, left) = (at + part.len() as u64, left - part.len() as u64);
                block += (part.len() / BLOCK) as u64;
            }
        }
        self.chunk = chunk;
        Ok(())
    }

    fn read(&mut self, id: NodeId, content: &Content, at: u64, into: &mut [u8]) -> Result<(), ErofsError> {
        self.watch.check()?;
        let failed = |source| ErofsError::Read { path: self.tree.path_of(id), source };
        self.spools.read(content, at, into).map_err(failed)?;
        self.done += into.len() as u64;
        if self.done - self.told >= TELL {
            self.told = self.done;
            self.watch.at("writing the disk", self.done, 0)?;
        }
        Ok(())
    }

    /// Writes the first `bytes` of the collected inodes, whole blocks. The image's first block waits for its superblock.
    fn flush_inodes(&mut self, bytes: usize) -> Result<(), ErofsError> {
        let mut block = self.inodes_at / BLOCK as u64;
        let mut whole = &self.inodes[..bytes];
        if block == 0 {
            let (first, rest) = whole.split_at(BLOCK);
            self.first = first.to_vec();
            (whole, block) = (rest, 1);
        }
        self.output.put(block, whole).map_err(write_failed)?;
        self.inodes.drain(..bytes);
        self.inodes_at += bytes as u64;
        Ok(())
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

fn write_failed(source: io::Error) -> ErofsError {
    ErofsError::Write { source }
}

const _: () = assert!(CHUNK.is_multiple_of(BLOCK) && inode::LEN.is_multiple_of(SLOT as usize));
