//! Anonymous files for guest memory and programs (memfd_create(2)).

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};

/// An anonymous file of `len_bytes` zeros, closed on exec. `name` is what /proc shows.
pub fn create(name: &str, len_bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(len_bytes)?;
    Ok(file)
}
