//! Guest memory to a file and back: byte n of the file is byte n of the machine's memfd. Pages of zeros are holes.
//!
//! It is read through the memfd, so no reference to guest memory is formed; its vCPUs and devices stand still.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use labyard_devices::Memory;
use labyard_sys::iov::{self, GuestSlices};
use labyard_sys::space;
use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions};

use super::{SnapshotError, file_error, must_be_empty};

/// Bytes of one system call at most.
const CHUNK_BYTES: u64 = 16 << 20;
/// Bytes that are looked at together: what fits into a cache.
const LOOK_BYTES: u64 = 256 << 10;
/// What is a hole or is not.
const PAGE_BYTES: usize = 4096;

/// Writes what is not zero to an empty file.
///
/// # Errors
/// The file is not empty, or what the file system says.
pub fn save(mem: &Memory, to: &File) -> Result<(), SnapshotError> {
    must_be_empty(to, "the file for a machine's memory")?;
    let mut buffer = vec![0; LOOK_BYTES as usize];
    for_each_region(mem, |_, from, offset, len| {
        for data in space::data_ranges(from, offset..offset + len) {
            let mut at = data.start;
            while at < data.end {
                let part = buffer.get_mut(..(data.end - at).min(LOOK_BYTES) as usize).unwrap_or_default();
                from.read_exact_at(part, at)?;
                write_pages(part, to, at)?;
                at += part.len() as u64;
            }
        }
        Ok(())
    })
    .and_then(|()| to.set_len(file_bytes(mem)))
    .and_then(|()| to.sync_data())
    .map_err(file_error("writing a machine's memory"))
}

/// Writes runs of pages that are not zero, each with one call.
fn write_pages(bytes: &[u8], to: &File, offset: u64) -> io::Result<()> {
    static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let is_zero = |page: &&[u8]| ZEROS.get(..page.len()) == Some(*page);
    let pages: Vec<_> = bytes.chunks(PAGE_BYTES).collect();
    let mut at = offset;
    for run in pages.chunk_by(|page, next| is_zero(page) == is_zero(next)) {
        let len: usize = run.iter().map(|page| page.len()).sum();
        if !run.first().is_none_or(is_zero) {
            let start = (at - offset) as usize;
            to.write_all_at(bytes.get(start..start + len).unwrap_or_default(), at)?;
        }
        at += len as u64;
    }
    Ok(())
}

/// Fills fresh memory from what `save` wrote.
///
/// # Errors
/// The file is not as long as the memory, or what the file system says.
pub fn restore(mem: &Memory, from: &File) -> Result<(), SnapshotError> {
    let (found, expected) =
        (from.metadata().map_err(file_error("looking at a machine's memory"))?.len(), file_bytes(mem));
    if found != expected {
        return Err(SnapshotError::Other(format!(
            "the file of a machine's memory has {found} bytes, the machine {expected}"
        )));
    }
    for_each_region(mem, |guest, _, offset, len| {
        for data in space::data_ranges(from, offset..offset + len) {
            let (start, stop) = (data.start, data.end);
            transfer(mem, guest + (start - offset), start, stop - start, |slices, at| {
                iov::read_exact_at(from.as_fd(), slices, at)
            })?;
        }
        Ok(())
    })
    .map_err(file_error("reading a machine's memory"))
}

/// Calls with guest address, file, offset in the file and length of each region.
fn for_each_region(mem: &Memory, mut call: impl FnMut(u64, &File, u64, u64) -> io::Result<()>) -> io::Result<()> {
    for region in mem.iter() {
        let backing = region.file_offset().ok_or(io::ErrorKind::Unsupported)?;
        call(region.start_addr().raw_value(), backing.file(), backing.start(), region.len())?;
    }
    Ok(())
}

fn file_bytes(mem: &Memory) -> u64 {
    mem.iter().map(GuestMemoryRegion::len).sum()
}

/// Moves `len` bytes at a guest address and a file offset, in chunks.
fn transfer(
    mem: &Memory,
    mut guest: u64,
    mut offset: u64,
    mut len: u64,
    mut step: impl FnMut(&mut GuestSlices<'_>, u64) -> io::Result<()>,
) -> io::Result<()> {
    while len > 0 {
        let part = len.min(CHUNK_BYTES);
        let mut slices = GuestSlices::new();
        let room = GuestMemory::get_slices(mem, GuestAddress(guest), part as usize, Permissions::ReadWrite);
        for slice in room.map_err(io::Error::other)? {
            if !slices.push(slice.map_err(io::Error::other)?) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        step(&mut slices, offset)?;
        (guest, offset, len) = (guest + part, offset + part, len - part);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::memory::map;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::Bytes;

    fn memory(bytes: u64) -> Memory {
        map("test", bytes, false).expect("memory").mem
    }

    #[test]
    fn memory_comes_back_and_zeros_take_no_room() {
        let mem = memory(64 << 20);
        // Touched, and zeros all the same.
        mem.write_slice(&vec![0; 8 << 20], GuestAddress(32 << 20)).expect("in memory");
        for address in [0u64, 0x1003, 5 << 20, (64 << 20) - 3] {
            mem.write_slice(b"abc", GuestAddress(address)).expect("in memory");
        }
        let file = tempfile::tempfile().expect("a file");
        save(&mem, &file).expect("saving");
        let meta = file.metadata().expect("metadata");
        assert_eq!(meta.len(), 64 << 20);
        assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
        let fresh = memory(64 << 20);
        restore(&fresh, &file).expect("restoring");
        for address in [0u64, 0x1003, 5 << 20, (64 << 20) - 3] {
            let mut bytes = [0; 3];
            fresh.read_slice(&mut bytes, GuestAddress(address)).expect("in memory");
            assert_eq!(&bytes, b"abc", "{address:#x}");
        }
    }

    #[test]
    fn a_file_that_has_something_in_it_is_not_written_to() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1).expect("sizing");
        let error = save(&memory(2 << 20), &file).expect_err("not empty");
        assert!(error.to_string().contains("has 1 bytes already"), "{error}");
    }

    #[test]
    fn memory_of_another_size_is_refused() {
        let file = tempfile::tempfile().expect("a file");
        save(&memory(2 << 20), &file).expect("saving");
        let error = restore(&memory(4 << 20), &file).expect_err("half of it");
        assert!(error.to_string().contains("2097152 bytes, the machine 4194304"), "{error}");
    }
}
