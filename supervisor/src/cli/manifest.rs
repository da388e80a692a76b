//! Manifests by themselves: whether they keep the rules, what they come to, and where two differ.

use std::io::IsTerminal;
use std::path::Path;

use labyard_spec::manifest::effective::{differences, effective, to_yaml};
use labyard_spec::manifest::{Fault, Kept, MAX_BYTES, Manifest, check_name, schema};
use labyard_supervisor::addresses;
use labyard_supervisor::home::{Home, names};
use labyard_supervisor::record::State;
use serde_json::{Value, json};

use super::args::ManifestVerb;
use super::{Failure, Outcome, code, output};

/// Reads a manifest, with its text.
pub(super) fn read(path: &Path) -> Result<(Manifest, String), Failure> {
    use std::io::Read;
    let name = path.display().to_string();
    let file = std::fs::File::open(path);
    let file = file.map_err(|error| Failure::input(format!("manifest {name}: {error}")))?;
    let mut text = String::new();
    // One byte more than is allowed, so that a longer one is told from one that just fits.
    let read = file.take(MAX_BYTES as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::input(format!("manifest {name}: {error}")))?;
    Ok((Manifest::read(&text, &name)?, text))
}

pub(crate) fn manifest(verb: &ManifestVerb) -> Outcome {
    match verb {
        ManifestVerb::Schema => {
            output::document(&schema::schema())?;
            Ok(0)
        }
        ManifestVerb::Validate { files, json } => validate(files, *json),
        ManifestVerb::Show { of, json } => {
            let shown = effective(&named(of)?.0.lab);
            match json {
                true => output::document(&shown)?,
                // A terminal would obey what a file keeps as it is.
                false if std::io::stdout().is_terminal() => output::line(to_yaml(&shown).trim_end()),
                false => output::bytes(to_yaml(&shown).as_bytes()),
            }
            Ok(0)
        }
        ManifestVerb::Diff { from, to, json } => diff(from, to, *json),
    }
}

fn validate(files: &[std::path::PathBuf], as_json: bool) -> Outcome {
    let mut told = Vec::new();
    let mut wrong = false;
    for path in files {
        let file = path.display().to_string();
        match read(path) {
            Ok((manifest, _)) if as_json => {
                told.push(json!({ "file": file, "valid": true, "notes": manifest.lab.notes }))
            }
            Ok((manifest, _)) => {
                output::line(&format!("{file}: keeps every rule"));
                for note in &manifest.lab.notes {
                    output::line(&format!("  note: {note}"));
                }
            }
            Err(failure) => {
                wrong = true;
                match failure.error.downcast_ref::<Fault>() {
                    Some(fault) if as_json => told.push(fault_document(fault)),
                    None if as_json => {
                        told.push(json!({ "file": file, "valid": false, "message": format!("{:#}", failure.error) }))
                    }
                    _ => super::complain(&failure),
                }
            }
        }
    }
    if as_json {
        output::document(&json!({ "manifests": told }))?;
    }
    Ok(if wrong { code::INPUT } else { 0 })
}

fn fault_document(fault: &Fault) -> Value {
    json!({
        "file": fault.file, "valid": false, "line": fault.place.line, "column": fault.place.column,
        "path": fault.path, "message": fault.message, "snippet": fault.snippet,
    })
}

/// The manifest in a file, or that of a lab where there is no such file, with the addresses that it has.
fn named(of: &str) -> Result<(Manifest, Option<Kept>), Failure> {
    let path = Path::new(of);
    if path.exists() || check_name(of).is_err() {
        return Ok((read(path)?.0, None));
    }
    let home = Home::open()?;
    let folder = home.folder(of);
    let Some(state) = State::read(&folder)? else {
        return Err(Failure::input(format!("`{of}` is neither a file nor a lab")));
    };
    let kept = addresses::kept(&folder, &state)?;
    let mut manifest = read(&folder.file(names::MANIFEST))?.0;
    manifest.lab.name.clone_from(&state.name);
    Ok((addresses::stay(&manifest, &kept)?, Some(kept)))
}

fn diff(from: &str, to: &str, as_json: bool) -> Outcome {
    let ((mut before, had), (mut after, has)) = (named(from)?, named(to)?);
    // Beside a lab, a file is what it would make of that lab.
    match (had, has) {
        (Some(kept), None) => after = addresses::stay(&after, &kept)?,
        (None, Some(kept)) => before = addresses::stay(&before, &kept)?,
        _ => {}
    }
    let found = differences(&before.lab, &after.lab);
    if as_json {
        let one = |one: &labyard_spec::manifest::effective::Difference| json!({ "path": one.path, "from": one.from, "to": one.to });
        output::document(&json!({ "differences": found.iter().map(one).collect::<Vec<_>>() }))?;
    } else {
        for one in &found {
            output::line(&one.path);
            for (sign, value) in [('-', &one.from), ('+', &one.to)] {
                let Some(value) = value else { continue };
                for line in to_yaml(value).lines() {
                    output::line(&format!("  {sign} {line}"));
                }
            }
        }
    }
    // As diff(1) does.
    Ok(if found.is_empty() { 0 } else { code::FAILED })
}
