//! A tar archive from front to back: old, ustar, GNU and PAX headers become [`Entry`]s (POSIX.1-2008, pax, "ustar Interchange
//! Format"; GNU tar manual, "Basic Tar Format").
//!
//! Headers are a stranger's claim. Their checksum is verified, what they say about lengths is bounded before memory is taken,
//! and what we do not know is refused by name: leaving it out would make a disk that is not the image.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::pax::Pax;
use super::{Spool, Stream, sparse};
use crate::tree::{Content, Meta, Run, Time};
use crate::watch::Interrupted;

/// Archives are made of these.
pub(super) const BLOCK: usize = 512;
/// Where a header has the entry's type.
const TYPE_AT: usize = 156;
/// Longest extended header in bytes.
const MAX_PAX: u64 = 1 << 20;
/// Longest name or link target of GNU's long headers.
const MAX_LONG: u64 = 64 << 10;
/// Most headers that may stand before the entry that they speak of.
const MAX_PREFIXES: u32 = 16;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ArchiveError {
    #[error("cut off after {at} bytes")]
    CutOff { at: u64 },
    #[error("no tar header at byte {at}: the checksum is wrong")]
    Header { at: u64 },
    #[error("`{path}`: its field {field} is no number that fits")]
    Field { path: String, field: &'static str },
    #[error("an extended header that breaks the PAX rules")]
    Pax,
    #[error("a header of {bytes} bytes before an entry, more than {limit}")]
    LongHeader { bytes: u64, limit: u64 },
    #[error("more than {MAX_PREFIXES} headers before one entry")]
    Prefixes,
    #[error("`{path}`: entry type `{kind}` is not supported")]
    Kind { path: String, kind: char },
    #[error("a sparse file whose map is broken or of a version that is not supported")]
    Sparse,
    #[error("`{path}`: {problem}")]
    Entry { path: String, problem: String },
    #[error("more than {limit} entries")]
    Entries { limit: u64 },
    #[error("names and attributes of more than {limit} bytes")]
    Names { limit: u64 },
    #[error("more than {limit} bytes")]
    TooLong { limit: u64 },
    #[error("reading")]
    Read(#[source] io::Error),
    #[error("writing contents")]
    Spool(#[source] io::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the kinds of stat(2)")]
pub enum What {
    Directory,
    File(Content),
    Symlink(Vec<u8>),
    /// Another name for what is at this path.
    HardLink(Vec<u8>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// One entry of an archive; its path is as the archive has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Not checked yet.
    pub path: Vec<u8>,
    /// Owner, mode, time, attributes.
    pub meta: Meta,
    /// Kind and content.
    pub what: What,
}

/// Headers that speak of the next entry.
#[derive(Debug, Default)]
struct Prefix {
    pax: Pax,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    count: u32,
}

/// Reads to the end of the archive.
pub(super) fn read<R: Read>(
    stream: &mut Stream<'_, R>,
    spool: &mut Spool,
    merge: &mut impl FnMut(Entry) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut prefix = Prefix::default();
    while let Some(header) = next_header(stream)? {
        stream.watch.check()?;
        let kind = header.entry_type();
        if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
            prefix.take(&header, stream)?;
            continue;
        }
        if kind.is_pax_global_extensions() || kind.as_byte() == b'V' {
            // Comments (git archive) and volume labels: nothing about a file.
            let bytes = header.entry_size().map_err(|_| field("", "size"))?;
            stream.pass(bounded(bytes, MAX_PAX)?.next_multiple_of(BLOCK as u64), |_| Ok(()))?;
            continue;
        }
        merge(entry(&header, std::mem::take(&mut prefix), stream, spool)?)?;
    }
    if prefix.count > 0 {
        return Err(ArchiveError::CutOff { at: stream.bytes });
    }
    Ok(())
}

/// The next header; `None` at the end: two blocks of zeros, or nothing at all.
fn next_header<R: Read>(stream: &mut Stream<'_, R>) -> Result<Option<Header>, ArchiveError> {
    let mut header = Header::new_old();
    for _ in 0..2 {
        let at = stream.bytes;
        match stream.fill(header.as_mut_bytes())? {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(ArchiveError::CutOff { at: stream.bytes }),
        }
        let raw = header.as_bytes();
        if raw.iter().all(|byte| *byte == 0) {
            continue;
        }
        // POSIX: the sum over all bytes with the checksum itself as spaces.
        let sum: u32 =
            raw.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
        return if header.cksum().ok() == Some(sum) { Ok(Some(header)) } else { Err(ArchiveError::Header { at }) };
    }
    Ok(None)
}

impl Prefix {
    fn take<R: Read>(&mut self, header: &Header, stream: &mut Stream<'_, R>) -> Result<(), ArchiveError> {
        self.count += 1;
        if self.count > MAX_PREFIXES {
            return Err(ArchiveError::Prefixes);
        }
        let kind = header.entry_type();
        let limit = if kind.is_pax_local_extensions() { MAX_PAX } else { MAX_LONG };
        let bytes = bounded(header.entry_size().map_err(|_| field("", "size"))?, limit)?;
        let mut text = vec![0; bytes.next_multiple_of(BLOCK as u64) as usize];
        stream.exactly(&mut text)?;
        text.truncate(bytes as usize);
        if kind.is_pax_local_extensions() {
            self.pax = Pax::read(&text)?;
            return Ok(());
        }
        while text.last() == Some(&0) {
            text.pop();
        }
        *(if kind.is_gnu_longname() { &mut self.path } else { &mut self.link }) = Some(text);
        Ok(())
    }
}

fn entry<R: Read>(
    header: &Header,
    mut prefix: Prefix,
    stream: &mut Stream<'_, R>,
    spool: &mut Spool,
) -> Result<Entry, ArchiveError> {
    let own_path = || header.path_bytes().into_owned();
    let path = prefix.pax.path.take().or(prefix.path.take()).unwrap_or_else(own_path);
    let shown = String::from_utf8_lossy(&path).into_owned();
    let meta = meta(header, &mut prefix.pax, &shown)?;
    let own_link = || header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
    let link = prefix.pax.link.take().or(prefix.link.take()).unwrap_or_else(own_link);
    let device = || {
        let number = |number: io::Result<Option<u32>>, name| number.ok().flatten().ok_or_else(|| field(&shown, name));
        Ok::<_, ArchiveError>((number(header.device_major(), "devmajor")?, number(header.device_minor(), "devminor")?))
    };
    let kind = header.entry_type();
    let what = match kind {
        // Before POSIX a directory was a file whose name ends with a slash.
        EntryType::Regular if header.as_bytes()[TYPE_AT] == 0 && path.ends_with(b"/") => What::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let content = content(header, &prefix.pax, &shown, stream, spool)?;
            let path = prefix.pax.sparse.remove("name").map(String::into_bytes).unwrap_or(path);
            return Ok(Entry { path, meta, what: What::File(content) });
        }
        EntryType::Directory => What::Directory,
        EntryType::Symlink => What::Symlink(link),
        EntryType::Link => What::HardLink(link),
        EntryType::Char => device().map(|(major, minor)| What::CharDevice { major, minor })?,
        EntryType::Block => device().map(|(major, minor)| What::BlockDevice { major, minor })?,
        EntryType::Fifo => What::Fifo,
        other => return Err(ArchiveError::Kind { path: shown, kind: char::from(other.as_byte()) }),
    };
    Ok(Entry { path, meta, what })
}

fn meta(header: &Header, pax: &mut Pax, path: &str) -> Result<Meta, ArchiveError> {
    let id = |from_pax: Option<u64>, own: io::Result<u64>, name| {
        let number = from_pax.map_or(own, Ok).ok();
        number.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| field(path, name))
    };
    let mode = header.mode().map_err(|_| field(path, "mode"))?;
    // Twelve bytes of base 256 are a signed number; the crate gives its low 64 bits.
    let seconds = || header.mtime().map(|seconds| seconds as i64).map_err(|_| field(path, "mtime"));
    Ok(Meta {
        mode: (mode & 0o7777) as u16,
        uid: id(pax.uid, header.uid(), "uid")?,
        gid: id(pax.gid, header.gid(), "gid")?,
        mtime: match pax.mtime {
            Some(time) => time,
            None => Time { seconds: seconds()?, nanoseconds: 0 },
        },
        xattrs: std::mem::take(&mut pax.xattrs),
    })
}

/// Sends a file's data to the spool.
fn content<R: Read>(
    header: &Header,
    pax: &Pax,
    path: &str,
    stream: &mut Stream<'_, R>,
    spool: &mut Spool,
) -> Result<Content, ArchiveError> {
    let own = header.entry_size().map_err(|_| field(path, "size"))?;
    let stored = pax.size.unwrap_or(own);
    let (parts, len, read) = if header.entry_type() == EntryType::GNUSparse {
        let (parts, len) = sparse::old_gnu(header, stream)?;
        (parts, len, 0)
    } else if let Some(sparse) = sparse::pax(pax, stored, stream)? {
        sparse
    } else {
        (vec![(0, stored)], stored, 0)
    };
    let data = stored - read;
    if !sparse::are_sound(&parts, len, data) {
        return Err(ArchiveError::Sparse);
    }
    let mut offset = spool.len;
    let number = spool.number;
    stream.pass(data, |bytes| spool.append(bytes))?;
    let padding = data.next_multiple_of(BLOCK as u64) - data;
    stream.exactly(&mut [0; BLOCK][..padding as usize])?;
    let runs = parts.into_iter().filter(|(_, len)| *len > 0).map(|(at, len)| {
        let run = Run { at, len, spool: number, offset };
        offset += len;
        run
    });
    Ok(Content { len, runs: runs.collect() })
}

fn bounded(bytes: u64, limit: u64) -> Result<u64, ArchiveError> {
    if bytes > limit { Err(ArchiveError::LongHeader { bytes, limit }) } else { Ok(bytes) }
}

fn field(path: &str, field: &'static str) -> ArchiveError {
    ArchiveError::Field { path: path.to_owned(), field }
}
