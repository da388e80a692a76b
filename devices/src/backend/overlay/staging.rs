//! Memory between the maps and the engine: pages of the map as a round writes them, and blocks that are put together.
//!
//! It is a mapping of its own, as guest memory is, because an engine may use it while nobody else waits; pages that were never
//! touched cost nothing.

use labyard_spec::overlay::PAGE_BYTES;
use labyard_sys::iov::GuestSlices;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// Blocks that are put together at once.
pub(super) const BUFFERS: usize = 16;

/// The memory.
pub(super) struct Staging {
    /// Blocks, and the header.
    own: MmapRegion,
    /// Pages of the map.
    maps: MmapRegion,
    free: Vec<usize>,
}

impl Staging {
    /// Where the header is.
    pub(super) const HEADER: usize = BUFFERS;
    /// Where the first page of the map is.
    const MAPS: usize = BUFFERS + 1;

    /// Room for so many pages of a map.
    pub(super) fn new(pages: u64) -> Option<Self> {
        Some(Self { own: region(Self::MAPS)?, maps: region_of(pages)?, free: (0..BUFFERS).collect() })
    }

    /// Room for more pages; what the old ones held is gone. `false` where there is no memory, and all is as it was.
    pub(super) fn grow(&mut self, pages: u64) -> bool {
        region_of(pages).map(|maps| self.maps = maps).is_some()
    }

    /// Where a page of the map is.
    pub(super) fn page(page: u32) -> usize {
        (page as usize).saturating_add(Self::MAPS)
    }

    /// Room for a block; `None` where all is in use.
    pub(super) fn take(&mut self) -> Option<usize> {
        self.free.pop()
    }

    /// How many blocks there is room for.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// The block is needed no more.
    pub(super) fn give_back(&mut self, buffer: usize) {
        self.free.push(buffer);
    }

    fn slice(&self, page: usize, at: usize, len: usize) -> Option<VolatileSlice<'_>> {
        let (region, page) = match page.checked_sub(Self::MAPS) {
            Some(page) => (&self.maps, page),
            None => (&self.own, page),
        };
        let start = page.checked_mul(PAGE_BYTES)?.checked_add(at)?;
        region.get_slice(start, len).ok()
    }

    /// Bytes of a page, for the engine.
    pub(super) fn slices(&self, page: usize, at: usize, len: usize) -> GuestSlices<'_> {
        self.slice(page, at, len).map_or_else(GuestSlices::new, GuestSlices::one)
    }

    /// Stores bytes at the start of a page.
    pub(super) fn put(&self, page: usize, bytes: &[u8]) {
        if let Some(slice) = self.slice(page, 0, bytes.len()) {
            slice.copy_from(bytes);
        }
    }

    /// Stores guest memory within a page.
    pub(super) fn copy(&self, page: usize, at: usize, from: &GuestSlices<'_>) {
        if let Some(slice) = self.slice(page, at, from.len_bytes()) {
            from.copy_to(&slice);
        }
    }
}

/// Memory for the pages of a map; a drive without any has room for one.
fn region_of(pages: u64) -> Option<MmapRegion> {
    region(usize::try_from(pages).ok()?.max(1))
}

fn region(pages: usize) -> Option<MmapRegion> {
    MmapRegion::new(pages.checked_mul(PAGE_BYTES)?).ok()
}
