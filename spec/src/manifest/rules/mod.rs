//! The rules of a manifest, and its conversion: one walk that either names the first broken rule or returns the finished lab.
//!
//! Order: names and texts, networks, machines, addresses (which need all machines), then what refers to machines.

mod extras;
mod machines;
mod networks;
mod own;
mod six;

use super::check_name;
use super::document::{At, Document};
use super::kept::Kept;
use super::lab::{About, Lab};
use super::place::{Broken, broken};
use super::snippet::meant;

/// Checks everything.
pub(super) fn lab(document: &Document, text: &str, kept: &Kept) -> Result<Lab, Box<Broken>> {
    if document.kind.value != "playground" {
        return Err(broken(&document.kind, "kind", format!("`{}` is not `playground`", document.kind.value)));
    }
    host_name(&document.name, "name")?;
    let mut notes = Vec::new();
    let about = about(document, &mut notes)?;
    let playground = &document.playground.value;
    let networks = networks::check(playground)?;
    let mut machines = machines::check(playground, text, &mut notes)?;
    let mut networks = networks::assign(&networks, playground, &mut machines, kept, &mut notes)?;
    six::assign(playground, &mut networks, &mut machines, kept, &mut notes)?;
    let names: Vec<&str> = machines.iter().map(|machine| machine.name.as_str()).collect();
    Ok(Lab {
        name: document.name.value.clone(),
        about,
        conditions: extras::conditions(playground)?,
        tasks: extras::tasks(playground, &names, &mut notes)?,
        tabs: extras::tabs(playground, &names)?,
        port_forwards: extras::port_forwards(playground, &names)?,
        registry_auth: extras::registry_auth(playground)?,
        access: extras::access(playground, &mut notes)?,
        networks,
        machines,
        notes,
    })
}

fn about(document: &Document, notes: &mut Vec<String>) -> Result<About, Box<Broken>> {
    if let Some(title) = &document.title {
        let length = title.value.chars().count();
        if !(5..=120).contains(&length) {
            return Err(broken(title, "title", format!("{length} characters, not 5 to 120")));
        }
    }
    for (field, path, most) in [(&document.description, "description", 500), (&document.markdown, "markdown", 100_000)]
    {
        if let Some(field) = field {
            let length = field.value.chars().count();
            if length > most {
                return Err(broken(field, path, format!("{length} characters, more than {most}")));
            }
        }
    }
    let text = |field: &Option<At<String>>| field.as_ref().map(|field| field.value.clone());
    if let Some(base) = &document.base {
        notes.push(format!("base: `{}` has no effect: the manifest is complete by itself", base.value));
    }
    Ok(About {
        title: text(&document.title).unwrap_or_else(|| document.name.value.clone()),
        description: text(&document.description).unwrap_or_default(),
        categories: document.categories.iter().flatten().map(|category| category.value.clone()).collect(),
        cover: text(&document.cover),
        markdown: text(&document.markdown),
        base: text(&document.base),
    })
}

/// A name of a playground, machine or network.
fn host_name(name: &At<String>, path: &str) -> Result<(), Box<Broken>> {
    check_name(&name.value).map_err(|message| broken(name, path, message))
}

/// One of a few words.
fn one_of(word: &At<String>, path: &str, words: &[&str]) -> Result<(), Box<Broken>> {
    if words.contains(&word.value.as_str()) {
        return Ok(());
    }
    Err(broken(word, path, {
        format!("`{}` is none of {}{}", word.value, words.join(", "), meant(&word.value, words.iter().copied()))
    }))
}

/// The name of a machine of this lab.
fn machine_name(name: &At<String>, path: &str, machines: &[&str]) -> Result<(), Box<Broken>> {
    if machines.contains(&name.value.as_str()) {
        return Ok(());
    }
    let meant = meant(&name.value, machines.iter().copied());
    Err(broken(name, path, format!("no machine `{}`: there is {}{meant}", name.value, machines.join(", "))))
}
