//! The judges: e2fsck and debugfs of e2fsprogs. Where they are missing a test fails; it does not pass in silence.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod bench;

use std::path::Path;
use std::process::{Command, Output};

/// Runs a tool that may live where only root's PATH looks.
pub(crate) fn tool(name: &str, args: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new(name)
        .args(args)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("running {name} (package e2fsprogs?): {error}"))
}

/// `e2fsck -fn` finds nothing, and dumpe2fs reads every group.
#[track_caller]
pub(crate) fn assert_clean(disk: &Path) {
    let output = tool("e2fsck", &["-fn", &disk.display().to_string()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for word in ["Fix?", "rror", "nvalid", "padding", "Optimize", "IGNORED"] {
        assert!(!text.contains(word), "{text}");
    }
    let output = tool("dumpe2fs", &[&disk.display().to_string()]);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && errors.lines().all(|line| line.starts_with("dumpe2fs 1.")), "{errors}");
    for word in ["Filesystem state:         clean", "metadata_csum", "64bit", "extent", "Group 0:"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

/// What debugfs prints for one request.
#[track_caller]
pub(crate) fn debugfs(disk: &Path, request: &str) -> String {
    let output = tool("debugfs", &["-R", request, &disk.display().to_string()]);
    let errors = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = errors.lines().filter(|line| !line.starts_with("debugfs 1.")).collect();
    assert!(output.status.success() && errors.is_empty(), "{request}: {errors:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The content of a file on the disk.
#[track_caller]
pub(crate) fn content(disk: &Path, path: &str) -> Vec<u8> {
    let request = format!("cat \"{path}\"");
    let output = tool("debugfs", &["-R", &request, &disk.display().to_string()]);
    assert!(output.status.success(), "{path}");
    output.stdout
}

/// Asserts that each part is in the text.
#[track_caller]
pub(crate) fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}
