//! `tests/passed.awk` says which tests need no other try where the host of guest tests has ended half way.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

const LOG: &str = "
running 3 tests
test access::a_machine_is_reached ...   ok         2.7 s  init has written files
ok
test refused::a_wrong_manifest ... ok
test rootless::share ...   as user and group 65534:

running 3 tests
test refused::without_kvm ... ok
test sizes::memory ...   ok        14.1 s  page sizes
ok
test uplink::a_way_out ...   FAILED     1.0 s  a server outside: no answer
FAILED

failures:

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 42 filtered out; finished in 1038.40s

FAILED
test sizes::memory ...   ok         4.1 s  page sizes
";

/// What is printed of this log.
fn passed(folder: &Path, log: &str) -> Result<String> {
    let file = folder.join("log");
    std::fs::write(&file, log)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("passed.awk");
    let said = Command::new("awk").arg("-f").arg(script).arg(file).output()?;
    ensure!(said.status.success(), "{said:?}");
    Ok(String::from_utf8(said.stdout)?)
}

#[test]
fn tests_that_a_test_runs_are_not_its_own_kind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut expected = "access::a_machine_is_reached\nrefused::a_wrong_manifest\n".to_owned();
    ensure!(passed(folder.path(), LOG)? == expected);
    // What runs others has passed once it has said so itself.
    let well = LOG.replace("\nFAILED\n", "\nok\n");
    expected += "rootless::share\n";
    ensure!(passed(folder.path(), &well)? == expected);
    // As root it has its own turn.
    expected += "sizes::memory\n";
    ensure!(passed(folder.path(), &(well + "ok\n"))? == expected);
    Ok(())
}
