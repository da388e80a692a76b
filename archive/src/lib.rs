//! Trees of files to tar and back: what `labyard cp` does on both of its sides, in the guest's agent and in the command, and how `labyard bake`
//! gets a root file system out of a guest.
//!
//! Whoever wrote an archive is not trusted: a guest's arrives in the command, which runs with the rights of the person. Names are
//! checked (`name`), files are made below one open folder without following a link (`below`), nothing is written through a
//! file that was there, and everything is bounded. What is packed may change meanwhile, and no link in it is followed.
//!
//! The format is pax (POSIX.1-2008, pax, "pax Interchange Format") with GNU's sparse format 1.0; GNU's own headers are read, too.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used, clippy::expect_used)]

mod below;
mod block;
mod name;
mod pack;
mod read;
mod unpack;

pub use pack::{Choice, PackError, Packing, pack};
pub use read::ArchiveError;
pub use unpack::{UnpackError, Unpacking, place, unpack};

/// Longest name of an entry, and of what a link leads to (PATH_MAX).
pub const MAX_NAME_BYTES: usize = 4096;
/// Deepest entry.
pub const MAX_DEPTH: usize = 128;
/// Entries of one archive.
pub const MAX_ENTRIES: u64 = 4 << 20;
/// Bytes of data that one archive may bring where nothing else is said.
pub const MAX_BYTES: u64 = 1 << 40;

/// What went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Files, folders, links.
    pub entries: u64,
    /// Bytes of data in files; holes are none.
    pub bytes: u64,
}
