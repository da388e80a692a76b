//! Guest memory: one anonymous file, mapped shared, in the largest pages that the host gives.
//!
//! Asked for, it is in 2 MiB pages that the host has set aside, all of them taken now: a page that is missing later would be the
//! end of the process. Else the host is advised to use transparent huge pages, which it does where
//! `/sys/kernel/mm/transparent_hugepage/shmem_enabled` says `advise` or `always`. What it does is looked at, not guessed:
//! after one byte was written, the file has the length of one page.
//!
//! What goes back to the host while a machine runs depends on its pages:
//!
//! | pages | free memory that the guest reports | the balloon on request |
//! |---|---|---|
//! | 4 KiB | in blocks of 128 KiB and more | single pages |
//! | transparent huge pages | in whole ones, so that none breaks up ([`reports_in_small_blocks`]) | single pages; the host makes no new huge pages of this memory until the machine boots again ([`prefer_small_pages`]) |
//! | set aside | nothing: a page that another process has taken by the time it is needed again would end this one | refused |

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
    advise(mem, PageSize::Huge);
}

/// Tells the host to make no more huge pages of this memory. Single pages of it were taken back: a huge page made anew there, by a
/// fault or in the background (khugepaged), would fill the holes again.
pub fn prefer_small_pages(mem: &Memory) {
    advise(mem, PageSize::Small);
}

/// Whether a guest with pages of this size reports free memory in small blocks. Of a huge page only the whole goes back: a part would
/// break it up, and leave the guest's memory slow for good.
pub fn reports_in_small_blocks(page_size: u64) -> bool {
    page_size < memfd::HUGE_PAGE_BYTES
}

#[derive(Debug, Clone, Copy)]
enum PageSize {
    Small,
    Huge,
}

fn advise(mem: &Memory, size: PageSize) {
    let advice = match size {
        PageSize::Small => libc::MADV_NOHUGEPAGE,
        PageSize::Huge => libc::MADV_HUGEPAGE,
    };
    for region in mem.iter() {
        let Ok(start) = region.get_host_address(MemoryRegionAddress(0)) else { continue };
        let Ok(len) = usize::try_from(region.len()) else { continue };
        // SAFETY: the range is exactly a mapping that `mem` owns; both advices change the size of its pages, not their content.
        let advised = unsafe { libc::madvise(start.cast(), len, advice) };
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

    /// Flags of the mapping that holds the first byte of `mem` (proc(5), smaps, VmFlags).
    fn flags(mem: &Memory) -> String {
        let start = mem.iter().next().and_then(|region| region.get_host_address(MemoryRegionAddress(0)).ok());
        let start = format!("{:x}-", start.expect("mapped") as usize);
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mapping = smaps.split_once(&start).expect("its mapping").1;
        let flags = mapping.lines().find_map(|line| line.strip_prefix("VmFlags:")).expect("flags");
        format!("{flags} ")
    }

    #[test]
    fn huge_pages_are_wished_for_until_single_pages_were_taken_back() {
        let GuestMemory { mem, .. } = map("test", 4 << 20, false).expect("memory");
        // A kernel without transparent huge pages knows neither.
        if flags(&mem).contains(" hg ") {
            prefer_small_pages(&mem);
            assert!(flags(&mem).contains(" nh ") && !flags(&mem).contains(" hg "), "{}", flags(&mem));
        }
        assert!(reports_in_small_blocks(4096) && !reports_in_small_blocks(2 << 20));
    }

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
