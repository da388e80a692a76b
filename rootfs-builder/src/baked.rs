//! A root file system that comes as a tar becomes an image: an OCI layout of one layer (OCI image-spec, image-layout.md), with the
//! configuration of another image.
//!
//! The tar is a guest's. It is read as any layer is, by the same reader with the same bounds, and packed on the way: nothing is unpacked,
//! and the layout gets its name only once the archive was read to its end.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::layer::archive::ArchiveError;
use crate::layer::{self, LayerError, Limits};
use crate::source::ARCHITECTURE;
use crate::watch::Watch;
use crate::workdir::{Workdir, WorkdirError};

/// How hard zstd works: a layer is packed while a guest waits.
const LEVEL: i32 = 3;
/// How messages call what is read.
const NAME: &str = "the archive";
/// Zeros that end an archive (POSIX.1-2008, pax, "ustar Interchange Format"). One that lacks them was cut off where an entry ended.
const END: u64 = 1024;
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What is made.
#[derive(Debug)]
pub struct Request<'a> {
    /// The folder that the layout becomes; nothing is there yet.
    pub to: &'a Path,
    /// The image's name in it.
    pub tag: &'a str,
    /// `config` of the image's configuration (OCI image-spec, config.md), where there is another image that it comes from.
    pub config: Option<Value>,
    /// Size of the disk that it will be built for, which bounds the archive.
    pub disk_bytes: u64,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Baked {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the layer as it is stored.
    pub bytes: u64,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BakedError {
    #[error("{path}: something is there already")]
    There { path: PathBuf },
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
    #[error("{path}: writing")]
    Write { path: PathBuf, source: io::Error },
}

impl BakedError {
    /// What was given is at fault, not the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::There { .. } => true,
            Self::Layer(error) => error.is_input(),
            Self::Workdir(_) | Self::Write { .. } => false,
        }
    }
}

/// Makes a layout of the tar.
///
/// # Errors
/// A tar that is none or too long; what the file system says. Nothing is left then.
pub fn bake(tar: impl Read, request: &Request<'_>, watch: &Watch) -> Result<Baked, BakedError> {
    let to = request.to;
    let failed = |source| BakedError::Write { path: to.to_owned(), source };
    if fs::symlink_metadata(to).is_ok() {
        return Err(BakedError::There { path: to.to_owned() });
    }
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let work = Workdir::enter(parent, &to.file_name().unwrap_or_default().to_string_lossy(), watch)?;
    let blobs = work.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(failed)?;

    let draft = blobs.join("layer");
    let stored = Stored { inner: BufWriter::new(File::create(&draft).map_err(failed)?), hash: Sha256::new(), bytes: 0 };
    let packer = zstd::Encoder::new(stored, LEVEL).map_err(failed)?;
    let mut tee = Tee { inner: tar, packer, zeros: 0, failed: None };
    let limits = Limits::for_disk(request.disk_bytes);
    let checked = layer::check(NAME, &mut tee, limits, watch);
    // A disk that is full is not the archive's fault.
    if let Some(source) = tee.failed {
        return Err(failed(source));
    }
    let checked = checked?;
    if tee.zeros < END {
        return Err(
            LayerError::Archive { layer: NAME.to_owned(), source: ArchiveError::CutOff { at: checked.bytes } }.into()
        );
    }
    let stored = tee.packer.finish().map_err(failed)?;
    let file = stored.inner.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    let layer = Digest::from(stored.hash);
    fs::rename(&draft, blobs.join(layer.hex())).map_err(failed)?;

    let put = |document: &Value| -> Result<(Digest, usize), BakedError> {
        let text = serde_json::to_vec(document).map_err(|error| failed(error.into()))?;
        let digest = Digest::of(&text);
        write(&blobs.join(digest.hex()), &text).map_err(failed)?;
        Ok((digest, text.len()))
    };
    let (config, config_bytes) = put(&json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": request.config.clone().unwrap_or_else(|| Map::new().into()),
        "rootfs": { "type": "layers", "diff_ids": [checked.diff_id.to_string()] },
        "history": [{ "created_by": "labyard bake" }],
    }))?;
    let (digest, bytes) = put(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config.to_string(), "size": config_bytes },
        "layers": [{ "mediaType": LAYER, "digest": layer.to_string(), "size": stored.bytes }],
    }))?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": digest.to_string(),
            "size": bytes,
            "platform": { "architecture": ARCHITECTURE, "os": "linux" },
            "annotations": { "org.opencontainers.image.ref.name": request.tag },
        }],
    });
    for (name, document) in [("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })), ("index.json", index)] {
        write(&work.path().join(name), document.to_string().as_bytes()).map_err(failed)?;
    }
    work.publish(to)?;
    Ok(Baked { digest, entries: checked.entries, bytes: stored.bytes })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Passes on what is read, and packs it.
struct Tee<'a, R> {
    inner: R,
    packer: zstd::Encoder<'a, Stored>,
    /// How many zeros were read last.
    zeros: u64,
    /// What the file system said; who reads is told that the archive ends.
    failed: Option<io::Error>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(into)?;
        let bytes = into.get(..len).unwrap_or_default();
        let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
        self.zeros = if zeros == len { self.zeros.saturating_add(zeros as u64) } else { zeros as u64 };
        match self.packer.write_all(bytes) {
            Ok(()) => Ok(len),
            Err(error) => {
                self.failed = Some(error);
                Err(io::ErrorKind::WriteZero.into())
            }
        }
    }
}

/// The layer's file: hashed and counted.
struct Stored {
    inner: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for Stored {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.inner.write(bytes)?;
        self.hash.update(&bytes[..len]);
        self.bytes += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
