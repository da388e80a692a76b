//! Our ext4 writer: a tree becomes a disk in one pass, without root, without mounting, the same bytes every time.
//!
//! What it writes: 4 KiB blocks, extents, an index in directories of more than one block, 256-byte inodes, 64bit, flex_bg, sparse_super, metadata_csum with its own seed, an
//! empty journal where asked for. No moment but those of the tree, no random number: UUID and hash seed are given.
//! A file's blocks follow each other on the disk in the order of the tree; 64 KiB of zeros become a hole.
//! `e2fsck -fn` is the judge (`tests/ext4.rs`).

mod directory;
mod extents;
mod geometry;
mod hash;
mod index;
mod inode;
mod journal;
mod plan;
mod space;
mod superblock;
mod writer;
mod xattr;

use std::fs::File;
use std::io;

use crate::disk::Follower;
use crate::earlier::places::Places;
use crate::tree::{Spools, Tree};
use crate::watch::{Interrupted, Watch};

/// Raised whenever the same tree would become other bytes; part of every image's key.
pub const WRITER_VERSION: u32 = 2;

/// How large a disk becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes, with a journal and with inodes to spare.
    Bytes(u64),
    /// As small as the content allows; for a disk that is only ever read.
    Fit,
}

/// What a disk is made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// How large it becomes.
    pub size: Size,
    /// UUID of the file system.
    pub uuid: [u8; 16],
    /// Seed of directory hashes.
    pub hash_seed: [u8; 16],
    /// Volume label, cut at 16 bytes.
    pub label: String,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Length of the disk.
    pub bytes: u64,
    /// Names in the tree, the root and `lost+found` among them.
    pub entries: u64,
}

/// Why a tree did not become a disk.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Ext4Error {
    #[error("disk of {bytes} bytes: not a multiple of 4096 between 1 MiB and 16 TiB; give another --size")]
    Size { bytes: u64 },
    #[error("disk of {bytes} bytes: too small for {inodes} inodes; give a larger --size")]
    Inodes { bytes: u64, inodes: u64 },
    #[error("disk of {bytes} bytes: full at `{path}`; give a larger --size")]
    Full { bytes: u64, path: String },
    #[error("`{path}`: {bytes} bytes are more than an ext4 file holds")]
    FileSize { path: String, bytes: u64 },
    #[error("`{path}`: a directory of {entries} names, more than an index of two levels holds")]
    Directory { path: String, entries: usize },
    #[error("`{path}`: symbolic link of {bytes} bytes, more than 4095")]
    SymlinkSize { path: String, bytes: usize },
    #[error("`{path}`: extended attribute `{name}` has no place in ext4")]
    XattrName { path: String, name: String },
    #[error("`{path}`: `{name}` is not an access control list")]
    Acl { path: String, name: String },
    #[error("`{path}`: extended attributes take {bytes} bytes, more than a block of 4096")]
    XattrSize { path: String, bytes: usize },
    #[error("`/lost+found` is not a directory, and ext4 needs that name")]
    LostFound,
    #[error("reading content of `{path}`")]
    Read { path: String, source: io::Error },
    #[error("writing the disk")]
    Write { source: io::Error },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Ext4Error {
    /// The tree or the options are at fault, not the machine.
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Interrupted(_))
    }
}

/// Whether a disk can be of so many bytes; [`write()`] would say the same, but later.
pub fn check_size(bytes: u64) -> Result<(), Ext4Error> {
    geometry::Geometry::new(bytes, 0, true).map(|_| ())
}

/// Writes `tree` to the empty file `disk`. Adds `lost+found` to a tree that has none.
pub fn write(
    tree: &mut Tree,
    spools: &Spools,
    options: &Options,
    disk: &File,
    watch: &Watch,
) -> Result<Written, Ext4Error> {
    let plan = plan::Plan::of(tree)?;
    Ok(writer::Writer::new(tree, spools, options, &plan, disk, watch, None)?.run()?.0)
}

/// The same, written through `follower`; tells where the contents of files lie, too.
pub(crate) fn write_followed(
    tree: &mut Tree,
    spools: &Spools,
    options: &Options,
    disk: &File,
    watch: &Watch,
    follower: &Follower,
) -> Result<(Written, Places), Ext4Error> {
    let plan = plan::Plan::of(tree)?;
    writer::Writer::new(tree, spools, options, &plan, disk, watch, Some(follower))?.run()
}
