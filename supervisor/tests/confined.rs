//! What a supervisor's threads can do that talk to others: `examples/confined-supervisor.rs` confines itself as the program does and tries;
//! docs/sandboxes.md has the results, all of them.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use labyard_sys::attempts;

/// SIGSYS (seccomp(2), SECCOMP_RET_KILL_PROCESS).
const SIGSYS: i32 = 31;

/// Examples lie beside the test, in `examples/`.
fn example(arguments: &[&str]) -> Output {
    let here = std::env::current_exe().expect("the path of this test");
    let program: PathBuf = here.ancestors().nth(2).expect("a target folder").join("examples/confined-supervisor");
    Command::new(program).args(arguments).output().expect("the example is built with the tests")
}

/// What became of a way, in a state directory of its own.
fn tried(way: &str) -> String {
    let home = tempfile::tempdir().expect("a folder");
    for folder in ["images", "blobs", "playgrounds/lab", "playgrounds/other"] {
        fs::create_dir_all(home.path().join(folder)).expect("a folder");
    }
    for file in ["images/disk", "blobs/blob", "playgrounds/other/state.json"] {
        fs::write(home.path().join(file), "text").expect("a file");
    }
    let output = example(&[home.path().join("playgrounds/lab").to_str().expect("UTF-8"), way]);
    if output.status.signal() == Some(SIGSYS) {
        return "SIGSYS".to_owned();
    }
    assert!(output.status.success(), "{way}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
fn a_supervisor_has_its_lab_and_sockets_and_little_else() {
    let list = String::from_utf8(example(&[]).stdout).expect("UTF-8");
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sandboxes.md")).expect("the page");
    let table = attempts::table(&page, "<!-- supervisor -->");
    let said = list.lines().map(|way| (way, tried(way)));
    let wrong: Vec<_> =
        said.filter(|(way, said)| table.get(*way).is_none_or(|known| !known[0].contains(said))).collect();
    let missing: Vec<_> = table.keys().filter(|way| !list.lines().any(|line| line == *way)).collect();
    assert!(wrong.is_empty(), "not as in docs/sandboxes.md: {wrong:#?}");
    assert!(missing.is_empty(), "in docs/sandboxes.md and not tried: {missing:?}");
}
