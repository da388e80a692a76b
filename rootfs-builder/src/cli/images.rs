//! Images of the store: as files, out of files, and whether they are whole.

use std::path::{Path, PathBuf};

use clap::Args;
use labyard_rootfs_builder::baked;
use labyard_rootfs_builder::build::{self, BuildError, Destination, Format, Request};
use labyard_rootfs_builder::confine::{self, Confined, Needs};
use labyard_rootfs_builder::registry::settings::Settings;
use labyard_rootfs_builder::registry::{self, RegistryError, push};
use labyard_rootfs_builder::source::parcel::Parcel;
use labyard_rootfs_builder::source::{self, Places, SourceError};
use labyard_rootfs_builder::store::ImageRecord;
use labyard_rootfs_builder::transfer::{self, Found, TransferError};
use labyard_rootfs_builder::verify;
use labyard_rootfs_builder::watch::Watch;
use labyard_spec::source::Source;
use labyard_spec::text::printable;
use serde_json::json;

use super::{Common, size, store_failed};
use crate::Failure;

#[derive(Debug, Args)]
pub(super) struct Export {
    /// Its key
    key: String,
    /// The file to make
    file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// What `export` wrote, an OCI image layout, or an archive of `docker save`
    path: PathBuf,
    /// Length of the disk, where one is built
    #[arg(long, default_value = "4GiB", value_parser = size)]
    size: u64,
    /// Believe an exported image in what it says it was made of: labs take it instead of building the same layers
    #[arg(long)]
    trust: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Push {
    /// `oci-layout:PATH[:TAG]`, or the key of an image that came from a registry and whose layers are still in the store
    image: String,
    /// Where to: oci://REGISTRY/REPO:TAG
    to: Source,
    /// A repository of the same registry that has the layers; where an image of the store came from, otherwise
    #[arg(long, value_name = "REPO")]
    mount_from: Option<String>,
    /// Speak to the registry without TLS; one on this machine needs no asking
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Keys of images; all of them and all blobs where none is given
    keys: Vec<String>,
    /// Remove damaged blobs, which are fetched again when they are wanted
    #[arg(long)]
    remove: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct Bake {
    /// The folder to make
    folder: PathBuf,
    /// The image's name in it
    #[arg(long, default_value = "baked")]
    tag: String,
    /// The image that it comes from
    #[arg(long, value_name = "SOURCE")]
    like: Option<Source>,
    /// Length of the disk that it is for, which bounds the archive
    #[arg(long, default_value = "4GiB", value_parser = size)]
    size: u64,
    /// Speak to registries without TLS; those on this machine need no asking
    #[arg(long)]
    plain_http: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn bake(bake: Bake, watch: &Watch) -> Result<(), Failure> {
    let home = bake.common.home()?;
    let parent = beside(&bake.folder);
    let (config, confined) = match &bake.like {
        None => (None, confined(&Needs { writes: vec![parent], ..Needs::default() })?),
        Some(source) => {
            let source_failed = |error: SourceError| Failure::new(&error, error.is_input());
            let temporary = bake.common.open()?.images_dir();
            let places = Places { temporary: &temporary, home: &home, plain_http: bake.plain_http };
            let prepared = source::prepare(source, places, watch).map_err(source_failed)?;
            let removes = vec![home.join("blobs")];
            let writes = vec![temporary.clone(), parent];
            let needs = Needs { reads: prepared.reads(), writes, removes, network: false };
            if prepared.is_elsewhere() {
                let blobs = ["blobs", "access"].map(|name| home.join(name));
                let writes = blobs.into_iter().chain(needs.writes.iter().cloned()).collect();
                confined(&Needs { writes, network: true, ..needs.clone() })?;
            }
            let fetched = prepared.fetch(places, watch).map_err(source_failed)?;
            let confined = confined(&needs)?;
            (fetched.open(places, watch).map_err(source_failed)?.config, confined)
        }
    };
    // What a guest has sent is read from here on.
    let request = baked::Request { to: &bake.folder, tag: &bake.tag, config, disk_bytes: bake.size };
    let made = baked::bake(std::io::stdin().lock(), &request, watch)
        .map_err(|error| Failure::new(&error, error.is_input()))?;
    if bake.common.json {
        let answer = json!({
            "path": bake.folder, "digest": made.digest.to_string(), "entries": made.entries, "bytes": made.bytes,
            "confined": confined,
        });
        println!("{answer}");
    } else {
        println!("{}: {} entries, {} bytes", bake.folder.display(), made.entries, made.bytes);
    }
    Ok(())
}

/// The folder that something lies in.
pub(super) fn beside(path: &Path) -> PathBuf {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// Gives up all else, for good.
pub(super) fn confined(needs: &Needs) -> Result<Confined, Failure> {
    confine::enter(needs).map_err(|error| Failure::new(&BuildError::Confine(error), false))
}

fn failed(error: TransferError) -> Failure {
    Failure::new(&error, error.is_input())
}

pub(super) fn export(export: Export, watch: &Watch) -> Result<(), Failure> {
    let store = export.common.open()?;
    let image = store.image(&export.key).map_err(store_failed)?.ok_or_else(|| Failure {
        text: format!("image `{}`: not in the store {}", export.key, store.home.display()),
        is_input: true,
    })?;
    let needs = Needs { reads: vec![store.image_dir(&image)], writes: vec![beside(&export.file)], ..Needs::default() };
    confined(&needs)?;
    let bytes = transfer::export(&store, &image, &export.file, export.force, watch).map_err(failed)?;
    if export.common.json {
        println!("{}", json!({ "key": image.key, "path": export.file, "bytes": bytes }));
    } else {
        println!("{}: {bytes} bytes", export.file.display());
    }
    Ok(())
}

pub(super) fn import(import: Import, watch: &Watch) -> Result<(), Failure> {
    let store = import.common.open()?;
    let needs = Needs { reads: vec![import.path.clone()], writes: vec![store.images_dir()], ..Needs::default() };
    let confined = confined(&needs)?;
    let (record, cached): (ImageRecord, bool) =
        match transfer::look(&import.path, &store.images_dir(), watch).map_err(failed)? {
            Found::Export => transfer::import(&store, &import.path, import.trust, watch).map_err(failed)?,
            Found::Source(source) => {
                let home = store.home.clone();
                let destination = Destination::Store(store.clone());
                let request = Request {
                    source,
                    size_bytes: import.size,
                    format: Format::Ext4,
                    destination,
                    home,
                    plain_http: false,
                    confined: false,
                };
                let built = build::build(&request, watch).map_err(|error| Failure::new(&error, error.is_input()))?;
                (built.record, built.cached)
            }
        };
    if import.common.json {
        println!(
            "{}",
            json!({ "key": record.key, "path": store.disk(&record), "cached": cached, "confined": confined })
        );
    } else {
        println!("{} {}", printable(&record.key), if cached { "was there" } else { "imported" });
    }
    Ok(())
}

pub(super) fn push(asked: Push, watch: &Watch) -> Result<(), Failure> {
    let input = |text: String| Failure { text, is_input: true };
    let Source::Registry(to) = &asked.to else {
        return Err(input(format!("`{}`: images are pushed to oci://REGISTRY/REPO:TAG", asked.to)));
    };
    let home = asked.common.home()?;
    let registry_failed = |error: RegistryError| Failure::new(&error, error.is_input());
    let reference = registry::reference(to).map_err(registry_failed)?;
    let settings = Settings::load(asked.plain_http).map_err(registry_failed)?;
    let to = push::Recipient::of(&reference, &settings).map_err(registry_failed)?;
    let image = asked.image.parse();
    let (mut reads, mut writes) = (["images", "blobs"].map(|name| home.join(name)).to_vec(), Vec::new());
    if let Ok(Source::OciLayout { path, .. }) = &image {
        reads.push(path.clone());
        // Only one that is packed as a whole needs room, beside itself.
        writes.extend(path.is_file().then(|| beside(path)));
    } else {
        asked.common.open()?;
    }
    // Layouts may be strangers', and so are registries.
    confined(&Needs { reads, writes, removes: Vec::new(), network: true })?;
    let source_failed = |error: SourceError| Failure::new(&error, error.is_input());
    let mut from = asked.mount_from;
    let parcel = match image {
        Ok(Source::OciLayout { path, tag }) => {
            Parcel::of_layout(&path, tag.as_deref(), &beside(&path), watch).map_err(source_failed)?
        }
        _ => {
            let store = asked.common.open()?;
            let image = store.image(&asked.image).map_err(store_failed)?.ok_or_else(|| {
                input(format!("image `{}`: neither oci-layout:PATH[:TAG] nor a key of the store", asked.image))
            })?;
            if let Ok(Source::Registry(source)) = image.source.parse()
                && let Ok(source) = registry::reference(&source)
                && source.registry() == reference.registry()
                && source.repository() != reference.repository()
            {
                from.get_or_insert(source.repository().to_owned());
            }
            let digest = image.digest.parse().map_err(input)?;
            match image.blobs.is_empty() {
                false => Parcel::of_store(&home, &digest).map_err(source_failed)?,
                true => {
                    let text = format!(
                        "image {}: it came from {}, whose layers the store does not keep",
                        image.key, image.source
                    );
                    return Err(input(format!("{text}; push the layout itself: oci-layout:PATH[:TAG]")));
                }
            }
        }
    };
    let pushed = push::image(&parcel, &reference, to, from.as_deref(), watch).map_err(registry_failed)?;
    let (sent, bytes) = pushed.sent;
    if asked.common.json {
        let answer = json!({
            "image": asked.to.to_string(),
            "digest": pushed.digest.to_string(),
            "blobs": pushed.blobs,
            "sent": sent,
            "bytes": bytes,
            "mounted": pushed.mounted,
        });
        println!("{answer}");
    } else {
        println!("{} {}: {sent} of {} blobs sent, {bytes} bytes", asked.to, pushed.digest, pushed.blobs);
    }
    Ok(())
}

/// Prints what was found also where something is damaged; that is then exit code 1.
pub(super) fn verify(verify: Verify, watch: &Watch) -> Result<(), Failure> {
    let store = verify.common.open()?;
    let there = store.image_keys().map_err(store_failed)?;
    if let Some(key) = verify.keys.iter().find(|key| !there.contains(key)) {
        let text = format!("image `{key}`: not in the store {}", store.home.display());
        return Err(Failure { text, is_input: true });
    }
    let needs = Needs { reads: vec![store.images_dir()], removes: vec![store.home.join("blobs")], ..Needs::default() };
    confined(&needs)?;
    let findings =
        verify::verify(&store, &verify.keys, verify.remove, watch).map_err(|error| Failure::new(&error, false))?;
    let damaged = findings.iter().filter(|finding| finding.fault.is_some()).count();
    if verify.common.json {
        println!("{}", json!({ "objects": findings, "damaged": damaged }));
    } else {
        for finding in &findings {
            let how = match &finding.fault {
                Some(fault) => fault,
                None if finding.unchecked => "not checked: it was built before digests of disks were kept",
                None => "whole",
            };
            println!("{}", printable(&format!("{} {}: {how}", finding.kind, finding.name)));
        }
    }
    match damaged {
        0 => Ok(()),
        _ => Err(Failure { text: format!("{damaged} of {} objects are damaged", findings.len()), is_input: false }),
    }
}
