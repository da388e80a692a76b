//! Where an image comes from: each kind of source becomes an [`Image`], a list of layers that can be read.
//!
//! Documents are a stranger's: bounded before they are read, and every blob that a digest names is checked against it.

mod archive;
pub(crate) mod compatibility;
mod config;
mod docker;
mod dockerfile;
mod layout;
pub(crate) mod manifest;
pub mod parcel;
mod rootfs;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use labyard_spec::guest::Entrypoint;
use labyard_spec::needs::KernelNeeds;
use labyard_spec::source::Source;

use crate::catalogue::{Catalogue, CatalogueError};
use crate::digest::Digest;
use crate::layer::Layer;
use crate::registry::access::Access;
use crate::registry::blobs::Blobs;
use crate::registry::fetch::Asked;
use crate::registry::origins::Origins;
use crate::registry::settings::Settings;
use crate::registry::{self, RegistryError};
use crate::watch::{Interrupted, Watch};
use crate::workdir::Workdir;

/// The machines that we build for, in the words of an image (Go's GOARCH).
pub(crate) const ARCHITECTURE: &str = "amd64";
/// Most layers of an image.
pub(crate) const MAX_LAYERS: usize = 512;
/// Longest document (index, manifest, configuration) in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// An image whose layers have not been read yet.
#[derive(Debug)]
pub struct Image {
    /// Digest of the manifest; of the archive where there is none.
    pub digest: Digest,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// Whether names in layers can hide names of lower ones.
    pub whiteouts: bool,
    /// What the image's configuration starts.
    pub entrypoint: Option<Entrypoint>,
    /// `config` of the configuration as it is, where there is one.
    pub config: Option<serde_json::Value>,
    /// What it needs of the kernel.
    pub kernel: KernelNeeds,
    /// Blobs of the store that it is made of.
    pub blobs: Vec<Digest>,
}

/// Why a source is no image.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SourceError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("dockerfile:{path}: {problem}")]
    Dockerfile { path: PathBuf, problem: String },
    #[error("{path}: not an OCI image layout: {problem}")]
    NotALayout { path: PathBuf, problem: String },
    #[error("{path}: not an archive of `docker save`: {problem}")]
    NotAnArchive { path: PathBuf, problem: String },
    #[error("{path}: {problem}")]
    Choice { path: PathBuf, problem: String },
    #[error("{what}: {problem}")]
    Document { what: String, problem: String },
    #[error("{what}: {found} bytes, but the image says {expected}; fetch the image again")]
    BlobSize { what: String, expected: u64, found: u64 },
    #[error("{what}: its bytes are {found}; fetch the image again")]
    BlobDigest { what: String, found: Digest },
    #[error("{path}: reading")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path}: making a temporary file")]
    Temporary { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl SourceError {
    /// The source is at fault, not the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Open { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::IsADirectory
                    | io::ErrorKind::InvalidInput
            ),
            Self::Registry(error) => error.is_input(),
            Self::Catalogue(CatalogueError::Read { .. }) => false,
            Self::Temporary { .. } | Self::Interrupted(_) => false,
            _ => true,
        }
    }
}

/// Opens a file, and nothing else: a pipe would be waited for, and opening a device may be an act (a watchdog's begins to count).
fn regular(path: &Path) -> io::Result<File> {
    let is_file = |found: std::fs::Metadata| match found.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a file; give a tar archive, or a layout with files in it",
        )),
    };
    is_file(std::fs::metadata(path)?)?;
    // Another may have taken its place meanwhile.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    is_file(file.metadata()?)?;
    Ok(file)
}

/// Where what a source needs is kept.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// Files without names.
    pub temporary: &'a Path,
    /// The state directory, whose blobs a registry's image shares.
    pub home: &'a Path,
    /// Registries are spoken to without TLS.
    pub plain_http: bool,
}

/// A source of which nothing has been read that a stranger wrote: what is the caller's own (settings, logins, the catalogue) has been, and
/// other programs have ended.
#[derive(Debug)]
pub enum Prepared {
    /// An image of a registry.
    Registry(Asked),
    /// What lies on this machine.
    Local(Source),
    /// A Dockerfile that was built: the folder goes with this, and the path leads to a layout in it.
    Made(Workdir, PathBuf),
}

/// A source that has all its bytes on this machine.
#[derive(Debug)]
pub enum Fetched {
    /// Blobs of the store.
    Blobs(registry::fetch::Fetched),
    /// As in [`Prepared`].
    Local(Source),
    /// As in [`Prepared`].
    Made(Workdir, PathBuf),
}

/// Reads what is the caller's own, and lets other programs do their part.
pub fn prepare(source: &Source, places: Places<'_>, watch: &Watch) -> Result<Prepared, SourceError> {
    match source {
        Source::Registry(reference) => {
            let reference = registry::reference(reference)?;
            let settings = Settings::load(places.plain_http)?;
            // Where blobs go is there before the caller can only write below it.
            Stores::open(places.home)?;
            Ok(Prepared::Registry(Asked::of(&reference, &settings)?))
        }
        // It stands for no other name.
        Source::Alias(name) => prepare(Catalogue::load(places.home)?.resolve(name)?, places, watch),
        Source::Dockerfile(path) => {
            dockerfile::make(path, places.temporary, watch).map(|(work, layout)| Prepared::Made(work, layout))
        }
        local => Ok(Prepared::Local(local.clone())),
    }
}

impl Prepared {
    /// Whether a registry has to be asked.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Registry(_))
    }

    /// What is read, beside the blobs of the store.
    pub fn reads(&self) -> Vec<PathBuf> {
        match self {
            Self::Local(Source::OciLayout { path, .. } | Source::DockerArchive(path) | Source::RootfsTar(path)) => {
                vec![path.clone()]
            }
            Self::Made(_, path) => vec![path.clone()],
            Self::Local(_) | Self::Registry(_) => Vec::new(),
        }
    }

    /// Has a registry give what is missing.
    pub fn fetch(self, places: Places<'_>, watch: &Watch) -> Result<Fetched, SourceError> {
        Ok(match self {
            Self::Registry(asked) => {
                let Stores { blobs, access, origins } = Stores::open(places.home)?;
                let stored = registry::fetch::Stored { blobs: &blobs, origins: &origins, access: &access };
                Fetched::Blobs(registry::fetch::image(&asked, stored, watch)?)
            }
            Self::Local(source) => Fetched::Local(source),
            Self::Made(work, path) => Fetched::Made(work, path),
        })
    }
}

impl Fetched {
    /// Opens it; an archive that is compressed as a whole is unpacked.
    pub fn open(self, places: Places<'_>, watch: &Watch) -> Result<Image, SourceError> {
        match self {
            Self::Blobs(fetched) => {
                let mut image = layout::image(places.home, &fetched.manifest)?;
                for (attached, subject) in &fetched.attached {
                    layout::attach(places.home, attached, std::slice::from_ref(subject), &mut image)?;
                }
                Ok(image)
            }
            // Its files stay open when the folder goes.
            Self::Made(_work, path) => layout::open(&path, Some(dockerfile::TAG), places.temporary, watch),
            Self::Local(Source::OciLayout { path, tag }) => {
                layout::open(&path, tag.as_deref(), places.temporary, watch)
            }
            Self::Local(Source::DockerArchive(path)) => docker::open(&path, places.temporary, watch),
            Self::Local(Source::RootfsTar(path)) => rootfs::open(&path),
            Self::Local(Source::Registry(_) | Source::Alias(_) | Source::Dockerfile(_)) => {
                unreachable!("prepared sources are none of these")
            }
        }
    }
}

/// What a store has of registries.
struct Stores {
    blobs: Blobs,
    access: Access,
    origins: Origins,
}

impl Stores {
    fn open(home: &Path) -> Result<Self, SourceError> {
        let failed = |name| move |source| SourceError::Temporary { path: home.join(name), source };
        Ok(Self {
            blobs: Blobs::open(home).map_err(failed("blobs"))?,
            access: Access::open(home).map_err(failed("access"))?,
            origins: Origins::open(home).map_err(failed("blobs"))?,
        })
    }
}

/// Opens the source. A registry's image is fetched; an archive that is compressed as a whole is unpacked.
pub fn open(source: &Source, places: Places<'_>, watch: &Watch) -> Result<Image, SourceError> {
    prepare(source, places, watch)?.fetch(places, watch)?.open(places, watch)
}

/// What a tar is, where it is an image packed as one: an OCI layout, or what `docker save` writes. New versions of Docker write
/// both in one.
pub(crate) fn kind(path: &Path, temporary: &Path, watch: &Watch) -> Result<Option<Source>, SourceError> {
    let wrong = |problem| SourceError::NotALayout { path: path.to_owned(), problem };
    let archive = archive::Archive::open(path, temporary, wrong, watch)?;
    Ok(if archive.find("oci-layout").is_some() {
        Some(Source::OciLayout { path: path.to_owned(), tag: None })
    } else if archive.find("manifest.json").is_some() {
        Some(Source::DockerArchive(path.to_owned()))
    } else {
        None
    })
}

/// Parses a document, or says what it should have been.
fn parse<T: for<'de> serde::Deserialize<'de>>(what: &str, text: &[u8]) -> Result<T, SourceError> {
    serde_json::from_slice(text).map_err(|error| SourceError::Document {
        what: what.to_owned(),
        problem: format!("not what it should be: {error}"),
    })
}
