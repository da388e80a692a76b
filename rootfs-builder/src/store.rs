//! The content store below the state directory: `images/<key>/` and `kernels/<id>/`, and the record in each.
//!
//! A folder with its final name is complete and is never written again, except that a kernel gains initramfs files by rename.
//! So readers take no lock. Records are our own files; their length is still bounded before they are read, and a folder
//! without a readable record is reported, not skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use labyard_spec::guest::Entrypoint;
use labyard_spec::needs::{self, KernelNeeds, KernelOffer};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The series that is taken where nobody asks for one.
pub const DEFAULT_SERIES: &str = "6.12";
/// What a kernel's folder holds, as a number: raised where a kernel that was added before lacks what machines now load or need.
pub const KERNEL_FORMAT: u32 = 1;
/// After a series: a distribution's kernel, or ours.
const STOCK: &str = "-stock";
const TUNED: &str = "-tuned";
/// A kernel's configuration, and the names of its modules; beside its record.
pub(crate) const CONFIG: &str = "config";
pub(crate) const MODULES: &str = "modules";
/// Longest of the two in bytes.
const MAX_OFFER_BYTES: u64 = 8 << 20;
/// Longest record in bytes.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// A state directory as seen by whoever looks for images and kernels.
#[derive(Debug, Clone)]
pub struct Store {
    /// The state directory (`$LABYARD_HOME`).
    pub home: PathBuf,
}

/// `image.json`: one built image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// SHA-256 over diff ids, options and writer version; the folder's name.
    pub key: String,
    /// As asked for.
    pub source: String,
    /// Digest of the manifest (`sha256:…`); of the archive where the source has no manifest.
    pub digest: String,
    /// Diff ids of the layers, lowest first.
    pub layers: Vec<String>,
    /// Size of the disk.
    pub size_bytes: u64,
    /// `ext4`, or `erofs` for one that is only ever read.
    pub filesystem: String,
    /// UUID of the file system.
    pub uuid: String,
    /// The image has an init of its own (`/sbin/init` or systemd).
    pub init: bool,
    /// What the image's configuration starts.
    pub entrypoint: Option<Entrypoint>,
    /// Files, folders, links and nodes in the tree.
    pub entries: u64,
    /// Version of the writer that made the bytes.
    pub writer: u32,
    /// Digest of the disk ([`crate::disk`]); `None` where it was built before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Digests of the registry's blobs that it was built from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<String>,
    /// What it needs of the kernel.
    #[serde(default, skip_serializing_if = "KernelNeeds::is_empty")]
    pub kernel: KernelNeeds,
    /// It was imported, and nobody has built it here: that its disk is made of its layers is its file's word alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unproved: bool,
}

/// Bytes that an image takes on the host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Its disk, and blobs that no other image was built from: what goes with it, once its blobs are pruned.
    pub unique_bytes: u64,
    /// Blobs that other images were built from, too.
    pub shared_bytes: u64,
}

/// `kernel.json`: one guest kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// `<version>-<first 12 hex digits of the ELF's SHA-256>`; the folder's name.
    pub id: String,
    /// `uname -r` of the kernel.
    pub version: String,
    /// Its first two numbers, such as `6.12`.
    pub series: String,
    /// `sha256:` of `vmlinux`.
    pub digest: String,
    /// File names in `early/`, in load order.
    pub early_modules: Vec<String>,
    /// Names to load once the modules image is mounted, dependencies first.
    #[serde(default)]
    pub late_modules: Vec<String>,
    /// A distribution's kernel as it was packaged, not built from our configuration.
    pub stock: bool,
    /// A machine with less memory does not get as far as its init; 0 where nobody knows.
    #[serde(default)]
    pub min_memory_mib: u64,
    /// [`KERNEL_FORMAT`] of the version that added it; 0 before there was one.
    #[serde(default)]
    pub format: u32,
}

impl KernelRecord {
    /// Whether it has what this version expects of a kernel in the store.
    pub fn is_current(&self) -> bool {
        self.format == KERNEL_FORMAT
    }

    /// Whether `wanted` means it: its id, its version, its series, or the series with `-stock` or `-tuned`.
    fn is_meant_by(&self, wanted: &str) -> bool {
        let origin = if self.stock { STOCK } else { TUNED };
        let series = wanted.strip_suffix(origin).unwrap_or(wanted);
        wanted == self.id || wanted == self.version || series == self.series
    }
}

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StoreError {
    #[error("store {path}: creating it")]
    Create { path: PathBuf, source: io::Error },
    #[error("store {path}: removing")]
    Remove { path: PathBuf, source: io::Error },
    #[error("store {path}: reading")]
    Read { path: PathBuf, source: io::Error },
    #[error("store record {path}: {bytes} bytes, more than {MAX_RECORD_BYTES}; remove its folder and build again")]
    Long { path: PathBuf, bytes: u64 },
    #[error("store record {path}: not what this version writes; remove its folder and build again")]
    Record { path: PathBuf, source: serde_json::Error },
    #[error("store record {path}: it calls itself `{found}`; remove its folder and build again")]
    Misplaced { path: PathBuf, found: String },
    #[error(
        "kernel `{wanted}`: not in the store; there is: {there}; build or add one with `labyard kernel build` or `labyard kernel add`"
    )]
    NoKernel { wanted: String, there: String },
    #[error(
        "kernel {id}: another version of labyard put it into the store, with other modules than this one loads; add it again with `labyard kernel add` or `labyard kernel build`, which replaces it"
    )]
    OtherFormat { id: String },
}

impl Store {
    /// The store below `home`; makes its folders (mode 0700) where they are missing.
    pub fn open(home: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self { home: home.into() };
        for path in [store.images_dir(), store.kernels_dir()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| StoreError::Create { path, source })?;
        }
        Ok(store)
    }

    /// Where images lie.
    pub fn images_dir(&self) -> PathBuf {
        self.home.join("images")
    }

    /// Where kernels lie.
    pub fn kernels_dir(&self) -> PathBuf {
        self.home.join("kernels")
    }

    /// The image with this key; `None` where it has not been built.
    pub fn image(&self, key: &str) -> Result<Option<ImageRecord>, StoreError> {
        read_named(&self.images_dir(), key, "image.json", |record: &ImageRecord| &record.key)
    }

    /// Every image, ordered by key.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        list(&self.images_dir())?.iter().filter_map(|key| self.image(key).transpose()).collect()
    }

    /// Every image's key, whether its record can be read or not.
    pub fn image_keys(&self) -> Result<Vec<String>, StoreError> {
        list(&self.images_dir())
    }

    /// The folder of an image.
    pub fn image_dir(&self, image: &ImageRecord) -> PathBuf {
        self.images_dir().join(&image.key)
    }

    /// An image's disk; read-only for everyone.
    pub fn disk(&self, image: &ImageRecord) -> PathBuf {
        self.image_dir(image).join(disk_name(&image.filesystem))
    }

    /// Bytes of the host's disk that an image's folder takes.
    pub fn image_bytes(&self, image: &ImageRecord) -> Result<u64, StoreError> {
        bytes_below(&self.image_dir(image))
    }

    /// What each image takes on the host's disk: by itself, and together with others that have the same blobs.
    pub fn usage(&self, images: &[ImageRecord]) -> Result<Vec<Usage>, StoreError> {
        let mut users = BTreeMap::<&str, u64>::new();
        for image in images {
            // One layer may be in an image twice.
            for blob in image.blobs.iter().collect::<BTreeSet<_>>() {
                *users.entry(blob).or_default() += 1;
            }
        }
        let of = |image: &ImageRecord| {
            let mut usage = Usage { unique_bytes: self.image_bytes(image)?, shared_bytes: 0 };
            for blob in image.blobs.iter().collect::<BTreeSet<_>>() {
                let Some(hex) = blob.strip_prefix("sha256:").filter(|hex| is_name(hex)) else { continue };
                let Ok(file) = fs::symlink_metadata(self.blobs_dir().join(hex)) else { continue };
                let shared = users.get(blob.as_str()).is_some_and(|count| *count > 1);
                let sum = if shared { &mut usage.shared_bytes } else { &mut usage.unique_bytes };
                *sum += file.blocks() * 512;
            }
            Ok(usage)
        };
        images.iter().map(of).collect()
    }

    /// The registries' blobs, complete or not.
    pub fn blobs(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut blobs = files(&self.blobs_dir())?;
        blobs.sort();
        Ok(blobs)
    }

    /// Removes an image. Who reads its disk meanwhile keeps it; nobody finds it half removed.
    pub fn remove_image(&self, image: &ImageRecord) -> Result<(), StoreError> {
        remove(&self.images_dir(), &image.key)
    }

    /// Where blobs of registries lie.
    fn blobs_dir(&self) -> PathBuf {
        self.home.join("blobs/sha256")
    }

    /// Bytes of the host's disk that blobs of registries take.
    pub fn blobs_bytes(&self) -> Result<u64, StoreError> {
        bytes_below(&self.blobs_dir())
    }

    /// Removes the blobs of registries, and what killed pulls have left of some; they can be fetched again. Tells the bytes. What somebody
    /// is fetching stays.
    pub fn remove_blobs(&self) -> Result<u64, StoreError> {
        let mut freed = 0;
        for path in files(&self.blobs_dir())? {
            let failed = |source| StoreError::Remove { path: path.clone(), source };
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed)?,
            };
            // Whoever fetches it holds it; whoever reads it has it open, with or without a name.
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => continue,
                Err(error) => return Err(failed(error.into())),
            }
            let bytes = file.metadata().map_err(failed)?.blocks() * 512;
            fs::remove_file(&path).map_err(failed)?;
            freed += bytes;
        }
        // What registries have said of access to them is of no use without them.
        for path in [files(&self.home.join("access"))?, files(&self.home.join("blobs/origins"))?].concat() {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::Remove { path, source: error });
                }
                _ => {}
            }
        }
        Ok(freed)
    }

    /// The kernel meant by `wanted`: an id, a version, or a series (the best of it: ours before a distribution's, newest first),
    /// which `-stock` or `-tuned` narrows. One that another version added is refused: it would run, and lack something.
    pub fn kernel(&self, wanted: &str) -> Result<KernelRecord, StoreError> {
        let kernels = self.kernels()?;
        let there = kernels.iter().map(|kernel| format!("{} ({})", kernel.series, kernel.id)).collect::<Vec<_>>();
        let found =
            kernels.into_iter().find(|kernel| kernel.is_meant_by(wanted)).ok_or_else(|| StoreError::NoKernel {
                wanted: wanted.to_owned(),
                there: if there.is_empty() { "none".to_owned() } else { there.join(", ") },
            })?;
        if found.is_current() { Ok(found) } else { Err(StoreError::OtherFormat { id: found.id }) }
    }

    /// The kernel for a machine that asks for none: the best of [`DEFAULT_SERIES`], else the newest.
    pub fn default_kernel(&self) -> Result<KernelRecord, StoreError> {
        match self.kernels()?.into_iter().next() {
            Some(newest) => match self.kernel(DEFAULT_SERIES) {
                Err(StoreError::NoKernel { .. }) => self.kernel(&newest.id),
                found => found,
            },
            None => Err(StoreError::NoKernel { wanted: DEFAULT_SERIES.to_owned(), there: "none".to_owned() }),
        }
    }

    /// Every kernel, best first: newest version, and within one version ours before a distribution's.
    pub fn kernels(&self) -> Result<Vec<KernelRecord>, StoreError> {
        let mut kernels = list(&self.kernels_dir())?
            .iter()
            .filter_map(|id| self.kernel_by_id(id).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        kernels.sort_by(|a, b| {
            let series = numbers(&b.series).cmp(&numbers(&a.series));
            series.then(a.stock.cmp(&b.stock)).then(numbers(&b.version).cmp(&numbers(&a.version))).then(a.id.cmp(&b.id))
        });
        Ok(kernels)
    }

    /// The kernel with exactly this id; `None` where it is not there.
    pub fn kernel_by_id(&self, id: &str) -> Result<Option<KernelRecord>, StoreError> {
        read_named(&self.kernels_dir(), id, "kernel.json", |record: &KernelRecord| &record.id)
    }

    /// The folder of a kernel.
    pub fn kernel_dir(&self, kernel: &KernelRecord) -> PathBuf {
        self.kernels_dir().join(&kernel.id)
    }

    /// Removes a kernel. Who reads its files meanwhile keeps them; nobody finds it half removed.
    pub fn remove_kernel(&self, kernel: &KernelRecord) -> Result<(), StoreError> {
        remove(&self.kernels_dir(), &kernel.id)
    }

    /// What a kernel has, as far as it was noted.
    pub fn kernel_offer(&self, kernel: &KernelRecord) -> Result<KernelOffer, StoreError> {
        let read = |name: &str| read_text(&self.kernel_dir(kernel).join(name));
        Ok(KernelOffer {
            version: kernel.version.clone(),
            modules: read(MODULES)?.map(|text| text.lines().map(str::to_owned).collect()),
            config: read(CONFIG)?.map(|text| needs::config(&text)),
        })
    }

    /// Whether the names of a kernel's modules were noted; one that an earlier version added may lack them.
    pub fn has_offer(&self, kernel: &KernelRecord) -> bool {
        self.kernel_dir(kernel).join(MODULES).is_file()
    }

    /// A kernel's ELF image.
    pub fn vmlinux(&self, kernel: &KernelRecord) -> PathBuf {
        self.kernel_dir(kernel).join("vmlinux")
    }

    /// A kernel's modules as a read-only disk.
    pub fn modules_disk(&self, kernel: &KernelRecord) -> PathBuf {
        self.kernel_dir(kernel).join("modules.ext4")
    }

    /// The folder of a kernel's early modules.
    pub fn early_dir(&self, kernel: &KernelRecord) -> PathBuf {
        self.kernel_dir(kernel).join("early")
    }
}

/// What the disk of an image with this file system is called. A record is not trusted with a name.
pub(crate) fn disk_name(filesystem: &str) -> &'static str {
    if filesystem == "erofs" { "disk.erofs" } else { "disk.ext4" }
}

/// Takes a folder away from its name first, so that nobody finds half of it.
fn remove(dir: &Path, name: &str) -> Result<(), StoreError> {
    let path = dir.join(name);
    // What stays of it under this name is removed by the next builder.
    let gone = dir.join(format!(".tmp-removed-{name}-{}", std::process::id()));
    let removed = fs::rename(&path, &gone).and_then(|()| fs::remove_dir_all(&gone));
    removed.map_err(|source| StoreError::Remove { path, source })
}

/// The files directly in `dir`; none where it is missing.
fn files(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::Read { path: dir.to_owned(), source };
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect(),
    }
}

/// Bytes that the files directly in `dir` take on the host's disk.
fn bytes_below(dir: &Path) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for path in files(dir)? {
        match fs::symlink_metadata(&path) {
            Ok(file) => bytes += file.blocks() * 512,
            // Somebody has removed it, or given it another name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Read { path, source }),
        }
    }
    Ok(bytes)
}

/// Names of complete folders in `dir`, sorted; what starts with a dot is somebody's work in progress.
fn list(dir: &Path) -> Result<Vec<String>, StoreError> {
    let failed = |source| StoreError::Read { path: dir.to_owned(), source };
    let mut names = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        other => other.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        match entry.file_name().into_string() {
            Ok(name) if is_name(&name) && entry.path().is_dir() => names.push(name),
            _ => {}
        }
    }
    names.sort();
    Ok(names)
}

/// The record of `dir/name/file`; `None` where there is no such folder or file.
fn read_named<T: for<'de> Deserialize<'de>>(
    dir: &Path,
    name: &str,
    file: &str,
    own_name: impl Fn(&T) -> &String,
) -> Result<Option<T>, StoreError> {
    if !is_name(name) {
        return Ok(None);
    }
    let path = dir.join(name).join(file);
    let Some(record) = read_record(&path)? else { return Ok(None) };
    if own_name(&record) != name {
        return Err(StoreError::Misplaced { path, found: own_name(&record).clone() });
    }
    Ok(Some(record))
}

/// A text of bounded length; `None` where there is none.
fn read_text(path: &Path) -> Result<Option<String>, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut text = String::new();
    file.take(MAX_OFFER_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

fn read_record<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > MAX_RECORD_BYTES {
        return Err(StoreError::Long { path: path.to_owned(), bytes });
    }
    let mut text = Vec::new();
    file.take(MAX_RECORD_BYTES).read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text).map(Some).map_err(|source| StoreError::Record { path: path.to_owned(), source })
}

/// One path component that is not hidden.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

/// The numbers of a version in order, so that 6.12 comes after 6.9.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}
