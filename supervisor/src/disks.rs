//! The drives of a machine as files: a private copy of an image, a blank file system, or nothing but zeros. Holes stay holes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use labyard_spec::guest::{self, MachineConfig};
use labyard_spec::manifest::lab::Filesystem;
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes that are copied between two looks at whether to go on.
const CHUNK_BYTES: usize = 16 << 20;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DiskError {
    #[error("disk {path}: {doing}")]
    File { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("disk {path}: the image has {image} bytes, the drive only {drive}; give it a larger size")]
    Small { path: PathBuf, image: u64, drive: u64 },
    #[error("disk {path}: {tool} is needed to format it: {why}")]
    Format { path: PathBuf, tool: String, why: String },
    #[error("interrupted")]
    Interrupted,
}

fn file_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::File { path, doing, source }
}

fn create(path: &Path) -> Result<File, DiskError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(file_error(path, "making"))
}

/// A private copy of `image` with `size_bytes`: shared extents where the file system can, else the data and none of the holes.
///
/// # Errors
/// What the file system says, or that `cancelled` was set.
pub fn copy(image: &Path, path: &Path, size_bytes: u64, cancelled: &AtomicBool) -> Result<(), DiskError> {
    let from = File::open(image).map_err(file_error(image, "opening"))?;
    let len = from.metadata().map_err(file_error(image, "looking at"))?.len();
    if len > size_bytes {
        return Err(DiskError::Small { path: path.to_owned(), image: len, drive: size_bytes });
    }
    let to = create(path)?;
    if ioctl_ficlone(&to, &from).is_err() {
        copy_data(&from, &to, cancelled).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => DiskError::Interrupted,
            _ => file_error(path, "copying its image")(error),
        })?;
    }
    to.set_len(size_bytes).map_err(file_error(path, "sizing"))
}

/// Copies what is no hole. `Interrupted` means `cancelled`.
fn copy_data(from: &File, to: &File, cancelled: &AtomicBool) -> io::Result<()> {
    let mut position = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()), // nothing but a hole is left (lseek(2))
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        position = start;
        while position < end {
            if cancelled.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let wanted = usize::try_from(end - position).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            position += copy_some(from, to, position, wanted)?;
        }
    }
}

/// Copies up to `wanted` bytes at `position`, inside the kernel where the two file systems allow it.
fn copy_some(from: &File, to: &File, position: u64, wanted: usize) -> io::Result<u64> {
    let (mut source, mut target) = (position, position);
    match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(n) => Ok(n as u64),
        Err(Errno::INTR) => Ok(0),
        Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
            let mut buffer = vec![0; wanted.min(1 << 20)];
            let n = from.read_at(&mut buffer, position)?;
            match buffer.get(..n).filter(|data| !data.is_empty()) {
                Some(data) => to.write_all_at(data, position)?,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            Ok(n as u64)
        }
        Err(error) => Err(error.into()),
    }
}

/// A disk of zeros, formatted where a file system is asked for. Host tools do that on the plain file, without privileges.
///
/// # Errors
/// What the file system or the tool says.
pub fn blank(path: &Path, size_bytes: u64, filesystem: Option<Filesystem>) -> Result<(), DiskError> {
    let file = create(path)?;
    file.set_len(size_bytes).map_err(file_error(path, "sizing"))?;
    let Some(filesystem) = filesystem else { return Ok(()) };
    let tool = format!("mkfs.{}", filesystem.name());
    let failed = |why: String| DiskError::Format { path: path.to_owned(), tool: tool.clone(), why };
    let mut command = Command::new(&tool);
    match filesystem {
        Filesystem::Ext4 | Filesystem::Ext3 | Filesystem::Ext2 => command.args(["-q", "-F", "-b", "4096"]),
        Filesystem::Xfs | Filesystem::Btrfs => command.args(["-q", "-f"]),
    };
    // Administrators' tools are not on everybody's PATH.
    let folders = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = command
        .arg(path)
        .env("PATH", folders)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(words.trim().lines().next_back().unwrap_or("it failed without a word").to_owned()))
}

/// Writes the archive with `/machine.json` that is loaded behind the initramfs.
///
/// # Errors
/// What the file system says.
pub fn machine_archive(path: &Path, config: &MachineConfig) -> Result<(), DiskError> {
    let text = serde_json::to_vec(config).expect("plain data has a JSON form");
    let write = || -> io::Result<()> {
        let len = u32::try_from(text.len()).map_err(io::Error::other)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let name = guest::PATH.trim_start_matches('/');
        let mut entry = cpio::newc::Builder::new(name).mode(0o100_600).nlink(1).write(file, len);
        io::Write::write_all(&mut entry, &text)?;
        cpio::newc::trailer(entry.finish()?).map(|_| ())
    };
    write().map_err(file_error(path, "writing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_has_the_data_the_size_and_the_holes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (image, disk) = (folder.path().join("image"), folder.path().join("disk"));
        let file = create(&image).expect("making");
        file.set_len(64 << 20).expect("sizing");
        for position in [0, 3 << 20, (64 << 20) - 5] {
            file.write_all_at(b"data!", position).expect("writing");
        }
        copy(&image, &disk, 128 << 20, &AtomicBool::new(false)).expect("copying");
        let copy = File::open(&disk).expect("opening");
        let meta = copy.metadata().expect("metadata");
        assert_eq!(meta.len(), 128 << 20);
        assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
        for position in [0, 3 << 20, (64 << 20) - 5] {
            let mut data = [0; 5];
            copy.read_exact_at(&mut data, position).expect("reading");
            assert_eq!(&data, b"data!");
        }
    }

    #[test]
    fn a_copy_is_refused_where_it_would_cut_the_image_and_stops_when_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("image");
        create(&image)
            .and_then(|file| file.write_all_at(&[1; 8192], 0).map_err(file_error(&image, "x")))
            .expect("making");
        let copy = |name: &str, size, stop| copy(&image, &folder.path().join(name), size, &AtomicBool::new(stop));
        assert!(matches!(copy("a", 4096, false), Err(DiskError::Small { .. })));
        assert!(matches!(copy("b", 8192, true), Err(DiskError::Interrupted)));
    }

    #[test]
    fn the_archive_has_one_file_that_init_finds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("machine.cpio");
        let config = MachineConfig {
            hostname: "web".into(),
            hosts: vec![],
            interfaces: vec![],
            nameservers: vec![],
            drives: vec![],
            entrypoint: None,
            early_modules: vec![],
            late_modules: vec![],
            boot_marker: false,
        };
        machine_archive(&path, &config).expect("writing");
        let mut entry = cpio::newc::Reader::new(File::open(&path).expect("opening")).expect("an entry");
        assert_eq!(entry.entry().name(), "machine.json");
        let mut text = String::new();
        io::Read::read_to_string(&mut entry, &mut text).expect("reading");
        assert_eq!(serde_json::from_str::<MachineConfig>(&text).expect("a config"), config);
    }
}
