//! Short names of images: a few that everybody has, and `catalogue` in the state directory, a line each: NAME SOURCE.
//!
//! A name of the file replaces a built-in one. The file is the person's own; each mistake in it is named with its line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use labyard_spec::source::Source;

/// Images of distributions as Docker Hub has them: root file systems without an init, in which the agent runs.
const BUILT_IN: [(&str, &str); 6] = [
    ("alpine", "oci://docker.io/library/alpine:latest"),
    ("debian-12", "oci://docker.io/library/debian:12"),
    ("debian-13", "oci://docker.io/library/debian:13"),
    ("fedora", "oci://docker.io/library/fedora:latest"),
    ("ubuntu-22-04", "oci://docker.io/library/ubuntu:22.04"),
    ("ubuntu-24-04", "oci://docker.io/library/ubuntu:24.04"),
];
/// Longest file in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why there is no catalogue.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CatalogueError {
    #[error("{path}: reading")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: more than {MAX_BYTES} bytes")]
    Long { path: PathBuf },
    #[error("{path}:{line}: {problem}; a line is NAME SOURCE, such as `debian oci://registry.example/team/debian:12`")]
    Line { path: PathBuf, line: usize, problem: String },
    #[error(
        "source `{name}`: no such name in the catalogue; there is: {there}; add it to {path}, or name a source such as oci://REGISTRY/REPO:TAG or oci-layout:PATH"
    )]
    Missing { name: String, there: String, path: PathBuf },
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The source; paths are absolute.
    pub source: Source,
    /// It is in the file.
    pub own: bool,
}

/// All names.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// Where the file is, or would be.
    pub path: PathBuf,
    /// By name.
    pub entries: BTreeMap<String, Entry>,
}

impl Catalogue {
    /// Below a state directory.
    pub fn load(home: &Path) -> Result<Self, CatalogueError> {
        let path = home.join("catalogue");
        let failed = |source| CatalogueError::Read { path: path.clone(), source };
        let mut text = String::new();
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => {
                other.and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text)).map_err(failed)?;
            }
        }
        if text.len() as u64 > MAX_BYTES {
            return Err(CatalogueError::Long { path });
        }
        let built_in = BUILT_IN.iter().filter_map(|(name, source)| {
            Some(((*name).to_owned(), Entry { source: source.parse().ok()?, own: false }))
        });
        let mut entries: BTreeMap<String, Entry> = built_in.collect();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |problem: String| CatalogueError::Line { path: path.clone(), line: number + 1, problem };
            let (name, source) = line.split_once(char::is_whitespace).ok_or_else(|| wrong(format!("only `{line}`")))?;
            if !matches!(name.parse(), Ok(Source::Alias(_))) {
                return Err(wrong(format!("`{name}` is no name: letters, digits, `-`, `_` and `.`")));
            }
            let source: Source = source.trim().parse().map_err(wrong)?;
            if matches!(source, Source::Alias(_)) {
                return Err(wrong(format!("`{source}` is another name")));
            }
            if entries
                .insert(name.to_owned(), Entry { source: source.below(home), own: true })
                .is_some_and(|old| old.own)
            {
                return Err(wrong(format!("`{name}` is there twice")));
            }
        }
        Ok(Self { path, entries })
    }

    /// What a name stands for.
    pub fn resolve(&self, name: &str) -> Result<&Source, CatalogueError> {
        let missing = || CatalogueError::Missing {
            name: name.to_owned(),
            there: self.entries.keys().cloned().collect::<Vec<_>>().join(", "),
            path: self.path.clone(),
        };
        self.entries.get(name).map(|entry| &entry.source).ok_or_else(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Catalogue, String> {
        let home = tempfile::tempdir().expect("a folder");
        std::fs::write(home.path().join("catalogue"), text).expect("writing");
        Catalogue::load(home.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_of_the_file_come_before_those_that_everybody_has() {
        let home = tempfile::tempdir().expect("a folder");
        let none = Catalogue::load(home.path()).expect("a catalogue");
        assert_eq!(none.entries.len(), BUILT_IN.len());
        assert_eq!(none.resolve("debian-12").map(Source::to_string).ok().as_deref(), Some(BUILT_IN[1].1));
        let text = "# mine\n\n debian-12\toci-layout:debian:it \nown oci://127.0.0.1:5000/own:1\n";
        std::fs::write(home.path().join("catalogue"), text).expect("writing");
        let both = Catalogue::load(home.path()).expect("a catalogue");
        let expected = format!("oci-layout:{}:it", home.path().join("debian").display());
        assert_eq!(both.resolve("debian-12").map(Source::to_string).ok(), Some(expected));
        assert!(both.entries["own"].own && !both.entries["alpine"].own);
        let error = both.resolve("windows").expect_err("no such name").to_string();
        assert!(
            error.contains("`windows`") && error.contains("alpine, debian-12") && error.contains("catalogue"),
            "{error}"
        );
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        for (text, part) in [
            ("a", "catalogue:1: only `a`"),
            ("\na b", "catalogue:2: `b` is another name"),
            ("a http://x", "catalogue:1: source `http://x` is none of"),
            ("a/b oci://x/y:1", "`a/b` is no name"),
            ("a oci://x/y:1\na oci://x/y:2", "catalogue:2: `a` is there twice"),
        ] {
            let error = load(text).expect_err(text);
            assert!(error.contains(part), "{error}");
        }
        assert!(load(&"#\n".repeat(1 << 20)).expect_err("long").contains("more than"));
    }
}
