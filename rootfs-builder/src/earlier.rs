//! What an image of the store keeps of its layers, so that the next image that shares some of them need not unpack them again.
//!
//! Beside each disk lies an index (`layers`, docs/formats.md): for every layer the entries that its archive had, and where on the disk the
//! contents of its files lie. A layer is taken from there instead of from its archive if it is the same archive: the same diff id
//! and the same bytes as stored. The merge gets the very entries that the archive would give, and contents are copied from disk to disk, so
//! the new disk is the one that would be made from scratch.
//!
//! What it trusts: the index was written by a build that had checked both digests of the layer, and ends with a sum over itself.
//! Contents have sums of their own, which are held against what is read: a disk that has rotted is not copied from; the layers are read
//! instead. Who may write to the store can write other sums, too. Who names a layer must have it: the bytes that a source
//! claims are hashed while the disk is written ([`prove`]), unless a registry has proved them ([`crate::registry`]) or it is the very file that
//! was read before ([`crate::section::Identity`], [`shown`]).

pub(crate) mod entries;
pub(crate) mod index;
pub(crate) mod places;
pub(crate) mod shown;

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use crate::build::Format;
use crate::digest::Digest;
use crate::layer::decode::Decoder;
use crate::layer::{Layer, LayerError};
use crate::section::{Identity, Section};
use crate::source::Image;
use crate::store::{ImageRecord, Store};
use index::{Index, Indexed};
use places::Placed;
use shown::Shown;

/// The index, beside the disk.
pub(crate) const FILE: &str = "layers";
/// Most images that are looked into for one build.
const MAX_DONORS: usize = 8;
/// Bytes hashed at once.
const CHUNK: usize = 256 << 10;

/// A layer that an earlier image has.
#[derive(Debug, Clone)]
pub(crate) struct Donor {
    pub(crate) layer: Indexed,
    disk: Arc<File>,
    damaged: Arc<AtomicBool>,
}

impl Donor {
    /// Its list is not what was written: passes `error` on.
    pub(crate) fn is_damaged<E>(&self, error: E) -> E {
        self.damaged.store(true, Ordering::Relaxed);
        error
    }

    /// Where its contents are read.
    pub(crate) fn contents(&self) -> Placed {
        Placed::new(Arc::clone(&self.disk), Arc::clone(&self.layer.places), Arc::clone(&self.damaged))
    }
}

/// For each layer of an image, who has it.
#[derive(Debug, Default)]
pub(crate) struct Donors {
    layers: Vec<Option<Donor>>,
    /// What the layers are; `None` for one that can only be known by unpacking it.
    wanted: Vec<Option<Wanted>>,
    /// Images that nobody has looked into yet, and their folders and disks; the best is the last.
    left: Vec<(ImageRecord, PathBuf, PathBuf)>,
    damaged: Arc<AtomicBool>,
}

/// A diff id, and the sum of the bytes as stored; `None` for the latter where these are the archive itself.
type Wanted = (Digest, Option<Digest>);

impl Donors {
    /// Nobody has anything.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// Looks through the store; the images that share most come first. What cannot be read is as good as nothing.
    pub(crate) fn find(store: &Store, image: &Image) -> Self {
        let wanted: Vec<Option<Wanted>> = image.layers.iter().map(identity).collect();
        let shares = |record: &ImageRecord| {
            wanted.iter().flatten().filter(|(diff_id, _)| record.layers.contains(&diff_id.to_string())).count()
        };
        let keys = store.image_keys().unwrap_or_default();
        let records = keys.iter().filter_map(|key| store.image(key).ok().flatten());
        // Where contents lie is noted of no other.
        let records = records.filter(|record| record.filesystem == Format::Ext4.name());
        let mut records: Vec<_> = records.map(|record| (shares(&record), record)).filter(|one| one.0 > 0).collect();
        records.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.key.cmp(&b.1.key)));
        let places = |record: ImageRecord| {
            let (folder, disk) = (store.image_dir(&record), store.disk(&record));
            (record, folder, disk)
        };
        let mut left: Vec<_> = records.into_iter().take(MAX_DONORS).map(|(_, record)| places(record)).collect();
        left.reverse();
        let mut donors = Self { layers: vec![None; wanted.len()], wanted, left, damaged: Arc::default() };
        donors.look();
        donors
    }

    /// Looks into images until every layer is found.
    fn look(&mut self) {
        while self.layers.iter().zip(&self.wanted).any(|(donor, wanted)| donor.is_none() && wanted.is_some())
            && let Some((record, folder, disk)) = self.left.pop()
        {
            let index = Index::read(&folder.join(FILE), &record);
            let (Some(index), Ok(disk)) = (index, File::open(disk)) else { continue };
            let disk = Arc::new(disk);
            for (donor, wanted) in self.layers.iter_mut().zip(&self.wanted) {
                let Some((diff_id, digest)) = wanted else { continue };
                let is_it =
                    |layer: &&Indexed| layer.diff_id == *diff_id && digest.is_none_or(|digest| layer.digest == digest);
                if donor.is_none()
                    && let Some(layer) = index.layers.iter().find(is_it)
                {
                    let (disk, damaged) = (Arc::clone(&disk), Arc::clone(&self.damaged));
                    *donor = Some(Donor { layer: layer.clone(), disk, damaged });
                }
            }
        }
    }

    /// Who has layer number `at`.
    pub(crate) fn of(&self, at: usize) -> Option<&Donor> {
        self.layers.get(at)?.as_ref()
    }

    /// Who has these layers lacks something: others are asked, and if nobody has them, they are read from their archives.
    pub(crate) fn forget(&mut self, layers: &[usize]) {
        for layer in layers {
            self.layers[*layer] = None;
        }
        self.look();
    }

    /// Whether something could not be read, or was not what was written.
    pub(crate) fn are_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}

/// What a layer is, without unpacking it.
fn identity(layer: &Layer) -> Option<Wanted> {
    let diff_id = layer.diff_id?;
    match layer.digest {
        Some(digest) => Some((diff_id, Some(digest))),
        None => Decoder::new(layer.section.reader()).ok()?.is_plain().then_some((diff_id, None)),
    }
}

/// Something that a source has to show: its bytes have this sum.
#[derive(Debug)]
pub(crate) struct Claim {
    name: String,
    section: Section,
    expected: Digest,
    /// It is the sum of the bytes as stored, not that of the archive.
    stored: bool,
}

impl Claim {
    /// What the source says of a layer that was taken from elsewhere.
    pub(crate) fn of(layer: &Layer) -> Option<Self> {
        let (diff_id, digest) = identity(layer)?;
        let (name, section) = (layer.name.clone(), layer.section.clone());
        Some(Self { name, section, expected: digest.unwrap_or(diff_id), stored: digest.is_some() })
    }
}

/// What a source has still to show before an image of the store is its own: it has the layers, and does not merely name their diff ids. `None` where
/// nobody knows that the image was made of these.
pub(crate) fn claims_on(store: &Store, record: &ImageRecord, image: &Image) -> Option<Vec<Claim>> {
    let folder = store.image_dir(record);
    let known = index::known(&folder.join(FILE), record)?;
    if known.len() != image.layers.len() {
        return None;
    }
    let shown = Shown::read(&folder);
    let mut claims = Vec::new();
    for (layer, known) in image.layers.iter().zip(&known) {
        if layer.diff_id != Some(known.diff_id) {
            return None;
        }
        // A file that was read before is known by itself, however it is packed.
        if image.blobs.is_empty() && layer.section.identity().is_some_and(|file| shown.has(&known.diff_id, &file)) {
            continue;
        }
        if layer.digest.is_some_and(|digest| digest != known.digest) {
            return None;
        }
        if !has_shown(image, layer, known.seen.as_ref()) {
            claims.push(Claim::of(layer)?);
        }
    }
    Some(claims)
}

/// Whether nobody need look at a layer's bytes again: a registry gave them and they were checked when they came, or it is the file that was
/// `seen` before.
pub(crate) fn has_shown(image: &Image, layer: &Layer, seen: Option<&Identity>) -> bool {
    layer.digest.is_some_and(|digest| image.blobs.contains(&digest))
        || seen.is_some_and(|seen| layer.section.identity().as_ref() == Some(seen))
}

/// Reads what the source has and holds it against what it says; the error is the one that unpacking the layer would give. Ends early once `stop` is set.
pub(crate) fn prove(claims: &[Claim], stop: &AtomicBool) -> Result<(), LayerError> {
    for claim in claims {
        let layer = || claim.name.clone();
        let found = sum(&claim.section, stop).map_err(|source| LayerError::Read { layer: layer(), source })?;
        let Some(found) = found else { return Ok(()) };
        if found != claim.expected {
            let (layer, expected) = (layer(), claim.expected);
            return Err(if claim.stored {
                LayerError::Digest { layer, expected, found }
            } else {
                LayerError::DiffId { layer, expected, found }
            });
        }
    }
    Ok(())
}

fn sum(section: &Section, stop: &AtomicBool) -> io::Result<Option<Digest>> {
    let (mut reader, mut hash, mut chunk) = (section.reader(), Sha256::new(), vec![0; CHUNK]);
    while !stop.load(Ordering::Relaxed) {
        match reader.read(&mut chunk)? {
            0 => return Ok(Some(hash.into())),
            len => hash.update(&chunk[..len]),
        }
    }
    Ok(None)
}
