//! From a source to a disk in the store (or in a file): the whole way, and the key that tells whether it was gone before.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use labyard_spec::guest::Entrypoint;
use labyard_spec::needs::KernelNeeds;
use labyard_spec::source::Source;
use sha2::{Digest as _, Sha256};

use crate::confine::{self, Confined, Needs};
use crate::digest::Digest;
use crate::earlier::index;
use crate::earlier::places::Places;
use crate::earlier::shown;
use crate::earlier::{self, Claim, Donors};
use crate::erofs::{self, ErofsError};
use crate::ext4::{self, Ext4Error, WRITER_VERSION};
use crate::layer::LayerError;
use crate::section::Identity;
use crate::source::{self, Image, SourceError};
use crate::store::{ImageRecord, Store, StoreError, disk_name};
use crate::watch::Watch;
use crate::workdir::{self, Workdir, WorkdirError};
use merged::Merged;

mod merged;

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
    /// One that is only ever read, as small as its content.
    Erofs,
}

impl Format {
    /// As `mount -t` and records name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Erofs => "erofs",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Erofs].into_iter().find(|format| format.name() == name)
    }

    /// Version of its writer.
    fn writer(self) -> u32 {
        match self {
            Self::Ext4 => WRITER_VERSION,
            Self::Erofs => erofs::WRITER_VERSION,
        }
    }
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
    /// The process gives up all that reading does not need, for good, before anything of a stranger is read ([`crate::confine`]).
    pub confined: bool,
}

impl Request {
    fn open(&self, temporary: &Path, watch: &Watch) -> Result<(Image, Option<Confined>), BuildError> {
        let places = source::Places { temporary, home: &self.home, plain_http: self.plain_http };
        let prepared = source::prepare(&self.source, places, watch)?;
        let (reads, is_elsewhere) = (prepared.reads(), prepared.is_elsewhere());
        if is_elsewhere {
            let writes = ["blobs", "access"].iter().map(|name| self.home.join(name)).collect();
            // What comes after is forbidden by the next step: a rule of now that lacks it would forbid it then.
            self.confine(&reads, writes, temporary, true)?;
        }
        let fetched = prepared.fetch(places, watch)?;
        let confined = self.confine(&reads, Vec::new(), temporary, false)?;
        if confined.as_ref().is_some_and(|confined| confined.landlock.is_none()) {
            let note = "note: no Landlock can confine the builder here (the kernel's, or the file system): only its capabilities and system calls are limited";
            watch.at(note, 0, 0).map_err(Ext4Error::from)?;
        }
        Ok((fetched.open(places, watch)?, confined))
    }

    fn confine(
        &self,
        reads: &[PathBuf],
        mut writes: Vec<PathBuf>,
        temporary: &Path,
        network: bool,
    ) -> Result<Option<Confined>, BuildError> {
        if !self.confined {
            return Ok(None);
        }
        writes.push(temporary.to_owned());
        // Damaged blobs are removed, to be fetched again.
        let needs = Needs { reads: reads.to_vec(), writes, removes: vec![self.home.join("blobs")], network };
        confine::enter(&needs).map(Some).map_err(BuildError::Confine)
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
    /// What the process was limited to.
    pub confined: Option<Confined>,
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
    #[error("giving up what reading an image does not need")]
    Confine(#[source] io::Error),
    #[error("{path}: writing")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "image {key}: it was imported, and its disk is not what its layers make (they make {built}, it is {imported}): whoever made the file \
         put something else on it, or damaged it; remove it with `labyard image rm {key}`"
    )]
    Forged { key: String, built: String, imported: String },
}

impl BuildError {
    /// What was asked for is at fault, not the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Source(error) => error.is_input(),
            Self::Layer(error) => error.is_input(),
            Self::Ext4(error) => error.is_input(),
            Self::Forged { .. } => true,
            Self::Erofs(error) => error.is_input(),
            Self::Store(_) | Self::Workdir(_) | Self::Confine(_) | Self::Write { .. } => false,
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
    let (image, confined) = request.open(&images, watch)?;
    let built = from_image(request, store, &image, watch)?;
    Ok(Built { confined, ..built })
}

fn from_image(request: &Request, store: &Store, image: &Image, watch: &Watch) -> Result<Built, BuildError> {
    let images = store.images_dir();
    // Knowing what an image is made of is no right to it.
    let found = |key: &str| -> Result<Option<Built>, BuildError> {
        let Some(record) = store.image(key)?.filter(|record| !record.unproved) else { return Ok(None) };
        let before = shown::files(image);
        let Some(claims) = earlier::claims_on(store, &record, image) else { return Ok(None) };
        if !claims.is_empty() {
            watch.at("checking layers", 0, 0).map_err(Ext4Error::from)?;
        }
        Ok(Some(given(store, record, image, &claims, &before, watch)?))
    };
    let known = image.layers.iter().map(|layer| layer.diff_id).collect::<Option<Vec<_>>>();
    let mut work = None;
    if let Some(diff_ids) = known {
        let key = key(request, &diff_ids, image);
        if let Some(built) = found(&key.hex())? {
            return Ok(built);
        }
        work = Some(Workdir::enter(&images, &key.hex(), watch)?);
        if let Some(built) = found(&key.hex())? {
            return Ok(built);
        }
    }
    let mut donors = if work.is_some() { Donors::find(store, image) } else { Donors::none() };
    loop {
        match from_layers(request, store, image, &mut donors, &mut work, watch) {
            Err(_) if donors.are_damaged() => {
                let note = "note: an earlier image that shares layers is damaged; reading them again";
                watch.at(note, 0, 0).map_err(Ext4Error::from)?;
                donors = Donors::none();
            }
            built => return built,
        }
    }
}

/// An image of the store, for a source that has its layers: what it claims is held against its bytes, which were `before`.
fn given(
    store: &Store,
    record: ImageRecord,
    image: &Image,
    claims: &[Claim],
    before: &[Option<Identity>],
    watch: &Watch,
) -> Result<Built, BuildError> {
    earlier::prove(claims, watch.cancelled())?;
    watch.check().map_err(Ext4Error::from)?;
    let path = store.image_dir(&record);
    shown::remember(&path, image, before).map_err(|source| BuildError::Write { path, source })?;
    Ok(Built { path: store.disk(&record), record, cached: true, confined: None })
}

/// Builds an image of the store; what `donors` have is not read again.
fn from_layers(
    request: &Request,
    store: &Store,
    image: &Image,
    donors: &mut Donors,
    work: &mut Option<Workdir>,
    watch: &Watch,
) -> Result<Built, BuildError> {
    let images = store.images_dir();
    let before = shown::files(image);
    let mut merged = Merged::complete(image, request, &images, donors, watch)?;
    // A plain tar tells its diff id only when it has been read.
    let entered = match work.take() {
        Some(work) => work,
        None => Workdir::enter(&images, &merged.key.hex(), watch)?,
    };
    let folder = work.insert(entered).path().to_owned();
    let claims: Vec<Claim> = merged.claims(image);
    let there = store.image(&merged.key.hex())?;
    if let Some(record) = there.clone().filter(|record| !record.unproved) {
        let built = given(store, record.clone(), image, &claims, &before, watch)?;
        let path = store.image_dir(&record).join(earlier::FILE);
        if let Some(index) = merged.index(Places::default()).filter(|_| index::known(&path, &record).is_none()) {
            // It was imported, or built before there was one. Now its layers are known, and need not be read for the next one who asks.
            let unfinished = folder.join(earlier::FILE);
            let written = index.write(&unfinished, &record).and_then(|()| fs::rename(&unfinished, &path));
            let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            written
                .or_else(|error| if missing(&error) { Ok(()) } else { Err(error) })
                .map_err(|source| BuildError::Write { path, source })?;
        }
        return Ok(built);
    }
    let stop = AtomicBool::new(false);
    let (written, proved) = std::thread::scope(|scope| {
        let proof = scope.spawn(|| earlier::prove(&claims, &stop));
        let written = merged.write(request, &folder.join(disk_name(request.format.name())), watch);
        // Who is interrupted does not wait for the proof.
        stop.store(written.is_err(), Ordering::Relaxed);
        (written, proof.join())
    });
    let proved = proved.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let (record, index) = match (written, proved) {
        (Err(error), Ok(())) => return Err(error),
        (_, Err(error)) => return Err(error.into()),
        (Ok(written), Ok(())) => written,
    };
    if let Some(index) = index {
        let path = folder.join(earlier::FILE);
        index.write(&path, &record).map_err(|source| BuildError::Write { path, source })?;
    }
    if let Some(imported) = there {
        return prove(store, &imported, &record, &folder);
    }
    write_record(&folder.join("image.json"), &record)?;
    let work = work.take().expect("it was entered");
    work.publish(&images.join(&record.key))?;
    Ok(Built { path: store.disk(&record), record, cached: false, confined: None })
}

/// An image was imported that is built now: it is what it says where its disk is the one that was built. That one is thrown away, since
/// labs may lie on the other.
fn prove(store: &Store, imported: &ImageRecord, built: &ImageRecord, folder: &Path) -> Result<Built, BuildError> {
    let digest = |record: &ImageRecord| record.disk.clone().unwrap_or_else(|| "unknown".to_owned());
    if imported.disk.is_none() || imported.disk != built.disk {
        let (built, imported_disk) = (digest(built), digest(imported));
        return Err(BuildError::Forged { key: imported.key.clone(), built, imported: imported_disk });
    }
    replace_record(store, folder, built)?;
    let index = folder.join(earlier::FILE);
    if index.exists() {
        let path = store.image_dir(built).join(earlier::FILE);
        fs::rename(&index, &path).map_err(|source| BuildError::Write { path, source })?;
    }
    Ok(Built { path: store.disk(built), record: built.clone(), cached: false, confined: None })
}

/// Says something else of an image of the store; `folder` is where its draft lies.
pub(crate) fn replace_record(store: &Store, folder: &Path, record: &ImageRecord) -> Result<(), BuildError> {
    let (draft, path) = (folder.join("image.json"), store.image_dir(record).join("image.json"));
    write_record(&draft, record)?;
    fs::rename(&draft, &path).map_err(|source| BuildError::Write { path, source })
}

fn to_file(request: &Request, path: &Path, watch: &Watch) -> Result<Built, BuildError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (image, confined) = request.open(folder, watch)?;
    let mut merged = Merged::complete(&image, request, folder, &mut Donors::none(), watch)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = Unfinished(folder.join(format!(".{name}.{}", std::process::id())));
    let (record, _) = merged.write(request, &unfinished.0, watch)?;
    fs::rename(&unfinished.0, path).map_err(|source| BuildError::Write { path: path.to_owned(), source })?;
    Ok(Built { record, path: path.to_owned(), cached: false, confined })
}

/// A file that is removed unless it was given another name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What decides the bytes of a disk and of its record: file system and version of its writer, layers and whether they hide names, size,
/// entrypoint and needs. A disk that is only read is as long as it becomes, whatever bounds it.
fn key(request: &Request, diff_ids: &[Digest], image: &Image) -> Digest {
    let (format, size) = (request.format, request.size_bytes);
    key_of(format, format.writer(), diff_ids, image.whiteouts, size, &image.entrypoint, &image.kernel)
}

fn key_of(
    format: Format,
    writer: u32,
    diff_ids: &[Digest],
    whiteouts: bool,
    size_bytes: u64,
    entrypoint: &Option<Entrypoint>,
    kernel: &KernelNeeds,
) -> Digest {
    let disk = match format {
        Format::Ext4 => format!("size {size_bytes}"),
        Format::Erofs => "erofs".to_owned(),
    };
    let mut text = format!("labyard image\nwriter {writer}\n{disk}\nwhiteouts {whiteouts}\n");
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
    let Some(format) = Format::named(&record.filesystem) else { return false };
    [true, false].into_iter().any(|whiteouts| {
        let (size, entrypoint) = (record.size_bytes, &record.entrypoint);
        key_of(format, record.writer, &diff_ids, whiteouts, size, entrypoint, &record.kernel).hex() == record.key
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
