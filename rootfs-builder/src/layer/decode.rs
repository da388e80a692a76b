//! Compression, told by the first bytes: an image's media types are a claim, the bytes are not.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes read from the file at once.
const BUFFER: usize = 256 << 10;
/// RFC 1952, 2.3.1.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// RFC 8878, 3.1.1.
const ZSTD: [u8; 4] = 0xfd2f_b528u32.to_le_bytes();

/// Gives the unpacked bytes.
pub(crate) enum Decoder<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `inner`.
    pub(crate) fn new(inner: R) -> io::Result<Self> {
        let mut inner = BufReader::with_capacity(BUFFER, inner);
        let start = inner.fill_buf()?;
        Ok(if start.starts_with(&GZIP) {
            Self::Gzip(Box::new(MultiGzDecoder::new(inner)))
        } else if start.starts_with(&ZSTD) {
            Self::Zstd(zstd::Decoder::with_buffer(inner)?)
        } else {
            Self::Plain(inner)
        })
    }

    /// Whether the bytes are given as they are.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.read(into),
            Self::Gzip(inner) => inner.read(into),
            Self::Zstd(inner) => inner.read(into),
        }
    }
}
