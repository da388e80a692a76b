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
    region: MmapRegion,
    free: Vec<usize>,
}

impl Staging {
    /// Where the header is.
    pub(super) const HEADER: usize = BUFFERS;

    /// Room for so many pages of a map.
    pub(super) fn new(pages: u64) -> Option<Self> {
        let count = usize::try_from(pages).ok()?.checked_add(Self::page(0))?;
        let region = MmapRegion::new(count.checked_mul(PAGE_BYTES)?).ok()?;
        Some(Self { region, free: (0..BUFFERS).collect() })
    }

    /// Where a page of the map is.
    pub(super) fn page(page: u32) -> usize {
        (page as usize).saturating_add(BUFFERS).saturating_add(1)
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
        let start = page.checked_mul(PAGE_BYTES)?.checked_add(at)?;
        self.region.get_slice(start, len).ok()
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
