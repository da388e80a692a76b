//! The drives of a machine as files: empty ones for the layers that it writes, and blank disks that drives lie on.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use labyard_spec::guest::{self, MachineConfig};
use labyard_spec::manifest::lab::Filesystem;

use rustix::fs::{FlockOperation, flock};

use crate::home::Home;
use crate::plan::FoundBase;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DiskError {
    #[error("disk {path}: {doing}")]
    File { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("disk {path}: {tool} is needed to format it: {why}")]
    Format { path: PathBuf, tool: String, why: String },
    #[error(
        "to make a drive with {filesystem} this host lacks {tool}: install {package} (Debian's name of the package)"
    )]
    NoTool { filesystem: &'static str, tool: String, package: &'static str },
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

/// Empty files for a layer, and they stay there: the vmm makes the layer in them. Those that are there are what a drive has written,
/// and are kept.
///
/// # Errors
/// What the file system says.
pub fn layer(paths: &[PathBuf; 2]) -> Result<(), DiskError> {
    for path in paths {
        match create(path) {
            Err(DiskError::File { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made.map(drop)?,
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        // A power cut must not take the name of a file in which a guest has flushed something.
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(file_error(folder, "syncing"))?;
    }
    Ok(())
}

/// Folder of the blank disks, in the state directory.
pub const BLANKS: &str = "blanks";
/// In it: held by who relies on them without a plan that says so, and by who removes some.
const BLANKS_LOCK: &str = ".lock";

/// Whether a file is a blank disk.
pub fn is_blank(path: &Path) -> bool {
    path.parent().and_then(Path::file_name).is_some_and(|folder| folder == BLANKS)
}

/// The folder of the blank disks, from which none is removed while this lives, or which one alone has who removes them.
#[derive(Debug)]
pub struct Blanks {
    /// Where it is.
    pub path: PathBuf,
    #[expect(dead_code, reason = "closing it gives the lock back")]
    lock: File,
}

impl Blanks {
    /// For who finds or makes some, until a plan names them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn rely_on(home: &Home) -> Result<Self, DiskError> {
        let (path, lock) = Self::open(home)?;
        // Who has it alone has it for moments.
        flock(&lock, FlockOperation::LockShared).map_err(|error| file_error(&path, "locking")(error.into()))?;
        Ok(Self { path, lock })
    }

    /// For who removes some; `None` where somebody relies on them.
    ///
    /// # Errors
    /// What the file system says.
    pub fn alone(home: &Home) -> Result<Option<Self>, DiskError> {
        let (path, lock) = Self::open(home)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path, lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(file_error(&path, "locking")(error.into())),
        }
    }

    fn open(home: &Home) -> Result<(PathBuf, File), DiskError> {
        let path = home.path.join(BLANKS);
        let open = || -> io::Result<File> {
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join(BLANKS_LOCK))
        };
        let lock = open().map_err(file_error(&path, "opening the folder"))?;
        Ok((path, lock))
    }

    /// Every disk, and what somebody who was killed has left half made.
    ///
    /// # Errors
    /// What the file system says.
    pub fn all(&self) -> Result<Vec<PathBuf>, DiskError> {
        let failed = || file_error(&self.path, "listing");
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if entry.file_name() != BLANKS_LOCK {
                all.push(entry.path());
            }
        }
        all.sort();
        Ok(all)
    }
}

/// A blank disk that drives lie on, in the folder `blanks`: the `number`th of its kind, since drives of one machine may not have one
/// file system twice. Made where it is missing, by host tools on a plain file, without privileges; found by name afterwards.
///
/// # Errors
/// What the file system or the tool says.
pub fn blank(
    blanks: &Path,
    size_bytes: u64,
    filesystem: Option<Filesystem>,
    number: usize,
) -> Result<FoundBase, DiskError> {
    let kind = format!("{}-{size_bytes}-{number}-", filesystem.map_or("raw", Filesystem::name));
    let listed = fs::read_dir(blanks).map_err(file_error(blanks, "listing"))?;
    let mut names: Vec<_> = listed.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let stem = |name: &String| name.strip_suffix(".disk").filter(|stem| stem.starts_with(&kind)).map(str::to_owned);
    if let Some(name) = names.iter().find_map(stem) {
        return Ok(FoundBase { path: blanks.join(format!("{name}.disk")), name });
    }
    let mut id = [0; 4];
    labyard_sys::random::fill(&mut id).map_err(file_error(blanks, "naming a blank disk in it"))?;
    let name = format!("{kind}{:08x}", u32::from_le_bytes(id));
    let (path, draft) = (blanks.join(format!("{name}.disk")), blanks.join(format!(".{name}")));
    let made = format(&draft, size_bytes, filesystem).and_then(|()| {
        let finish = || {
            File::open(&draft)?.sync_all()?;
            fs::set_permissions(&draft, PermissionsExt::from_mode(0o400))?;
            fs::rename(&draft, &path)?;
            File::open(blanks)?.sync_all()
        };
        finish().map_err(file_error(&path, "putting it into the store"))
    });
    if let Err(error) = made {
        // What is half made helps nobody; the reason is what counts.
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    Ok(FoundBase { path, name })
}

/// A disk of zeros, formatted where a file system is asked for.
fn format(path: &Path, size_bytes: u64, filesystem: Option<Filesystem>) -> Result<(), DiskError> {
    let file = create(path)?;
    file.set_len(size_bytes).map_err(file_error(path, "sizing"))?;
    let Some(filesystem) = filesystem else { return Ok(()) };
    let tool = format!("mkfs.{}", filesystem.name());
    let failed = |why: String| DiskError::Format { path: path.to_owned(), tool: tool.clone(), why };
    let mut command = Command::new(&tool);
    match filesystem {
        Filesystem::Ext4 | Filesystem::Ext3 | Filesystem::Ext2 => command.args(["-q", "-F", "-b", "4096"]),
        Filesystem::Xfs | Filesystem::Btrfs => command.args(["-q", "-f"]),
        // No manifest asks for one.
        Filesystem::Erofs => return Err(failed("a blank one would stay blank".to_owned())),
    };
    // Administrators' tools are not on everybody's PATH.
    let folders = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output =
        command.arg(path).env("PATH", folders).stdin(Stdio::null()).output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => no_tool(filesystem, tool.clone()),
            _ => failed(error.to_string()),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failed(words.trim().lines().next_back().unwrap_or("it failed without a word").to_owned()))
}

fn no_tool(filesystem: Filesystem, tool: String) -> DiskError {
    let package = match filesystem {
        Filesystem::Ext4 | Filesystem::Ext3 | Filesystem::Ext2 => "e2fsprogs",
        Filesystem::Xfs => "xfsprogs",
        Filesystem::Btrfs => "btrfs-progs",
        Filesystem::Erofs => "erofs-utils",
    };
    DiskError::NoTool { filesystem: filesystem.name(), tool, package }
}

/// Writes the archive with `/machine.json` that is loaded behind the initramfs.
///
/// # Errors
/// What the file system says.
pub fn machine_archive(path: &Path, config: &MachineConfig) -> Result<(), DiskError> {
    let text = serde_json::to_vec(config).expect("plain data has a JSON form");
    let write = || -> io::Result<()> {
        let len = u32::try_from(text.len()).map_err(io::Error::other)?;
        let draft = path.with_extension("draft");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        let name = guest::PATH.trim_start_matches('/');
        let mut entry = cpio::newc::Builder::new(name).mode(0o100_600).nlink(1).write(file, len);
        io::Write::write_all(&mut entry, &text)?;
        cpio::newc::trailer(entry.finish()?)?;
        fs::rename(&draft, path)
    };
    write().map_err(file_error(path, "writing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_blank_disk_is_made_once_for_each_kind_and_number() {
        let folder = tempfile::tempdir().expect("a folder");
        let make = |filesystem, number| blank(folder.path(), 64 << 20, filesystem, number).expect("a disk");
        let first = make(Some(Filesystem::Ext4), 0);
        assert_eq!(make(Some(Filesystem::Ext4), 0), first);
        assert!(first.name.starts_with("ext4-67108864-0-") && first.name.len() < 64, "{}", first.name);
        let meta = fs::metadata(&first.path).expect("metadata");
        assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (64 << 20, 0o400));
        assert!(meta.blocks() * 512 < 16 << 20, "sparse: {} blocks", meta.blocks());
        let others = [make(Some(Filesystem::Ext4), 1), make(Some(Filesystem::Ext2), 0), make(None, 0)];
        assert!(others.iter().all(|other| other.name != first.name));
        let error = blank(folder.path(), 4096, Some(Filesystem::Ext4), 0).expect_err("too small").to_string();
        assert!(error.contains("mkfs.ext4"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).expect("listing").count(), 4, "no draft is left");
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
            startup_files: vec![],
            users: vec![],
            bake: false,
            boot_marker: false,
        };
        machine_archive(&path, &config).expect("writing");
        let mut entry = cpio::newc::Reader::new(File::open(&path).expect("opening")).expect("an entry");
        assert_eq!(entry.entry().name(), "machine.json");
        let mut text = String::new();
        io::Read::read_to_string(&mut entry, &mut text).expect("reading");
        assert_eq!(serde_json::from_str::<MachineConfig>(&text).expect("a config"), config);
    }

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let said = no_tool(Filesystem::Xfs, "mkfs.xfs".to_owned()).to_string();
        assert_eq!(
            said,
            "to make a drive with xfs this host lacks mkfs.xfs: install xfsprogs (Debian's name of the package)"
        );
    }
}
