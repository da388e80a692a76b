//! Lines for a person who reads the console. Few: each byte is an exit of the guest.

use std::fmt;
use std::io::Write;

/// Writes one line to standard error, which is the console. A console that cannot be written to is no reason to stop.
pub(crate) fn say(who: &str, what: impl fmt::Display) {
    // One write, so that lines of several processes do not mix.
    let _ = std::io::stderr().write_all(format!("{who}: {what}\n").as_bytes());
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
