//! Reads an archive, entry by entry. All of it is a claim.

use std::io::{self, Read};

use crate::block::{BLOCK, Block, number};
use crate::name::{Name, shown};
use crate::{MAX_ENTRIES, MAX_NAME_BYTES};

/// Bytes of a pax header, of a long name, and of the map of a sparse file.
const MAX_EXTENSION: u64 = 1 << 20;
/// Bytes of the map of a sparse file.
const MAX_MAP: u64 = 16 << 20;
/// Headers that may come before the entry that they are about.
const MAX_EXTENSIONS: usize = 8;

/// Why an archive is not read further.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// What the stream says.
    #[error("reading the archive")]
    Read(#[from] io::Error),
    /// It is no tar, or a broken one.
    #[error("the archive at entry {entry}: {what}")]
    Broken {
        /// Which, from 1 on.
        entry: u64,
        /// What is wrong.
        what: String,
    },
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Symlink(Vec<u8>),
    /// To an entry before it.
    HardLink(Name),
    Fifo,
    /// Character or block device.
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
}

/// One entry; its data is read from the reader.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    /// Permission bits with set-user-id and the like.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    /// How long the file is.
    pub(crate) size: u64,
    /// Where its data is: offset and length. One part for a file without holes.
    pub(crate) parts: Vec<(u64, u64)>,
}

/// What pax and GNU headers have said about the next entry.
#[derive(Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    /// GNU.sparse.major and minor.
    version: (Option<u64>, Option<u64>),
    real_size: Option<u64>,
    sparse_name: Option<Vec<u8>>,
}

/// An archive that is being read.
pub(crate) struct Reader<R> {
    from: R,
    entry: u64,
    /// Bytes of the current entry's data that were not read, and of the padding behind it.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(from: R) -> Self {
        Self { from, entry: 0, left: 0, padding: 0 }
    }

    pub(crate) fn broken(&self, what: impl Into<String>) -> ArchiveError {
        ArchiveError::Broken { entry: self.entry, what: what.into() }
    }

    /// The next entry; `None` at the end. What was not read of the last one's data is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.skip_rest()?;
        self.entry = self.entry.saturating_add(1);
        if self.entry > MAX_ENTRIES {
            return Err(self.broken(format!("more than {MAX_ENTRIES} entries")));
        }
        let mut said = Said::default();
        for _ in 0..=MAX_EXTENSIONS {
            let Some(block) = self.block()? else { return Ok(None) };
            if block.is_end() {
                // What follows is padding; it is read so that whoever sends it comes to an end.
                io::copy(&mut self.from, &mut io::sink())?;
                return Ok(None);
            }
            if !block.is_sound() {
                return Err(self.broken("a header whose checksum is wrong: this is no tar, or a packed one"));
            }
            let size = block.size().ok_or_else(|| self.broken("a size that is no number"))?;
            match block.kind() {
                b'x' => {
                    let text = self.extension(size)?;
                    said.pax(&text).map_err(|what| self.broken(what))?;
                }
                // Global headers are comments and defaults that nobody needs here.
                b'g' => drop(self.extension(size)?),
                b'L' => said.path = Some(self.long_name(size)?),
                b'K' => said.link = Some(self.long_name(size)?),
                _ => return self.entry_of(&block, size, said).map(Some),
            }
        }
        Err(self.broken("headers about headers without end"))
    }

    fn entry_of(&mut self, block: &Block, size: u64, said: Said) -> Result<Entry, ArchiveError> {
        let text = said.sparse_name.or(said.path).unwrap_or_else(|| block.name());
        let link = said.link.unwrap_or_else(|| block.link().to_vec());
        let (uid, gid) = block.owner();
        let (major, minor) = block.device();
        let small = |number: Option<u64>| number.and_then(|number| u32::try_from(number).ok());
        let name = Name::parse(&text).map_err(|why| self.broken(format!("name `{}`: {why}", shown(&text))))?;
        let device = |block| Some(Kind::Device { block, major: small(major)?, minor: small(minor)? });
        let kind = match block.kind() {
            // Old archives mark a folder by its name alone.
            0 | b'0' | b'7' | b'S' if !text.ends_with(b"/") => Some(Kind::File),
            0 | b'0' | b'5' => Some(Kind::Folder),
            b'1' => {
                let target = Name::parse(&link);
                let target = target.map_err(|why| self.broken(format!("hard link to `{}`: {why}", shown(&link))))?;
                Some(Kind::HardLink(target))
            }
            b'2' if link.is_empty() || link.len() >= MAX_NAME_BYTES || link.contains(&0) => {
                return Err(self.broken(format!("a link to `{}`, which no link can lead to", shown(&link))));
            }
            b'2' => Some(Kind::Symlink(link)),
            b'3' => device(false),
            b'4' => device(true),
            b'6' => Some(Kind::Fifo),
            other => return Err(self.broken(format!("an entry of unknown type {other:#04x}"))),
        };
        let kind = kind.ok_or_else(|| self.broken("a device whose number is none"))?;
        let number = |what: &str, number: Option<u64>| {
            small(number)
                .ok_or_else(|| ArchiveError::Broken { entry: self.entry, what: format!("{what} that is none") })
        };
        let (uid, gid) = (number("an owner", said.uid.or(uid))?, number("a group", said.gid.or(gid))?);
        let mode = number("a mode", block.mode())? & 0o7777;
        let mtime = said.mtime.or(block.mtime().and_then(|time| i64::try_from(time).ok())).unwrap_or(0);

        let stored = if kind == Kind::File { said.size.unwrap_or(size) } else { 0 };
        self.left = stored;
        self.padding = padding(stored);
        let (parts, size) = match (block.kind(), said.version) {
            // Of a folder, a link or a device the size means other things, and no data follows.
            _ if kind != Kind::File => (Vec::new(), 0),
            (b'S', _) => self.old_sparse(block)?,
            (_, (Some(1), Some(0))) => {
                let real = said.real_size.ok_or_else(|| self.broken("a sparse file without its size"))?;
                (self.sparse_map()?, real)
            }
            (_, (None, None)) => (vec![(0, stored)], stored),
            _ => {
                return Err(
                    self.broken("a sparse file of a version that is not known: 1.0 and the old one of GNU tar are")
                );
            }
        };
        if kind == Kind::File {
            self.check(&parts, size)?;
        }
        Ok(Entry { name, kind, mode, uid, gid, mtime, size, parts })
    }

    /// Parts must be in order, apart, inside the file, and together what the archive has.
    fn check(&self, parts: &[(u64, u64)], size: u64) -> Result<(), ArchiveError> {
        let mut end = 0u64;
        let mut sum = 0u64;
        for (offset, len) in parts {
            let next = offset.checked_add(*len).filter(|next| *offset >= end && *next <= size);
            end = next.ok_or_else(|| self.broken("a sparse file whose parts lie over each other or outside"))?;
            sum = sum.saturating_add(*len);
        }
        if sum != self.left || i64::try_from(size).is_err() {
            return Err(self.broken("a sparse file whose parts are not what the archive has"));
        }
        Ok(())
    }

    fn old_sparse(&mut self, block: &Block) -> Result<(Vec<(u64, u64)>, u64), ArchiveError> {
        let (fields, mut more, real) = block.old_sparse();
        let real = real.ok_or_else(|| self.broken("a sparse file without its size"))?;
        let mut parts = Vec::new();
        self.pairs(fields, &mut parts)?;
        let mut seen = 0u64;
        while more {
            seen = seen.saturating_add(BLOCK as u64);
            if seen > MAX_MAP {
                return Err(self.broken("a sparse file with too many parts"));
            }
            let block = self.block()?.ok_or_else(|| self.broken("it ends within a header"))?;
            let (fields, another) = block.more_sparse();
            self.pairs(fields, &mut parts)?;
            more = another;
        }
        Ok((parts, real))
    }

    fn pairs(&self, fields: &[u8], into: &mut Vec<(u64, u64)>) -> Result<(), ArchiveError> {
        for pair in fields.chunks_exact(24) {
            let (offset, len) = pair.split_at(12);
            if pair.first() == Some(&0) {
                return Ok(());
            }
            let pair = number(offset).zip(number(len)).ok_or_else(|| self.broken("a part that is no number"))?;
            into.push(pair);
        }
        Ok(())
    }

    /// The map before the data of a sparse file of format 1.0: decimal numbers a line, padded to a block.
    fn sparse_map(&mut self) -> Result<Vec<(u64, u64)>, ArchiveError> {
        let mut numbers = Vec::new();
        let mut line = Vec::new();
        let mut wanted = 1u64;
        let mut seen = 0u64;
        while (numbers.len() as u64) < wanted {
            seen = seen.saturating_add(BLOCK as u64);
            if seen > MAX_MAP {
                return Err(self.broken("a sparse file with too many parts"));
            }
            let mut block = [0; BLOCK];
            self.left = self.left.checked_sub(BLOCK as u64).ok_or_else(|| self.broken("a map longer than its file"))?;
            self.from.read_exact(&mut block)?;
            for byte in block {
                if (numbers.len() as u64) >= wanted {
                    break;
                }
                match byte {
                    b'\n' => {
                        let text = std::str::from_utf8(&line).unwrap_or_default();
                        let number = text.parse::<u64>().map_err(|_| self.broken("a part that is no number"))?;
                        if numbers.is_empty() {
                            wanted = number.saturating_mul(2).saturating_add(1);
                        }
                        numbers.push(number);
                        line.clear();
                    }
                    byte if line.len() < 20 => line.push(byte),
                    _ => return Err(self.broken("a part that is no number")),
                }
            }
        }
        let pairs = numbers.get(1..).unwrap_or_default().chunks_exact(2);
        Ok(pairs.filter_map(|pair| Some((*pair.first()?, *pair.last()?))).collect())
    }

    /// Reads data of the current entry; 0 at its end.
    pub(crate) fn data(&mut self, into: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let Some(into) = into.get_mut(..most).filter(|into| !into.is_empty()) else { return Ok(0) };
        let n = self.from.read(into)?;
        if n == 0 {
            return Err(self.broken("it ends within a file"));
        }
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }

    fn skip_rest(&mut self) -> Result<(), ArchiveError> {
        let rest = self.left.saturating_add(self.padding);
        let passed = io::copy(&mut (&mut self.from).take(rest), &mut io::sink())?;
        if passed < rest {
            return Err(self.broken("it ends within a file"));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// A whole block, or nothing at the very end.
    fn block(&mut self) -> Result<Option<Block>, ArchiveError> {
        let mut bytes = [0; BLOCK];
        let mut filled = 0usize;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.from.read(rest)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.broken("it ends within a header")),
                n => filled = filled.saturating_add(n),
            }
        }
        Ok(Some(Block(bytes)))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION {
            return Err(self.broken(format!("a header of {size} bytes, more than {MAX_EXTENSION}")));
        }
        let whole = size.saturating_add(padding(size));
        let mut text = Vec::new();
        (&mut self.from).take(whole).read_to_end(&mut text)?;
        if (text.len() as u64) < whole {
            return Err(self.broken("it ends within a header"));
        }
        text.truncate(usize::try_from(size).unwrap_or(0));
        Ok(text)
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.extension(size)?;
        while text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }
}

/// What fills up to whole blocks.
pub(crate) fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    size.checked_rem(block).map_or(0, |rest| if rest == 0 { 0 } else { block.saturating_sub(rest) })
}

impl Said {
    /// Takes a pax header: `LENGTH KEY=VALUE\n`, the length counting all of it.
    fn pax(&mut self, text: &[u8]) -> Result<(), String> {
        let mut rest = text;
        while !rest.is_empty() {
            let no_record = || "a pax header that is none".to_owned();
            let space = rest.iter().take(20).position(|byte| *byte == b' ').ok_or_else(no_record)?;
            let len: usize = rest
                .get(..space)
                .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
                .ok_or_else(no_record)?;
            let record = rest.get(space.saturating_add(1)..len).and_then(|record| record.strip_suffix(b"\n"));
            let record = record.ok_or_else(no_record)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(no_record)?;
            let (key, value) = record.split_at(equals);
            self.record(key, value.get(1..).unwrap_or_default())?;
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number = || -> Result<Option<u64>, String> {
            let text = std::str::from_utf8(value).unwrap_or_default();
            text.parse().map(Some).map_err(|_| format!("`{}` is no number", shown(key)))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => {
                let text = std::str::from_utf8(value).unwrap_or_default();
                let whole = text.split('.').next().unwrap_or_default();
                self.mtime = Some(whole.parse().map_err(|_| "a time that is no number".to_owned())?);
            }
            b"GNU.sparse.major" => self.version.0 = number()?,
            b"GNU.sparse.minor" => self.version.1 = number()?,
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => self.real_size = number()?,
            // GNU's sparse formats 0.0 and 0.1 are known by these.
            b"GNU.sparse.size" | b"GNU.sparse.numblocks" => self.version = (Some(0), Some(0)),
            _ => {}
        }
        Ok(())
    }
}
