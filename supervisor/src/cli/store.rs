//! What is in the store.

use labyard_rootfs_builder::store::Store;
use labyard_spec::manifest::size;
use labyard_supervisor::home::Home;
use serde_json::json;

use super::{Outcome, output};

pub(crate) fn kernels(home: &Home, json: bool) -> Outcome {
    let store = Store::open(&home.path)?;
    let kernels = store.kernels()?;
    let default = store.default_kernel().ok().map(|kernel| kernel.id);
    if json {
        output::document(&json!({ "kernels": kernels, "default": default }))?;
        return Ok(0);
    }
    let rows: Vec<_> = kernels
        .into_iter()
        .map(|kernel| {
            let mark = if Some(&kernel.id) == default.as_ref() { "*" } else { "" };
            let origin = if kernel.stock { "distribution" } else { "labyard" };
            vec![kernel.series, kernel.version, origin.to_owned(), kernel.id, mark.to_owned()]
        })
        .collect();
    output::table(&["SERIES", "VERSION", "FROM", "ID", "DEFAULT"], &rows);
    Ok(0)
}

pub(crate) fn images(home: &Home, json: bool) -> Outcome {
    let images = Store::open(&home.path)?.images()?;
    if json {
        output::document(&json!({ "images": images }))?;
        return Ok(0);
    }
    let rows: Vec<_> = images
        .into_iter()
        .map(|image| {
            let key = image.key.get(..12).unwrap_or(&image.key).to_owned();
            let init = if image.init { "own" } else { "entrypoint" };
            vec![key, size::show(image.size_bytes), init.to_owned(), image.entries.to_string(), image.source]
        })
        .collect();
    output::table(&["KEY", "SIZE", "INIT", "ENTRIES", "SOURCE"], &rows);
    Ok(0)
}
