//! What a builder that was taken over can do: `examples/confined.rs` confines itself as the program does and tries; docs/sandboxes.md has
//! the results, all of them.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use labyard_sys::attempts;

/// SIGSYS (seccomp(2), SECCOMP_RET_KILL_PROCESS).
const SIGSYS: i32 = 31;

/// Examples lie beside the test, in `examples/`.
fn example(arguments: &[&str]) -> Output {
    let here = std::env::current_exe().unwrap();
    let program: PathBuf = here.ancestors().nth(2).unwrap().join("examples/confined");
    Command::new(program).args(arguments).output().expect("the example is built with the tests")
}

/// What became of a way, in a place of its own.
fn tried(level: &str, way: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("store/images")).unwrap();
    fs::create_dir_all(path("store/labs")).unwrap();
    for name in ["source.tar", "beside", "store/labs/secret"] {
        fs::write(path(name), "text").unwrap();
    }
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let output = example(&[&text(&path("source.tar")), &text(&path("store")), level, way]);
    if output.status.signal() == Some(SIGSYS) {
        return "SIGSYS".to_owned();
    }
    assert!(output.status.success(), "{way}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_builder_reads_its_source_writes_its_store_and_does_nothing_else() {
    let list = String::from_utf8(example(&[]).stdout).unwrap();
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sandboxes.md")).unwrap();
    let (table, mut wrong) = (attempts::table(&page, "<!-- builder -->"), Vec::new());
    for way in list.lines() {
        for (at, level) in ["network", "parse"].into_iter().enumerate() {
            let said = tried(level, way);
            if table.get(way).is_none_or(|known| !known[at].contains(&said)) {
                wrong.push(format!("{level}: {way}: {said}"));
            }
        }
    }
    let missing: Vec<_> = table.keys().filter(|way| !list.lines().any(|line| line == *way)).collect();
    assert!(wrong.is_empty(), "not as in docs/sandboxes.md: {wrong:#?}");
    assert!(missing.is_empty(), "in docs/sandboxes.md and not tried: {missing:?}");
}
