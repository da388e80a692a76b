//! The manifest of a playground: YAML that a person wrote, checked and turned into what is asked for.
//!
//! The text is trusted no further than its bytes are: the parser's budget bounds depth, aliases and nodes, and every rule that
//! is broken is one [`Fault`] with line, column and the path of the field. Nothing here does input or output; whether a
//! kernel, an image or enough memory exists is for the caller to find out, and [`Manifest::fault`] lets it complain in the same manner.
//!
//! - [`lab`]: the result, plain data with every default and address filled in.
//! - [`size`]: `512MiB`, `2Gi`, `4G`.
//! - [`kept`]: addresses that a lab has already.
//! - [`effective`]: the same again as a manifest, and where two differ.
//! - `document`: the YAML as it is written, field by field.
//! - [`schema`]: the same fields as a JSON schema.
//! - [`snippet`]: the line that a fault is about, and what was probably meant.
//! - `place`: where in the text something stands.
//! - `rules`: from the one to the other.

mod document;
pub mod effective;
pub mod kept;
pub mod lab;
mod place;
mod rules;
pub mod schema;
pub mod size;
pub mod snippet;
#[cfg(test)]
mod tests;

use std::fmt;

pub use kept::Kept;
pub use lab::Lab;

/// Longest manifest in bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Most machines of one playground.
pub const MAX_MACHINES: usize = 64;
/// Most networks of one playground.
pub const MAX_NETWORKS: usize = 32;
/// Most drives of one machine.
pub const MAX_DRIVES: usize = 24;

/// Most interfaces of one machine: one on each network.
pub const MAX_INTERFACES: usize = MAX_NETWORKS;
/// Most init tasks of one playground, and so of those that one task needs.
pub const MAX_TASKS: usize = 1024;

/// A place in the manifest: line and column count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// What is wrong with a manifest: the first thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The manifest's name, as the person gave it.
    pub file: String,
    /// Where.
    pub place: Place,
    /// The field, such as `machines[1].network.interfaces[0].address`; empty where the text is no YAML.
    pub path: String,
    /// What is wrong, with the value and the way out.
    pub message: String,
    /// The line with a mark below the place, for people; nothing where there is no such line.
    pub snippet: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.place.line, self.place.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

/// A manifest that keeps every rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its name, for messages.
    pub file: String,
    /// What it asks for.
    pub lab: Lab,
    /// What was written.
    pub text: String,
}

/// Whether a playground, machine or network may be called so: it is a host name too (RFC 1123, 2.1), in lower case.
///
/// # Errors
/// The name and the rule.
pub fn check_name(name: &str) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(inner) || name.starts_with('-') || name.ends_with('-') {
        let rule = "is not a name: 1 to 63 lower-case letters, digits and hyphens, with no hyphen first or last";
        return Err(format!("`{name}` {rule}"));
    }
    Ok(())
}

impl Manifest {
    /// Reads and checks a manifest; `file` is its name in messages.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn read(text: &str, file: &str) -> Result<Self, Fault> {
        Self::read_for(text, file, &Kept::default())
    }

    /// The same for a lab that is there: machines and networks that stay keep the addresses that the manifest does not name.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn read_for(text: &str, file: &str, kept: &Kept) -> Result<Self, Fault> {
        let lab = document::parse(text).and_then(|document| rules::lab(&document, text, kept));
        match lab {
            Ok(lab) => Ok(Self { file: file.to_owned(), lab, text: text.to_owned() }),
            Err(broken) => {
                let place::Broken { place, path, message } = *broken;
                Err(Fault { file: file.to_owned(), place, path, message, snippet: snippet::snippet(text, place) })
            }
        }
    }

    /// A complaint about something in this manifest that only the caller can know.
    pub fn fault(&self, place: Place, path: impl Into<String>, message: impl Into<String>) -> Fault {
        let snippet = snippet::snippet(&self.text, place);
        Fault { file: self.file.clone(), place, path: path.into(), message: message.into(), snippet }
    }
}
