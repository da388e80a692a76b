//! The files of a chain: opened, leased and checked before a drive is built on them.
//!
//! Maps are files of our own that have lived through power cuts and bad disks: whatever is wrong with one is an error that names it.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use labyard_spec::overlay::fit::{Misfit, Place};
use labyard_spec::overlay::{
    Header, LayerId, MAX_CAPACITY_BYTES, MapError, PAGE_BYTES, PAGE_WORDS, SECTOR_BYTES, decode_page, encode_page,
    map_bytes, page_offset, pages,
};
use labyard_sys::lease::{self, Lease};
use labyard_sys::{random, space};

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
    #[error("layer {layer}: its map: {why}; what the machine wrote is lost, remove the lab")]
    Map { layer: usize, why: MapError },
    #[error("layer {layer}: {why}")]
    Misfit { layer: usize, why: Misfit },
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
    /// Shared with who makes the drive larger, while a guest uses it.
    pub(super) files: Arc<Leased>,
}

/// The files of a layer, with the drive's lease of them. That of the top is given back with the drive, and not left to the last copy of
/// its descriptors: a ring keeps some open for a while, and the machine may start again at once. Whoever lets go of it has let go of
/// the engine before, which has waited for what was in flight.
pub(super) struct Leased {
    files: LayerFiles,
    /// It is the top's: no other drive has these descriptors. Those of frozen layers may be several drives', and their leases, which are
    /// readers', are in nobody's way.
    is_top: AtomicBool,
}

impl Deref for Leased {
    type Target = LayerFiles;

    fn deref(&self) -> &LayerFiles {
        &self.files
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if !*self.is_top.get_mut() {
            return;
        }
        for file in [&self.files.data, &self.files.map] {
            if let Err(error) = lease::give_back(file) {
                log::warn!("giving back the lease of a drive's layer: {error}");
            }
        }
    }
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
        opened.add(files, capacity_bytes, false)?;
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
        self.add(files, capacity_bytes, true)
    }

    /// Adds a layer that is there, without its bits.
    fn add(&mut self, files: LayerFiles, capacity_bytes: u64, is_top: bool) -> Result<(), OverlayError> {
        let layer = self.layers.len();
        let map_bytes = len(&files.map, layer, "reading the size of its map")?;
        let data_bytes = len(&files.data, layer, "reading the size of its data")?;
        let mut bytes = [0; SECTOR_BYTES];
        if map_bytes < SECTOR_BYTES as u64 {
            let why = Misfit::MapSize { found: map_bytes, needed: SECTOR_BYTES as u64, drive: capacity_bytes };
            return Err(OverlayError::Misfit { layer, why });
        }
        files.map.read_exact_at(&mut bytes, 0).map_err(|source| OverlayError::File {
            layer,
            doing: "reading its map",
            source,
        })?;
        let mut header = Header::decode(&bytes).map_err(|why| OverlayError::Map { layer, why })?;
        let (below, base_bytes) = (self.below(), self.base_bytes);
        let place = Place { map_bytes, data_bytes, below: &below, base_bytes, drive_bytes: capacity_bytes, is_top };
        header.fits(&place).map_err(|why| OverlayError::Misfit { layer, why })?;
        if is_top {
            // It was told to grow while nobody used it, or its last growth was cut short.
            let grown = lengthen(&files, header.capacity_bytes, capacity_bytes)
                .and_then(|()| write_capacity(&files, &mut header, capacity_bytes));
            grown.map_err(|source| OverlayError::File { layer, doing: "giving it its size", source })?;
        }
        let bits = Bitmap::new(header.pages());
        let files = Arc::new(Leased { files, is_top: AtomicBool::new(is_top) });
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
                .map_err(|why| OverlayError::Map { layer, why })?;
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
            self.files.is_top.store(false, Ordering::Relaxed);
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

/// Makes room for a drive of `to` bytes in the files of a layer of one of `from` bytes, which may be in use, and syncs it. To whoever
/// reads the layer it is as large as before, until [`write_capacity`] says otherwise.
pub(super) fn lengthen(files: &LayerFiles, from: u64, to: u64) -> io::Result<()> {
    if pages(to) > pages(from) {
        // A freeze that failed may have written final pages, where flushed ones are going to be.
        let finals = page_offset(pages(from));
        space::punch(&files.map, finals, map_bytes(from).saturating_sub(finals).max(1))?;
    }
    for (file, bytes) in [(&files.data, to), (&files.map, map_bytes(to))] {
        if file.metadata()?.len() != bytes {
            file.set_len(bytes)?;
            file.sync_all()?;
        }
    }
    Ok(())
}

/// Says that the layer is of a drive of so many bytes; it is on the disk when this returns. One sector: a power cut leaves the old size
/// or the new one.
pub(super) fn write_capacity(files: &LayerFiles, header: &mut Header, capacity_bytes: u64) -> io::Result<()> {
    if header.capacity_bytes != capacity_bytes {
        let grown = Header { capacity_bytes, ..header.clone() };
        files.map.write_all_at(&grown.encode(), 0)?;
        files.map.sync_all()?;
        *header = grown;
    }
    Ok(())
}

/// How long a lease of one that was killed may outlive it.
const PATIENCE: Duration = Duration::from_secs(2);

fn lease(files: &LayerFiles, kind: Lease, layer: usize) -> Result<(), OverlayError> {
    for file in [&files.data, &files.map] {
        let taken = lease::take_in_time(file, kind, PATIENCE);
        if !taken.map_err(|source| OverlayError::File { layer, doing: "taking its lease", source })? {
            return Err(OverlayError::Taken { layer });
        }
    }
    Ok(())
}

fn len(file: &File, layer: usize, doing: &'static str) -> Result<u64, OverlayError> {
    file.metadata().map(|meta| meta.len()).map_err(|source| OverlayError::File { layer, doing, source })
}
