//! Sparse files of GNU tar: type `S` of its old format, and the PAX versions 0.1 and 1.0 (GNU tar manual, "Sparse Formats").
//! All become the same list of parts that hold data.

use std::io::Read;

use tar::{GnuExtSparseHeader, Header};

use super::Stream;
use super::archive::{ArchiveError, BLOCK};
use super::numbers::decimal;
use super::pax::Pax;

/// Most parts of one file.
const MAX_PARTS: usize = 100_000;

/// Offset in the file and length, in rising order.
pub(super) type Parts = Vec<(u64, u64)>;

/// The list of a type `S` entry; reads the blocks that continue it. Gives the parts and the file's length.
pub(super) fn old_gnu<R: Read>(header: &Header, stream: &mut Stream<'_, R>) -> Result<(Parts, u64), ArchiveError> {
    let wrong = |_| ArchiveError::Sparse;
    let gnu = header.as_gnu().ok_or(ArchiveError::Sparse)?;
    let mut parts = Parts::new();
    let mut push = |part: &tar::GnuSparseHeader| {
        if !part.is_empty() {
            parts.push((part.offset().map_err(wrong)?, part.length().map_err(wrong)?));
        }
        if parts.len() > MAX_PARTS { Err(ArchiveError::Sparse) } else { Ok(()) }
    };
    gnu.sparse.iter().try_for_each(&mut push)?;
    let mut more = gnu.is_extended();
    while more {
        let mut next = GnuExtSparseHeader::new();
        stream.exactly(next.as_mut_bytes())?;
        next.sparse().iter().try_for_each(&mut push)?;
        more = next.is_extended();
    }
    Ok((parts, gnu.real_size().map_err(wrong)?))
}

/// The list that a PAX header speaks of, where it does; for version 1.0 it stands before the data and is read. Gives the
/// parts, the file's length and how many bytes of the data were read.
pub(super) fn pax<R: Read>(
    pax: &Pax,
    size: u64,
    stream: &mut Stream<'_, R>,
) -> Result<Option<(Parts, u64, u64)>, ArchiveError> {
    if pax.sparse.is_empty() {
        return Ok(None);
    }
    let number = |key: &str| pax.sparse.get(key).and_then(|text| decimal(text.as_bytes()));
    if let Some(map) = pax.sparse.get("map") {
        let numbers = map.split(',').map(|text| decimal(text.as_bytes())).collect::<Option<Vec<_>>>();
        let numbers = numbers.filter(|numbers| numbers.len() <= 2 * MAX_PARTS).ok_or(ArchiveError::Sparse)?;
        let (pairs, []) = numbers.as_chunks::<2>() else { return Err(ArchiveError::Sparse) };
        let parts = pairs.iter().map(|[offset, len]| (*offset, *len)).collect();
        return Ok(Some((parts, number("size").ok_or(ArchiveError::Sparse)?, 0)));
    }
    if (number("major"), number("minor")) != (Some(1), Some(0)) {
        return Err(ArchiveError::Sparse);
    }
    let mut map = NumberLines { stream, block: [0; BLOCK], at: BLOCK, read: 0, size };
    let count = map.next()?;
    if count > MAX_PARTS as u64 {
        return Err(ArchiveError::Sparse);
    }
    let parts = (0..count).map(|_| Ok((map.next()?, map.next()?))).collect::<Result<Parts, ArchiveError>>()?;
    Ok(Some((parts, number("realsize").ok_or(ArchiveError::Sparse)?, map.read)))
}

/// One decimal number a line, in whole blocks.
struct NumberLines<'s, 'w, R> {
    stream: &'s mut Stream<'w, R>,
    block: [u8; BLOCK],
    at: usize,
    read: u64,
    size: u64,
}

impl<R: Read> NumberLines<'_, '_, R> {
    fn next(&mut self) -> Result<u64, ArchiveError> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                self.read += BLOCK as u64;
                if self.read > self.size {
                    return Err(ArchiveError::Sparse);
                }
                self.stream.exactly(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits).ok_or(ArchiveError::Sparse);
            }
            digits.push(byte);
            if digits.len() > 20 {
                return Err(ArchiveError::Sparse);
            }
        }
    }
}

/// Whether parts rise, do not overlap, lie in the file and are as long as the data.
pub(super) fn are_sound(parts: &Parts, len: u64, data: u64) -> bool {
    let mut end = 0u64;
    let mut sum = 0u64;
    for (offset, part) in parts {
        let Some(next) = offset.checked_add(*part).filter(|next| *offset >= end && *next <= len) else { return false };
        (end, sum) = (next, sum + part);
    }
    sum == data
}
