//! An image packed as one tar: listed once, its files read in place. Packed as a whole, it is unpacked to a file without a name first.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use tar::{Archive as Tar, EntryType};

use super::{SourceError, regular};
use crate::layer::decode::Decoder;
use crate::section::Section;
use crate::temporary;
use crate::watch::Watch;

/// Most files in the archive.
const MAX_FILES: usize = 100_000;
/// Longest header before an entry in bytes.
const MAX_PREFIX: u64 = 1 << 20;
/// Bytes unpacked at once.
const CHUNK: usize = 256 << 10;

/// A file in the archive: bytes, or the name of another file.
#[derive(Debug)]
enum Member {
    Bytes(Section),
    Link(String),
}

/// An archive and where its files lie in it.
#[derive(Debug)]
pub(super) struct Archive {
    members: BTreeMap<String, Member>,
}

impl Archive {
    /// Lists the archive at `path`; `wrong` says what is no archive of its kind.
    pub(super) fn open(
        path: &Path,
        temporary: &Path,
        wrong: impl Fn(String) -> SourceError,
        watch: &Watch,
    ) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Open { path: path.to_owned(), source };
        let stored = regular(path).and_then(Section::whole).map_err(failed)?;
        let whole = plain(&stored, path, temporary, &wrong, watch)?;
        let members = list(&whole).map_err(|error| match error.raw_os_error() {
            Some(_) => failed(error),
            None => wrong(error.to_string()),
        })?;
        Ok(Self { members })
    }

    /// A file of the archive; one link is followed.
    pub(super) fn find(&self, name: &str) -> Option<Section> {
        match self.members.get(&normal(name, ""))? {
            Member::Bytes(section) => Some(section.clone()),
            Member::Link(target) => match self.members.get(target)? {
                Member::Bytes(section) => Some(section.clone()),
                Member::Link(_) => None,
            },
        }
    }
}

/// The archive itself, unpacked where it is packed.
fn plain(
    stored: &Section,
    path: &Path,
    folder: &Path,
    wrong: &impl Fn(String) -> SourceError,
    watch: &Watch,
) -> Result<Section, SourceError> {
    let failed = |source| SourceError::Open { path: path.to_owned(), source };
    let mut decoder = Decoder::new(stored.reader()).map_err(failed)?;
    if decoder.is_plain() {
        return Ok(stored.clone());
    }
    let spooled = |source| SourceError::Temporary { path: folder.to_owned(), source };
    let mut file = temporary::unnamed(folder).map_err(spooled)?;
    let (mut chunk, mut done) = (vec![0; CHUNK], 0);
    // Packed a thousandfold is no image.
    let limit = stored.len().saturating_mul(1000);
    loop {
        let len = decoder.read(&mut chunk).map_err(|error| match error.raw_os_error() {
            Some(_) => failed(error),
            None => wrong(error.to_string()),
        })?;
        if len == 0 {
            return Section::whole(file).map_err(spooled);
        }
        done += len as u64;
        if done > limit {
            return Err(wrong(format!("it unpacks to more than {limit} bytes")));
        }
        io::Write::write_all(&mut file, &chunk[..len]).map_err(spooled)?;
        watch.at("unpacking the archive", done, 0)?;
    }
}

fn list(whole: &Section) -> io::Result<BTreeMap<String, Member>> {
    let mut members = BTreeMap::new();
    // Headers before an entry are read into memory by the crate: their lengths are looked at first.
    for entry in Tar::new(whole.reader()).entries_with_seek()?.raw(true) {
        let entry = entry?;
        let kind = entry.header().entry_type();
        let is_prefix = kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
            || kind.is_gnu_longname()
            || kind.is_gnu_longlink();
        if is_prefix && entry.header().entry_size()? > MAX_PREFIX {
            return Err(io::Error::other(format!("a header of more than {MAX_PREFIX} bytes")));
        }
    }
    for entry in Tar::new(whole.reader()).entries_with_seek()? {
        let entry = entry?;
        if members.len() == MAX_FILES {
            return Err(io::Error::other(format!("more than {MAX_FILES} files in it")));
        }
        let name = normal(&String::from_utf8_lossy(&entry.path_bytes()), "");
        let member = match entry.header().entry_type() {
            EntryType::Regular => Member::Bytes(whole.part(entry.raw_file_position(), entry.size())),
            // Old versions link a layer that occurs twice: `../<id>/layer.tar`, from the folder of the link.
            EntryType::Symlink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
                Member::Link(normal(&String::from_utf8_lossy(&entry.link_name_bytes().unwrap_or_default()), &folder))
            }
            EntryType::Link => {
                Member::Link(normal(&String::from_utf8_lossy(&entry.link_name_bytes().unwrap_or_default()), ""))
            }
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// A name inside the archive without `.` and `..`; it is only ever looked up in the list.
fn normal(name: &str, folder: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}
