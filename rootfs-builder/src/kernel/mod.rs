//! Guest kernels in the store: the ELF image, its modules as a disk, and what the initramfs needs to mount the root.
//!
//! The image and the modules are a person's own files: they are checked for what they are, not for malice. A kernel's folder
//! appears under its name by one rename.

mod elf;
pub mod image;
pub mod initramfs;
pub mod modules;
mod offer;
pub mod recipe;

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::build::{private, uuid_of};
use crate::digest::Digest;
use crate::ext4::{self, Ext4Error, Options, Size};
use crate::store::{self, KERNEL_FORMAT, KernelRecord, Store, StoreError};
use crate::temporary;
use crate::watch::{Interrupted, Watch};
use crate::workdir::{self, Workdir, WorkdirError};

// What changes in these lists, or otherwise in what a kernel's folder holds, raises `store::KERNEL_FORMAT`.
/// Modules that mount the root and show the console, where they are not built in.
const EARLY: &[&str] = &["virtio_mmio", "virtio_console", "virtio_blk", "ext4"];
/// Modules for everything else that a machine has.
const LATE: &[&str] =
    &["virtio_net", "vmw_vsock_virtio_transport", "virtio_rng", "virtio_balloon", "pvpanic_mmio", "button", "evdev"];
/// Without these, built in or as modules, no root is mounted and no machine is reached.
const NEEDED: &[&str] = &["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "ext4"];
/// In the version of kernels that are built from our configuration (`CONFIG_LOCALVERSION`).
const OURS: &str = "labyard";
/// Volume label of modules images.
const LABEL: &str = "labyard-modules";

/// A kernel could not be added.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum KernelError {
    #[error("kernel {path}: reading it")]
    Read { path: PathBuf, source: io::Error },
    #[error("kernel {path}")]
    Image { path: PathBuf, source: image::ImageError },
    #[error(
        "kernel folder {path}: it has no vmlinux or vmlinuz beside a folder modules; give --image and --modules instead"
    )]
    Folder { path: PathBuf },
    #[error("modules")]
    Modules(#[from] modules::ModulesError),
    #[error("modules {path}: they are of `{found}`, the kernel is `{version}`; give the folder lib/modules/{version}")]
    Mismatch { path: PathBuf, found: String, version: String },
    #[error("modules {path}: the kernel has no {name}, neither built in nor as a module; take one that has it")]
    Missing { path: PathBuf, name: &'static str },
    #[error("modules as a disk")]
    Disk(#[from] Ext4Error),
    #[error("store {path}: writing")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl KernelError {
    /// The person's files are at fault, not the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Image { .. }
            | Self::Folder { .. }
            | Self::Modules(_)
            | Self::Mismatch { .. }
            | Self::Missing { .. } => true,
            Self::Disk(error) => error.is_input(),
            Self::Write { .. } | Self::Store(_) | Self::Workdir(_) | Self::Interrupted(_) => false,
        }
    }
}

/// The image and the modules in a folder as `kernel/build` and `kernel/fetch` make it.
pub fn in_folder(folder: &Path) -> Result<(PathBuf, PathBuf), KernelError> {
    let image = ["vmlinux", "vmlinuz"].map(|name| folder.join(name)).into_iter().find(|path| path.exists());
    match (image, folder.join("modules")) {
        (Some(image), modules) if modules.is_dir() => Ok((image, modules)),
        _ => Err(KernelError::Folder { path: folder.to_owned() }),
    }
}

/// Adds a kernel; the record, and whether it was there already.
pub fn add(store: &Store, image: &Path, modules: &Path, watch: &Watch) -> Result<(KernelRecord, bool), KernelError> {
    let kernels = store.kernels_dir();
    workdir::remove_stale(&kernels).map_err(write_failed(&kernels))?;
    watch.at("reading the kernel", 0, 0)?;
    let failed = |source| KernelError::Image { path: image.to_owned(), source };
    let read = image::read(image).map_err(|source| KernelError::Read { path: image.to_owned(), source })?;
    let (elf, end) = read.and_then(image::elf_of).map_err(failed)?;
    let version = image::version_of(&elf).map_err(failed)?;
    let index = modules::Index::read(modules)?;
    if let Some(found) = index.version.as_deref().filter(|found| *found != version) {
        return Err(KernelError::Mismatch { path: modules.to_owned(), found: found.to_owned(), version });
    }
    if let Some(name) = NEEDED.iter().find(|name| !index.has(name)) {
        return Err(KernelError::Missing { path: modules.to_owned(), name });
    }
    let digest = Digest::of(&elf);
    let id = format!("{version}-{}", &digest.hex()[..12]);
    let work = Workdir::enter(&kernels, &id, watch)?;
    let replaced = match store.kernel_by_id(&id)? {
        Some(record) if record.is_current() && store.has_offer(&record) => return Ok((record, true)),
        other => other,
    };
    let record = KernelRecord {
        id,
        series: version.split('.').take(2).collect::<Vec<_>>().join("."),
        digest: digest.to_string(),
        early_modules: copy_early(&index, &work.path().join("early"))?,
        late_modules: index.load_order(LATE).iter().map(|path| modules::name_of(path)).collect(),
        stock: !version.contains(OURS),
        min_memory_mib: elf::min_memory_mib(end),
        format: KERNEL_FORMAT,
        version,
    };
    let config = offer::config(image, &record.version, &elf)
        .map_err(|source| KernelError::Read { path: image.to_owned(), source })?;
    if let Some(text) = config {
        write(&work.path().join(store::CONFIG), text.as_bytes())?;
    }
    write(&work.path().join(store::MODULES), offer::modules(&index).as_bytes())?;
    write(&work.path().join("vmlinux"), &elf)?;
    drop(elf);
    modules_disk(&index, &digest, &work, watch)?;
    let path = work.path().join("kernel.json");
    let text = serde_json::to_vec_pretty(&record).map_err(io::Error::other).map_err(write_failed(&path))?;
    write(&path, &text)?;
    if let Some(other) = replaced {
        store.remove_kernel(&other)?;
    }
    work.publish(&store.kernel_dir(&record))?;
    Ok((record, false))
}

fn write_failed(path: &Path) -> impl Fn(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Write { path: path.clone(), source }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    let written = private(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(write_failed(path))
}

/// Copies what mounts the root; file names in load order.
fn copy_early(index: &modules::Index, folder: &Path) -> Result<Vec<String>, KernelError> {
    DirBuilder::new().mode(0o700).create(folder).map_err(write_failed(folder))?;
    let mut names = Vec::new();
    for path in index.load_order(EARLY) {
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        let from = index.folder.join(path);
        let bytes = fs::read(&from).map_err(|source| KernelError::Read { path: from, source })?;
        write(&folder.join(&name), &bytes)?;
        names.push(name);
    }
    Ok(names)
}

fn modules_disk(index: &modules::Index, kernel: &Digest, work: &Workdir, watch: &Watch) -> Result<(), KernelError> {
    let path = work.path().join("modules.ext4");
    let spool = temporary::unnamed(work.path()).map_err(write_failed(&path))?;
    let (mut tree, spools) = index.tree(spool, watch)?;
    let disk = private(&path).map_err(write_failed(&path))?;
    let options = Options {
        size: Size::Fit,
        uuid: uuid_of(kernel, "modules"),
        hash_seed: uuid_of(kernel, "directory hashes of modules"),
        label: LABEL.to_owned(),
    };
    ext4::write(&mut tree, &spools, &options, &disk, watch)?;
    disk.sync_all().map_err(write_failed(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that was added before a list grew would silently lack what it names.
    #[test]
    fn other_lists_are_another_format() {
        let early = ["virtio_mmio", "virtio_console", "virtio_blk", "ext4"];
        let late = "virtio_net vmw_vsock_virtio_transport virtio_rng virtio_balloon pvpanic_mmio button evdev";
        assert_eq!((KERNEL_FORMAT, EARLY, LATE.join(" ").as_str()), (1, early.as_slice(), late));
    }
}
