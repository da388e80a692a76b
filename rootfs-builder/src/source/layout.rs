//! An OCI image layout: a folder, or a tar of one, with `oci-layout`, `index.json` and `blobs/` (OCI image-spec, image-layout.md). The store's
//! own blobs lie the same way.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::archive::Archive;
use super::manifest::{Artifact, Descriptor, INDEXES, Index, LAYERS, MANIFESTS, MAX_NESTED, Manifest, choose};
use super::{ARCHITECTURE, Image, MAX_DOCUMENT, SourceError, compatibility, config, parse, regular};
use crate::digest::Digest;
use crate::layer::Layer;
use crate::section::Section;
use crate::watch::Watch;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// A layout: a folder, or the same packed as a tar.
pub(super) struct Layout {
    path: PathBuf,
    /// What `path` has in it, where it is a tar.
    archive: Option<Archive>,
}

/// The image with the tag; a layout that is packed is listed, and unpacked to a file in `temporary` where it is compressed.
pub(super) fn open(path: &Path, tag: Option<&str>, temporary: &Path, watch: &Watch) -> Result<Image, SourceError> {
    let layout = Layout::at(path, temporary, watch)?;
    let index = layout.index()?;
    let chosen = layout.tagged(&index, tag)?;
    let mut image = layout.image(chosen, 0)?;
    // Attached to the image for our machines, or to all of them.
    let subjects = [image.digest.to_string(), chosen.digest.clone()];
    for attached in index.manifests.iter().filter(|one| one.is_compatibility()) {
        layout.attach(attached, &subjects, &mut image)?;
    }
    // Its blobs are somebody else's.
    Ok(Image { blobs: Vec::new(), ..image })
}

/// The image of a manifest whose blobs lie below `path` as in a layout.
pub(crate) fn image(path: &Path, manifest: &Descriptor) -> Result<Image, SourceError> {
    Layout::folder(path).image(manifest, 0)
}

/// Adds to an image what an artifact of the same place says that it needs.
pub(crate) fn attach(
    path: &Path,
    attached: &Descriptor,
    subjects: &[String],
    image: &mut Image,
) -> Result<(), SourceError> {
    Layout::folder(path).attach(attached, subjects, image)
}

impl Layout {
    /// One that says that it is a layout.
    pub(super) fn at(path: &Path, temporary: &Path, watch: &Watch) -> Result<Self, SourceError> {
        let wrong = |problem| SourceError::NotALayout { path: path.to_owned(), problem };
        let archive = match path.is_file() {
            true => Some(Archive::open(path, temporary, wrong, watch)?),
            false => None,
        };
        let layout = Self { path: path.to_owned(), archive };
        let version: LayoutFile = parse("oci-layout", &layout.file("oci-layout")?)
            .map_err(|error| layout.is_none(format!("its file oci-layout is not what it should be ({error})")))?;
        if !version.image_layout_version.starts_with("1.") {
            return Err(layout.is_none(format!("its version is `{}`, not 1.0.0", version.image_layout_version)));
        }
        Ok(layout)
    }

    /// A folder whose blobs lie as in one.
    pub(super) fn folder(path: &Path) -> Self {
        Self { path: path.to_owned(), archive: None }
    }

    /// What it has.
    pub(super) fn index(&self) -> Result<Index, SourceError> {
        parse("index.json", &self.file("index.json")?)
    }

    fn is_none(&self, problem: String) -> SourceError {
        SourceError::NotALayout { path: self.path.clone(), problem }
    }

    pub(super) fn no_choice(&self, problem: String) -> SourceError {
        SourceError::Choice { path: self.path.clone(), problem }
    }

    fn section(&self, name: &str) -> io::Result<Section> {
        match &self.archive {
            Some(archive) => archive.find(name).ok_or_else(|| io::ErrorKind::NotFound.into()),
            None => regular(&self.path.join(name)).and_then(Section::whole),
        }
    }

    /// One of the two files beside the blobs.
    fn file(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let path = self.path.join(name);
        let section = self.section(name).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => self.is_none(format!("it has no file {name}")),
            _ => SourceError::Open { path: path.clone(), source },
        })?;
        let bytes = section.bytes(MAX_DOCUMENT).map_err(|source| SourceError::Open { path, source })?;
        bytes.ok_or_else(|| self.is_none(format!("its file {name} is longer than {MAX_DOCUMENT} bytes")))
    }

    /// The manifest or index with the tag; the only one where none is given.
    fn tagged<'i>(&self, index: &'i Index, tag: Option<&str>) -> Result<&'i Descriptor, SourceError> {
        let fits = |descriptor: &&Descriptor| tag.is_none_or(|tag| descriptor.tag() == Some(tag));
        let found: Vec<&Descriptor> = index.manifests.iter().filter(fits).filter(|one| one.may_be_ours()).collect();
        let tags: Vec<&str> = index.manifests.iter().filter_map(Descriptor::tag).collect();
        let tags = if tags.is_empty() { "none".to_owned() } else { tags.join(", ") };
        match (&*found, tag) {
            ([one], _) => Ok(one),
            ([], Some(tag)) => {
                Err(self.no_choice(format!("no image for linux/{ARCHITECTURE} with the tag `{tag}`; tags: {tags}")))
            }
            ([], None) => Err(self.no_choice(format!("no image for linux/{ARCHITECTURE} in it; tags: {tags}"))),
            (several, _) => Err(self.no_choice(format!("{} images in it; name one by its tag: {tags}", several.len()))),
        }
    }

    fn image(&self, descriptor: &Descriptor, depth: u32) -> Result<Image, SourceError> {
        let kind = descriptor.media_type.as_str();
        let (digest, text) = self.document(descriptor)?;
        let what = format!("manifest {digest}");
        if INDEXES.contains(&kind) {
            let index: Index = parse(&what, &text)?;
            if depth == MAX_NESTED {
                return Err(SourceError::Document { what, problem: format!("more than {MAX_NESTED} indexes nested") });
            }
            let first = choose(&index).ok_or_else(|| {
                self.no_choice(format!(
                    "no image for linux/{ARCHITECTURE} among the {} of index {digest}",
                    index.manifests.len()
                ))
            })?;
            return self.image(first, depth + 1);
        }
        if !MANIFESTS.contains(&kind) {
            let problem = format!("its media type `{kind}` is neither a manifest nor an index");
            return Err(SourceError::Document { what, problem });
        }
        let manifest: Manifest = parse(&what, &text)?;
        let (config_digest, config) = self.document(&manifest.config)?;
        let what = format!("configuration {config_digest}");
        let annotations = manifest.annotations.unwrap_or_default();
        let config = config::read(&what, &config, manifest.layers.len(), &annotations)?;
        let count = manifest.layers.len();
        let layers = manifest.layers.iter().zip(config.diff_ids).enumerate().map(|(at, (layer, diff_id))| {
            let name = format!("layer {} of {count} ({})", at + 1, layer.digest);
            if !LAYERS.iter().any(|kind| layer.media_type.starts_with(kind)) {
                let problem = format!("its media type `{}` is not a file system layer", layer.media_type);
                return Err(SourceError::Document { what: name, problem });
            }
            let (digest, section) = self.blob(layer, &name)?;
            Ok(Layer { name, section, digest: Some(digest), diff_id: Some(diff_id) })
        });
        let layers: Vec<Layer> = layers.collect::<Result<_, _>>()?;
        let blobs = [digest, config_digest].into_iter().chain(layers.iter().filter_map(|layer| layer.digest)).collect();
        Ok(Image {
            digest,
            layers,
            whiteouts: true,
            entrypoint: config.entrypoint,
            config: config.whole,
            kernel: config.kernel,
            blobs,
        })
    }

    /// What an artifact says that the image needs, where it is about one of the subjects.
    fn attach(&self, attached: &Descriptor, subjects: &[String], image: &mut Image) -> Result<(), SourceError> {
        let (digest, text) = self.document(attached)?;
        let artifact: Artifact = parse(&format!("artifact {digest}"), &text)?;
        if !artifact.subject.as_ref().is_some_and(|subject| subjects.contains(&subject.digest)) {
            return Ok(());
        }
        image.blobs.push(digest);
        for layer in artifact.documents() {
            let (digest, text) = self.document(layer)?;
            let needs = compatibility::needs(&text).map_err(|problem| SourceError::Document {
                what: format!("compatibility specification {digest}"),
                problem,
            })?;
            image.kernel = std::mem::take(&mut image.kernel).and(needs);
            image.blobs.push(digest);
        }
        Ok(())
    }

    /// A blob of the right size; its digest is checked by whoever reads it.
    pub(super) fn blob(&self, descriptor: &Descriptor, what: &str) -> Result<(Digest, Section), SourceError> {
        let wrong = |problem| SourceError::Document { what: what.to_owned(), problem };
        // The digest names a file: only what parses as one becomes a path.
        let digest: Digest = descriptor.digest.parse().map_err(wrong)?;
        let name = format!("blobs/sha256/{}", digest.hex());
        let path = self.path.join(&name);
        let section = self.section(&name).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => wrong("the blob is not there; fetch the image again".to_owned()),
            _ => SourceError::Open { path, source },
        })?;
        if section.len() != descriptor.size {
            let (expected, found) = (descriptor.size, section.len());
            return Err(SourceError::BlobSize { what: what.to_owned(), expected, found });
        }
        Ok((digest, section))
    }

    /// A blob read whole and checked.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<(Digest, Vec<u8>), SourceError> {
        let what = format!("blob {}", descriptor.digest);
        let (digest, section) = self.blob(descriptor, &what)?;
        let read =
            section.bytes(MAX_DOCUMENT).map_err(|source| SourceError::Open { path: self.path.clone(), source })?;
        let Some(text) = read else {
            return Err(SourceError::Document { what, problem: format!("longer than {MAX_DOCUMENT} bytes") });
        };
        match Digest::of(&text) {
            found if found == digest => Ok((digest, text)),
            found => Err(SourceError::BlobDigest { what, found }),
        }
    }
}
