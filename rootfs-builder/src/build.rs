//! From a source to a disk in the store (or in a file): the whole way, and the key that tells whether it was gone before.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use labyard_spec::guest::Entrypoint;
use labyard_spec::needs::KernelNeeds;
use labyard_spec::source::Source;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::disk::{self, DiskError};
use crate::erofs::{self, ErofsError};
use crate::ext4::{self, Ext4Error, Options, Size, WRITER_VERSION};
use crate::layer::{self, LayerError, Limits, Spool};
use crate::merge::Merge;
use crate::registry::blobs::Blobs;
use crate::source::{self, Image, SourceError};
use crate::store::{ImageRecord, Store, StoreError};
use crate::temporary;
use crate::tree::{Kind, Spools, Tree};
use crate::watch::Watch;
use crate::workdir::{self, Workdir, WorkdirError};

/// Volume label of images.
const LABEL: &str = "labyard-root";

/// Where the disk goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// `images/<key>/` of a store; found there, nothing is built.
    Store(Store),
    /// A file of its own.
    File(PathBuf),
}

/// What kind of file system a disk has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// One that a machine writes to.
    #[default]
    Ext4,
    /// One that is only ever read, as small as its content. It goes to a file, the store keeps none.
    Erofs,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image.
    pub source: Source,
    /// Length of the disk in bytes; of a read-only one, what its content is bounded by.
    pub size_bytes: u64,
    /// Its file system.
    pub format: Format,
    /// Where it goes.
    pub destination: Destination,
    /// The state directory whose blobs a registry's image shares.
    pub home: PathBuf,
    /// Registries are spoken to without TLS.
    pub plain_http: bool,
}

impl Request {
    fn open(&self, temporary: &Path, watch: &Watch) -> Result<Image, SourceError> {
        let places = source::Places { temporary, home: &self.home, plain_http: self.plain_http };
        source::open(&self.source, places, watch)
    }
}

/// What there is now.
#[derive(Debug, Clone)]
pub struct Built {
    /// As in `image.json`.
    pub record: ImageRecord,
    /// The disk.
    pub path: PathBuf,
    /// It was there before.
    pub cached: bool,
}

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BuildError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
    #[error("{path}: writing")]
    Write { path: PathBuf, source: io::Error },
}

impl BuildError {
    /// What was asked for is at fault, not the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Source(error) => error.is_input(),
            Self::Layer(error) => error.is_input(),
            Self::Ext4(error) => error.is_input(),
            Self::Erofs(error) => error.is_input(),
            Self::Store(_) | Self::Workdir(_) | Self::Write { .. } => false,
        }
    }
}

/// Builds what is asked for, or finds it.
pub fn build(request: &Request, watch: &Watch) -> Result<Built, BuildError> {
    ext4::check_size(request.size_bytes)?;
    match &request.destination {
        Destination::Store(store) => to_store(request, store, watch),
        Destination::File(path) => to_file(request, path, watch),
    }
}

fn to_store(request: &Request, store: &Store, watch: &Watch) -> Result<Built, BuildError> {
    let images = store.images_dir();
    workdir::remove_stale(&images).map_err(|source| BuildError::Write { path: images.clone(), source })?;
    let image = request.open(&images, watch)?;
    let found = |key: &str| -> Result<Option<Built>, BuildError> {
        Ok(store.image(key)?.map(|record| Built { path: store.disk(&record), record, cached: true }))
    };
    let known = image.layers.iter().map(|layer| layer.diff_id).collect::<Option<Vec<_>>>();
    let mut work = None;
    if let Some(diff_ids) = known {
        let key = key(&diff_ids, image.whiteouts, request.size_bytes, &image.entrypoint, &image.kernel);
        if let Some(built) = found(&key.hex())? {
            return Ok(built);
        }
        work = Some(Workdir::enter(&images, &key.hex(), watch)?);
        if let Some(built) = found(&key.hex())? {
            return Ok(built);
        }
    }
    // A plain tar tells its diff id only when it has been read.
    let mut merged = merge(image, request, &images, watch)?;
    let work = match work {
        Some(work) => work,
        None => Workdir::enter(&images, &merged.key.hex(), watch)?,
    };
    if let Some(built) = found(&merged.key.hex())? {
        return Ok(built);
    }
    let record = merged.write(request, &work.path().join("disk.ext4"), watch)?;
    write_record(&work.path().join("image.json"), &record)?;
    work.publish(&images.join(&record.key))?;
    Ok(Built { path: store.disk(&record), record, cached: false })
}

fn to_file(request: &Request, path: &Path, watch: &Watch) -> Result<Built, BuildError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let image = request.open(folder, watch)?;
    let mut merged = merge(image, request, folder, watch)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = Unfinished(folder.join(format!(".{name}.{}", std::process::id())));
    let record = merged.write(request, &unfinished.0, watch)?;
    fs::rename(&unfinished.0, path).map_err(|source| BuildError::Write { path: path.to_owned(), source })?;
    Ok(Built { record, path: path.to_owned(), cached: false })
}

/// A file that is removed unless it was given another name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// An image that has been read.
struct Merged {
    tree: Tree,
    spools: Spools,
    key: Digest,
    digest: Digest,
    diff_ids: Vec<Digest>,
    entrypoint: Option<Entrypoint>,
    kernel: KernelNeeds,
    blobs: Vec<Digest>,
}

/// Reads every layer. Contents go to one file without a name in `temporary`.
fn merge(image: Image, request: &Request, temporary: &Path, watch: &Watch) -> Result<Merged, BuildError> {
    let failed = |source| BuildError::Write { path: temporary.to_owned(), source };
    let limits = Limits::for_disk(request.size_bytes);
    let file = temporary::unnamed(temporary).map_err(failed)?;
    let mut spools = Spools::default();
    let number = spools.push(file.try_clone().map_err(failed)?);
    let mut spool = Spool::new(file, number);
    let mut merge = Merge::new(limits, image.whiteouts);
    let mut digest = image.digest;
    let mut left = limits.unpacked_bytes;
    let mut diff_ids = Vec::new();
    for layer in &image.layers {
        merge.next_layer();
        let unpacked = layer::unpack(layer, &mut spool, left, watch, |entry| merge.apply(entry));
        if let Err(LayerError::Digest { expected, .. }) = &unpacked
            && image.blobs.contains(expected)
        {
            // A blob of the store that has rotted: gone, it is fetched again as the message says. If that fails, it is said again.
            let _ = Blobs::open(&request.home).and_then(|blobs| fs::remove_file(blobs.path(expected)));
        }
        let unpacked = unpacked?;
        left -= unpacked.bytes;
        diff_ids.push(unpacked.diff_id);
        if !image.whiteouts {
            digest = unpacked.digest; // a plain tar has no manifest
        }
    }
    let key = key(&diff_ids, image.whiteouts, request.size_bytes, &image.entrypoint, &image.kernel);
    Ok(Merged {
        tree: merge.finish(),
        spools,
        key,
        digest,
        diff_ids,
        blobs: image.blobs,
        entrypoint: image.entrypoint,
        kernel: image.kernel,
    })
}

impl Merged {
    fn write(&mut self, request: &Request, path: &Path, watch: &Watch) -> Result<ImageRecord, BuildError> {
        let failed = |source| BuildError::Write { path: path.to_owned(), source };
        let init = self.tree.follow("/sbin/init").is_some_and(|id| matches!(self.tree.node(id).kind, Kind::File(_)));
        let uuid = uuid_of(&self.key, "file system");
        let disk = private(path).map_err(failed)?;
        let (written, filesystem, writer) = match request.format {
            Format::Ext4 => {
                let options = Options {
                    size: Size::Bytes(request.size_bytes),
                    uuid,
                    hash_seed: uuid_of(&self.key, "directory hashes"),
                    label: LABEL.to_owned(),
                };
                (ext4::write(&mut self.tree, &self.spools, &options, &disk, watch)?, "ext4", WRITER_VERSION)
            }
            Format::Erofs => {
                let options = erofs::Options { uuid, label: LABEL.to_owned() };
                (erofs::write(&self.tree, &self.spools, &options, &disk, watch)?, "erofs", erofs::WRITER_VERSION)
            }
        };
        let contents = disk::read(&disk, "taking the digest", watch).map_err(|error| match error {
            DiskError::Read(source) => failed(source),
            DiskError::Interrupted(interrupted) => Ext4Error::from(interrupted).into(),
        })?;
        watch.at("syncing", 0, 0).map_err(Ext4Error::from)?;
        disk.sync_all().map_err(failed)?;
        Ok(ImageRecord {
            key: self.key.hex(),
            source: request.source.to_string(),
            digest: self.digest.to_string(),
            layers: self.diff_ids.iter().map(Digest::to_string).collect(),
            size_bytes: written.bytes,
            filesystem: filesystem.to_owned(),
            uuid: uuid_text(&uuid),
            init,
            entrypoint: self.entrypoint.clone(),
            entries: written.entries,
            writer,
            disk: Some(contents.digest().to_string()),
            blobs: self.blobs.iter().map(Digest::to_string).collect(),
            kernel: self.kernel.clone(),
        })
    }
}

/// What decides the bytes of a disk and of its record: layers and whether they hide names, size, entrypoint, needs, and the
/// version of the writer.
fn key(
    diff_ids: &[Digest],
    whiteouts: bool,
    size_bytes: u64,
    entrypoint: &Option<Entrypoint>,
    kernel: &KernelNeeds,
) -> Digest {
    key_of_writer(WRITER_VERSION, diff_ids, whiteouts, size_bytes, entrypoint, kernel)
}

fn key_of_writer(
    writer: u32,
    diff_ids: &[Digest],
    whiteouts: bool,
    size_bytes: u64,
    entrypoint: &Option<Entrypoint>,
    kernel: &KernelNeeds,
) -> Digest {
    let mut text = format!("labyard image\nwriter {writer}\nsize {size_bytes}\nwhiteouts {whiteouts}\n");
    for diff_id in diff_ids {
        text.push_str(&format!("layer {diff_id}\n"));
    }
    text.push_str(&serde_json::to_string(entrypoint).expect("strings and lists are JSON"));
    if !kernel.is_empty() {
        text.push_str("\nkernel ");
        text.push_str(&serde_json::to_string(kernel).expect("strings and lists are JSON"));
    }
    Digest::of(text.as_bytes())
}

/// Whether a record has the key of what it says of itself. It does not say whether names hide others.
pub(crate) fn is_key_of(record: &ImageRecord) -> bool {
    let Ok(diff_ids) = record.layers.iter().map(|text| text.parse()).collect::<Result<Vec<Digest>, _>>() else {
        return false;
    };
    [true, false].into_iter().any(|whiteouts| {
        let (size, entrypoint) = (record.size_bytes, &record.entrypoint);
        key_of_writer(record.writer, &diff_ids, whiteouts, size, entrypoint, &record.kernel).hex() == record.key
    })
}

/// A UUID from a key and a use of it, version 8 ("custom", RFC 9562, 5.8).
pub(crate) fn uuid_of(key: &Digest, purpose: &str) -> [u8; 16] {
    let hash = Sha256::new().chain_update(key.bytes()).chain_update(purpose).finalize();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A new file that only its owner can read.
pub(crate) fn private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes a record and sees it to the disk.
pub(crate) fn write_record(path: &Path, record: &impl serde::Serialize) -> Result<(), BuildError> {
    let write = || {
        let mut file = private(path)?;
        serde_json::to_writer_pretty(&mut file, record)?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(|source| BuildError::Write { path: path.to_owned(), source })
}
