//! Images between stores, and whether what lies in one is whole.

use std::path::Path;

use labyard_rootfs_builder::store::Store;
use labyard_spec::manifest::size;
use labyard_spec::source::Source;
use labyard_supervisor::builder::{Built, Exported, Pushed, Verified};
use labyard_supervisor::home::Home;
use labyard_supervisor::words::printable;
use serde::Deserialize;

use super::args::{ImageExport, ImageImport, ImagePush, ImageVerify};
use super::building::with_builder;
use super::image::{absolute, find, mib, short};
use super::{Failure, Outcome, code, output};

fn text(path: &Path) -> Result<String, Failure> {
    let path = absolute(path)?;
    // Its name is handed to another program, and comes back in documents.
    let text = path.to_str().ok_or_else(|| Failure::input(format!("{}: its name is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}

fn ask<T: for<'de> Deserialize<'de>>(home: &Home, arguments: &[String]) -> Result<T, Failure> {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    with_builder(home, async |builder, told, cancel| builder.images(&arguments, told, cancel.wait()).await)
}

pub(crate) fn export(home: &Home, export: &ImageExport) -> Outcome {
    let image = find(&Store::open(&home.path)?, &export.image)?;
    let mut arguments = vec!["export".to_owned(), image.key, text(&export.file)?];
    arguments.extend(export.force.then(|| "--force".to_owned()));
    let exported: Exported = ask(home, &arguments)?;
    if export.json {
        output::document(&exported)?;
    } else {
        output::line(&format!("{}: {}", export.file.display(), mib(exported.bytes)));
    }
    Ok(0)
}

pub(crate) fn import(home: &Home, import: &ImageImport) -> Outcome {
    let mut arguments = vec!["import".to_owned(), text(&import.path)?, "--size".to_owned(), size::show(import.size)];
    arguments.extend(import.trust.then(|| "--trust".to_owned()));
    let built: Built = ask(home, &arguments)?;
    if import.json {
        output::document(&serde_json::json!({ "key": built.key, "path": built.path, "cached": built.cached }))?;
    } else {
        output::line(&format!("{} {}", short(&built.key), if built.cached { "was there" } else { "imported" }));
    }
    Ok(0)
}

pub(crate) fn push(home: &Home, push: &ImagePush) -> Outcome {
    let image = match push.image.parse() {
        Ok(Source::OciLayout { path, tag }) => Source::OciLayout { path: absolute(&path)?, tag }.to_string(),
        _ => find(&Store::open(&home.path)?, &push.image)?.key,
    };
    let pushed: Pushed = ask(home, &["push".to_owned(), image, push.to.to_string()])?;
    if push.json {
        output::document(&pushed)?;
    } else {
        let (sent, blobs, bytes) = (pushed.sent, pushed.blobs, mib(pushed.bytes));
        output::line(&format!("{} {}: {sent} of {blobs} blobs sent, {bytes}", pushed.image, pushed.digest));
    }
    Ok(0)
}

/// All of it is told, and the exit code says whether something is damaged.
pub(crate) fn verify(home: &Home, verify: &ImageVerify) -> Outcome {
    let store = Store::open(&home.path)?;
    let mut arguments = vec!["verify".to_owned()];
    for wanted in &verify.images {
        arguments.push(find(&store, wanted)?.key);
    }
    arguments.extend(verify.remove.then(|| "--remove".to_owned()));
    let verified: Verified = ask(home, &arguments)?;
    if verify.json {
        output::document(&verified)?;
    } else {
        for finding in &verified.objects {
            let how = match &finding.fault {
                Some(fault) => printable(fault),
                None if finding.unchecked => "not checked: it was built before digests of disks were kept".to_owned(),
                None => "whole".to_owned(),
            };
            let name = if finding.kind == "image" { short(&finding.name) } else { finding.name.clone() };
            output::line(&format!("{} {name}: {how}", finding.kind));
        }
    }
    if verified.damaged == 0 {
        return Ok(0);
    }
    let text = format!("{} of {} objects are damaged", verified.damaged, verified.objects.len());
    Err(Failure { code: code::FAILED, error: anyhow::Error::msg(text) })
}
