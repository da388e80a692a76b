//! Extended attributes: as many as fit in the inode, the others in one block (kernel documentation, filesystems/ext4,
//! "extended attributes"). POSIX ACLs are kept in a form of their own.

use std::collections::BTreeMap;

use super::geometry::{BLOCK, INODE};
use super::inode::BODY_AT;
use crate::bytes::{crc32c, put16, put32};

/// `EXT4_XATTR_MAGIC`.
const MAGIC: u32 = 0xea02_0000;
/// Bytes before the entries of a block.
const BLOCK_HEADER: usize = 32;
/// Bytes of an entry before its name.
const ENTRY: usize = 16;
/// Room for entries and values in an inode, behind the magic number.
const BODY_ROOM: usize = INODE - BODY_AT - 4;
/// Room for entries and values in a block.
const BLOCK_ROOM: usize = BLOCK - BLOCK_HEADER;
/// The zero entry that ends a list.
const END: usize = 4;

/// Name prefixes and their numbers; longer ones first.
const PREFIXES: [(&[u8], u8); 6] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
    (b"system.", 7),
];

/// Why attributes cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// No prefix that ext4 knows, or nothing behind it.
    Name(String),
    /// An access control list that is not one.
    Acl(String),
    /// More than an inode and a block hold.
    TooLong(usize),
}

/// Attributes laid out.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// For the inode's body; empty for none.
    pub(super) body: Vec<u8>,
    /// For a block; the checksum is set by [`seal`].
    pub(super) block: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Attribute {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    fn entry_len(&self) -> usize {
        (ENTRY + self.name.len()).next_multiple_of(4)
    }

    fn value_len(&self) -> usize {
        self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry`.
    fn hash(&self) -> u32 {
        let hash = self.name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        let mut padded = self.value.clone();
        padded.resize(self.value_len(), 0);
        let (words, _) = padded.as_chunks::<4>();
        words.iter().fold(hash, |hash, word| hash.rotate_left(16) ^ u32::from_le_bytes(*word))
    }
}

/// Lays the attributes of one inode out.
pub(super) fn store(xattrs: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> Result<Stored, Refused> {
    if xattrs.is_empty() {
        return Ok(Stored::default());
    }
    let mut all = xattrs.iter().map(|(name, value)| attribute(name, value)).collect::<Result<Vec<_>, _>>()?;
    // The order that the kernel searches a block in (ext4_xattr_find_entry): prefix, length of the name, name.
    all.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    let mut left = BODY_ROOM - END;
    let (inside, outside): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| {
        let len = one.entry_len() + one.value_len();
        let fits = len <= left;
        left -= if fits { len } else { 0 };
        fits
    });
    let mut stored = Stored::default();
    if !inside.is_empty() {
        stored.body = vec![0; INODE - BODY_AT];
        put32(&mut stored.body, 0, MAGIC);
        lay_out(&inside, &mut stored.body[4..], 0, false);
    }
    if !outside.is_empty() {
        let needed: usize = outside.iter().map(|one| one.entry_len() + one.value_len()).sum::<usize>() + END;
        if needed > BLOCK_ROOM {
            return Err(Refused::TooLong(needed));
        }
        let mut block = vec![0; BLOCK];
        put32(&mut block, 0, MAGIC);
        put32(&mut block, 4, 1); // one inode refers to it
        put32(&mut block, 8, 1); // blocks
        let hash = outside.iter().fold(0u32, |hash, one| hash.rotate_left(16) ^ one.hash());
        put32(&mut block, 12, hash);
        lay_out(&outside, &mut block, BLOCK_HEADER, true);
        stored.block = Some(block);
    }
    Ok(stored)
}

/// Sets the checksum of a block that will lie at `at`.
pub(super) fn seal(block: &mut [u8], at: u64, file_system: u32) {
    let sum = crc32c(crc32c(file_system, &at.to_le_bytes()), block);
    put32(block, 16, sum);
}

/// Entries from `entries_at` upwards, values from the end of `area` downwards; offsets count from its start.
fn lay_out(attributes: &[Attribute], area: &mut [u8], entries_at: usize, hashed: bool) {
    let (mut at, mut end) = (entries_at, area.len());
    for one in attributes {
        end -= one.value_len();
        area[at] = one.name.len() as u8;
        area[at + 1] = one.index;
        put16(area, at + 2, if one.value.is_empty() { 0 } else { end as u16 });
        put32(area, at + 8, one.value.len() as u32);
        // The kernel keeps 0 in an inode's body.
        put32(area, at + 12, if hashed { one.hash() } else { 0 });
        area[at + ENTRY..at + ENTRY + one.name.len()].copy_from_slice(&one.name);
        area[end..end + one.value.len()].copy_from_slice(&one.value);
        at += one.entry_len();
    }
}

fn attribute(name: &[u8], value: &[u8]) -> Result<Attribute, Refused> {
    let text = || String::from_utf8_lossy(name).into_owned();
    let known = PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)));
    let (index, rest) = known.ok_or_else(|| Refused::Name(text()))?;
    let is_acl = matches!(index, 2 | 3);
    if rest.is_empty() != is_acl || rest.len() > 255 || rest.contains(&0) {
        return Err(Refused::Name(text()));
    }
    let value = if is_acl { acl(value).ok_or_else(|| Refused::Acl(text()))? } else { value.to_vec() };
    if value.len() > BLOCK {
        return Err(Refused::TooLong(value.len()));
    }
    Ok(Attribute { index, name: rest.to_vec(), value })
}

/// From the form of getxattr(2) (`posix_acl_xattr_header`, version 2) to ext4's (`ext4_acl_header`, version 1), which leaves
/// out the id where the tag needs none.
fn acl(value: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<8>();
    if u32::from_le_bytes(*version) != 2 || !rest.is_empty() {
        return None;
    }
    let mut stored = 1u32.to_le_bytes().to_vec();
    for [tag_low, tag_high, permissions @ ..] in entries {
        let tag = u16::from_le_bytes([*tag_low, *tag_high]);
        let len = match tag {
            0x02 | 0x08 => 6,               // ACL_USER, ACL_GROUP: permissions and id
            0x01 | 0x04 | 0x10 | 0x20 => 2, // owner, owning group, mask, others
            _ => return None,
        };
        stored.extend_from_slice(&[*tag_low, *tag_high]);
        stored.extend_from_slice(&permissions[..len]);
    }
    Some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(list: &[(&str, usize)]) -> BTreeMap<Box<[u8]>, Box<[u8]>> {
        list.iter().map(|(name, len)| (name.as_bytes().into(), vec![7; *len].into())).collect()
    }

    #[test]
    fn a_capability_stays_in_the_inode_and_a_long_value_goes_to_a_block() {
        let stored = store(&attributes(&[("security.capability", 20), ("user.long", 500)])).expect("both fit");
        assert_eq!(&stored.body[4..6], [10, 6]);
        assert_eq!(&stored.block.expect("a block")[32..34], [4, 1]);
    }

    #[test]
    fn attributes_that_cannot_be_kept_are_refused() {
        for (list, refused) in [
            (vec![("user.big", 5000)], Refused::TooLong(5000)),
            (vec![("user.a", 3000), ("user.b", 3000)], Refused::TooLong(6044)),
            (vec![("strange.a", 1)], Refused::Name("strange.a".into())),
            (vec![("user.", 1)], Refused::Name("user.".into())),
            (vec![("system.posix_acl_access", 9)], Refused::Acl("system.posix_acl_access".into())),
        ] {
            assert_eq!(store(&attributes(&list)).expect_err("refused"), refused);
        }
    }

    #[test]
    fn an_access_control_list_loses_the_ids_that_mean_nothing() {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, id) in [(1u16, u32::MAX), (2, 1000), (4, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&6u16.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        let stored = acl(&value).expect("a list");
        assert_eq!(stored.len(), 4 + 4 * 4 + 8);
        assert_eq!(&stored[8..16], [2, 0, 6, 0, 0xe8, 3, 0, 0]);
    }
}
