//! Images: what is in the store, fetching and building ahead, removing.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use labyard_rootfs_builder::catalogue::{Catalogue, CatalogueError, Entry};
use labyard_rootfs_builder::store::{ImageRecord, Store};
use labyard_spec::manifest::size;
use labyard_supervisor::disks::Blanks;
use labyard_supervisor::home::Home;
use serde_json::{Value, json};

use super::args::{ImagePrune, ImagePull, ImageRm};
use super::building::with_builder;
use super::{Failure, Outcome, output, users};

/// Digits of a key that tables show, and fewest that name an image.
const SHORT: usize = 12;
const SHORTEST: usize = 4;

pub(crate) fn ls(home: &Home, json: bool) -> Outcome {
    let store = Store::open(&home.path)?;
    let mut documents = Vec::new();
    let mut rows = Vec::new();
    let images = store.images()?;
    let usages = store.usage(&images)?;
    for (image, usage) in images.into_iter().zip(usages) {
        let labs = users::labs(home, &store.image_dir(&image))?;
        let bytes = store.image_bytes(&image)?;
        let init = if image.init { "own" } else { "entrypoint" };
        let used = if labs.is_empty() { "-".to_owned() } else { labs.join(",") };
        let size = size::show(image.size_bytes);
        let [unique, shared] = [usage.unique_bytes, usage.shared_bytes].map(mib);
        rows.push(vec![short(&image.key), size, unique, shared, init.to_owned(), used, image.source.clone()]);
        let mut value = document(&image, bytes, &labs);
        value["unique_bytes"] = json!(usage.unique_bytes);
        value["shared_bytes"] = json!(usage.shared_bytes);
        documents.push(value);
    }
    if json {
        output::document(&json!({ "images": documents, "blobs_bytes": store.blobs_bytes()? }))?;
        return Ok(0);
    }
    output::table(&["KEY", "SIZE", "UNIQUE", "SHARED", "INIT", "LABS", "SOURCE"], &rows);
    Ok(0)
}

/// The record, and what the host knows beside it.
fn document(image: &ImageRecord, bytes: u64, labs: &[String]) -> Value {
    let mut value = json!(image);
    value["disk_bytes"] = json!(bytes);
    value["labs"] = json!(labs);
    value
}

pub(super) fn short(key: &str) -> String {
    key.get(..SHORT).unwrap_or(key).to_owned()
}

pub(super) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// The names of images, and what they stand for.
pub(crate) fn catalogue(home: &Home, json: bool) -> Outcome {
    let catalogue = Catalogue::load(&home.path).map_err(|error| match error {
        CatalogueError::Read { .. } => error.into(),
        wrong => Failure::input(wrong.to_string()),
    })?;
    if json {
        let entry = |(name, entry): (&String, &Entry)| json!({ "name": name, "source": entry.source.to_string(), "own": entry.own });
        let names: Vec<_> = catalogue.entries.iter().map(entry).collect();
        output::document(&json!({ "path": catalogue.path, "names": names }))?;
        return Ok(0);
    }
    let row = |(name, entry): (&String, &Entry)| {
        vec![name.clone(), entry.source.to_string(), if entry.own { "yours" } else { "built in" }.to_owned()]
    };
    let rows: Vec<_> = catalogue.entries.iter().map(row).collect();
    output::table(&["NAME", "SOURCE", "FROM"], &rows);
    Ok(0)
}

pub(crate) fn inspect(home: &Home, wanted: &str) -> Outcome {
    let store = Store::open(&home.path)?;
    let image = find(&store, wanted)?;
    let labs = users::labs(home, &store.image_dir(&image))?;
    let mut value = document(&image, store.image_bytes(&image)?, &labs);
    value["path"] = json!(store.disk(&image));
    output::document(&value)?;
    Ok(0)
}

/// The one image whose key begins so, or whose source or digest it is.
pub(super) fn find(store: &Store, wanted: &str) -> Result<ImageRecord, Failure> {
    let images = store.images()?;
    let is_meant = |image: &&ImageRecord| {
        (wanted.len() >= SHORTEST && image.key.starts_with(wanted)) || image.source == wanted || image.digest == wanted
    };
    let found: Vec<&ImageRecord> = images.iter().filter(is_meant).collect();
    let keys = |images: &mut dyn Iterator<Item = &ImageRecord>| {
        images.map(|image| format!("{} ({})", short(&image.key), image.source)).collect::<Vec<_>>().join(", ")
    };
    match &*found {
        [one] => Ok((*one).clone()),
        [] if images.is_empty() => Err(Failure::input(format!("image `{wanted}`: not in the store, which has none"))),
        [] => {
            Err(Failure::input(format!("image `{wanted}`: not in the store; there is: {}", keys(&mut images.iter()))))
        }
        several => {
            let there = keys(&mut several.iter().copied());
            Err(Failure::input(format!(
                "image `{wanted}`: it may be one of these, name it by more of its key: {there}"
            )))
        }
    }
}

pub(crate) fn pull(home: &Home, pull: &ImagePull) -> Outcome {
    // A path is meant from here, as everywhere on a command line.
    let source = pull.source.below(&absolute(Path::new("."))?).to_string();
    let built = with_builder(home, async |builder, told, cancel| {
        builder.build(&source, pull.size, &pull.format, told, cancel.wait()).await
    })?;
    if pull.json {
        output::document(&json!({ "key": built.key, "path": built.path, "cached": built.cached }))?;
    } else {
        output::line(&format!("{} {}", short(&built.key), if built.cached { "was there" } else { "built" }));
    }
    Ok(0)
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(path).map_err(anyhow::Error::new)?)
}

pub(crate) fn rm(home: &Home, rm: &ImageRm) -> Outcome {
    let store = Store::open(&home.path)?;
    let mut images: Vec<ImageRecord> = Vec::new();
    // All are looked at before one goes.
    for wanted in &rm.images {
        let image = find(&store, wanted)?;
        if let Some(reason) = users::reason(home, &store.image_dir(&image))? {
            return Err(Failure::input(format!("image {}: {reason}", short(&image.key))));
        }
        if !images.contains(&image) {
            images.push(image);
        }
    }
    let bytes = remove(&store, &images)?;
    tell(&images, None, bytes, rm.json, "gone")
}

pub(crate) fn prune(home: &Home, prune: &ImagePrune) -> Outcome {
    let store = Store::open(&home.path)?;
    if let Some(name) = users::preparing(home)? {
        return Err(Failure::input(format!(
            "lab `{name}` is being prepared and may want any image; try again when it is up"
        )));
    }
    // Who prepares a lab relies on them before its plan does. Plans are read once nobody does.
    let blanks = Blanks::alone(home)?;
    let mut unused = Vec::new();
    match &blanks {
        Some(blanks) => {
            let used = users::files(home)?;
            unused.extend(blanks.all()?.into_iter().filter(|path| !used.contains(path)));
        }
        None => output::complain("blank disks stay: a lab is on its way up and may want any; try again when it is up"),
    }
    let mut images = Vec::new();
    for image in store.images()? {
        if users::labs(home, &store.image_dir(&image))?.is_empty() {
            images.push(image);
        }
    }
    if prune.dry_run {
        let mut bytes = store.blobs_bytes()?;
        for image in &images {
            bytes += store.image_bytes(image)?;
        }
        for path in &unused {
            bytes += taken(path)?;
        }
        return tell(&images, Some(&unused), bytes, prune.json, "would go");
    }
    let mut bytes = store.remove_blobs()?;
    for path in &unused {
        bytes += taken(path)?;
        std::fs::remove_file(path).with_context(|| path.display().to_string())?;
    }
    drop(blanks);
    bytes += remove(&store, &images)?;
    tell(&images, Some(&unused), bytes, prune.json, "gone")
}

/// What a file takes of the disk.
fn taken(path: &Path) -> Result<u64, Failure> {
    let found = std::fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    Ok(found.blocks() * 512)
}

/// What that gave back.
fn remove(store: &Store, images: &[ImageRecord]) -> Result<u64, Failure> {
    let mut bytes = 0;
    for image in images {
        bytes += store.image_bytes(image)?;
        store.remove_image(image)?;
    }
    Ok(bytes)
}

fn tell(images: &[ImageRecord], blanks: Option<&[PathBuf]>, bytes: u64, json: bool, what: &str) -> Outcome {
    let names = |blanks: &[PathBuf]| -> Vec<String> {
        let names = blanks.iter().filter_map(|path| path.file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    };
    if json {
        let keys: Vec<_> = images.iter().map(|image| &image.key).collect();
        let mut told = json!({ "images": keys, "bytes": bytes });
        if let Some(blanks) = blanks {
            told["blanks"] = json!(names(blanks));
        }
        output::document(&told)?;
        return Ok(0);
    }
    for name in blanks.map(names).into_iter().flatten() {
        output::line(&format!("blank disk {name}: {what}"));
    }
    for image in images {
        output::line(&format!("{} {}: {what}", short(&image.key), image.source));
    }
    output::line(&format!("{}: {what}", mib(bytes)));
    Ok(0)
}
