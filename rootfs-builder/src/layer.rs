//! One layer: a tar archive, plain or compressed, read once from front to back.
//!
//! On the way its bytes are counted and hashed twice (as stored, and unpacked: the diff id), contents of files go to a
//! spool, and every entry goes to whoever merges. All of it is a stranger's: lengths are checked before memory is taken, and
//! nothing is kept until both digests are right. A digest that differs is reported before anything else that is wrong.

pub mod archive;
pub(crate) mod decode;
mod numbers;
mod pax;
mod sparse;

use std::fs::File;
use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::section::Section;
use crate::watch::{Interrupted, Watch};
use archive::{ArchiveError, Entry};
use decode::Decoder;

/// Raised whenever an archive would become other entries: lists of them that lie in the store are then read no more.
pub(crate) const PARSER_VERSION: u32 = 1;
/// Bytes moved at once.
const CHUNK: usize = 256 << 10;
/// A layer that unpacks to more than so many times its length is a bomb: gzip packs zeros by 1030 at best, file systems by less than ten.
const MOST_TIMES: u64 = 1000;
/// Below so many bytes nobody minds.
const HARMLESS: u64 = 64 << 20;

/// A layer that has not been read yet.
#[derive(Debug)]
pub struct Layer {
    /// How messages call it.
    pub name: String,
    /// Where its bytes are.
    pub section: Section,
    /// SHA-256 of the bytes as stored, where the source says.
    pub digest: Option<Digest>,
    /// SHA-256 of the unpacked archive, where the source says.
    pub diff_id: Option<Digest>,
}

/// What a stranger's layers may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all archives of one image, unpacked.
    pub unpacked_bytes: u64,
    /// Entries of all archives of one image.
    pub entries: u64,
    /// Bytes of names, link targets and attributes of one image.
    pub names_bytes: u64,
}

impl Limits {
    /// Enough for any image whose content fits on a disk of so many bytes, with much of it replaced by later layers.
    pub fn for_disk(bytes: u64) -> Self {
        Self { unpacked_bytes: bytes.saturating_mul(4).max(4 << 30), entries: 1_000_000, names_bytes: 256 << 20 }
    }
}

/// Why a layer was not read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum LayerError {
    #[error("{layer}: its bytes are {found}, but the image says {expected}; fetch the image again")]
    Digest { layer: String, expected: Digest, found: Digest },
    #[error("{layer}: unpacked it is {found}, but the image's diff id is {expected}; fetch the image again")]
    DiffId { layer: String, expected: Digest, found: Digest },
    #[error("{layer}: unpacked, the layers are more than {limit} bytes; give a larger --size if that is meant")]
    TooLong { layer: String, limit: u64 },
    #[error(
        "{layer}: unpacked it is more than {limit} bytes, {MOST_TIMES} times its own {stored}; no root file system packs so well"
    )]
    Ratio { layer: String, limit: u64, stored: u64 },
    #[error("{layer}: reading")]
    Read { layer: String, source: io::Error },
    #[error("{layer}: not a tar archive, plain or compressed with gzip or zstd")]
    Compression { layer: String, source: io::Error },
    #[error("{layer}")]
    Archive { layer: String, source: ArchiveError },
    #[error("{layer}: writing its contents to a temporary file")]
    Spool { layer: String, source: io::Error },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl LayerError {
    /// The layer is at fault, not the machine.
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Spool { .. } | Self::Interrupted(_))
    }
}

/// What reading a layer gave.
#[derive(Debug, Clone, Copy)]
pub struct Unpacked {
    /// SHA-256 of the unpacked archive.
    pub diff_id: Digest,
    /// SHA-256 of the bytes as stored.
    pub digest: Digest,
    /// Bytes of the unpacked archive.
    pub bytes: u64,
}

/// The longest archive that a layer of so many bytes may become.
pub(crate) fn most(packed: u64) -> u64 {
    packed.saturating_mul(MOST_TIMES).max(HARMLESS)
}

/// Reads a layer: contents go to the end of `spool` (which is number `spool_number`), entries to `merge`.
pub fn unpack(
    layer: &Layer,
    spool: &mut Spool,
    limit: u64,
    watch: &Watch,
    mut merge: impl FnMut(Entry) -> Result<(), ArchiveError>,
) -> Result<Unpacked, LayerError> {
    let name = || layer.name.clone();
    let mut stored = Hashing::new(layer.section.reader());
    let decoder = Decoder::new(&mut stored).map_err(|source| unreadable(layer, source))?;
    let packed = layer.section.len();
    let limit_here = limit.min(most(packed));
    let mut stream = Stream { inner: decoder, hash: Sha256::new(), bytes: 0, limit: limit_here, watch, total: packed };
    let result = archive::read(&mut stream, spool, &mut merge).and_then(|()| stream.drain());
    let (hash, bytes) = (stream.hash, stream.bytes);
    drop(stream.inner);
    if let Err(ArchiveError::Interrupted(interrupted)) = &result {
        return Err((*interrupted).into());
    }
    // Before an error in the archive is believed, the bytes are checked: a broken download is a broken download.
    let found = stored.finish().map_err(|source| LayerError::Read { layer: name(), source })?;
    if let Some(expected) = layer.digest.filter(|expected| *expected != found) {
        return Err(LayerError::Digest { layer: name(), expected, found });
    }
    result.map_err(|error| match error {
        ArchiveError::Read(source) => unreadable(layer, source),
        ArchiveError::Spool(source) => LayerError::Spool { layer: name(), source },
        ArchiveError::TooLong { limit: at } if at < limit => {
            LayerError::Ratio { layer: name(), limit: at, stored: packed }
        }
        ArchiveError::TooLong { limit } => LayerError::TooLong { layer: name(), limit },
        source => LayerError::Archive { layer: name(), source },
    })?;
    let diff_id = Digest::from(hash);
    if let Some(expected) = layer.diff_id.filter(|expected| *expected != diff_id) {
        return Err(LayerError::DiffId { layer: name(), expected, found: diff_id });
    }
    Ok(Unpacked { diff_id, digest: found, bytes })
}

/// What a plain archive has in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checked {
    /// SHA-256 of it.
    pub(crate) diff_id: Digest,
    /// Its entries.
    pub(crate) entries: u64,
    /// Its length.
    pub(crate) bytes: u64,
}

/// Reads a plain archive to its end, as [`unpack`] would, and keeps nothing of it.
pub(crate) fn check(name: &str, archive: impl Read, limits: Limits, watch: &Watch) -> Result<Checked, LayerError> {
    let layer = || name.to_owned();
    let nowhere = File::options().write(true).open("/dev/null");
    let mut spool = Spool::new(nowhere.map_err(|source| LayerError::Spool { layer: layer(), source })?, 0);
    let (mut entries, mut names_bytes) = (0u64, 0u64);
    let mut count = |entry: Entry| {
        entries += 1;
        let attributes = entry.meta.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        names_bytes += (entry.path.len() + attributes) as u64;
        match () {
            () if entries > limits.entries => Err(ArchiveError::Entries { limit: limits.entries }),
            () if names_bytes > limits.names_bytes => Err(ArchiveError::Names { limit: limits.names_bytes }),
            () => Ok(()),
        }
    };
    let limit = limits.unpacked_bytes;
    let mut stream = Stream { inner: archive, hash: Sha256::new(), bytes: 0, limit, watch, total: 0 };
    let result = archive::read(&mut stream, &mut spool, &mut count).and_then(|()| stream.drain());
    let (diff_id, bytes) = (Digest::from(stream.hash), stream.bytes);
    result.map_err(|error| match error {
        ArchiveError::Interrupted(interrupted) => interrupted.into(),
        ArchiveError::Read(source) => LayerError::Read { layer: layer(), source },
        ArchiveError::TooLong { limit } => LayerError::TooLong { layer: layer(), limit },
        source => LayerError::Archive { layer: layer(), source },
    })?;
    // Who was told to stop may have read an end that was none.
    watch.check()?;
    Ok(Checked { diff_id, entries, bytes })
}

/// An error of the system is the machine's; any other comes from the decoder.
fn unreadable(layer: &Layer, source: io::Error) -> LayerError {
    let layer = layer.name.clone();
    if source.raw_os_error().is_some() {
        LayerError::Read { layer, source }
    } else {
        LayerError::Compression { layer, source }
    }
}

/// A file without a name that takes the contents of files.
#[derive(Debug)]
pub struct Spool {
    file: File,
    number: u32,
    len: u64,
}

impl Spool {
    /// An empty one; runs will name it by `number`.
    pub fn new(file: File, number: u32) -> Self {
        Self { file, number, len: 0 }
    }

    /// What comes now is named by `number`. Tells where it begins.
    pub(crate) fn go_on_as(&mut self, number: u32) -> u64 {
        self.number = number;
        self.len
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.file.write_all(bytes).map_err(ArchiveError::Spool)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// Passes bytes on and hashes them.
#[derive(Debug)]
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    /// Reads what is left.
    fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(into)?;
        self.hash.update(&into[..len]);
        Ok(len)
    }
}

/// The unpacked archive: hashed, counted, bounded.
struct Stream<'a, R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
    limit: u64,
    watch: &'a Watch,
    total: u64,
}

impl<R: Read> Stream<'_, R> {
    /// Fills `into` as far as there is something.
    fn fill(&mut self, into: &mut [u8]) -> Result<usize, ArchiveError> {
        let mut len = 0;
        while len < into.len() {
            match self.inner.read(&mut into[len..]) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        self.hash.update(&into[..len]);
        self.bytes += len as u64;
        if self.bytes > self.limit {
            return Err(ArchiveError::TooLong { limit: self.limit });
        }
        Ok(len)
    }

    /// Fills all of `into`.
    fn exactly(&mut self, into: &mut [u8]) -> Result<(), ArchiveError> {
        if self.fill(into)? < into.len() { Err(ArchiveError::CutOff { at: self.bytes }) } else { Ok(()) }
    }

    /// Gives the next `len` bytes to `take` piece by piece.
    fn pass(&mut self, len: u64, mut take: impl FnMut(&[u8]) -> Result<(), ArchiveError>) -> Result<(), ArchiveError> {
        let mut chunk = vec![0; CHUNK.min(len as usize)];
        let mut left = len;
        while left > 0 {
            let part = chunk.len().min(left as usize);
            let part = &mut chunk[..part];
            self.exactly(part)?;
            take(part)?;
            left -= part.len() as u64;
            self.watch.at("reading layers", self.bytes, self.total)?;
        }
        Ok(())
    }

    /// Reads on to the end: the diff id covers what stands behind the archive's end too.
    fn drain(&mut self) -> Result<(), ArchiveError> {
        let mut chunk = vec![0; CHUNK];
        while self.fill(&mut chunk)? == chunk.len() {
            self.watch.check()?;
        }
        Ok(())
    }
}
