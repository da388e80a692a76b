//! The command line of `labyard image`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use labyard_spec::manifest::size;
use labyard_spec::source::Source;

use super::Json;

#[derive(Debug, Args)]
pub(crate) struct Image {
    #[command(subcommand)]
    pub(crate) verb: ImageVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// List them
    #[command(after_help = "\
Examples:
  labyard image ls
  labyard image ls --json | jq -r '.images[] | select(.labs == []) | .key'")]
    Ls(Json),
    /// List the names that a manifest can use for a source
    #[command(after_help = "\
Your own names are lines `NAME SOURCE` in the file `catalogue` of the state directory; `#` begins a comment, and a name replaces a built-in one.

Examples:
  labyard image catalogue
  labyard image catalogue --json | jq -r .path")]
    Catalogue(Json),
    /// All that is known of one image, as JSON
    #[command(after_help = "Example:\n  labyard image inspect 3f2a9c")]
    Inspect {
        /// Beginning of its key, its source or its digest
        image: String,
    },
    /// Fetch and build an image ahead of the labs that want it
    #[command(after_help = "\
Examples:
  labyard image pull oci://registry.example/team/app:1.2
  labyard image pull oci-layout:./images/debian:latest --size 8GiB

A lab finds it when its drive has the same source and size. A registry is asked with the logins of docker, podman or skopeo.")]
    Pull(ImagePull),
    /// Write an image to a file, for a store on another host
    #[command(after_help = "\
The file has what is not zero of the disk, and appears once it is complete.

Examples:
  labyard image export 3f2a9c debian.labyard
  labyard image export oci://registry.example/team/app:1.2 app.labyard --force --json | jq .bytes")]
    Export(ImageExport),
    /// Put an image into the store: what `export` wrote, an OCI image layout, or an archive of `docker save`
    #[command(after_help = "\
What `export` wrote has the same key here, and is checked against its digest. What it is, is who made the file to know: import what you trust.

Examples:
  labyard image import debian.labyard
  labyard image import app.tar --size 8GiB")]
    Import(ImageImport),
    /// Give an image to a registry: a layout, or an image of the store that came from one
    #[command(after_help = "\
Examples:
  labyard image push oci-layout:./debian:latest oci://registry.example/team/debian:12
  labyard image push 3f2a9c oci://registry.example/mirror/app:1.2

Only blobs that the registry lacks are sent. It is asked with the logins of docker, podman or skopeo.")]
    Push(ImagePush),
    /// Read images, and what was fetched from registries, again and hold them against their digests
    #[command(after_help = "\
Exit code 1 where something is damaged.

Examples:
  labyard image verify
  labyard image verify 3f2a9c
  labyard image verify --json | jq '.objects[] | select(.fault)'")]
    Verify(ImageVerify),
    /// Remove images that no lab uses
    #[command(after_help = "Example:\n  labyard image rm 3f2a9c")]
    Rm(ImageRm),
    /// Remove every image and blank disk that no lab uses, and what was fetched from registries
    #[command(after_help = "Example:\n  labyard image prune --dry-run")]
    Prune(ImagePrune),
}

#[derive(Debug, Args)]
pub(crate) struct ImagePull {
    /// As in a manifest: oci://…, oci-layout:…, docker-archive:…, rootfs-tar:…, dockerfile:… or a name of the catalogue
    pub(crate) source: Source,
    /// Length of the disk; the file is sparse
    #[arg(long, default_value = "4GiB", value_parser = size::parse)]
    pub(crate) size: u64,
    /// Its file system: ext4, or erofs for drives that say `filesystem: erofs`
    #[arg(long, value_name = "FORMAT", default_value = "ext4", value_parser = ["ext4", "erofs"])]
    pub(crate) format: String,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageExport {
    /// Beginning of its key, its source or its digest
    pub(crate) image: String,
    /// The file to make
    pub(crate) file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageImport {
    /// The file, or the folder of a layout
    pub(crate) path: PathBuf,
    /// Length of the disk, where one is built; the file is sparse
    #[arg(long, default_value = "4GiB", value_parser = size::parse)]
    pub(crate) size: u64,
    /// Believe an exported image in what it says it was made of: labs take it instead of building the same layers, which
    /// otherwise are built once and compared
    #[arg(long)]
    pub(crate) trust: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImagePush {
    /// `oci-layout:PATH[:TAG]`, or the beginning of a key, a source or a digest
    pub(crate) image: String,
    /// Where to: oci://REGISTRY/REPO:TAG
    pub(crate) to: Source,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageVerify {
    /// Beginnings of keys, sources or digests; everything where none is given
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Remove damaged blobs of registries, which are fetched again when they are wanted
    #[arg(long)]
    pub(crate) remove: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageRm {
    /// Beginnings of keys as `labyard image ls` shows them, sources or digests
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImagePrune {
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}
