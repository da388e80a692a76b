//! `labyard-jail` for tests: the descriptor table and execveat, without the confinement that needs privileges.

use std::fs::File;
use std::io::Read;

use labyard_spec::jail::{JailSpec, SPEC_FD};
use labyard_sys::exec;

fn main() {
    let mut text = Vec::new();
    File::from(exec::inherited(SPEC_FD).expect("a spec")).read_to_end(&mut text).expect("reading the spec");
    let Ok(spec) = serde_json::from_slice::<JailSpec>(&text) else { std::process::exit(125) };
    let arguments = exec::arguments(&spec.argv).expect("arguments");
    let program = exec::arrange(&spec.descriptors, spec.program).expect("the table");
    panic!("execveat: {}", exec::execveat(&program, &arguments));
}
