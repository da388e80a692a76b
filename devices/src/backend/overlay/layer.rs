//! The files of a chain: opened, leased and checked before a drive is built on them.
//!
//! Maps are files of our own that have lived through power cuts and bad disks: whatever is wrong with one is an error that names it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use labyard_spec::overlay::{
    Header, LayerId, MAX_CAPACITY_BYTES, MapError, PAGE_BYTES, PAGE_WORDS, SECTOR_BYTES, decode_page, encode_page,
    page_offset,
};
use labyard_sys::lease::{self, Lease};
use labyard_sys::random;

use super::bitmap::Bitmap;

/// What all layers lie on: a file that nobody writes any more.
#[derive(Debug)]
pub struct Base {
    /// Byte n of the drive is byte n of it, as far as it goes.
    pub file: File,
    /// The name under which layers remember it.
    pub name: String,
}

/// The two files of a layer.
#[derive(Debug)]
pub struct LayerFiles {
    /// Blocks, each at its own place.
    pub data: File,
    /// Which blocks are there.
    pub map: File,
}

/// What a drive is made of. All files arrive open; the top's for writing.
#[derive(Debug)]
pub struct Chain {
    /// Below everything.
    pub base: Option<Base>,
    /// Layers that are not written any more, lowest first.
    pub frozen: Vec<LayerFiles>,
    /// The layer that is written; a new one where its map is empty.
    pub top: LayerFiles,
    /// The frozen layers are as a process left them since which the host has been up: their last bits count, synced or not. So a
    /// clone goes on from the instant of its fork.
    pub live: bool,
    /// Bytes that the guest sees.
    pub capacity_bytes: u64,
}

/// A chain that cannot be a drive. `layer` counts from 0, the lowest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum OverlayError {
    #[error("{bytes} bytes: not whole sectors, or more than a drive can have")]
    Capacity { bytes: u64 },
    #[error("the base has {base} bytes, the drive only {drive}; give it a larger size")]
    Small { base: u64, drive: u64 },
    #[error("layer {layer}: {doing}")]
    File { layer: usize, doing: &'static str, source: io::Error },
    #[error("layer {layer}: another machine writes it; end that one first")]
    Taken { layer: usize },
    #[error("layer {layer}: opened for reading only, and it would have to be written")]
    ReadOnly { layer: usize },
    #[error("layer {layer}: its map: {source}; what the machine wrote is lost, remove the lab")]
    Map { layer: usize, source: MapError },
    #[error(
        "layer {layer}: its map has {found} bytes, a drive of {drive} bytes needs {needed}; it was cut or belongs to another drive"
    )]
    MapSize { layer: usize, found: u64, needed: u64, drive: u64 },
    #[error("layer {layer}: its data has {found} bytes, its map says {needed}; it was cut or belongs to another drive")]
    DataSize { layer: usize, found: u64, needed: u64 },
    #[error("layer {layer}: it lies on `{expected}` and was given `{found}` (nothing is ``)")]
    OtherBase { layer: usize, expected: String, found: String },
    #[error(
        "layer {layer}: it was made on a base of {expected} bytes, which has {found} now; the image was cut or replaced"
    )]
    BaseSize { layer: usize, expected: u64, found: u64 },
    #[error("layer {layer}: it belongs to a drive of {found} bytes, asked is one of {asked}")]
    OtherCapacity { layer: usize, found: u64, asked: u64 },
    #[error("requests are under way")]
    Busy,
    #[error("starting its engine")]
    Engine(#[source] io::Error),
    #[error("memory for its maps")]
    Memory,
}

/// A layer that is open.
pub(super) struct Layer {
    pub(super) header: Header,
    pub(super) bits: Bitmap,
    pub(super) files: LayerFiles,
}

/// The layers of a chain, lowest first.
pub(super) struct Opened {
    pub(super) base: Option<File>,
    pub(super) base_bytes: u64,
    /// Name of what the lowest layer lies on.
    pub(super) base_name: String,
    pub(super) layers: Vec<Layer>,
}

/// Opens a chain whose top is to be written.
pub(super) fn open(chain: Chain) -> Result<Opened, OverlayError> {
    let Chain { base, frozen, top, live, capacity_bytes } = chain;
    if capacity_bytes > MAX_CAPACITY_BYTES || capacity_bytes.checked_rem(SECTOR_BYTES as u64) != Some(0) {
        return Err(OverlayError::Capacity { bytes: capacity_bytes });
    }
    let (base, base_name, base_bytes) = match base {
        Some(Base { file, name }) => {
            let bytes = len(&file, 0, "reading the size of its base")?;
            (Some(file), name, bytes)
        }
        None => (None, String::new(), 0),
    };
    if base_bytes > capacity_bytes {
        return Err(OverlayError::Small { base: base_bytes, drive: capacity_bytes });
    }
    let mut opened = Opened { base, base_bytes, base_name, layers: Vec::new() };
    for (layer, files) in frozen.into_iter().enumerate() {
        lease(&files, Lease::Reader, layer)?;
        opened.add(files, capacity_bytes)?;
    }
    opened.add_top(top, capacity_bytes)?;

    // From the top down: what is below a settled layer is trusted to the last bit.
    let top = opened.layers.len().saturating_sub(1);
    let mut settled = false;
    for (number, layer) in opened.layers.iter_mut().enumerate().rev() {
        layer.load(number, settled || live && number < top)?;
        settled |= layer.header.settled;
    }
    Ok(opened)
}

impl Opened {
    /// What the next layer lies on.
    fn below(&self) -> String {
        self.layers.last().map_or_else(|| self.base_name.clone(), |layer| layer.header.layer.to_string())
    }

    /// Adds the layer that is to be written, made where its map is empty.
    pub(super) fn add_top(&mut self, files: LayerFiles, capacity_bytes: u64) -> Result<(), OverlayError> {
        let layer = self.layers.len();
        let failed = |doing| move |source| OverlayError::File { layer, doing, source };
        for file in [&files.data, &files.map] {
            if !lease::can_write(file).map_err(failed("asking how it was opened"))? {
                return Err(OverlayError::ReadOnly { layer });
            }
        }
        lease(&files, Lease::Writer, layer)?;
        if len(&files.map, layer, "reading the size of its map")? == 0 {
            make(&files, &self.below(), self.base_bytes, capacity_bytes).map_err(failed("making it"))?;
        }
        self.add(files, capacity_bytes)?;
        match self.layers.last().map(|top| top.header.capacity_bytes) {
            Some(found) if found != capacity_bytes => {
                Err(OverlayError::OtherCapacity { layer, found, asked: capacity_bytes })
            }
            _ => Ok(()),
        }
    }

    /// Adds a layer that is there, without its bits.
    fn add(&mut self, files: LayerFiles, capacity_bytes: u64) -> Result<(), OverlayError> {
        let layer = self.layers.len();
        let map_bytes = len(&files.map, layer, "reading the size of its map")?;
        let mut bytes = [0; SECTOR_BYTES];
        let needed = SECTOR_BYTES as u64;
        if map_bytes < needed {
            return Err(OverlayError::MapSize { layer, found: map_bytes, needed, drive: capacity_bytes });
        }
        files.map.read_exact_at(&mut bytes, 0).map_err(|source| OverlayError::File {
            layer,
            doing: "reading its map",
            source,
        })?;
        let header = Header::decode(&bytes).map_err(|source| OverlayError::Map { layer, source })?;
        let drive = header.capacity_bytes;
        if map_bytes != header.map_bytes() {
            return Err(OverlayError::MapSize { layer, found: map_bytes, needed: header.map_bytes(), drive });
        }
        let data_bytes = len(&files.data, layer, "reading the size of its data")?;
        if data_bytes != drive {
            return Err(OverlayError::DataSize { layer, found: data_bytes, needed: drive });
        }
        if drive > capacity_bytes {
            return Err(OverlayError::OtherCapacity { layer, found: drive, asked: capacity_bytes });
        }
        let below = self.below();
        if header.below != below {
            return Err(OverlayError::OtherBase { layer, expected: header.below, found: below });
        }
        if header.base_bytes != self.base_bytes {
            return Err(OverlayError::BaseSize { layer, expected: header.base_bytes, found: self.base_bytes });
        }
        let bits = Bitmap::new(header.pages());
        self.layers.push(Layer { header, bits, files });
        Ok(())
    }
}

impl Layer {
    /// Reads its bits: the flushed ones, and the final ones where they are trusted.
    fn load(&mut self, layer: usize, trusted: bool) -> Result<(), OverlayError> {
        let count = self.header.pages();
        let read = if trusted { count.saturating_mul(2) } else { count };
        let (mut bytes, mut words) = ([0; PAGE_BYTES], [0; PAGE_WORDS]);
        for page in 0..read {
            self.files.map.read_exact_at(&mut bytes, page_offset(page)).map_err(|source| OverlayError::File {
                layer,
                doing: "reading its map",
                source,
            })?;
            let number = if page < count { page } else { page.saturating_sub(count) };
            decode_page(&self.header, page, number, &bytes, &mut words)
                .map_err(|source| OverlayError::Map { layer, source })?;
            self.bits.load(number, &words);
        }
        Ok(())
    }

    /// Writes the bits that were not flushed to where a frozen layer has them, and lets others rely on it. Syncs nothing.
    pub(super) fn freeze(&mut self) -> io::Result<()> {
        let count = self.header.pages();
        let mut bytes = [0; PAGE_BYTES];
        let mut taken = Vec::new();
        let mut write = || -> io::Result<()> {
            while let Some((page, words)) = self.bits.take_dirty() {
                taken.push(page);
                let number = count.saturating_add(page.into());
                encode_page(self.header.layer, number, words, &mut bytes);
                self.files.map.write_all_at(&bytes, page_offset(number))?;
            }
            for file in [&self.files.data, &self.files.map] {
                // Ours is the only one so far: nobody's can be in the way.
                lease::take(file, Lease::Reader)?;
            }
            Ok(())
        };
        let written = write();
        if written.is_err() {
            // It stays the top, and the next flush writes them.
            for page in taken {
                self.bits.mark(page as usize);
            }
        }
        written
    }
}

/// Makes a layer in empty files. It is on the disk when this returns: a map that a power cut has torn would be refused, and with it
/// what layers below have.
pub(super) fn make(files: &LayerFiles, below: &str, base_bytes: u64, capacity_bytes: u64) -> io::Result<()> {
    let mut id = [0; 16];
    random::fill(&mut id)?;
    let header = Header { layer: LayerId(id), capacity_bytes, base_bytes, below: below.to_owned(), settled: false };
    files.data.set_len(capacity_bytes)?;
    files.data.sync_all()?;
    files.map.set_len(header.map_bytes())?;
    files.map.write_all_at(&header.encode(), 0)?;
    files.map.sync_all()
}

fn lease(files: &LayerFiles, kind: Lease, layer: usize) -> Result<(), OverlayError> {
    for file in [&files.data, &files.map] {
        let taken = lease::take(file, kind);
        if !taken.map_err(|source| OverlayError::File { layer, doing: "taking its lease", source })? {
            return Err(OverlayError::Taken { layer });
        }
    }
    Ok(())
}

fn len(file: &File, layer: usize, doing: &'static str) -> Result<u64, OverlayError> {
    file.metadata().map(|meta| meta.len()).map_err(|source| OverlayError::File { layer, doing, source })
}
