//! Entries of an archive as bytes, and back: numbers in seven bits a byte (LEB128), texts behind their length; packed with zstd.
//!
//! Offsets of contents count from where those of the layer begin.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};

use crate::layer::archive::{Entry, What};
use crate::tree::{Content, Meta, Run, Time};

/// Longest text that an archive can bring: more is no list of ours.
const MAX_TEXT: u64 = 2 << 20;
/// How hard zstd tries: the list is written in passing.
const LEVEL: i32 = 1;

/// A list that is being written, as long as there is room.
pub(crate) struct Notes {
    packer: Option<zstd::Encoder<'static, Vec<u8>>>,
    bytes: Vec<u8>,
    room: usize,
}

impl Notes {
    /// An empty list of at most `room` bytes.
    pub(crate) fn new(room: usize) -> Self {
        Self { packer: zstd::Encoder::new(Vec::new(), LEVEL).ok(), bytes: Vec::new(), room }
    }

    /// The next entry; its contents' offsets count from `base` on.
    pub(crate) fn put(&mut self, entry: &Entry, base: u64) {
        self.bytes.clear();
        put_entry(&mut self.bytes, entry, base);
        if let Some(packer) = &mut self.packer
            && (packer.write_all(&self.bytes).is_err() || packer.get_ref().len() > self.room)
        {
            self.packer = None;
        }
    }

    /// The list; `None` where it became too long.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        self.packer?.finish().ok().filter(|bytes| bytes.len() <= self.room)
    }
}

/// A list that is being read. Contents are named by `spool`.
pub(crate) struct Entries<'a> {
    bytes: BufReader<zstd::Decoder<'static, &'a [u8]>>,
    spool: u32,
}

impl<'a> Entries<'a> {
    pub(crate) fn new(list: &'a [u8], spool: u32) -> io::Result<Self> {
        Ok(Self { bytes: BufReader::new(zstd::Decoder::with_buffer(list)?), spool })
    }

    /// The next entry; `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.bytes.fill_buf()?.is_empty() { Ok(None) } else { read_entry(&mut self.bytes, self.spool).map(Some) }
    }
}

pub(super) fn put_number(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

pub(super) fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        let part = u64::from(byte[0] & 0x7f);
        if part << shift >> shift != part {
            break;
        }
        number |= part << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(broken())
}

pub(super) fn broken() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

pub(super) fn small<T: TryFrom<u64>>(from: &mut impl Read) -> io::Result<T> {
    T::try_from(number(from)?).map_err(|_| broken())
}

fn put_text(into: &mut Vec<u8>, text: &[u8]) {
    put_number(into, text.len() as u64);
    into.extend_from_slice(text);
}

fn text(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let len = number(from)?;
    if len > MAX_TEXT {
        return Err(broken());
    }
    let mut text = vec![0; len as usize];
    from.read_exact(&mut text)?;
    Ok(text)
}

fn put_entry(into: &mut Vec<u8>, entry: &Entry, base: u64) {
    let Meta { mode, uid, gid, mtime, xattrs } = &entry.meta;
    put_text(into, &entry.path);
    for number in [u64::from(*mode), u64::from(*uid), u64::from(*gid)] {
        put_number(into, number);
    }
    // Few times are before 1970, but they are.
    put_number(into, (mtime.seconds << 1 ^ mtime.seconds >> 63) as u64);
    put_number(into, u64::from(mtime.nanoseconds));
    put_number(into, xattrs.len() as u64);
    for (name, value) in xattrs {
        put_text(into, name);
        put_text(into, value);
    }
    let mut device = |kind, major: u32, minor: u32| {
        into.push(kind);
        put_number(into, u64::from(major));
        put_number(into, u64::from(minor));
    };
    match &entry.what {
        What::CharDevice { major, minor } => device(b'c', *major, *minor),
        What::BlockDevice { major, minor } => device(b'b', *major, *minor),
        What::Directory => into.push(b'd'),
        What::Fifo => into.push(b'p'),
        What::Symlink(target) => {
            into.push(b'l');
            put_text(into, target);
        }
        What::HardLink(target) => {
            into.push(b'h');
            put_text(into, target);
        }
        What::File(content) => {
            into.push(b'f');
            put_number(into, content.len);
            put_number(into, content.runs.len() as u64);
            for run in &content.runs {
                for number in [run.at, run.len, run.offset - base] {
                    put_number(into, number);
                }
            }
        }
    }
}

fn read_entry(from: &mut impl Read, spool: u32) -> io::Result<Entry> {
    let path = text(from)?;
    let (mode, uid, gid) = (small(from)?, small(from)?, small(from)?);
    let seconds = number(from)?;
    let seconds = (seconds >> 1) as i64 ^ -((seconds & 1) as i64);
    let mtime = Time { seconds, nanoseconds: small(from)? };
    let mut xattrs = BTreeMap::new();
    for _ in 0..number(from)? {
        xattrs.insert(text(from)?.into(), text(from)?.into());
    }
    let mut kind = [0];
    from.read_exact(&mut kind)?;
    let what = match kind[0] {
        b'c' => What::CharDevice { major: small(from)?, minor: small(from)? },
        b'b' => What::BlockDevice { major: small(from)?, minor: small(from)? },
        b'd' => What::Directory,
        b'p' => What::Fifo,
        b'l' => What::Symlink(text(from)?),
        b'h' => What::HardLink(text(from)?),
        b'f' => {
            let len = number(from)?;
            let mut runs = Vec::new();
            for _ in 0..number(from)? {
                runs.push(Run { at: number(from)?, len: number(from)?, offset: number(from)?, spool });
            }
            What::File(Content { len, runs: runs.into() })
        }
        _ => return Err(broken()),
    };
    Ok(Entry { path, meta: Meta { mode, uid, gid, mtime, xattrs }, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_were() {
        let meta = Meta {
            mode: 0o4755,
            uid: u32::MAX,
            gid: 7,
            mtime: Time { seconds: -3, nanoseconds: 999_999_999 },
            xattrs: BTreeMap::from([(b"user.a".as_slice().into(), [0xff; 300].as_slice().into())]),
        };
        let run = |at, offset| Run { at, len: 5, spool: 3, offset };
        let kinds = [
            What::Directory,
            What::File(Content::default()),
            What::File(Content { len: u64::MAX, runs: [run(0, 1000), run(1 << 40, 1005)].into() }),
            What::Symlink(b"../x\xff".to_vec()),
            What::HardLink(b"a/b".to_vec()),
            What::CharDevice { major: 1, minor: u32::MAX },
            What::BlockDevice { major: 0, minor: 0 },
            What::Fifo,
        ];
        let latest = Time { seconds: i64::MAX, nanoseconds: 0 };
        let metas = [meta.clone(), Meta { mtime: latest, ..Meta::default() }];
        let entries: Vec<Entry> = kinds
            .into_iter()
            .flat_map(|what| metas.clone().map(|meta| Entry { path: b"a/./b".to_vec(), meta, what: what.clone() }))
            .collect();
        let mut notes = Notes::new(1 << 20);
        for entry in &entries {
            notes.put(entry, 1000);
        }
        let list = notes.finish().expect("room");
        let mut read = Entries::new(&list, 3).expect("a list");
        for mut entry in entries {
            if let What::File(content) = &mut entry.what {
                content.runs.iter_mut().for_each(|run| run.offset -= 1000);
            }
            assert_eq!(read.next().expect("an entry"), Some(entry));
        }
        assert_eq!(read.next().expect("the end"), None);
    }

    #[test]
    fn a_list_that_is_too_long_or_broken_is_none() {
        let entry = Entry { path: b"a".to_vec(), meta: Meta::default(), what: What::Fifo };
        let mut notes = Notes::new(4);
        notes.put(&entry, 0);
        assert_eq!(notes.finish(), None);
        for bytes in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x01a", b"\xff\xff\xff\x7f"] {
            let list = zstd::encode_all(bytes, LEVEL).expect("packing");
            assert!(Entries::new(&list, 0).and_then(|mut list| list.next()).is_err(), "{bytes:?}");
        }
    }
}
