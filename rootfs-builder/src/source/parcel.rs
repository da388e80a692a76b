//! An image as it lies in a layout or in the store, taken along whole: its manifests and blobs, to be given to a registry.

use std::collections::BTreeSet;
use std::path::Path;

use super::layout::Layout;
use super::manifest::{Descriptor, FOREIGN, INDEXES, Index, Kind, MANIFESTS, MAX_NESTED, Manifest};
use super::{MAX_DOCUMENT, SourceError, parse};
use crate::digest::Digest;
use crate::section::Section;
use crate::watch::Watch;

/// Most blobs of one image, all platforms together.
const MAX_BLOBS: usize = 4096;

/// What a registry is given.
#[derive(Debug)]
pub struct Parcel {
    /// Each once.
    pub(crate) blobs: Vec<Blob>,
    /// Those that are named by others come before them; the last one is the image.
    pub(crate) manifests: Vec<Document>,
}

/// A layer or a configuration. Nobody has looked whether its bytes are what its digest says.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) section: Section,
}

/// A manifest or an index, as it is.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) text: Vec<u8>,
}

impl Parcel {
    /// What a layout has under a tag; all of it where it has one image only. Every platform is taken along.
    pub fn of_layout(path: &Path, tag: Option<&str>, temporary: &Path, watch: &Watch) -> Result<Self, SourceError> {
        let layout = Layout::at(path, temporary, watch)?;
        let index = layout.index()?;
        let fits = |one: &&Descriptor| tag.map_or(!one.is_artifact(), |tag| one.tag() == Some(tag));
        let found: Vec<&Descriptor> = index.manifests.iter().filter(fits).collect();
        let tags: Vec<&str> = index.manifests.iter().filter_map(Descriptor::tag).collect();
        match &*found {
            [one] => Self::of(&layout, one),
            [] => Err(layout.no_choice(format!("no image with that tag in it; tags: {}", tags.join(", ")))),
            several => {
                let problem = format!("{} images in it; name one by its tag: {}", several.len(), tags.join(", "));
                Err(layout.no_choice(problem))
            }
        }
    }

    /// What lies in the store of the image with this manifest.
    pub fn of_store(home: &Path, manifest: &Digest) -> Result<Self, SourceError> {
        let layout = Layout::folder(home);
        let bytes = std::fs::metadata(home.join("blobs/sha256").join(manifest.hex())).map_or(0, |file| file.len());
        Self::of(&layout, &Descriptor::new(String::new(), manifest, bytes))
    }

    fn of(layout: &Layout, image: &Descriptor) -> Result<Self, SourceError> {
        let mut parcel = Self { blobs: Vec::new(), manifests: Vec::new() };
        parcel.add(layout, image, 0, &mut BTreeSet::new())?;
        Ok(parcel)
    }

    fn add(
        &mut self,
        layout: &Layout,
        descriptor: &Descriptor,
        depth: u32,
        seen: &mut BTreeSet<String>,
    ) -> Result<(), SourceError> {
        if !seen.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        let (digest, text) = layout.document(descriptor)?;
        let what = format!("manifest {digest}");
        let wrong = |problem: String| SourceError::Document { what: what.clone(), problem };
        let media_type = parse::<Kind>(&what, &text)?.media_type(&descriptor.media_type);
        if INDEXES.contains(&media_type.as_str()) {
            if depth == MAX_NESTED {
                return Err(wrong(format!("more than {MAX_NESTED} indexes nested")));
            }
            for inner in &parse::<Index>(&what, &text)?.manifests {
                self.add(layout, inner, depth + 1, seen)?;
            }
        } else if MANIFESTS.contains(&media_type.as_str()) {
            let manifest: Manifest = parse(&what, &text)?;
            let count = manifest.layers.len();
            let layers = manifest.layers.iter().enumerate();
            let layers = layers.map(|(at, layer)| (format!("layer {} of {count} ({})", at + 1, layer.digest), layer));
            let config = (format!("configuration {}", manifest.config.digest), &manifest.config);
            for (name, blob) in std::iter::once(config).chain(layers) {
                if FOREIGN.iter().any(|kind| blob.media_type.starts_with(kind)) {
                    let problem = "a foreign layer: its bytes belong to somebody else, and are not given away";
                    return Err(SourceError::Document { what: name, problem: problem.to_owned() });
                }
                if seen.insert(blob.digest.clone()) {
                    let (digest, section) = layout.blob(blob, &name)?;
                    self.blobs.push(Blob { name, digest, section });
                }
            }
        } else {
            return Err(wrong(format!("its media type `{media_type}` is neither a manifest nor an index")));
        }
        if self.blobs.len() > MAX_BLOBS {
            return Err(wrong(format!("more than {MAX_BLOBS} blobs")));
        }
        debug_assert!(text.len() as u64 <= MAX_DOCUMENT);
        self.manifests.push(Document { media_type, digest, text });
        Ok(())
    }
}
