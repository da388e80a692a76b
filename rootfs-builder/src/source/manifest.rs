//! The documents between a tag and its layers (OCI image-spec, image-index.md, manifest.md). Docker's media types mean the same
//! and are taken too.

use serde::{Deserialize, Serialize};

use super::{ARCHITECTURE, compatibility};
use crate::digest::Digest;

/// Most indexes inside one another.
pub(crate) const MAX_NESTED: u32 = 4;
/// The annotation that holds a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Media types of an index.
pub(crate) const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Media types of a manifest.
pub(crate) const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// What a layer's media type starts with; the compression is told from the bytes.
pub(crate) const LAYERS: [&str; 3] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
];
/// Of these, the ones whose bytes a registry need not have (layer.md, "Non-Distributable Layers"; Docker's foreign layers).
pub(crate) const FOREIGN: [&str; 2] =
    ["application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign."];

/// The parts of a document that tell what it is.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Kind {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

impl Kind {
    /// Its media type: its own word, else who names it, else what it looks like: manifests of before 2021 may leave it out
    /// (image-spec, manifest.md).
    pub(crate) fn media_type(self, named: &str) -> String {
        let looks = if self.manifests.is_some() { INDEXES[0] } else { MANIFESTS[0] };
        let named = if named.is_empty() { looks } else { named };
        self.media_type.unwrap_or_else(|| named.to_owned())
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// A manifest that is no image, but says something of one (image-spec, manifest.md, "Guidelines for Artifact Usage").
#[derive(Debug, Deserialize)]
pub(crate) struct Artifact {
    #[serde(default)]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Artifact {
    /// What it says that an image needs of a machine.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &Descriptor> {
        self.layers.iter().filter(|layer| layer.media_type == compatibility::DOCUMENT)
    }
}

/// A blob as a document names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing)]
    platform: Option<Platform>,
    /// Something that was attached to an image: a signature, a list of its parts.
    #[serde(default, skip_serializing)]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

impl Descriptor {
    /// Of a document that we hold.
    pub(crate) fn new(media_type: String, digest: &Digest, size: u64) -> Self {
        Self { media_type, digest: digest.to_string(), size, platform: None, artifact_type: None, annotations: None }
    }

    pub(crate) fn tag(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME).map(String::as_str)
    }

    /// It is no image, but attached to one (image-spec, descriptor.md).
    pub(crate) fn is_artifact(&self) -> bool {
        self.artifact_type.is_some()
    }

    /// It says what the image needs of a machine.
    pub(crate) fn is_compatibility(&self) -> bool {
        self.artifact_type.as_deref() == Some(compatibility::ARTIFACT)
    }

    /// A platform that is not said may be ours; the configuration will tell.
    pub(crate) fn may_be_ours(&self) -> bool {
        !self.is_artifact()
            && self
                .platform
                .as_ref()
                .is_none_or(|platform| platform.os == "linux" && platform.architecture == ARCHITECTURE)
    }
}

/// Of an index, the image for our machines. Several may fit (variants): the first, as image-index.md says for clients.
pub(crate) fn choose(index: &Index) -> Option<&Descriptor> {
    index.manifests.iter().find(|one| one.may_be_ours())
}
