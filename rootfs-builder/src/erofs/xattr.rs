//! Extended attributes behind their inode (`struct erofs_xattr_ibody_header`, `struct erofs_xattr_entry`). POSIX ACLs are kept as
//! programs see them.

use std::collections::BTreeMap;

use crate::bytes::put16;

/// Bytes before the entries.
pub(super) const HEADER: usize = 12;
/// Bytes of an entry before its name.
const ENTRY: usize = 4;
/// Attributes of one inode at most, which is what Linux lists (`XATTR_LIST_MAX` and `XATTR_SIZE_MAX` are as much).
const MOST: usize = 64 << 10;

/// Name prefixes and their numbers; longer ones first.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Why attributes cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// No prefix that EROFS knows, or nothing behind it.
    Name(String),
    /// More than fits.
    TooLong(usize),
}

/// Attributes with their header; empty for none.
pub(super) fn bytes(xattrs: &BTreeMap<Box<[u8]>, Box<[u8]>>) -> Result<Vec<u8>, Refused> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut all = vec![0; HEADER];
    for (name, value) in xattrs {
        let (index, rest) = split(name).ok_or_else(|| Refused::Name(String::from_utf8_lossy(name).into_owned()))?;
        let at = all.len();
        all.resize(at + ENTRY, 0);
        all[at] = rest.len() as u8;
        all[at + 1] = index;
        let len = u16::try_from(value.len()).map_err(|_| Refused::TooLong(value.len()))?;
        put16(&mut all, at + 2, len);
        all.extend_from_slice(rest);
        all.extend_from_slice(value);
        all.resize(all.len().next_multiple_of(4), 0);
    }
    if all.len() > MOST { Err(Refused::TooLong(all.len())) } else { Ok(all) }
}

/// Number of the prefix, and what follows it. Only lists for access control are nothing but a prefix.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    let (prefix, index) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = &name[prefix.len()..];
    let is_whole = !prefix.ends_with(b".");
    (is_whole == rest.is_empty() && rest.len() <= 255).then_some((*index, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &[u8]) -> Result<Vec<u8>, Refused> {
        bytes(&BTreeMap::from([(name.as_bytes().into(), value.into())]))
    }

    #[test]
    fn an_entry_is_prefix_length_and_value() {
        assert_eq!(bytes(&BTreeMap::new()), Ok(vec![]));
        let raw = of("security.capability", b"12345").expect("it fits");
        assert_eq!(raw[12..], [&[10, 6, 5, 0][..], b"capability", b"12345", &[0]].concat());
        assert_eq!(of("system.posix_acl_access", b"x").expect("it fits")[12..], [0, 2, 1, 0, b'x', 0, 0, 0]);
    }

    #[test]
    fn attributes_that_cannot_be_kept_are_refused() {
        for name in ["system.nfs4_acl", "user.", "system.posix_acl_access2", "bare"] {
            assert_eq!(of(name, b""), Err(Refused::Name(name.into())));
        }
        assert_eq!(of("user.a", &vec![1; 65_536]), Err(Refused::TooLong(65_536)));
        assert_eq!(of("user.a", &vec![1; 65_535]), Err(Refused::TooLong(12 + 4 + 65_536)));
    }
}
