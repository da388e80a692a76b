//! Our EROFS writer, for data that is only ever read: a tree becomes an image in one pass, as small as its content, the same bytes
//! every time (kernel documentation, filesystems/erofs; the structures are those of Linux' fs/erofs/erofs_fs.h).
//!
//! What it writes: 4 KiB blocks, no compression, extended inodes (owners of 32 bits, times of nanoseconds), attributes behind their
//! inode, short files, links and the ends of directories behind that, files with holes in chunks. All inodes lie together at the front, in the
//! order of the tree, the contents follow in the same order. `fsck.erofs` is the judge (`tests/erofs.rs`).

mod directory;
mod inode;
mod plan;
mod superblock;
mod writer;
mod xattr;

use std::fs::File;
use std::io;

use crate::ext4::Written;
use crate::tree::{Spools, Tree};
use crate::watch::{Interrupted, Watch};

/// Raised whenever the same tree would become other bytes; part of every image's key.
pub const WRITER_VERSION: u32 = 1;

/// What an image is made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// UUID of the file system.
    pub uuid: [u8; 16],
    /// Volume label, cut at 15 bytes.
    pub label: String,
}

/// Why a tree did not become an image.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ErofsError {
    #[error("`{path}`: the image is longer than the 16 TiB that EROFS can address")]
    Full { path: String },
    #[error("`{path}`: extended attribute `{name}` has no place in EROFS")]
    XattrName { path: String, name: String },
    #[error("`{path}`: extended attributes take {bytes} bytes, more than 64 KiB")]
    XattrSize { path: String, bytes: usize },
    #[error("reading content of `{path}`")]
    Read { path: String, source: io::Error },
    #[error("writing the image")]
    Write { source: io::Error },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl ErofsError {
    /// The tree is at fault, not the machine.
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Write { .. } | Self::Interrupted(_))
    }
}

/// Writes `tree` to the empty file `disk`.
pub fn write(
    tree: &Tree,
    spools: &Spools,
    options: &Options,
    disk: &File,
    watch: &Watch,
) -> Result<Written, ErofsError> {
    let plan = plan::Plan::of(tree)?;
    writer::Writer::new(tree, spools, options, &plan, disk, watch)?.run()
}
