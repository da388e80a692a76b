//! Guest memory back to the host: holes in the file that it is mapped from.
//!
//! A hole unmaps the pages everywhere, KVM's tables included, so the guest finds zeros there and the host has its pages again at
//! once. Holds while a machine is the only user of its memory. What that means for pages larger than 4 KiB is said in
//! [`crate::kvm::memory`].

use std::io;

use labyard_devices::Memory;
use labyard_devices::virtio::balloon::Reclaim;
use labyard_sys::memfd::HUGE_PAGE_BYTES;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::kvm::memory;

/// Takes memory that is mapped shared from a file.
#[derive(Debug, Default)]
pub struct Holes {
    /// Parts of huge pages were taken since the driver began, and the host knows.
    in_small_pages: bool,
}

impl Reclaim for Holes {
    fn begin(&mut self) {
        self.in_small_pages = false;
    }

    fn give_back(&mut self, mem: &Memory, start: u64, len_bytes: u64) -> io::Result<()> {
        let end = start.checked_add(len_bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let whole = start.is_multiple_of(HUGE_PAGE_BYTES) && end.is_multiple_of(HUGE_PAGE_BYTES);
        if !whole && !self.in_small_pages {
            memory::prefer_small_pages(mem);
            self.in_small_pages = true;
        }
        for region in mem.iter() {
            let base = region.start_addr().raw_value();
            let (from, to) = (start.max(base), end.min(base.saturating_add(region.len())));
            if from >= to {
                continue;
            }
            let file = region.file_offset().ok_or_else(|| io::Error::other("memory that is not mapped from a file"))?;
            let at = file.start().checked_add(from - base).ok_or(io::ErrorKind::InvalidInput)?;
            labyard_sys::space::punch(file.file(), at, to - from)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::sync::Arc;
    use vm_memory::{Bytes, FileOffset, GuestAddress};

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_range_over_two_regions_is_a_hole_in_each_and_nothing_else_is_lost() {
        let file = Arc::new(labyard_sys::memfd::create("reclaim", 2 * MIB).expect("memfd"));
        let region =
            |at, offset| (GuestAddress(at), MIB as usize, Some(FileOffset::from_arc(Arc::clone(&file), offset)));
        // As on a machine, the second region is elsewhere in the file than in the guest's addresses.
        let mem = Memory::from_ranges_with_files([region(4 * MIB, 0), region(5 * MIB, MIB)]).expect("mapped");
        mem.write_slice(&vec![7; 2 * MIB as usize], GuestAddress(4 * MIB)).expect("written");
        let before = file.metadata().expect("metadata").blocks();
        Holes::default().give_back(&mem, 5 * MIB - 4096, 3 * 4096).expect("taken");
        assert_eq!(before - file.metadata().expect("metadata").blocks(), 3 * 4096 / 512);
        let mut bytes = vec![1; 5 * 4096];
        mem.read_slice(&mut bytes, GuestAddress(5 * MIB - 2 * 4096)).expect("read");
        assert!(bytes[..4096].iter().chain(&bytes[4 * 4096..]).all(|byte| *byte == 7), "around the hole");
        assert!(bytes[4096..4 * 4096].iter().all(|byte| *byte == 0), "the hole");
    }

    #[test]
    fn memory_without_a_file_is_refused() {
        let mem = Memory::from_ranges(&[(GuestAddress(0), MIB as usize)]).expect("mapped");
        assert!(Holes::default().give_back(&mem, 0, 4096).is_err());
        assert!(Holes::default().give_back(&mem, u64::MAX, 4096).is_err());
    }
}
