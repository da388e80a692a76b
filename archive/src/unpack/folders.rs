//! The folders of an archive until they are finished. How many there are is for the archive to say, what they may take is not.

use std::collections::BTreeMap;

use crate::read::Entry;

/// Bytes that folders may take until they are finished: some 300,000 of them.
const MAX_BYTES: usize = 64 << 20;
/// Bytes that one takes beside its name: what is kept of it, its place in the map, its allocation.
const BYTES_EACH: usize = 96;

/// What a file or folder gets once it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
}

impl Attributes {
    pub(super) fn of(entry: &Entry) -> Self {
        Self { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime }
    }
}

/// Each folder once, by its path.
#[derive(Default)]
pub(super) struct Folders {
    kept: BTreeMap<Box<[u8]>, Attributes>,
    bytes: usize,
}

impl Folders {
    /// Keeps what an entry says of its folder; what was said before is forgotten.
    pub(super) fn keep(&mut self, entry: &Entry) -> Result<(), &'static str> {
        let path = entry.name.0.join(&b'/').into_boxed_slice();
        let bytes = self.bytes.saturating_add(path.len()).saturating_add(BYTES_EACH);
        if self.kept.insert(path, Attributes::of(entry)).is_none() {
            self.bytes = bytes;
        }
        match self.bytes > MAX_BYTES {
            true => Err("more folders than are kept in mind (64 MiB of names): copy their parts one by one"),
            false => Ok(()),
        }
    }

    /// All of them, each after those in it: a path comes after every one that it begins with.
    pub(super) fn inner_first(&self) -> impl Iterator<Item = (&[u8], &Attributes)> {
        self.kept.iter().rev().map(|(path, kept)| (&**path, kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::read::Kind;

    fn folder(parts: &[&str], mode: u32) -> Entry {
        let name = Name(parts.iter().map(|part| part.as_bytes().to_vec()).collect());
        Entry { name, kind: Kind::Folder, mode, uid: 0, gid: 0, mtime: 0, size: 0, parts: Vec::new() }
    }

    #[test]
    fn a_folder_takes_the_same_however_often_it_comes() {
        let mut folders = Folders::default();
        for mode in 0..10_000 {
            assert_eq!(folders.keep(&folder(&["a", "b"], mode)), Ok(()));
        }
        assert_eq!(folders.bytes, 3 + BYTES_EACH);
        assert_eq!(
            folders.inner_first().map(|(path, kept)| (path, kept.mode)).collect::<Vec<_>>(),
            [(&b"a/b"[..], 9999)]
        );
    }

    #[test]
    fn more_folders_than_may_be_kept_are_refused() {
        let mut folders = Folders::default();
        let long = "x".repeat(200);
        let kept = (0..).take_while(|number| folders.keep(&folder(&[&long, &number.to_string()], 0)).is_ok()).count();
        assert!((200_000..230_000).contains(&kept), "{kept}");
    }

    #[test]
    fn inner_folders_come_before_those_around_them() {
        let mut folders = Folders::default();
        for parts in [&["a"][..], &["a", "b", "c"], &["a-b"], &["a", "b"]] {
            assert_eq!(folders.keep(&folder(parts, 0)), Ok(()));
        }
        let order: Vec<_> = folders.inner_first().map(|(path, _)| path).collect();
        let at = |path: &[u8]| order.iter().position(|other| *other == path).expect("kept");
        assert!(at(b"a/b/c") < at(b"a/b") && at(b"a/b") < at(b"a"));
    }
}
