//! Space of a file (fallocate(2)): giving it back, and zeros without writing them. Sizes never change.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, fallocate};

/// Gives the space of a range back; it reads as zeros.
///
/// # Errors
/// What fallocate(2) says.
pub fn punch(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
}

/// Makes a range zeros and keeps its space.
///
/// # Errors
/// What fallocate(2) says; `Unsupported` on tmpfs, among others.
pub fn zero(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_hole_gives_back_its_blocks_and_reads_as_zeros() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; 64 << 10], 0).expect("writing");
        let before = file.metadata().expect("metadata");
        punch(&file, 8 << 10, 32 << 10).expect("punching");
        let after = file.metadata().expect("metadata");
        assert_eq!(after.len(), before.len());
        assert!(after.blocks() < before.blocks(), "{} then {}", before.blocks(), after.blocks());
        let mut bytes = [1; 3];
        file.read_exact_at(&mut bytes, (8 << 10) - 1).expect("reading");
        assert_eq!(bytes, [7, 0, 0]);
    }
}
