//! Names in an archive: parts below the folder that it is unpacked in, and nothing else.

use crate::{MAX_DEPTH, MAX_NAME_BYTES};

/// A name that stays below: each part is a file name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Name(pub(crate) Vec<Vec<u8>>);

impl Name {
    /// Parses it; the error is what is wrong with it. `.` and double slashes are passed over; the folder itself is an empty name.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        if text.len() > MAX_NAME_BYTES {
            return Err("it is longer than a path can be");
        }
        if text.first() == Some(&b'/') {
            return Err("it is absolute");
        }
        let mut parts = Vec::new();
        for part in text.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err("it leads upwards"),
                part if part.contains(&0) => return Err("it has a NUL"),
                part if part.len() > 255 => return Err("a part of it is longer than 255 bytes"),
                part => parts.push(part.to_vec()),
            }
        }
        if parts.len() > MAX_DEPTH {
            return Err("it is too deep");
        }
        Ok(Self(parts))
    }

    /// The folder that it is in, and its last part; `None` for the folder that everything is unpacked in.
    pub(crate) fn split(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.0.split_last().map(|(last, folder)| (folder, last.as_slice()))
    }

    /// The same with another first part.
    pub(crate) fn renamed(mut self, first: &[u8]) -> Self {
        match self.0.first_mut() {
            Some(part) => *part = first.to_vec(),
            None => self.0.push(first.to_vec()),
        }
        self
    }
}

/// For a person; a hostile name must not reach a terminal as it is.
pub(crate) fn shown(text: &[u8]) -> String {
    let cut = text.get(..200).unwrap_or(text);
    let mut shown: String = String::from_utf8_lossy(cut).escape_debug().collect();
    if cut.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_stay_below_pass() {
        let parts = |text: &str| Name::parse(text.as_bytes()).map(|name| name.0.len());
        assert_eq!(parts("a/b"), Ok(2));
        assert_eq!(parts("./a//b/"), Ok(2));
        assert_eq!(parts("."), Ok(0));
        assert_eq!(parts("..."), Ok(1));
        let long = "x".repeat(256);
        let deep = "a/".repeat(MAX_DEPTH + 1);
        let endless = "a/b".repeat(MAX_NAME_BYTES);
        for bad in ["/etc/passwd", "..", "a/../b", "../x", "a/..", "a\0b", &long, &deep, &endless] {
            assert!(parts(bad).is_err(), "{bad}");
        }
    }
}
