//! The index of an image's layers as a file: a head in JSON, packed lists behind it, and a sum over all of it at the end.
//!
//! It is written into the unfinished folder of its image, and has its name when the image has. One that is not whole, of another
//! version or of another disk is none.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::entries::{broken, number, put_number, small};
use super::places::{Place, ZEROS};
use crate::build::private;
use crate::digest::Digest;
use crate::layer::PARSER_VERSION;
use crate::section::Identity;
use crate::store::ImageRecord;

/// Raised whenever the file is another.
const FORMAT: u32 = 1;
/// Longest file: an image with a longer one has none.
pub(crate) const MAX_BYTES: usize = 32 << 20;
/// Most places of one layer.
const MAX_PLACES: u64 = 16 << 20;
/// Bytes of the length in front and of the sum at the end.
const LEN: usize = 4;
const SUM: usize = 32;

/// A layer in an index.
#[derive(Debug, Clone)]
pub(crate) struct Indexed {
    /// SHA-256 of the archive.
    pub(crate) diff_id: Digest,
    /// SHA-256 of the bytes as stored.
    pub(crate) digest: Digest,
    /// Length of the archive.
    pub(crate) bytes: u64,
    /// The file that it was read from, where one can be known again.
    pub(crate) seen: Option<Identity>,
    /// What it has ([`super::entries`]).
    pub(crate) entries: Arc<[u8]>,
    /// Where contents lie on the disk, by rising offset.
    pub(crate) places: Arc<[Place]>,
}

/// All layers of one image.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) layers: Vec<Indexed>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    parser: u32,
    disk: Option<String>,
    layers: Vec<LayerHead>,
}

#[derive(Serialize, Deserialize)]
struct LayerHead {
    diff_id: String,
    digest: String,
    bytes: u64,
    seen: Option<Identity>,
    /// Lengths of the two lists.
    entries: usize,
    places: usize,
}

impl Index {
    /// Writes it beside the disk that `record` is about; no file where it would be too long.
    pub(crate) fn write(&self, path: &Path, record: &ImageRecord) -> io::Result<()> {
        let (mut layers, mut lists) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let places = pack(&layer.places)?;
            layers.push(LayerHead {
                diff_id: layer.diff_id.to_string(),
                digest: layer.digest.to_string(),
                bytes: layer.bytes,
                seen: layer.seen.clone(),
                entries: layer.entries.len(),
                places: places.len(),
            });
            lists.extend_from_slice(&layer.entries);
            lists.extend_from_slice(&places);
            if lists.len() > MAX_BYTES {
                return Ok(());
            }
        }
        let head = Head { format: FORMAT, parser: PARSER_VERSION, disk: record.disk.clone(), layers };
        let head = serde_json::to_vec(&head)?;
        let len = u32::try_from(head.len()).map_err(|_| broken())?.to_le_bytes();
        if LEN + head.len() + lists.len() + SUM > MAX_BYTES {
            return Ok(());
        }
        let mut file = private(path)?;
        let mut hash = Sha256::new();
        for part in [&len[..], &head, &lists] {
            hash.update(part);
            file.write_all(part)?;
        }
        file.write_all(&hash.finalize())?;
        file.sync_all()
    }

    /// Reads the one of the image that `record` is about.
    pub(crate) fn read(path: &Path, record: &ImageRecord) -> Option<Self> {
        let bytes = whole(path)?;
        let (head, mut lists) = head(&bytes, record)?;
        let mut layers = Vec::new();
        for layer in head.layers {
            let (entries, rest) = lists.split_at_checked(layer.entries)?;
            let (places, rest) = rest.split_at_checked(layer.places)?;
            lists = rest;
            layers.push(Indexed {
                diff_id: layer.diff_id.parse().ok()?,
                digest: layer.digest.parse().ok()?,
                bytes: layer.bytes,
                seen: layer.seen,
                entries: entries.into(),
                places: unpack(places).ok()?.into(),
            });
        }
        Some(Self { layers })
    }
}

/// What an index says of a layer.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) diff_id: Digest,
    pub(crate) digest: Digest,
    /// The file that it was read from.
    pub(crate) seen: Option<Identity>,
}

/// Which layers the image that `record` is about was made of.
pub(crate) fn known(path: &Path, record: &ImageRecord) -> Option<Vec<Known>> {
    let bytes = whole(path)?;
    let (head, _) = head(&bytes, record)?;
    let known = |layer: LayerHead| {
        let (diff_id, digest) = (layer.diff_id.parse().ok()?, layer.digest.parse().ok()?);
        Some(Known { diff_id, digest, seen: layer.seen })
    };
    head.layers.into_iter().map(known).collect()
}

/// The bytes of an index that is whole, without their sum.
fn whole(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_BYTES as u64).read_to_end(&mut bytes).ok()?;
    let (found, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
    let is_whole = *Sha256::digest(found) == *sum;
    bytes.truncate(bytes.len() - SUM);
    is_whole.then_some(bytes)
}

/// Its head and its lists, if it is about this image.
fn head<'a>(bytes: &'a [u8], record: &ImageRecord) -> Option<(Head, &'a [u8])> {
    let (len, bytes) = bytes.split_first_chunk::<LEN>()?;
    let (head, lists) = bytes.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let fits = head.format == FORMAT && head.parser == PARSER_VERSION;
    (fits && head.disk.is_some() && head.disk == record.disk).then_some((head, lists))
}

/// Offsets and places on the disk mostly go on where the one before ended.
fn pack(places: &[Place]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    put_number(&mut bytes, places.len() as u64);
    let (mut offset, mut disk) = (0, 0u64);
    for place in places {
        put_number(&mut bytes, place.offset - offset);
        put_number(&mut bytes, u64::from(place.len));
        if place.disk == ZEROS {
            bytes.push(0);
        } else {
            bytes.push(1);
            put_number(&mut bytes, place.disk.wrapping_sub(disk));
            bytes.extend_from_slice(&place.sum.to_le_bytes());
            disk = place.disk + u64::from(place.len);
        }
        offset = place.end();
    }
    zstd::encode_all(&bytes[..], 1)
}

fn unpack(list: &[u8]) -> io::Result<Vec<Place>> {
    let mut from = io::BufReader::new(zstd::Decoder::with_buffer(list)?);
    let count = number(&mut from)?;
    if count > MAX_PLACES {
        return Err(broken());
    }
    let mut places = Vec::new();
    let (mut offset, mut disk) = (0u64, 0u64);
    for _ in 0..count {
        offset = offset.checked_add(number(&mut from)?).ok_or_else(broken)?;
        let len: u32 = small(&mut from)?;
        let mut place = Place { offset, len, sum: 0, disk: ZEROS };
        if small::<u8>(&mut from)? == 1 {
            place.disk = disk.wrapping_add(number(&mut from)?);
            let mut sum = [0; 4];
            from.read_exact(&mut sum)?;
            place.sum = u32::from_le_bytes(sum);
            disk = place.disk.checked_add(u64::from(len)).ok_or_else(broken)?;
        }
        offset = offset.checked_add(u64::from(len)).ok_or_else(broken)?;
        places.push(place);
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(disk: &str) -> ImageRecord {
        let record = serde_json::json!({
            "key": "k", "source": "s", "digest": "d", "layers": [], "size_bytes": 0, "filesystem": "ext4", "uuid": "u",
            "init": false, "entrypoint": null, "entries": 0, "writer": 2, "disk": disk
        });
        serde_json::from_value(record).expect("a record")
    }

    #[test]
    fn an_index_is_read_as_it_was_written_and_only_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("layers");
        let place = |offset, len, disk| Place { offset, len, sum: if disk == ZEROS { 0 } else { 77 }, disk };
        let places = [place(0, 4096, 1 << 40), place(4096, 7, 4096), place(5000, 1, ZEROS), place(5001, 1, 4103)];
        let layer = Indexed {
            diff_id: Digest::of(b"archive"),
            digest: Digest::of(b"stored"),
            bytes: 10,
            seen: None,
            entries: (*b"list").into(),
            places: places.into(),
        };
        let index = Index { layers: vec![layer.clone(), Indexed { places: Arc::default(), ..layer }] };
        index.write(&path, &record("sha256:x")).expect("writing");
        let read = Index::read(&path, &record("sha256:x")).expect("an index");
        assert_eq!(read.layers.len(), 2);
        assert_eq!((&*read.layers[0].places, &*read.layers[0].entries), (&places[..], &b"list"[..]));
        assert_eq!((read.layers[1].diff_id, read.layers[1].digest), (Digest::of(b"archive"), Digest::of(b"stored")));
        assert!(Index::read(&path, &record("sha256:y")).is_none());
        let bytes = fs::read(&path).expect("reading");
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            fs::write(&path, flipped).expect("writing");
            assert!(Index::read(&path, &record("sha256:x")).is_none(), "byte {at}");
            fs::write(&path, &bytes[..at]).expect("writing");
            assert!(Index::read(&path, &record("sha256:x")).is_none(), "cut at {at}");
        }
    }
}
