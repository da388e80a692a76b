//! `labyard-jail`: reads a `JailSpec` from descriptor 3 and becomes the program that it names, in an empty room.
//!
//! Standard error is the log until the table is in place; the table should put a log there too, for what fails later.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::process::ExitCode;

use labyard_jail::{JailError, enter, read_spec};
use labyard_spec::jail::SPEC_FD;
use labyard_sys::exec;

fn main() -> ExitCode {
    let Err(error) = run();
    let mut text = format!("error: jail: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    eprintln!("{text}");
    ExitCode::from(125)
}

fn run() -> Result<std::convert::Infallible, JailError> {
    let spec = exec::inherited(SPEC_FD).map_err(|source| JailError::Read { descriptor: SPEC_FD, source })?;
    let spec = read_spec(File::from(spec), SPEC_FD)?;
    enter(&spec)
}
