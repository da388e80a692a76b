//! An image whose layers have been put on each other, and the disk that it becomes.

use std::io;
use std::path::Path;
use std::sync::Arc;

use labyard_spec::guest::Entrypoint;
use labyard_spec::needs::KernelNeeds;

use super::{BuildError, Format, Request, key, private, uuid_of, uuid_text};
use crate::digest::Digest;
use crate::disk::{self, Contents, DiskError, Follower};
use crate::earlier::entries::{Entries, Notes};
use crate::earlier::index::{self, Index, Indexed};
use crate::earlier::places::Places;
use crate::earlier::{Claim, Donor, Donors, has_shown};
use crate::erofs;
use crate::ext4::{self, Ext4Error, Options, Size};
use crate::layer::archive::ArchiveError;
use crate::layer::{self, Layer, LayerError, Limits, Spool};
use crate::merge::Merge;
use crate::registry::blobs::Blobs;
use crate::section::Identity;
use crate::source::Image;
use crate::store::ImageRecord;
use crate::temporary;
use crate::tree::{Kind, Spools, Tree};
use crate::watch::Watch;

/// Volume label of images.
const LABEL: &str = "labyard-root";

/// An image that has been read.
pub(super) struct Merged {
    tree: Tree,
    spools: Spools,
    pub(super) key: Digest,
    digest: Digest,
    layers: Vec<Read>,
    entrypoint: Option<Entrypoint>,
    kernel: KernelNeeds,
    blobs: Vec<Digest>,
}

/// A layer of it. Its contents are in the spool that has its number.
struct Read {
    diff_id: Digest,
    digest: Digest,
    bytes: u64,
    /// What its archive has; `None` where that is too long to keep.
    entries: Option<Arc<[u8]>>,
    /// Where its contents begin.
    base: u64,
    /// The file that it was read from.
    seen: Option<Identity>,
    /// An earlier image has it.
    taken: bool,
}

impl Merged {
    /// Reads every layer that `donors` do not have, or of which they lack something: they are forgotten then.
    pub(super) fn complete(
        image: &Image,
        request: &Request,
        temporary: &Path,
        donors: &mut Donors,
        watch: &Watch,
    ) -> Result<Self, BuildError> {
        loop {
            let merged = Self::of(image, request, temporary, donors, watch)?;
            let missing = merged.missing();
            if missing.is_empty() {
                return Ok(merged);
            }
            donors.forget(&missing);
        }
    }

    /// Contents go to one file without a name in `temporary`.
    fn of(
        image: &Image,
        request: &Request,
        temporary: &Path,
        donors: &Donors,
        watch: &Watch,
    ) -> Result<Self, BuildError> {
        let failed = |source| BuildError::Write { path: temporary.to_owned(), source };
        let limits = Limits::for_disk(request.size_bytes);
        let file = temporary::unnamed(temporary).map_err(failed)?;
        let shared = Arc::new(file.try_clone().map_err(failed)?);
        let (mut spool, mut spools) = (Spool::new(file, 0), Spools::default());
        let mut merge = Merge::new(limits, image.whiteouts);
        let mut left = limits.unpacked_bytes;
        let mut room = index::MAX_BYTES;
        let mut layers: Vec<Read> = Vec::new();
        for (at, layer) in image.layers.iter().enumerate() {
            merge.next_layer();
            // What is too long is read from its archive, which then says so.
            let fits = |donor: &&Donor| donor.layer.bytes <= left.min(layer::most(layer.section.len()));
            let read = if let Some(donor) = donors.of(at).filter(fits) {
                let number = spools.push_placed(donor.contents());
                take(donor, layer, number, &mut merge, watch)?
            } else {
                let before = layer.section.identity();
                let base = spool.go_on_as(spools.push(Arc::clone(&shared)));
                let mut notes = Notes::new(room);
                let unpacked = layer::unpack(layer, &mut spool, left, watch, |entry| {
                    notes.put(&entry, base);
                    merge.apply(entry)
                });
                if let Err(LayerError::Digest { expected, .. }) = &unpacked
                    && image.blobs.contains(expected)
                {
                    // A blob of the store that has rotted: gone, it is fetched again as the message says. If that fails, it is said again.
                    let _ = Blobs::open(&request.home).and_then(|blobs| std::fs::remove_file(blobs.path(expected)));
                }
                let layer::Unpacked { diff_id, digest, bytes } = unpacked?;
                let entries = notes.finish().map(Arc::from);
                // What was written to meanwhile is not what was read.
                let seen = before.filter(|before| layer.section.identity().as_ref() == Some(before));
                Read { diff_id, digest, bytes, entries, base, seen, taken: false }
            };
            left -= read.bytes;
            room = room.saturating_sub(read.entries.as_ref().map_or(0, |list| list.len()));
            layers.push(read);
        }
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        // A plain tar has no manifest.
        let digest = layers.last().filter(|_| !image.whiteouts).map_or(image.digest, |layer| layer.digest);
        let key = key(request, &diff_ids, image);
        Ok(Self {
            tree: merge.finish(),
            spools,
            key,
            digest,
            layers,
            blobs: image.blobs.clone(),
            entrypoint: image.entrypoint.clone(),
            kernel: image.kernel.clone(),
        })
    }

    /// Layers taken from an earlier image that has hidden some of what is seen of them here.
    fn missing(&self) -> Vec<usize> {
        let mut missing = vec![false; self.layers.len()];
        if self.layers.iter().any(|layer| layer.taken) {
            let walked: Result<(), std::convert::Infallible> = self.tree.walk(&mut |id, _, met| {
                if let Kind::File(content) = &self.tree.node(id).kind
                    && !met
                {
                    for run in content.runs.iter().filter(|run| !self.spools.has(run)) {
                        missing[run.spool as usize] = true;
                    }
                }
                Ok(())
            });
            let Ok(()) = walked;
        }
        missing.iter().enumerate().filter(|(_, missing)| **missing).map(|(at, _)| at).collect()
    }

    /// What the source has to show of layers that were not read.
    pub(super) fn claims(&self, image: &Image) -> Vec<Claim> {
        let asked = |layer: &Layer, read: &Read| read.taken && !has_shown(image, layer, read.seen.as_ref());
        let layers = image.layers.iter().zip(&self.layers);
        layers.filter(|(layer, read)| asked(layer, read)).filter_map(|(layer, _)| Claim::of(layer)).collect()
    }

    /// An index of the layers; with no places it says only what the image was made of.
    pub(super) fn index(&self, mut places: Places) -> Option<Index> {
        let index = |(number, layer): (u32, &Read)| {
            Some(Indexed {
                diff_id: layer.diff_id,
                digest: layer.digest,
                bytes: layer.bytes,
                seen: layer.seen.clone(),
                entries: Arc::clone(layer.entries.as_ref()?),
                places: places.take(number, layer.base),
            })
        };
        Some(Index { layers: (0..).zip(&self.layers).map(index).collect::<Option<_>>()? })
    }

    /// Writes the disk; one of the store comes with an index of its layers.
    pub(super) fn write(
        &mut self,
        request: &Request,
        path: &Path,
        watch: &Watch,
    ) -> Result<(ImageRecord, Option<Index>), BuildError> {
        let failed = |source| BuildError::Write { path: path.to_owned(), source };
        let init = self.tree.follow("/sbin/init").is_some_and(|id| matches!(self.tree.node(id).kind, Kind::File(_)));
        let uuid = uuid_of(&self.key, "file system");
        let file = private(path).map_err(failed)?;
        let contents = |contents: Result<Contents, DiskError>| {
            contents.map_err(|error| match error {
                DiskError::Read(source) => failed(source),
                DiskError::Interrupted(interrupted) => Ext4Error::from(interrupted).into(),
            })
        };
        let (written, disk, index) = match request.format {
            Format::Ext4 => {
                let options = Options {
                    size: Size::Bytes(request.size_bytes),
                    uuid,
                    hash_seed: uuid_of(&self.key, "directory hashes"),
                    label: LABEL.to_owned(),
                };
                // What is taken from earlier images is in the page cache there, if anywhere: a copy would only push out more. What is
                // new stays in it, for the boot that comes next.
                let copies = self.layers.iter().any(|layer| layer.taken);
                let direct = copies.then(|| disk::past_page_cache(path)).flatten();
                let follower = Follower::new(&file, direct, request.size_bytes).map_err(failed)?;
                let followed = ext4::write_followed(&mut self.tree, &self.spools, &options, &file, watch, &follower);
                let (written, places) = followed?;
                let disk = contents(follower.finish("taking the digest", watch))?;
                (written, disk, self.index(places))
            }
            Format::Erofs => {
                let options = erofs::Options { uuid, label: LABEL.to_owned() };
                let written = erofs::write(&self.tree, &self.spools, &options, &file, watch)?;
                let disk = contents(disk::read(&file, "taking the digest", watch))?;
                watch.at("syncing", 0, 0).map_err(Ext4Error::from)?;
                file.sync_all().map_err(failed)?;
                // Its contents have no places that another disk could take them from.
                (written, disk, self.index(Places::default()))
            }
        };
        let record = ImageRecord {
            key: self.key.hex(),
            source: request.source.to_string(),
            digest: self.digest.to_string(),
            layers: self.layers.iter().map(|layer| layer.diff_id.to_string()).collect(),
            size_bytes: written.bytes,
            filesystem: request.format.name().to_owned(),
            uuid: uuid_text(&uuid),
            init,
            entrypoint: self.entrypoint.clone(),
            entries: written.entries,
            writer: request.format.writer(),
            disk: Some(disk.digest().to_string()),
            blobs: self.blobs.iter().map(Digest::to_string).collect(),
            kernel: self.kernel.clone(),
            unproved: false,
        };
        Ok((record, index))
    }
}

/// Puts a layer on the tree as an earlier image has it.
fn take(donor: &Donor, layer: &Layer, number: u32, merge: &mut Merge, watch: &Watch) -> Result<Read, LayerError> {
    let refused = |source: ArchiveError| LayerError::Archive { layer: layer.name.clone(), source };
    let unread = |source: io::Error| donor.is_damaged(refused(ArchiveError::Read(source)));
    watch.at("taking layers from earlier images", 0, 0)?;
    let mut entries = Entries::new(&donor.layer.entries, number).map_err(unread)?;
    while let Some(entry) = entries.next().map_err(unread)? {
        watch.check()?;
        merge.apply(entry).map_err(refused)?;
    }
    let Indexed { diff_id, digest, bytes, .. } = donor.layer;
    let (entries, seen) = (Some(Arc::clone(&donor.layer.entries)), donor.layer.seen.clone());
    Ok(Read { diff_id, digest, bytes, entries, base: 0, seen, taken: true })
}
