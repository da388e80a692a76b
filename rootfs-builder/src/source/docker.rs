//! What `docker save` writes: a tar with `manifest.json`, configurations and layers (moby, image/tarexport).

use std::path::Path;

use serde::Deserialize;

use super::archive::Archive;
use super::{Image, MAX_DOCUMENT, SourceError, config, parse};
use crate::digest::Digest;
use crate::layer::Layer;
use crate::watch::Watch;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn open(path: &Path, temporary: &Path, watch: &Watch) -> Result<Image, SourceError> {
    let failed = |source| SourceError::Open { path: path.to_owned(), source };
    let wrong = |problem: String| SourceError::NotAnArchive { path: path.to_owned(), problem };
    let archive = Archive::open(path, temporary, wrong, watch)?;
    let document = |name: &str| {
        let section = archive.find(name).ok_or_else(|| wrong(format!("it has no file {name}")))?;
        let text = section.bytes(MAX_DOCUMENT).map_err(failed)?;
        text.ok_or_else(|| wrong(format!("its file {name} is longer than {MAX_DOCUMENT} bytes")))
    };
    let manifest = document("manifest.json")?;
    let images: Vec<Saved> = parse("manifest.json", &manifest)?;
    let [image] = &*images else {
        let tags: Vec<String> = images.into_iter().filter_map(|image| image.repo_tags).flatten().collect();
        let problem = format!("not one image in it ({}); save them one by one", tags.join(", "));
        return Err(SourceError::Choice { path: path.to_owned(), problem });
    };
    let text = document(&image.config)?;
    let config = config::read(
        &format!("configuration {}", image.config),
        &text,
        image.layers.len(),
        &config::Annotations::new(),
    )?;
    let count = image.layers.len();
    let layers = image.layers.iter().zip(config.diff_ids).enumerate().map(|(at, (member, diff_id))| {
        let section = archive.find(member).ok_or_else(|| wrong(format!("it has no file {member}")))?;
        let name = format!("layer {} of {count} ({member})", at + 1);
        Ok(Layer { name, section, digest: None, diff_id: Some(diff_id) })
    });
    let layers = layers.collect::<Result<_, SourceError>>()?;
    Ok(Image {
        digest: Digest::of(&text),
        layers,
        whiteouts: true,
        entrypoint: config.entrypoint,
        config: config.whole,
        kernel: config.kernel,
        blobs: Vec::new(),
    })
}
