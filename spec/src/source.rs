//! Where an image comes from: the text of `drives[].source` and of `rootfs-builder build`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An image source. Paths are relative to the manifest that names them, or to the working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `oci://REGISTRY/REPO:TAG[@DIGEST]`; `docker://` is the same.
    Registry(String),
    /// `oci-layout:PATH[:TAG]`: an OCI image layout (image-spec, image-layout.md).
    OciLayout {
        /// The folder, or a tar of it.
        path: PathBuf,
        /// `org.opencontainers.image.ref.name` of the manifest; the only one where missing.
        tag: Option<String>,
    },
    /// `docker-archive:PATH`: what `docker save` writes.
    DockerArchive(PathBuf),
    /// `rootfs-tar:PATH`: a plain tar of a root file system.
    RootfsTar(PathBuf),
    /// `dockerfile:PATH`: a Dockerfile, or a folder with one, built by buildah.
    Dockerfile(PathBuf),
    /// A bare word: a name of the catalogue.
    Alias(String),
}

impl Source {
    /// The file or folder that it names.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::OciLayout { path, .. }
            | Self::DockerArchive(path)
            | Self::RootfsTar(path)
            | Self::Dockerfile(path) => Some(path),
            Self::Registry(_) | Self::Alias(_) => None,
        }
    }

    /// The same, with a path that begins at `base` where it is not absolute.
    #[must_use]
    pub fn below(&self, base: &Path) -> Self {
        let mut source = self.clone();
        match &mut source {
            Self::OciLayout { path, .. }
            | Self::DockerArchive(path)
            | Self::RootfsTar(path)
            | Self::Dockerfile(path) => {
                *path = base.join(&*path);
            }
            Self::Registry(_) | Self::Alias(_) => {}
        }
        source
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let missing = |scheme: &str| format!("source `{text}`: nothing follows `{scheme}`");
        if let Some(reference) = text.strip_prefix("oci://").or_else(|| text.strip_prefix("docker://")) {
            return if reference.is_empty() { Err(missing("oci://")) } else { Ok(Self::Registry(reference.into())) };
        }
        if let Some(rest) = text.strip_prefix("oci-layout:") {
            // A tag holds no slash, so a colon before the last slash belongs to the path.
            let (path, tag) = match rest.rsplit_once(':') {
                Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
                _ => (rest, None),
            };
            if path.is_empty() || tag.as_deref() == Some("") {
                return Err(missing("oci-layout:"));
            }
            return Ok(Self::OciLayout { path: path.into(), tag });
        }
        for (scheme, make) in [
            ("docker-archive:", Self::DockerArchive as fn(PathBuf) -> Self),
            ("rootfs-tar:", Self::RootfsTar),
            ("dockerfile:", Self::Dockerfile),
        ] {
            if let Some(path) = text.strip_prefix(scheme) {
                return if path.is_empty() { Err(missing(scheme)) } else { Ok(make(path.into())) };
            }
        }
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !text.is_empty() && text.chars().all(word) {
            return Ok(Self::Alias(text.into()));
        }
        Err(format!(
            "source `{text}` is none of oci://REGISTRY/REPO:TAG, oci-layout:PATH[:TAG], docker-archive:PATH, rootfs-tar:PATH, dockerfile:PATH or a name of the catalogue"
        ))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "oci://{reference}"),
            Self::OciLayout { path, tag: None } => write!(f, "oci-layout:{}", path.display()),
            Self::OciLayout { path, tag: Some(tag) } => write!(f, "oci-layout:{}:{tag}", path.display()),
            Self::DockerArchive(path) => write!(f, "docker-archive:{}", path.display()),
            Self::RootfsTar(path) => write!(f, "rootfs-tar:{}", path.display()),
            Self::Dockerfile(path) => write!(f, "dockerfile:{}", path.display()),
            Self::Alias(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_back() {
        for text in [
            "oci://127.0.0.1:5000/a/b:1",
            "oci-layout:./img",
            "oci-layout:/x:y/img:latest",
            "docker-archive:a.tar",
            "rootfs-tar:a.tar",
            "dockerfile:./app",
            "debian-12",
        ] {
            assert_eq!(text.parse::<Source>().map(|source| source.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_no_source_is_refused_with_the_forms() {
        for text in ["", "oci://", "dockerfile:", "oci-layout:", "oci-layout::t", "./image", "http://x/y"] {
            let error = text.parse::<Source>().expect_err(text);
            assert!(error.contains("source `"), "{error}");
        }
    }
}
