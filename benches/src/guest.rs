//! Kernel and initramfs of the guests that are measured.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

/// What `labyard-init` writes to ttyS0 as its first act (`labyard_spec::guest::BOOT_MARKER`; a bench may not name `spec`, and one
/// that waits for another line ends with an error).
pub const MARKER: &str = "labyard-init: reached user space";

/// File types of cpio entries (stat(2)).
pub(crate) const FOLDER: u32 = 0o040_755;
pub(crate) const PROGRAM: u32 = 0o100_755;
pub(crate) const FILE: u32 = 0o100_644;
pub(crate) const NODE: u32 = 0o020_666;

/// The ELF image of a kernel: the file itself, or what a bzImage with a zstd payload holds.
pub fn elf(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    // Linux, Documentation/arch/x86/boot.rst: setup_sects, HdrS, payload_offset, payload_length.
    let word = |at: usize| -> Result<usize> {
        let four = bytes.get(at..at + 4).with_context(|| format!("{}: too short for a kernel", path.display()))?;
        Ok(u32::from_le_bytes(four.try_into()?) as usize)
    };
    ensure!(bytes.get(0x202..0x206) == Some(b"HdrS"), "{}: neither an ELF image nor a bzImage", path.display());
    let start = (usize::from(bytes[0x1f1]) + 1) * 512 + word(0x248)?;
    let payload = bytes.get(start..start + word(0x24c)?).context("the bzImage's payload is cut off")?;
    // The kernel's build appends the size.
    let (compressed, size) = payload.split_last_chunk::<4>().context("the bzImage's payload is empty")?;
    let elf = zstd::bulk::decompress(compressed, u32::from_le_bytes(*size) as usize);
    elf.with_context(|| format!("{}: only zstd payloads are understood", path.display()))
}

/// An initramfs with `labyard-init` that writes the marker, and then waits for a drive that never comes: time to look at the VMM.
pub fn initramfs(init: &Path) -> Result<Vec<u8>> {
    let init = fs::read(init).with_context(|| init.display().to_string())?;
    let machine = json!({
        "hostname": "bench", "hosts": [], "interfaces": [], "nameservers": [],
        "drives": [{"serial": "d00", "mount": "/", "filesystem": "ext4", "read_only": true}],
        "entrypoint": null, "early_modules": [], "late_modules": [], "boot_marker": true,
    });
    let mut archive = Vec::new();
    entry(&mut archive, "dev", FOLDER, (0, 0), &[]);
    entry(&mut archive, "dev/console", NODE, (5, 1), &[]);
    entry(&mut archive, "dev/null", NODE, (1, 3), &[]);
    entry(&mut archive, "init", PROGRAM, (0, 0), &init);
    entry(&mut archive, "machine.json", FILE, (0, 0), &serde_json::to_vec(&machine)?);
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    Ok(archive)
}

/// Appends one entry (Linux, Documentation/driver-api/early-userspace/buffer-format.rst): magic, thirteen numbers, name, data.
pub(crate) fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
    let number = archive.len() as u32 + 1;
    let (size, name_size) = (data.len() as u32, name.len() as u32 + 1);
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_start_at_four_bytes_and_tell_their_sizes() {
        let mut archive = Vec::new();
        entry(&mut archive, "init", PROGRAM, (0, 0), b"12345");
        entry(&mut archive, "dev/null", NODE, (1, 3), &[]);
        assert_eq!(&archive[..6], b"070701");
        assert_eq!(&archive[54..62], b"00000005", "the size of the data");
        assert_eq!(&archive[94..102], b"00000005", "the length of the name with its zero");
        let second = (110 + 5usize).next_multiple_of(4) + 8;
        assert_eq!(&archive[second..second + 6], b"070701");
        assert_eq!(&archive[second + 78..second + 94], b"0000000100000003", "the device's number");
    }

    #[test]
    fn a_file_that_is_no_kernel_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), vec![0; 4096]).expect("written");
        let error = elf(file.path()).expect_err("no kernel").to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
