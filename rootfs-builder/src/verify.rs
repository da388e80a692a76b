//! Everything of the store that has a digest, read again and held against it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::disk::{self, DiskError};
use crate::store::{Store, StoreError};
use crate::watch::{Interrupted, Watch};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `image`, or `blob` of a registry.
    pub kind: &'static str,
    /// Its key or its digest.
    pub name: String,
    /// Bytes that it has.
    pub bytes: u64,
    /// What is wrong with it, and the way out.
    pub fault: Option<String>,
    /// There was nothing to hold it against.
    pub unchecked: bool,
    /// It was damaged, and is gone.
    pub removed: bool,
}

/// Why nobody knows.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum VerifyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: reading")]
    Read { path: std::path::PathBuf, source: io::Error },
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Looks at the images with these keys, or at all images and blobs where none is given. Damaged blobs go where `remove` says so:
/// they are fetched again when somebody wants them.
pub fn verify(store: &Store, keys: &[String], remove: bool, watch: &Watch) -> Result<Vec<Finding>, VerifyError> {
    let mut findings = Vec::new();
    let all = store.image_keys()?;
    for key in all.iter().filter(|key| keys.is_empty() || keys.contains(key)) {
        findings.push(image(store, key, watch)?);
    }
    if keys.is_empty() {
        for path in store.blobs()? {
            findings.extend(blob(&path, remove, watch)?);
        }
    }
    Ok(findings)
}

fn image(store: &Store, key: &str, watch: &Watch) -> Result<Finding, VerifyError> {
    let short = key.get(..12).unwrap_or(key);
    let mut finding =
        Finding { kind: "image", name: key.to_owned(), bytes: 0, fault: None, unchecked: false, removed: false };
    let record = match store.image(key) {
        Ok(Some(record)) => record,
        Ok(None) => {
            finding.fault = Some("it has no record; remove its folder and build it again".to_owned());
            return Ok(finding);
        }
        // The message has the way out.
        Err(error) => {
            finding.fault = Some(crate::report::one_line(&error));
            return Ok(finding);
        }
    };
    let path = store.disk(&record);
    let read = File::open(&path).map_err(DiskError::from);
    let read = read.and_then(|disk| disk::read(&disk, &format!("checking image {short}"), watch));
    let contents = match read {
        Err(DiskError::Interrupted(interrupted)) => return Err(interrupted.into()),
        other => other,
    };
    let way_out = format!("remove it with `labyard image rm {short}` and pull it again");
    match contents {
        Err(error) => finding.fault = Some(format!("its disk cannot be read ({error}); {way_out}")),
        Ok(contents) => {
            finding.bytes = contents.len;
            let found = contents.digest().to_string();
            match &record.disk {
                _ if contents.len != record.size_bytes => {
                    let expected = record.size_bytes;
                    finding.fault = Some(format!("its disk has {} bytes, not {expected}; {way_out}", contents.len));
                }
                Some(expected) if *expected != found => {
                    finding.fault = Some(format!("its disk is {found}, not {expected}; {way_out}"));
                }
                Some(_) => {}
                None => finding.unchecked = true,
            }
        }
    }
    Ok(finding)
}

/// `None` for what is no complete blob, and for one that went away.
fn blob(path: &Path, remove: bool, watch: &Watch) -> Result<Option<Finding>, VerifyError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else { return Ok(None) };
    let failed = |source| VerifyError::Read { path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let (mut hash, mut chunk, mut bytes) = (Sha256::new(), vec![0; CHUNK], 0);
    let step = format!("checking blob {}", &name[..12]);
    let found = loop {
        match file.read(&mut chunk) {
            Ok(0) => break Ok(Digest::from(hash)),
            Ok(len) => {
                hash.update(&chunk[..len]);
                bytes += len as u64;
                watch.at(&step, bytes, 0)?;
            }
            Err(error) => break Err(error),
        }
    };
    let problem = match found {
        Ok(found) if found == digest => None,
        Ok(found) => Some(format!("its bytes are {found}")),
        Err(error) => Some(format!("it cannot be read ({error})")),
    };
    let removed = problem.is_some() && remove;
    if removed {
        fs::remove_file(path).map_err(failed)?;
    }
    let way_out = if removed { "removed" } else { "remove it with `labyard image verify --remove`" };
    let fault = problem.map(|problem| format!("{problem}; {way_out}, and it is fetched again when it is wanted"));
    Ok(Some(Finding { kind: "blob", name: digest.to_string(), bytes, fault, unchecked: false, removed }))
}
