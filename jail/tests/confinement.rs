//! The jail from outside: a probe in place of the monitor reports what it can see and do.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use labyard_spec::jail::{JailSpec, SPEC_FD};
use labyard_sys::spawn;

const PROGRAM: i32 = 10;
const REPORT: i32 = 11;
const SECRET: i32 = 12;

/// The probe lies beside this test, in `examples/`.
fn probe() -> PathBuf {
    let here = std::env::current_exe().expect("the path of this test");
    here.ancestors().nth(2).expect("a target folder").join("examples/probe")
}

fn spec() -> JailSpec {
    JailSpec {
        program: PROGRAM,
        argv: vec!["probe".into(), "one".into()],
        // SECRET is source and target at once on purpose: it must not be lost.
        descriptors: vec![(0, 0), (REPORT, 1), (2, 2), (REPORT, SECRET), (SECRET, 7)],
        max_descriptors: 512,
        confine: true,
    }
}

/// Starts the jail with a spec given as text, the probe as its program and a pipe for the report.
fn start(spec: &[u8]) -> (Child, PipeReader) {
    let (report, report_end) = std::io::pipe().expect("a pipe");
    let (spec_end, mut spec_writer) = std::io::pipe().expect("a pipe");
    let secret = File::open("/dev/null").expect("/dev/null");
    let program = File::open(probe()).expect("the probe is built with the tests");
    let mut command = Command::new(env!("CARGO_BIN_EXE_labyard-jail"));
    command.stdin(Stdio::null()).stderr(Stdio::piped()).env("LEAK", "me");
    let given: Vec<(OwnedFd, i32)> = vec![
        (spec_end.into(), SPEC_FD),
        (program.into(), PROGRAM),
        (report_end.into(), REPORT),
        (secret.into(), SECRET),
    ];
    spawn::give(&mut command, given);
    let child = command.spawn().expect("the jail starts");
    // Its copies of the pipe's ends go with the command.
    drop(command);
    spec_writer.write_all(spec).expect("the jail reads its spec");
    (child, report)
}

/// The facts that the probe reported, by name.
fn facts(spec: &JailSpec) -> BTreeMap<String, String> {
    let (child, mut report) = start(&serde_json::to_vec(spec).expect("a spec is plain data"));
    let mut text = String::new();
    report.read_to_string(&mut text).expect("a report");
    let output = child.wait_with_output().expect("waiting");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

/// What the jail says when it refuses.
fn refusal(spec: &[u8]) -> String {
    let (child, _report) = start(spec);
    let output = child.wait_with_output().expect("waiting");
    assert_eq!(output.status.code(), Some(125));
    String::from_utf8(output.stderr).expect("text")
}

#[test]
fn the_room_is_empty_and_nothing_can_be_put_into_it() {
    let facts = facts(&spec());
    assert_eq!(facts["root entries"], "Ok(0)");
    assert_eq!(facts["working directory"], "Ok(\"/\")");
    assert_eq!(facts["create"], "ReadOnlyFilesystem");
    assert_eq!(facts["environment"], "0");
    assert_eq!(facts["arguments"], "probe one");
}

#[test]
fn only_the_descriptors_of_the_table_are_open() {
    assert_eq!(facts(&spec())["open"], "0,1,2,7,12");
}

#[test]
fn every_privilege_is_gone_for_good() {
    let facts = facts(&spec());
    assert_eq!(facts["no_new_privs"], "Ok(true)");
    assert_eq!(facts["capabilities"], "0");
    assert_eq!(facts["bounding set"], "0");
    assert_eq!(facts["limit"], "Some(512)");
}

#[test]
fn a_table_that_names_what_is_not_open_is_refused_with_the_number() {
    let spec = JailSpec { descriptors: vec![(99, 4)], ..spec() };
    let text = refusal(&serde_json::to_vec(&spec).expect("a spec is plain data"));
    assert!(text.starts_with("error: jail: arranging descriptors") && text.contains("99"), "{text}");
}

#[test]
fn a_table_that_gives_one_number_twice_is_refused() {
    let spec = JailSpec { descriptors: vec![(REPORT, 4), (SECRET, 4)], ..spec() };
    let text = refusal(&serde_json::to_vec(&spec).expect("a spec is plain data"));
    assert!(text.contains("distinct"), "{text}");
}

#[test]
fn a_jail_whose_starter_died_before_the_spec_starts_nothing() {
    assert!(refusal(b"").contains("cut off"));
}

#[test]
fn a_spec_with_an_unknown_field_is_refused() {
    let text = refusal(br#"{"program":10,"argv":[],"descriptors":[],"max_descriptors":9,"confine":true,"more":1}"#);
    assert!(text.contains("more"), "{text}");
}
