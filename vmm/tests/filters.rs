//! What filters of system calls forbid is the end of the process, whichever thread tries it: `examples/filtered.rs` tries each attempt of
//! `labyard_sys::attempts` on a thread of each role, in a monitor that runs a machine, where there is `/dev/kvm`.

// What is optimized has no hook.
#![cfg(debug_assertions)]

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use labyard_vmm::seccomp::Role;

/// SIGSYS (seccomp(2), SECCOMP_RET_KILL_PROCESS).
const SIGSYS: i32 = 31;

/// Examples lie beside the test, in `examples/`.
fn attempts(arguments: &[&str]) -> Output {
    let here = std::env::current_exe().expect("the path of this test");
    let program: PathBuf = here.ancestors().nth(2).expect("a target folder").join("examples/filtered");
    Command::new(program).args(arguments).output().expect("the example is built with the tests")
}

#[test]
fn what_is_forbidden_ends_the_process_on_a_thread_of_every_role() {
    let list = attempts(&[]);
    let list = String::from_utf8(list.stdout).expect("text");
    let all: Vec<_> = list.lines().map(|line| line.split_once('=').expect("a group and a name")).collect();
    assert!(all.len() > 90, "{list}");
    let mut wrong = Vec::new();
    for role in Role::ALL {
        // Whoever does nothing wrong comes as far as to say so.
        let harmless = attempts(&[role.name(), "none", "ask who I am"]);
        assert_eq!(harmless.status.code(), Some(3), "{}: {harmless:?}", role.name());
        for (group, what) in &all {
            let ended = attempts(&[role.name(), group, what]);
            if ended.status.signal() != Some(SIGSYS) {
                let said =
                    String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
                wrong.push(format!("{}: {group}: {what}: {}: {said}", role.name(), ended.status));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), all.len() * Role::ALL.len());
}
