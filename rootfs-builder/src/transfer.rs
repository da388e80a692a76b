//! Images between stores: an image as one file, and back.
//!
//! The file is a tar of two members: `HEAD`, a JSON document, and `DATA`, the parts of the disk that are not zero, one behind the other.
//! What is read back is checked against itself: the key against the record, the disk against its digest. That finds damage and
//! confusion; whether the image is what it says it is, only who made the file can know.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use labyard_spec::source::Source;
use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};

use crate::build::{self, BuildError, Format};
use crate::disk::{self, DiskError};
use crate::layer::decode::Decoder;
use crate::section::Section;
use crate::store::{ImageRecord, Store, StoreError, disk_name};
use crate::temporary::Draft;
use crate::watch::{Interrupted, Watch};
use crate::workdir::{self, Workdir, WorkdirError};

/// The first member: what the image is.
const HEAD: &str = "labyard-image.json";
/// The second: its bytes.
const DATA: &str = "data";
/// Raised when a file of before can no longer be read.
const FORMAT: u32 = 1;
/// Longest document in bytes.
const MAX_HEAD: u64 = 16 << 20;
/// Longest disk.
const MAX_DISK: u64 = 64 << 40;
/// Bytes moved at once.
const CHUNK: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    record: ImageRecord,
    /// Of the disk, as [`disk`] computes it.
    digest: String,
    /// Offset and length of each part in [`DATA`], in order.
    extents: Vec<(u64, u64)>,
}

/// Why an image did not travel.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum TransferError {
    #[error("{path}: {problem}")]
    File { path: PathBuf, problem: String },
    #[error("{path}: reading")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: writing")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path}: it is there already; give another name, or --force")]
    Exists { path: PathBuf },
    #[error(
        "image {key}: its disk is damaged: {found} where it was built as {expected}; remove it with `labyard image rm` and pull it again"
    )]
    Damaged { key: String, expected: String, found: String },
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl TransferError {
    /// What was asked for is at fault, not the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::File { .. } | Self::Exists { .. } => true,
            Self::Read { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Build(error) => error.is_input(),
            _ => false,
        }
    }
}

fn disk_failed(path: &Path) -> impl FnOnce(DiskError) -> TransferError {
    let path = path.to_owned();
    move |error| match error {
        DiskError::Interrupted(interrupted) => interrupted.into(),
        DiskError::Read(source) => TransferError::Read { path, source },
    }
}

/// Writes an image to a file of its own; its length. The file appears once it is complete.
pub fn export(store: &Store, image: &ImageRecord, to: &Path, force: bool, watch: &Watch) -> Result<u64, TransferError> {
    let exists = || TransferError::Exists { path: to.to_owned() };
    if to.exists() && !force {
        return Err(exists());
    }
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            TransferError::File { path: to.to_owned(), problem: "there is no folder to put it into".to_owned() }
        }
        _ => TransferError::Write { path: to.to_owned(), source },
    };
    let path = store.disk(image);
    let disk = File::open(&path).map_err(|source| TransferError::Read { path: path.clone(), source })?;
    let contents = disk::read(&disk, "checking the disk", watch).map_err(disk_failed(&path))?;
    let found = contents.digest().to_string();
    if let Some(expected) = image.disk.as_ref().filter(|expected| **expected != found) {
        return Err(TransferError::Damaged { key: image.key.clone(), expected: expected.clone(), found });
    }
    let draft = Draft::new(to).map_err(failed)?;
    let head = Head {
        format: FORMAT,
        record: ImageRecord { unproved: false, ..image.clone() },
        digest: found,
        extents: contents.extents(),
    };
    write(&head, &disk, &draft.file, watch).map_err(|error| match error {
        DiskError::Interrupted(interrupted) => TransferError::from(interrupted),
        DiskError::Read(source) => failed(source),
    })?;
    draft.file.sync_all().map_err(failed)?;
    let len = draft.file.metadata().map_err(failed)?.len();
    draft.finish(force).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(),
        _ => failed(error),
    })?;
    Ok(len)
}

fn write(head: &Head, disk: &File, file: &File, watch: &Watch) -> Result<(), DiskError> {
    let text = serde_json::to_vec_pretty(head).map_err(io::Error::other)?;
    let mut tar = Builder::new(io::BufWriter::with_capacity(CHUNK, file));
    tar.append_data(&mut header(text.len() as u64), HEAD, &*text)?;
    let of = head.extents.iter().map(|(_, len)| len).sum();
    let mut parts = Parts { disk, extents: &head.extents, at: 0, done: 0, of, watch, interrupted: None };
    let appended = tar.append_data(&mut header(of), DATA, &mut parts);
    if let Some(interrupted) = parts.interrupted {
        return Err(interrupted.into());
    }
    appended?;
    tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(())
}

/// The same for the same image, whoever writes it and when.
fn header(len: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(len);
    header
}

/// The parts of a disk as one stream.
struct Parts<'a> {
    disk: &'a File,
    extents: &'a [(u64, u64)],
    /// In the first of them.
    at: u64,
    done: u64,
    of: u64,
    watch: &'a Watch,
    interrupted: Option<Interrupted>,
}

impl Read for Parts<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(((start, len), rest)) = self.extents.split_first() else { return Ok(0) };
        if let Err(interrupted) = self.watch.at("writing the disk", self.done, self.of) {
            self.interrupted = Some(interrupted);
            return Err(io::Error::other(interrupted));
        }
        let wanted = into.len().min(usize::try_from(len - self.at).unwrap_or(usize::MAX));
        self.disk.read_exact_at(&mut into[..wanted], start + self.at)?;
        self.at += wanted as u64;
        self.done += wanted as u64;
        if self.at == *len {
            (self.extents, self.at) = (rest, 0);
        }
        Ok(wanted)
    }
}

/// What a file is that somebody wants imported.
pub enum Found {
    /// An image that was exported.
    Export,
    /// Something that is built from.
    Source(Source),
}

/// Looks what `path` is.
pub fn look(path: &Path, temporary: &Path, watch: &Watch) -> Result<Found, TransferError> {
    let failed = |source| TransferError::Read { path: path.to_owned(), source };
    let layout = || Found::Source(Source::OciLayout { path: path.to_owned(), tag: None });
    if fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(layout());
    }
    let none = |problem: String| TransferError::File {
        path: path.to_owned(),
        problem: format!(
            "{problem}; give what `labyard image export` wrote, an OCI image layout or an archive of `docker save` \
             (a tar of a root file system is pulled: `labyard image pull rootfs-tar:PATH`)"
        ),
    };
    let section = File::open(path).and_then(Section::whole).map_err(failed)?;
    let mut tar = Archive::new(Decoder::new(section.reader()).map_err(failed)?);
    let first = tar.entries().and_then(|mut entries| entries.next().transpose());
    let first = first.map_err(|error| none(format!("no tar archive ({error})")))?;
    if first.is_some_and(|entry| *entry.path_bytes() == *HEAD.as_bytes()) {
        return Ok(Found::Export);
    }
    match crate::source::kind(path, temporary, watch).map_err(BuildError::from)? {
        Some(source) => Ok(Found::Source(source)),
        None => Err(none("a tar archive of something else".to_owned())),
    }
}

/// Puts an exported image into the store; the record, and whether it was there already. Where its file is not trusted in what it says the
/// disk was made of, a build of the same layers does not take it, and is held against it.
pub fn import(store: &Store, path: &Path, trusted: bool, watch: &Watch) -> Result<(ImageRecord, bool), TransferError> {
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(_) => TransferError::Read { path: path.to_owned(), source },
        // What the archive or its packing is wrong in.
        None => {
            TransferError::File { path: path.to_owned(), problem: format!("it is damaged or cut short ({source})") }
        }
    };
    let wrong = |problem: String| TransferError::File { path: path.to_owned(), problem };
    let images = store.images_dir();
    workdir::remove_stale(&images).map_err(|source| TransferError::Write { path: images.clone(), source })?;
    let section = File::open(path).and_then(Section::whole).map_err(failed)?;
    let mut tar = Archive::new(Decoder::new(section.reader()).map_err(failed)?);
    let mut entries = tar.entries().map_err(failed)?;
    let mut member = |wanted: &str| {
        let entry = entries.next().transpose().map_err(failed)?;
        match entry {
            Some(entry) if *entry.path_bytes() == *wanted.as_bytes() => Ok(entry),
            _ => Err(wrong(format!("it has no {wanted} where an exported image has it"))),
        }
    };
    let mut text = Vec::new();
    member(HEAD)?.take(MAX_HEAD + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_HEAD {
        return Err(wrong(format!("its {HEAD} is longer than {MAX_HEAD} bytes")));
    }
    let head: Head = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("its {HEAD} is not what it should be ({error})")))?;
    check(&head).map_err(wrong)?;
    let key = head.record.key.clone();
    let work = Workdir::enter(&images, &key, watch)?;
    if let Some(record) = store.image(&key)? {
        if trusted && record.unproved && record.disk.as_ref() == Some(&head.digest) {
            let proved = ImageRecord { unproved: false, ..record };
            build::replace_record(store, work.path(), &proved)?;
            return Ok((proved, true));
        }
        return Ok((record, true));
    }
    let target = work.path().join(disk_name(&head.record.filesystem));
    let unwritten = |source| TransferError::Write { path: target.clone(), source };
    let disk = build::private(&target).map_err(unwritten)?;
    disk.set_len(head.record.size_bytes).map_err(unwritten)?;
    let mut data = member(DATA)?;
    let of = head.extents.iter().map(|(_, len)| len).sum();
    if data.size() != of {
        return Err(wrong(format!("its {DATA} has {} bytes where its parts have {of}", data.size())));
    }
    let (mut chunk, mut done) = (vec![0; CHUNK], 0);
    for (start, len) in &head.extents {
        let mut at = 0;
        while at < *len {
            let part = &mut chunk[..(CHUNK as u64).min(len - at) as usize];
            data.read_exact(part).map_err(failed)?;
            disk.write_all_at(part, start + at).map_err(unwritten)?;
            at += part.len() as u64;
            done += part.len() as u64;
            watch.at("reading the disk", done, of)?;
        }
    }
    let found = disk::read(&disk, "checking the disk", watch).map_err(disk_failed(&target))?.digest().to_string();
    if found != head.digest {
        return Err(wrong(format!("its disk is {found} where it says {}: damaged on its way", head.digest)));
    }
    // The store has no blobs that it came from.
    let record = ImageRecord { disk: Some(found), blobs: Vec::new(), unproved: !trusted, ..head.record };
    watch.at("syncing", 0, 0)?;
    disk.sync_all().map_err(unwritten)?;
    build::write_record(&work.path().join("image.json"), &record)?;
    work.publish(&store.image_dir(&record))?;
    Ok((record, false))
}

/// Whether a document agrees with itself.
fn check(head: &Head) -> Result<(), String> {
    let record = &head.record;
    if head.format != FORMAT {
        return Err(format!("its format is {}, this version reads {FORMAT}", head.format));
    }
    if Format::named(&record.filesystem).is_none() || record.size_bytes == 0 || record.size_bytes > MAX_DISK {
        return Err(format!("no disk of {} with {} bytes", record.filesystem, record.size_bytes));
    }
    if !build::is_key_of(record) {
        return Err(format!("its key {} is not that of its layers, size and writer", record.key.escape_default()));
    }
    if record.disk.as_ref().is_some_and(|digest| *digest != head.digest) {
        return Err("its record and its head have different digests of the disk".to_owned());
    }
    let mut end = 0;
    for (at, len) in &head.extents {
        let next = at.checked_add(*len).filter(|next| *at >= end && *len > 0 && *next <= record.size_bytes);
        end = next.ok_or_else(|| format!("a part of {len} bytes at {at} overlaps another or the end of the disk"))?;
    }
    Ok(())
}
