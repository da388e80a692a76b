//! The initramfs of a kernel: `labyard-init` and the modules that mount the root, as a newc archive
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst). The same input is the same bytes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::store::{KernelRecord, Store};

/// An initramfs could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum InitramfsError {
    #[error("init {path}: reading it")]
    Init { path: PathBuf, source: io::Error },
    #[error("init {path}: it is not an ELF program")]
    NotElf { path: PathBuf },
    #[error("module {path}: reading it")]
    Module { path: PathBuf, source: io::Error },
    #[error("initramfs {path}: writing it")]
    Write { path: PathBuf, source: io::Error },
}

impl InitramfsError {
    /// The person's file is at fault, not the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Init { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NotElf { .. } => true,
            Self::Module { .. } | Self::Write { .. } => false,
        }
    }
}

/// What the initramfs starts.
#[derive(Debug)]
pub struct Init(Vec<u8>);

impl Init {
    /// Reads it.
    pub fn read(path: &Path) -> Result<Self, InitramfsError> {
        let program = fs::read(path).map_err(|source| InitramfsError::Init { path: path.to_owned(), source })?;
        match program.starts_with(b"\x7fELF") {
            true => Ok(Self(program)),
            false => Err(InitramfsError::NotElf { path: path.to_owned() }),
        }
    }
}

/// The initramfs for `kernel` with `init`; made unless it is there.
pub fn ensure(store: &Store, kernel: &KernelRecord, Init(program): &Init) -> Result<PathBuf, InitramfsError> {
    let name = format!("initramfs-{}.cpio", &Digest::of(program).hex()[..12]);
    let path = store.kernel_dir(kernel).join(&name);
    if path.exists() {
        return Ok(path);
    }
    let mut modules = Vec::new();
    for name in &kernel.early_modules {
        let path = store.early_dir(kernel).join(name);
        let bytes = fs::read(&path).map_err(|source| InitramfsError::Module { path, source })?;
        modules.push((format!("modules/{name}"), bytes));
    }
    let failed = |source| InitramfsError::Write { path: path.clone(), source };
    let work = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let written = archive(program, &modules).and_then(|bytes| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&work)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        fs::rename(&work, &path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&work); // not there is as good
    }
    written.map_err(failed)?;
    Ok(path)
}

/// Mode of a character device, and of folders and files.
const CHAR_DEVICE: u32 = 0o020_600;
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

fn archive(init: &[u8], modules: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut number = 0;
    let mut entry = |name: &str, mode: u32, device: (u32, u32), content: &[u8]| -> io::Result<()> {
        number += 1;
        let len = u32::try_from(content.len()).map_err(io::Error::other)?;
        let builder =
            cpio::newc::Builder::new(name).ino(number).mode(mode).nlink(1).rdev_major(device.0).rdev_minor(device.1);
        let mut writer = builder.write(&mut bytes, len);
        writer.write_all(content)?;
        writer.finish().map(|_| ())
    };
    for folder in ["dev", "proc", "sys", "newroot", "modules"] {
        entry(folder, FOLDER, (0, 0), &[])?;
    }
    // Without these two a program has no standard descriptors before devtmpfs is mounted.
    entry("dev/console", CHAR_DEVICE, (5, 1), &[])?;
    entry("dev/null", CHAR_DEVICE, (1, 3), &[])?;
    entry("init", PROGRAM, (0, 0), init)?;
    for (name, content) in modules {
        entry(name, FILE, (0, 0), content)?;
    }
    cpio::newc::trailer(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_init_devices_and_modules_in_order() {
        let modules =
            [("modules/virtio_mmio.ko".to_owned(), b"mmio".to_vec()), ("modules/b.ko".to_owned(), Vec::new())];
        let bytes = archive(b"\x7fELF", &modules).expect("an archive");
        assert_eq!(bytes, archive(b"\x7fELF", &modules).expect("an archive"), "the same bytes");
        let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
        loop {
            let reader = cpio::newc::Reader::new(rest).expect("an entry");
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            found.push((entry.name().to_owned(), entry.mode(), entry.rdev_minor(), entry.file_size()));
            rest = reader.finish().expect("the next entry");
        }
        let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "dev",
                "proc",
                "sys",
                "newroot",
                "modules",
                "dev/console",
                "dev/null",
                "init",
                "modules/virtio_mmio.ko",
                "modules/b.ko"
            ]
        );
        assert_eq!(found[6], ("dev/null".into(), CHAR_DEVICE, 3, 0));
        assert_eq!(found[8].3, 4);
    }
}
