//! `compare FOLDER DISK`: says where an ext4 disk differs from a folder; exit code 1 where it does.

#[path = "../tests/oracle/compare.rs"]
mod compare;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, disk] = &*arguments else {
        eprintln!("usage: compare FOLDER DISK");
        return ExitCode::from(2);
    };
    match compare::differences(Path::new(folder), Path::new(disk)) {
        Ok(list) if list.is_empty() => ExitCode::SUCCESS,
        Ok(list) => {
            println!("{}", list.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
