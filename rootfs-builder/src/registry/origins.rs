//! Where the blobs of the store came from: `blobs/origins/<hex>.json`. Blobs are shared, but knowing a digest is no right to the bytes.
//!
//! - A blob that some registry gave to somebody without a login is for everybody.
//! - Any other is for who shows that a registry which has given it before gives it to them, too: a part of it, chosen at random, is asked for
//!   with their own login and compared. So neither a registry that merely says that it has the blob is believed, nor somebody who
//!   speaks in its place.
//! - Any other registry has to give all of it once more; then it is one of those that have given it.
//!
//! A blob without a note, or with one that cannot be read, has been given by nobody.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::access::Who;
use crate::digest::Digest;

/// Longest note, and most registries in it.
const MAX_BYTES: u64 = 64 << 10;
const MAX_REGISTRIES: usize = 64;

/// Notes of one store.
#[derive(Debug, Clone)]
pub struct Origins {
    folder: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    public: bool,
    registries: BTreeSet<String>,
}

/// What somebody has to do for a blob that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// Nothing.
    Everybody,
    /// Have a part of it given to them.
    Sample,
    /// Have all of it given to them.
    Whole,
}

impl Origins {
    /// Below a state directory.
    pub fn open(home: &Path) -> io::Result<Self> {
        let folder = home.join("blobs/origins");
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{}.json", digest.hex()))
    }

    fn read(&self, digest: &Digest) -> Note {
        let read = || {
            let mut text = Vec::new();
            File::open(self.path(digest)).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
            serde_json::from_slice(&text).ok()
        };
        read().unwrap_or_default()
    }

    pub(super) fn right(&self, digest: &Digest, who: &Who) -> Right {
        let note = self.read(digest);
        if note.public {
            Right::Everybody
        } else if note.registries.contains(who.registry()) {
            Right::Sample
        } else {
            Right::Whole
        }
    }

    /// `who` has been given the blob.
    pub(super) fn note(&self, digest: &Digest, who: &Who) -> io::Result<()> {
        let mut note = self.read(digest);
        let known = note.registries.contains(who.registry()) || note.registries.len() >= MAX_REGISTRIES;
        if note.public || known && !who.is_anonymous() {
            return Ok(());
        }
        note.public = who.is_anonymous();
        if !known {
            note.registries.insert(who.registry().to_owned());
        }
        let path = self.path(digest);
        let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file = crate::build::private(&unfinished)?;
        file.write_all(&serde_json::to_vec(&note)?)?;
        fs::rename(&unfinished, &path)
    }
}

#[cfg(test)]
mod tests {
    use oci_client::secrets::RegistryAuth;

    use super::super::settings::Endpoint;
    use super::*;

    #[test]
    fn who_has_given_a_blob_decides_what_is_asked_of_others() {
        let home = tempfile::tempdir().expect("a folder");
        let origins = Origins::open(home.path()).expect("opening");
        let digest = Digest::of(b"it");
        let ada = RegistryAuth::Basic("ada".to_owned(), "secret".to_owned());
        let who = |host: &str, auth: &RegistryAuth| {
            let reference = format!("{host}/it:1").parse().expect("a reference");
            Who::new(&Endpoint { reference, insecure: false }, auth)
        };
        let (own, other) = (who("a.example", &ada), who("b.example", &ada));
        let nobody = |host: &str| who(host, &RegistryAuth::Anonymous);
        assert_eq!(origins.right(&digest, &own), Right::Whole);
        origins.note(&digest, &own).expect("noting");
        assert_eq!(origins.right(&digest, &own), Right::Sample);
        assert_eq!(origins.right(&digest, &nobody("a.example")), Right::Sample);
        assert_eq!(origins.right(&digest, &other), Right::Whole);
        assert_eq!(origins.right(&Digest::of(b"another"), &own), Right::Whole);
        origins.note(&digest, &other).expect("noting");
        assert_eq!((origins.right(&digest, &own), origins.right(&digest, &other)), (Right::Sample, Right::Sample));
        // A note that is broken says nothing.
        fs::write(origins.path(&digest), "{").expect("writing");
        assert_eq!(origins.right(&digest, &own), Right::Whole);
        origins.note(&digest, &nobody("c.example")).expect("noting");
        assert_eq!(origins.right(&digest, &other), Right::Everybody);
        origins.note(&digest, &other).expect("noting");
        assert_eq!(origins.right(&digest, &nobody("d.example")), Right::Everybody);
    }
}
