//! One inode of 256 bytes (kernel documentation, filesystems/ext4, "index nodes").

use super::geometry::{BLOCK, INODE};
use crate::bytes::{crc32c, high16, high32, low16, low32, put16, put32};
use crate::tree::{Meta, Time};

/// `EXT4_EXTENTS_FL`.
pub(super) const EXTENTS_FLAG: u32 = 0x8_0000;
/// Where extended attributes begin: behind 128 bytes and `i_extra_isize` more.
pub(super) const BODY_AT: usize = 128 + EXTRA as usize;
/// `i_extra_isize`: up to and with `i_projid`.
const EXTRA: u16 = 32;
/// Latest moment that 34 bits of seconds can say.
const LATEST: i64 = (3 << 32) + i32::MAX as i64;
/// Most links of a directory before the count says "many" (`EXT4_LINK_MAX`, dir_nlink).
pub(super) const MAX_LINKS: u64 = 65_000;

/// File type bits of `i_mode`.
pub(super) mod file_type {
    pub(in crate::ext4) const FIFO: u16 = 0x1000;
    pub(in crate::ext4) const CHAR: u16 = 0x2000;
    pub(in crate::ext4) const DIRECTORY: u16 = 0x4000;
    pub(in crate::ext4) const BLOCK: u16 = 0x6000;
    pub(in crate::ext4) const REGULAR: u16 = 0x8000;
    pub(in crate::ext4) const SYMLINK: u16 = 0xa000;
}

/// What goes into an inode beside owner, mode and times.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) file_type: u16,
    pub(super) links: u16,
    pub(super) size: u64,
    /// Blocks of data, extent tree and attributes.
    pub(super) blocks: u64,
    pub(super) flags: u32,
    pub(super) i_block: [u8; 60],
    /// Attributes in the body, from [`BODY_AT`].
    pub(super) body: Vec<u8>,
    /// Block of attributes; 0 for none.
    pub(super) xattr_block: u64,
}

impl Inode {
    /// Nothing in it, one link.
    pub(super) fn new(file_type: u16) -> Self {
        Self { file_type, links: 1, size: 0, blocks: 0, flags: 0, i_block: [0; 60], body: vec![], xattr_block: 0 }
    }

    /// The bytes in the inode table. All four times are the time of the last change: the image has no other.
    pub(super) fn bytes(&self, meta: &Meta, seed: u32) -> [u8; INODE] {
        let mut raw = [0; INODE];
        let (seconds, extra) = encode_time(meta.mtime);
        put16(&mut raw, 0x00, self.file_type | (meta.mode & 0o7777));
        put16(&mut raw, 0x02, low16(meta.uid));
        put32(&mut raw, 0x04, low32(self.size));
        for at in [0x08, 0x0c, 0x10, 0x90] {
            put32(&mut raw, at, seconds);
        }
        put16(&mut raw, 0x18, low16(meta.gid));
        put16(&mut raw, 0x1a, self.links);
        let sectors = self.blocks * (BLOCK as u64 / 512);
        put32(&mut raw, 0x1c, low32(sectors));
        put32(&mut raw, 0x20, self.flags);
        raw[0x28..0x64].copy_from_slice(&self.i_block);
        put32(&mut raw, 0x68, low32(self.xattr_block));
        put32(&mut raw, 0x6c, high32(self.size));
        put16(&mut raw, 0x74, low16(high32(sectors)));
        put16(&mut raw, 0x76, low16(high32(self.xattr_block)));
        put16(&mut raw, 0x78, high16(meta.uid));
        put16(&mut raw, 0x7a, high16(meta.gid));
        put16(&mut raw, 0x80, EXTRA);
        for at in [0x84, 0x88, 0x8c, 0x94] {
            put32(&mut raw, at, extra);
        }
        raw[BODY_AT..BODY_AT + self.body.len()].copy_from_slice(&self.body);
        let sum = crc32c(seed, &raw);
        put16(&mut raw, 0x7c, low16(sum));
        put16(&mut raw, 0x82, high16(sum));
        raw
    }
}

/// The checksum that everything of one inode starts from: its number and its generation, which is 0.
pub(super) fn seed(file_system: u32, number: u32) -> u32 {
    crc32c(crc32c(file_system, &number.to_le_bytes()), &0u32.to_le_bytes())
}

/// `i_block` of a device (the kernel's `old_encode_dev` and `new_encode_dev`).
pub(super) fn device(major: u32, minor: u32) -> [u8; 60] {
    let mut i_block = [0; 60];
    if major < 256 && minor < 256 {
        put32(&mut i_block, 0, major << 8 | minor);
    } else {
        put32(&mut i_block, 4, (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12));
    }
    i_block
}

/// Seconds, and nanoseconds with the two bits that carry seconds past 2038 (`ext4_encode_extra_time`).
/// What lies outside becomes the nearest moment that can be said.
fn encode_time(time: Time) -> (u32, u32) {
    let seconds = time.seconds.clamp(i64::from(i32::MIN), LATEST);
    let nanoseconds = if seconds == time.seconds { time.nanoseconds } else { 0 };
    let low = seconds as i32; // the kernel sign-extends these and adds the epoch
    let epoch = ((seconds - i64::from(low)) >> 32) as u32 & 3;
    (low as u32, nanoseconds << 2 | epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_encoded_as_the_kernel_reads_them() {
        // The table in the kernel's fs/ext4/inode-test.c.
        for (seconds, expected) in [
            (i64::from(i32::MIN), (0x8000_0000, 0)),
            (-1, (0xffff_ffff, 0)),
            (0, (0, 0)),
            (0x7fff_ffff, (0x7fff_ffff, 0)),
            (0x8000_0000, (0x8000_0000, 1)),
            (0x1_0000_0000, (0, 1)),
            (0x3_7fff_ffff, (0x7fff_ffff, 3)),
        ] {
            assert_eq!(encode_time(Time { seconds, nanoseconds: 0 }), expected, "{seconds:#x}");
        }
        assert_eq!(encode_time(Time { seconds: 5, nanoseconds: 7 }), (5, 28));
        assert_eq!(encode_time(Time { seconds: i64::MAX, nanoseconds: 7 }), (0x7fff_ffff, 3));
    }

    #[test]
    fn small_and_large_device_numbers_have_their_own_encoding() {
        assert_eq!(device(1, 3)[..8], [3, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(device(259, 0x12345)[..8], [0, 0, 0, 0, 0x45, 0x03, 0x31, 0x12]);
    }
}
