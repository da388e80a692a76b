//! An empty journal (jbd2): one superblock, then blocks of zeros that the image file does not even hold.

use super::geometry::BLOCK;

/// Blocks of a journal for a disk of so many, as mke2fs chooses them (`ext2fs_default_journal_size`).
pub(super) fn blocks_for(disk_blocks: u64) -> u64 {
    match disk_blocks {
        0..2048 => 0,
        2048..32_768 => 1024,
        32_768..262_144 => 4096,
        262_144..524_288 => 8192,
        524_288..4_194_304 => 16_384,
        4_194_304..8_388_608 => 32_768,
        8_388_608..16_777_216 => 65_536,
        16_777_216..33_554_432 => 131_072,
        _ => 262_144,
    }
}

/// The first block of a journal (`journal_superblock_t`, big-endian): version 2, nothing to replay.
pub(super) fn superblock(blocks: u64, uuid: &[u8; 16]) -> Vec<u8> {
    let mut raw = vec![0; BLOCK];
    let fields = [
        (0x00, 0xc03b_3998), // magic
        (0x04, 4),           // superblock, version 2
        (0x0c, BLOCK as u32),
        (0x10, blocks as u32),
        (0x14, 1), // first block of the log
        (0x18, 1), // first sequence number
        (0x1c, 0), // where the log starts: nowhere, it is empty
        (0x40, 1), // file systems that use it
    ];
    for (at, value) in fields {
        raw[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
    }
    raw[0x30..0x40].copy_from_slice(uuid);
    raw
}
