//! Where the contents of a layer's files lie on a disk.
//!
//! All contents of a layer, one behind the other, are a row of bytes; a place says where a piece of that row lies. Files that a later layer
//! replaced or hid have no place. A piece is read as a whole and held against its sum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Instead of a place on the disk: nothing but zeros.
pub(crate) const ZEROS: u64 = u64::MAX;

/// One piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where in the row.
    pub(crate) offset: u64,
    /// Bytes; no more than a writer handles at once.
    pub(crate) len: u32,
    /// CRC-32C of them.
    pub(crate) sum: u32,
    /// Where on the disk, in bytes, or [`ZEROS`].
    pub(crate) disk: u64,
}

impl Place {
    pub(crate) fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// Contents of a layer on a disk.
#[derive(Debug)]
pub(crate) struct Placed {
    disk: Arc<File>,
    /// By rising offset.
    places: Arc<[Place]>,
    /// Set where something cannot be read or is not what was written.
    damaged: Arc<AtomicBool>,
}

impl Placed {
    pub(crate) fn new(disk: Arc<File>, places: Arc<[Place]>, damaged: Arc<AtomicBool>) -> Self {
        Self { disk, places, damaged }
    }

    fn at(&self, offset: u64) -> usize {
        self.places.partition_point(|place| place.end() <= offset)
    }

    /// Whether all of these bytes have a place.
    pub(crate) fn has(&self, offset: u64, len: u64) -> bool {
        let (mut offset, end) = (offset, offset.saturating_add(len));
        for place in &self.places[self.at(offset)..] {
            if offset >= end || place.offset > offset {
                break;
            }
            offset = place.end();
        }
        offset >= end
    }

    /// Fills `into` with the bytes at `offset`.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_all(offset, into).inspect_err(|_| self.damaged.store(true, Ordering::Relaxed))
    }

    fn read_all(&self, mut offset: u64, mut into: &mut [u8]) -> io::Result<()> {
        for place in &self.places[self.at(offset)..] {
            if into.is_empty() || place.offset > offset {
                break;
            }
            let skip = (offset - place.offset) as usize;
            let len = into.len().min(place.len as usize - skip);
            let (part, rest) = into.split_at_mut(len);
            if place.disk == ZEROS {
                part.fill(0);
            } else if len == place.len as usize {
                self.piece(place, part)?;
            } else {
                let mut whole = vec![0; place.len as usize];
                self.piece(place, &mut whole)?;
                part.copy_from_slice(&whole[skip..skip + len]);
            }
            offset += len as u64;
            into = rest;
        }
        if into.is_empty() { Ok(()) } else { Err(io::Error::other("an earlier image does not have it")) }
    }

    fn piece(&self, place: &Place, into: &mut [u8]) -> io::Result<()> {
        self.disk.read_exact_at(into, place.disk)?;
        if crc32c::crc32c(into) == place.sum {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "an earlier image is damaged"))
        }
    }
}

/// Collects places while a disk is written, by the number of the spool that contents came from.
#[derive(Debug, Default)]
pub(crate) struct Places(Vec<Vec<Place>>);

impl Places {
    pub(crate) fn note(&mut self, spool: u32, place: Place) {
        let spool = spool as usize;
        if self.0.len() <= spool {
            self.0.resize_with(spool + 1, Vec::new);
        }
        self.0[spool].push(place);
    }

    /// Those of one spool, in order, where its row begins at `base`.
    pub(crate) fn take(&mut self, spool: u32, base: u64) -> Arc<[Place]> {
        let mut places = self.0.get_mut(spool as usize).map(std::mem::take).unwrap_or_default();
        for place in &mut places {
            place.offset -= base;
        }
        places.sort_unstable_by_key(|place| place.offset);
        places.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(disk: &[u8], places: &[(u64, u64, u64)]) -> Placed {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(disk, 0).expect("writing");
        let place = |(offset, len, at): &(u64, u64, u64)| {
            let sum = if *at == ZEROS { 0 } else { crc32c::crc32c(&disk[*at as usize..(*at + *len) as usize]) };
            Place { offset: *offset, len: *len as u32, sum, disk: *at }
        };
        Placed::new(Arc::new(file), places.iter().map(place).collect(), Arc::default())
    }

    #[test]
    fn pieces_are_put_together_and_what_is_not_there_is_told() {
        let placed = placed(b"..hello...world", &[(0, 5, 2), (5, 2, ZEROS), (7, 5, 10), (20, 2, 0)]);
        let mut all = [9; 12];
        placed.read(0, &mut all).expect("all of it");
        assert_eq!(&all, b"hello\0\0world");
        let mut part = [9; 6];
        placed.read(3, &mut part).expect("a part");
        assert_eq!(&part, b"lo\0\0wo");
        assert!(placed.has(0, 12) && placed.has(20, 2) && placed.has(3, 0));
        assert!(!placed.has(0, 13) && !placed.has(12, 1) && !placed.has(19, 2) && !placed.has(30, 1));
        assert!(!placed.damaged.load(Ordering::Relaxed));
        assert!(placed.read(10, &mut part).is_err() && placed.damaged.load(Ordering::Relaxed));
    }

    #[test]
    fn a_bit_that_flipped_is_found_also_where_only_the_rest_of_its_piece_is_wanted() {
        for read in [5, 2] {
            let placed = placed(b"hello", &[(0, 5, 0)]);
            placed.disk.write_all_at(b"H", 0).expect("writing");
            let mut part = vec![0; read];
            assert!(placed.read(5 - read as u64, &mut part).is_err() && placed.damaged.load(Ordering::Relaxed));
        }
    }
}
