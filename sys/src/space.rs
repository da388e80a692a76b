//! Space of a file (fallocate(2)): giving it back, and zeros without writing them. Sizes never change.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

/// errno(3): no space left on device.
pub const NO_SPACE: i32 = libc::ENOSPC;
/// errno(3): disk quota exceeded.
pub const NO_QUOTA: i32 = libc::EDQUOT;

/// Gives the space of a range back; it reads as zeros.
///
/// # Errors
/// What fallocate(2) says.
pub fn punch(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
}

/// Makes a range zeros and keeps its space, by writing them where the file system has no other way (tmpfs, for one).
///
/// # Errors
/// What fallocate(2) or pwrite(2) says.
pub fn zero(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, offset, len) {
        Err(Errno::OPNOTSUPP) => write_zeros(file, offset, len),
        other => Ok(other?),
    }
}

/// Makes a range zeros by writing them.
///
/// # Errors
/// What pwrite(2) says.
pub fn write_zeros(file: &File, mut offset: u64, mut len: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let part = ZEROS.get(..usize::try_from(len).unwrap_or(usize::MAX)).unwrap_or(&ZEROS);
        file.write_all_at(part, offset)?;
        offset += part.len() as u64;
        len -= part.len() as u64;
    }
    Ok(())
}

/// The parts of `range` that hold data (lseek(2), SEEK_DATA and SEEK_HOLE), in order. All that is left where the file system
/// cannot tell. The file's cursor moves.
pub fn data_ranges<F: AsFd>(file: F, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let Range { mut start, end } = range;
    std::iter::from_fn(move || {
        if start >= end {
            return None;
        }
        let found = match seek(&file, SeekFrom::Data(start)) {
            Ok(data) if data >= end => return None,
            Ok(data) => data..seek(&file, SeekFrom::Hole(data)).unwrap_or(end).clamp(data + 1, end),
            Err(Errno::NXIO) => return None, // nothing but a hole is left
            Err(_) => start..end,
        };
        start = found.end;
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn data_is_told_from_holes_within_the_range() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("sizing");
        for at in [0u64, 256 << 10, 512 << 10] {
            file.write_all_at(&[1; 4096], at).expect("writing");
        }
        let found: Vec<_> = data_ranges(&file, 1000..(512 << 10) + 100).collect();
        assert_eq!(found, [1000..4096, 256 << 10..(256 << 10) + 4096, 512 << 10..(512 << 10) + 100]);
        assert_eq!(data_ranges(&file, (516 << 10)..1 << 20).count(), 0);
    }

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

    #[test]
    fn zeros_are_written_where_the_file_system_cannot_make_them() {
        let (disk, memory) =
            (tempfile::tempfile().expect("a file"), crate::memfd::create("zeros", 0).expect("a memfd"));
        for file in [disk, memory] {
            file.write_all_at(&[7; 300 << 10], 0).expect("writing");
            zero(&file, 100, 200 << 10).expect("zeros");
            let mut bytes = vec![1; 300 << 10];
            file.read_exact_at(&mut bytes, 0).expect("reading");
            let changed = 100..100 + (200 << 10);
            assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if changed.contains(&at) { 0 } else { 7 }));
            let metadata = file.metadata().expect("metadata");
            assert!(metadata.blocks() * 512 >= 300 << 10, "its space stays: {} blocks", metadata.blocks());
        }
    }
}
