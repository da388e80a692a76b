//! PAX extended headers (POSIX.1-2008, pax, "pax Extended Header"): what a tar header has no room for.

use std::collections::BTreeMap;

use super::archive::ArchiveError;
use super::numbers::decimal;
use crate::tree::Time;

/// Extended attributes (star, GNU tar, Go's archive/tar, and with it every OCI tool).
const XATTR: &[u8] = b"SCHILY.xattr.";
/// GNU's sparse files.
const SPARSE: &[u8] = b"GNU.sparse.";

/// What stands in one extended header; `None` where it says nothing.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    pub(super) sparse: BTreeMap<String, String>,
}

impl Pax {
    /// Reads the records `LENGTH KEY=VALUE\n`; an empty value takes a record back.
    pub(super) fn read(mut text: &[u8]) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        while !text.is_empty() {
            let (record, rest) = split_record(text).ok_or(ArchiveError::Pax)?;
            text = rest;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(ArchiveError::Pax)?;
            pax.put(&record[..equals], &record[equals + 1..])?;
        }
        Ok(pax)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        let number = || if value.is_empty() { Ok(None) } else { decimal(value).map(Some).ok_or(ArchiveError::Pax) };
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or(ArchiveError::Pax)?),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.insert(name.into(), value.into());
                } else if let Some(name) = key.strip_prefix(SPARSE) {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| ArchiveError::Pax);
                    self.sparse.insert(text(name)?, text(value)?);
                }
            }
        }
        Ok(())
    }
}

/// The text of the first record, without its length and its newline, and what follows.
fn split_record(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let len = usize::try_from(decimal(&text[..space])?).ok()?;
    let record = text.get(space + 1..len)?;
    let (newline, record) = record.split_last()?;
    (*newline == b'\n').then_some((record, &text[len..]))
}

/// Seconds with an optional sign and fraction.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(&text[..dot])?).ok()?;
    let mut nanoseconds = 0;
    for position in 0..9 {
        let digit = match text.get(dot + 1 + position) {
            Some(digit @ b'0'..=b'9') => u32::from(digit - b'0'),
            None => 0,
            Some(_) => return None,
        };
        nanoseconds = nanoseconds * 10 + digit;
    }
    // A moment before 1970 with a fraction lies in the second before.
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_with_any_bytes_in_their_values() {
        let pax = Pax::read(b"23 SCHILY.xattr.a=\n\0=\n\n12 path=a/b\n19 mtime=-1.250000\n8 size=\n").expect("records");
        assert_eq!(pax.xattrs[&b"a"[..]], (*b"\n\0=\n")[..].into());
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.mtime, Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(pax.size, None);
    }

    #[test]
    fn records_that_are_none_are_refused() {
        for text in [
            "x",
            "5",
            "5 a=b",
            "3 a=b\n",
            "0 \n",
            "99999999999999999999 a=b\n",
            "6 ab\n\n",
            "12 size=-12\n",
            "13 mtime=1.x\n",
        ] {
            assert!(Pax::read(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
