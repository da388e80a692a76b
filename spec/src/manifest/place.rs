//! Where in the text something stands, and which field stands at a place.

use serde_saphyr::granit_parser::{Event, Parser};
use serde_saphyr::{Location, Spanned};

use super::{Place, Placed};

/// A rule that the manifest breaks; gets the file's name at the door.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) place: Place,
    pub(super) path: String,
    pub(super) message: String,
}

/// The place of a location.
pub(super) fn of(location: Location) -> Place {
    Place { line: location.line(), column: location.column() }
}

/// A complaint about a value.
pub(super) fn broken<T>(at: &Spanned<T>, path: &str, message: impl Into<String>) -> Box<Broken> {
    Box::new(Broken { place: of(at.referenced), path: path.to_owned(), message: message.into() })
}

/// A value of its own beside the place of another.
pub(super) fn placed<T, U>(at: &Spanned<T>, value: U) -> Placed<U> {
    Placed { value, place: of(at.referenced) }
}

/// The plain scalar that was written for `at`, where the text has it.
pub(super) fn written<'text, T>(at: &Spanned<T>, text: &'text str) -> Option<&'text str> {
    let span = at.defined.span();
    let first = usize::try_from(span.byte_offset()?).ok()?;
    let len = usize::try_from(span.byte_len()?).ok()?;
    text.get(first..first.checked_add(len)?)
}

/// One open collection on the way to a node.
enum Level {
    /// A list and the position of its next item.
    List(usize),
    /// A map and the key whose value comes next.
    Map(Option<String>),
}

/// The path of the last node that starts at or before `place`, without the leading `playground.`, and its text where it is a scalar.
///
/// The parser's own errors know a place but no path. Text that is no YAML gives what was reached.
pub(super) fn path_at(text: &str, place: Place) -> (String, String) {
    let mut levels: Vec<Level> = Vec::new();
    let mut found = (String::new(), String::new());
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { break };
        let start = Place { line: span.start.line() as u64, column: span.start.col() as u64 + 1 };
        if (start.line, start.column) > (place.line, place.column) {
            break;
        }
        let scalar = match &event {
            Event::Scalar(value, ..) => Some(value.to_string()),
            Event::Alias(_) => Some(String::new()),
            Event::SequenceStart(..) | Event::MappingStart(..) => None,
            Event::SequenceEnd | Event::MappingEnd => {
                levels.pop();
                if let Some(Level::Map(key)) = levels.last_mut() {
                    *key = None;
                }
                continue;
            }
            _ => continue,
        };
        // A scalar in a map that waits for no value is a key.
        if let (Some(Level::Map(key @ None)), Some(name)) = (levels.last_mut(), &scalar) {
            *key = Some(name.clone());
            found = (join(&levels), name.clone());
            continue;
        }
        found = (join(&levels), scalar.clone().unwrap_or_default());
        match levels.last_mut() {
            Some(Level::List(next)) => *next += 1,
            Some(Level::Map(key)) if scalar.is_some() => *key = None,
            _ => {}
        }
        match event {
            Event::SequenceStart(..) => levels.push(Level::List(0)),
            Event::MappingStart(..) => levels.push(Level::Map(None)),
            _ => {}
        }
    }
    found
}

fn join(levels: &[Level]) -> String {
    let mut path = String::new();
    for (depth, level) in levels.iter().enumerate() {
        // An open list below this level has been counted on already.
        let last = depth + 1 == levels.len();
        match level {
            Level::List(next) => path.push_str(&format!("[{}]", if last { *next } else { next.saturating_sub(1) })),
            Level::Map(Some(key)) if path.is_empty() => path.push_str(key),
            Level::Map(Some(key)) => path.push_str(&format!(".{key}")),
            Level::Map(None) => {}
        }
    }
    path.strip_prefix("playground.").map(str::to_owned).unwrap_or(path)
}
