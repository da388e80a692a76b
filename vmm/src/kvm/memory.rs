//! Guest memory: one anonymous file, mapped shared, in the largest pages that the host gives.
//!
//! Asked for, it is in 2 MiB pages that the host has set aside, all of them taken now: a page that is missing later would be the
//! end of the process. Else the host is advised to use transparent huge pages, which it does where
//! `/sys/kernel/mm/transparent_hugepage/shmem_enabled` says `advise` or `always`. What it does is looked at, not guessed:
//! after one byte was written, the file has the length of one page.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use labyard_devices::Memory;
use labyard_sys::memfd;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::arch::x86_64::layout;

/// Bytes of a small page.
const SMALL_PAGE: u64 = 4096;
/// Unit of a file's blocks (stat(2)).
const BLOCK: u64 = 512;

/// Guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Small pages.
    #[error("mapping {bytes} bytes of guest memory")]
    Map {
        /// How many.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// Huge pages.
    #[error(
        "{pages} huge pages of 2 MiB: the host has not set aside so many that are free (sysctl vm.nr_hugepages); raise it or leave out huge pages"
    )]
    HugePages {
        /// How many are needed.
        pages: u64,
        /// Why.
        source: io::Error,
    },
}

/// Mapped memory.
pub struct GuestMemory {
    /// It.
    pub mem: Memory,
    /// Bytes of its pages.
    pub page_size: u64,
}

/// Maps `bytes`, in huge pages that were set aside if `huge`.
pub fn map(name: &str, bytes: u64, huge: bool) -> Result<GuestMemory, MemoryError> {
    let failed = |source| MemoryError::Map { bytes, source };
    let file = match huge {
        true => memfd::create_huge(name, bytes)
            .map_err(|source| MemoryError::HugePages { pages: bytes.div_ceil(memfd::HUGE_PAGE_BYTES), source })?,
        false => memfd::create(name, bytes).map_err(failed)?,
    };
    let file = Arc::new(file);
    let mut offset = 0;
    let mut ranges = Vec::new();
    for (start, len) in layout::memory_ranges(bytes) {
        let size = usize::try_from(len).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        ranges.push((GuestAddress(start), size, Some(FileOffset::from_arc(Arc::clone(&file), offset))));
        offset += len;
    }
    let mem = Memory::from_ranges_with_files(ranges).map_err(|error| failed(io::Error::other(error)))?;
    if huge {
        return Ok(GuestMemory { mem, page_size: memfd::HUGE_PAGE_BYTES });
    }
    advise_huge_pages(&mem);
    let page_size = first_page(&mem, &file).map_err(failed)?;
    Ok(GuestMemory { mem, page_size })
}

/// Where it is not possible, small pages do.
fn advise_huge_pages(mem: &Memory) {
    for region in mem.iter() {
        let Ok(start) = region.get_host_address(MemoryRegionAddress(0)) else { continue };
        let Ok(len) = usize::try_from(region.len()) else { continue };
        // SAFETY: the range is exactly a mapping that `mem` owns; the advice changes the size of its pages, not their content.
        let advised = unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
        if advised != 0 {
            log::debug!("transparent huge pages: {}", io::Error::last_os_error());
        }
    }
}

/// Touches the first page that the kernel will be loaded to; the size that it got.
fn first_page(mem: &Memory, file: &File) -> io::Result<u64> {
    mem.write_obj(0u8, GuestAddress(layout::HIGH_START)).map_err(io::Error::other)?;
    let got = file.metadata()?.blocks() * BLOCK;
    Ok(if got >= memfd::HUGE_PAGE_BYTES { memfd::HUGE_PAGE_BYTES } else { SMALL_PAGE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_beyond_the_hole_is_sparse_and_knows_its_page_size() {
        let GuestMemory { mem, page_size } = map("test", 6 << 30, false).expect("sparse memory");
        assert!([SMALL_PAGE, memfd::HUGE_PAGE_BYTES].contains(&page_size));
        let ends: Vec<_> = mem.iter().map(|region| (region.start_addr().0, region.len())).collect();
        assert_eq!(ends, [(0, 3 << 30), (4 << 30, 3 << 30)]);
        mem.write_obj(7u8, GuestAddress((7 << 30) - 1)).expect("the last byte");
    }

    #[test]
    fn huge_pages_that_are_not_there_are_refused_with_their_number() {
        let error = map("test", 1 << 45, true).map(|memory| memory.page_size).expect_err("no host has so many");
        assert!(error.to_string().starts_with("16777216 huge pages of 2 MiB"), "{error}");
    }
}
