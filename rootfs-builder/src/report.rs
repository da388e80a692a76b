//! An error with its causes on one line, as it is printed once, at the top. Images and registries chose some of its words.

use std::error::Error;

use labyard_spec::text::printable;

/// `what failed: why: why that`.
pub fn one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    printable(&text.replace(['\n', '\r'], " "))
}
