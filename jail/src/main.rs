//! `labyard-jail`: hears a `JailSpec` on descriptor 3 and becomes the program that it names, in an empty room.
//!
//! Standard error is the log until the table is in place; the table should put a log there too, for what fails later.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::process::ExitCode;

use labyard_jail::{JailError, Talk, run};
use labyard_spec::jail::SPEC_FD;
use labyard_sys::exec;

fn main() -> ExitCode {
    let taken = exec::inherited(SPEC_FD).map_err(|source| JailError::Talk { descriptor: SPEC_FD, source });
    let Err(error) = taken.and_then(|stream| run(Talk::over(File::from(stream), SPEC_FD))) else {
        return ExitCode::SUCCESS;
    };
    let mut text = format!("error: jail: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    eprintln!("{text}");
    ExitCode::from(125)
}
