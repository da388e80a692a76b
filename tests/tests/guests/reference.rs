//! Trees as umoci unpacks them, and trees of ours held against them.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::host;

/// Lists a tree, as a program for python3.
pub(crate) const WALK: &[u8] = include_bytes!("walk.py");

/// What is in the example image by umoci's account, as [`WALK`] lists it.
pub(crate) fn example() -> Result<Vec<u8>> {
    let path = host::given("LABYARD_TEST_REFERENCE")?;
    fs::read(&path).with_context(|| path.display().to_string())
}

/// Fails unless two lists have the same entries, `least` at least.
pub(crate) fn compare(ours: &[u8], theirs: &[u8], least: usize) -> Result<()> {
    let (ours, theirs) = (entries(ours)?, entries(theirs)?);
    ensure!(theirs.len() >= least, "the reference has only {} entries", theirs.len());
    let mut different = Vec::new();
    for name in ours.keys().chain(theirs.keys().filter(|name| !ours.contains_key(*name))) {
        let (our, their) = (ours.get(name), theirs.get(name));
        if our != their {
            different.push(format!("{name}\n    here:  {our:?}\n    umoci: {their:?}"));
        }
    }
    if !different.is_empty() {
        bail!(
            "{} of {} entries differ:\n{}",
            different.len(),
            theirs.len(),
            different[..different.len().min(10)].join("\n")
        );
    }
    eprintln!("          {} entries compared", theirs.len());
    Ok(())
}

fn entries(lines: &[u8]) -> Result<BTreeMap<String, Value>> {
    let text = std::str::from_utf8(lines)?;
    text.lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line)?;
            Ok((entry["name"].as_str().context("a name")?.to_owned(), entry))
        })
        .collect()
}
