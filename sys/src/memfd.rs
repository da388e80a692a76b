//! Anonymous files for guest memory and programs (memfd_create(2)).

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

/// Bytes of a huge page of [`create_huge`].
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// An anonymous file of `len_bytes` zeros, closed on exec. `name` is what /proc shows.
pub fn create(name: &str, len_bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(len_bytes)?;
    Ok(file)
}

/// The same in huge pages of 2 MiB (MFD_HUGETLB), all of them taken from those that the host has set aside.
///
/// # Errors
/// `ENOSPC` or `ENOMEM` where not so many are free; nothing is kept then.
pub fn create_huge(name: &str, len_bytes: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = File::from(memfd_create(name, flags)?);
    file.set_len(len_bytes)?;
    fallocate(&file, FallocateFlags::empty(), 0, len_bytes)?;
    Ok(file)
}
