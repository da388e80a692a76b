//! The files of a drive for reading: nobody writes them meanwhile, and they belong together.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use labyard_spec::overlay::fit::{Misfit, Place};
use labyard_spec::overlay::runs::{Run, runs};
use labyard_spec::overlay::{
    BLOCK_BYTES, Header, MAX_CAPACITY_BYTES, MapError, PAGE_BLOCKS, PAGE_BYTES, PAGE_WORDS, SECTOR_BYTES, Words,
    blocks, decode_page, page_offset, pages,
};
use labyard_spec::playground::{DriveSpec, Slot};
use labyard_sys::lease::{self, Lease};
use labyard_sys::space::data_ranges;

use super::PIECE_BYTES;
use crate::plan::Plan;

/// A drive that cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ChainError {
    #[error("drive {0}: nothing is behind it")]
    Empty(String),
    #[error("drive {serial}: the plan has no file {slot:?}")]
    Unplanned { serial: String, slot: Slot },
    #[error("drive {serial}: the plan says {bytes} bytes: not whole sectors, or more than a drive can have")]
    Capacity { serial: String, bytes: u64 },
    #[error("{path}: its machine runs and writes it; stop it first (labyard stop)")]
    InUse { path: PathBuf },
    #[error("{path}: {doing}")]
    File { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path}: {why}")]
    Map { path: PathBuf, why: MapError },
    #[error("{path}: {why}")]
    Misfit { path: PathBuf, why: Misfit },
    #[error("{path}: it has {base} bytes, the drive on it only {drive}")]
    Small { path: PathBuf, base: u64, drive: u64 },
}

fn file_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> ChainError {
    let path = path.to_owned();
    move |source| ChainError::File { path, doing, source }
}

/// A file with its path, for messages.
struct Opened {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Opened {
    fn new(plan: &Plan, serial: &str, slot: Slot) -> Result<Self, ChainError> {
        let planned = usize::try_from(slot.0).ok().and_then(|index| plan.files.get(index));
        let unplanned = || ChainError::Unplanned { serial: serial.to_owned(), slot };
        let path = planned.ok_or_else(unplanned)?.path.clone();
        let file = File::open(&path).map_err(file_error(&path, "opening"))?;
        let bytes = file.metadata().map_err(file_error(&path, "reading its size"))?.len();
        Ok(Self { path, file, bytes })
    }

    /// Keeps writers out for as long as it is open.
    fn lease(&self) -> Result<(), ChainError> {
        match lease::take(&self.file, Lease::Reader).map_err(file_error(&self.path, "taking its lease"))? {
            true => Ok(()),
            false => Err(ChainError::InUse { path: self.path.clone() }),
        }
    }

    fn read(&self, into: &mut [u8], offset: u64) -> Result<(), ChainError> {
        self.file.read_exact_at(into, offset).map_err(file_error(&self.path, "reading"))
    }
}

/// A layer.
struct Layer {
    data: Opened,
    map: Opened,
    header: Header,
    /// Its final pages count ("Overlay layer", rule 4).
    trusted: bool,
}

/// A drive.
pub(super) struct Chain {
    base: Option<Opened>,
    /// Lowest first.
    layers: Vec<Layer>,
    capacity_bytes: u64,
}

impl Chain {
    /// The drive of a plan.
    pub(super) fn open(plan: &Plan, drive: &DriveSpec) -> Result<Self, ChainError> {
        let open = |slot| Opened::new(plan, &drive.serial, slot);
        let base = drive.base.as_ref().map(|base| open(base.file)).transpose()?;
        let base_bytes = base.as_ref().map_or(0, |base| base.bytes);
        let Some(overlay) = &drive.overlay else {
            let base = base.ok_or_else(|| ChainError::Empty(drive.serial.clone()))?;
            let capacity_bytes = base.bytes;
            return Ok(Self { base: Some(base), layers: Vec::new(), capacity_bytes });
        };
        let capacity_bytes = overlay.capacity_bytes;
        if capacity_bytes > MAX_CAPACITY_BYTES || capacity_bytes % SECTOR_BYTES as u64 != 0 {
            return Err(ChainError::Capacity { serial: drive.serial.clone(), bytes: capacity_bytes });
        }
        if let Some(base) = base.as_ref().filter(|base| base.bytes > capacity_bytes) {
            let (path, base) = (base.path.clone(), base.bytes);
            return Err(ChainError::Small { path, base, drive: capacity_bytes });
        }
        let mut below = drive.base.as_ref().map(|base| base.name.clone()).unwrap_or_default();
        let mut layers = Vec::new();
        for (slots, is_top) in overlay.frozen.iter().map(|layer| (layer, false)).chain([(&overlay.top, true)]) {
            let (data, map) = (open(slots.data)?, open(slots.map)?);
            data.lease()?;
            map.lease()?;
            if is_top && map.bytes == 0 {
                // Its machine has never come so far as to make it.
                continue;
            }
            let header = header(&map, capacity_bytes)?;
            let (map_bytes, data_bytes) = (map.bytes, data.bytes);
            let place = Place { map_bytes, data_bytes, below: &below, base_bytes, drive_bytes: capacity_bytes, is_top };
            header.fits(&place).map_err(|why| ChainError::Misfit { path: map.path.clone(), why })?;
            below = header.layer.to_string();
            layers.push(Layer { data, map, header, trusted: false });
        }
        let mut settled = false;
        for layer in layers.iter_mut().rev() {
            layer.trusted = settled;
            settled |= layer.header.settled;
        }
        Ok(Self { base, layers, capacity_bytes })
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Gives all that may not be zeros to `take`, in order, in pieces that go over no multiple of [`PIECE_BYTES`]; and now and then an
    /// empty piece, to say how far it is.
    pub(super) fn pieces<E: From<ChainError>>(
        &self,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(0)];
        let all = blocks(self.capacity_bytes);
        for page in 0..pages(self.capacity_bytes) {
            let start = page * PAGE_BLOCKS;
            take(start * BLOCK_BYTES, &[])?;
            let words = self.layers.iter().map(|layer| layer.words(page)).collect::<Result<Vec<_>, _>>()?;
            for Run { first, count, layer } in runs(&words, all - start) {
                let (first, behind) = (start + first, start + first + count);
                let (file, end) = match (layer.and_then(|layer| self.layers.get(layer)), &self.base) {
                    (Some(layer), _) => (&layer.data, layer.header.capacity_bytes),
                    (None, Some(base)) => (base, base.bytes),
                    (None, None) => continue,
                };
                let range = first * BLOCK_BYTES..(behind * BLOCK_BYTES).min(end);
                for Range { mut start, end } in data_ranges(&file.file, range) {
                    while start < end {
                        let len = (end - start).min(PIECE_BYTES - start % PIECE_BYTES);
                        let piece = buffer.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
                        file.read(piece, start)?;
                        take(start, piece)?;
                        start += len;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Layer {
    /// Which blocks of a page it has.
    fn words(&self, page: u64) -> Result<Words, ChainError> {
        let (mut all, mut words, mut bytes) = ([0; PAGE_WORDS], [0; PAGE_WORDS], [0; PAGE_BYTES]);
        let own = self.header.pages();
        if page >= own {
            // From before the drive grew.
            return Ok(all);
        }
        for number in [Some(page), self.trusted.then_some(own + page)].into_iter().flatten() {
            self.map.read(&mut bytes, page_offset(number))?;
            decode_page(&self.header, number, page, &bytes, &mut words)
                .map_err(|why| ChainError::Map { path: self.map.path.clone(), why })?;
            all.iter_mut().zip(&words).for_each(|(all, word)| *all |= word);
        }
        Ok(all)
    }
}

fn header(map: &Opened, drive: u64) -> Result<Header, ChainError> {
    let mut bytes = [0; SECTOR_BYTES];
    let needed = SECTOR_BYTES as u64;
    if map.bytes < needed {
        let why = Misfit::MapSize { found: map.bytes, needed, drive };
        return Err(ChainError::Misfit { path: map.path.clone(), why });
    }
    map.read(&mut bytes, 0)?;
    Header::decode(&bytes).map_err(|why| ChainError::Map { path: map.path.clone(), why })
}
