//! `labyard-jail` for tests: the conversation, the descriptor table and execveat, without the confinement that needs privileges.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};

use labyard_spec::jail::{GO, JailSpec, SPEC_FD};
use labyard_sys::exec;

fn main() {
    let mut stream = File::from(exec::inherited(SPEC_FD).expect("a spec"));
    let mut text = String::new();
    BufReader::new(&stream).read_line(&mut text).expect("reading the spec");
    let Ok(spec) = serde_json::from_str::<JailSpec>(&text) else { std::process::exit(125) };
    stream.write_all(format!("{}\n", std::process::id()).as_bytes()).expect("saying who it is");
    let mut heard = [0; GO.len()];
    if stream.read_exact(&mut heard).is_err() || heard != GO {
        std::process::exit(125);
    }
    let arguments = exec::arguments(&spec.argv).expect("arguments");
    let program = exec::arrange(&spec.descriptors, spec.program).expect("the table");
    panic!("execveat: {}", exec::execveat(&program, &arguments));
}
