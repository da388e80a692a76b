//! Errors and foreign text as people read them.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

pub use labyard_spec::text::printable;

/// An error with its causes, on one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Transparent wrappers say the same twice.
        if !text.ends_with(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// Writes a line to standard error, a supervisor's log. The disk that this lies on may be full, which is no reason to end.
pub fn log(text: &str) {
    let _ = writeln!(io::stderr(), "{text}"); // nobody else can be told
}

/// The last bytes of a log that somebody else writes, safe to print.
pub fn tail(path: &Path, most_bytes: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(most_bytes))).ok()?;
    let mut bytes = Vec::new();
    file.take(most_bytes).read_to_end(&mut bytes).ok()?;
    Some(printable(&String::from_utf8_lossy(&bytes)))
}

/// The last line of such a log that says something.
pub fn last_line(path: &Path) -> Option<String> {
    let text = tail(path, 4096)?;
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_last_that_says_something() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        std::fs::write(&path, "one\ntwo \n\n").expect("writing");
        assert_eq!(last_line(&path).as_deref(), Some("two"));
        assert_eq!(last_line(&folder.path().join("none")), None);
    }
}
