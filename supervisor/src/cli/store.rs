//! What is in the store.

use labyard_rootfs_builder::store::Store;
use labyard_spec::manifest::size;
use labyard_supervisor::home::Home;
use serde_json::json;

use super::{Outcome, output};

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
