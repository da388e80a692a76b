//! Files of this host that were held against the layers of an image, beside its index: who comes with one of them again has shown its bytes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::build::private;
use crate::digest::Digest;
use crate::section::Identity;
use crate::source::Image;

/// The list, beside the disk.
const FILE: &str = "shown";
/// Longest list, in bytes and in files; the oldest go.
const MAX_BYTES: u64 = 1 << 20;
const MAX_FILES: usize = 2048;

/// What is in the list.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Shown {
    files: Vec<(String, Identity)>,
}

impl Shown {
    /// The list in an image's folder; one that cannot be read is empty.
    pub(super) fn read(folder: &Path) -> Self {
        let read = || {
            let mut text = Vec::new();
            File::open(folder.join(FILE)).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
            serde_json::from_slice(&text).ok()
        };
        read().unwrap_or_default()
    }

    /// Whether this file was found to be the layer.
    pub(super) fn has(&self, diff_id: &Digest, file: &Identity) -> bool {
        let diff_id = diff_id.to_string();
        self.files.iter().any(|(layer, seen)| *layer == diff_id && seen == file)
    }
}

/// The files of an image that is about to be read.
pub(crate) fn files(image: &Image) -> Vec<Option<Identity>> {
    image.layers.iter().map(|layer| layer.section.identity()).collect()
}

/// Adds files that were found to be layers to the list in `folder`, unless they were written to since they were `before`. A registry's
/// blobs need no list.
pub(crate) fn remember(folder: &Path, image: &Image, before: &[Option<Identity>]) -> io::Result<()> {
    if !image.blobs.is_empty() {
        return Ok(());
    }
    let mut shown = Shown::read(folder);
    let old = shown.files.len();
    for (layer, file) in image.layers.iter().zip(before) {
        if let (Some(diff_id), Some(file)) = (layer.diff_id, file)
            && layer.section.identity().as_ref() == Some(file)
            && !shown.has(&diff_id, file)
        {
            shown.files.push((diff_id.to_string(), file.clone()));
        }
    }
    if shown.files.len() == old {
        return Ok(());
    }
    let surplus = shown.files.len().saturating_sub(MAX_FILES);
    shown.files.drain(..surplus);
    let path = folder.join(FILE);
    let unfinished = folder.join(format!("{FILE}.{}.tmp", std::process::id()));
    let written = private(&unfinished)
        .and_then(|file| Ok(serde_json::to_writer(file, &shown)?))
        .and_then(|()| fs::rename(&unfinished, &path));
    // An image that was removed meanwhile needs none.
    written.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
