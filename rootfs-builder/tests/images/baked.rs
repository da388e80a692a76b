//! `rootfs-builder bake`: a tar on standard input becomes an image of one layer, by a process that can do nothing else.

use std::fs::File;
use std::process::Command;

use serde_json::Value;

use super::oracle::content;
use super::{builder, built, disk};

#[test]
fn a_tar_on_standard_input_becomes_an_image_in_a_process_that_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/motd"), b"baked\n").unwrap();
    let tar = folder.path().join("root.tar");
    assert!(Command::new("tar").arg("cf").arg(&tar).arg("-C").arg(&root).arg(".").status().unwrap().success());
    let image = folder.path().join("web");
    let mut bake = builder(&["bake", image.to_str().unwrap(), "--tag", "baked", "--size", "64MiB", "--json"]);
    let output = bake.arg("--store").arg(folder.path().join("home")).stdin(File::open(&tar).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    // As root of a host whose files are root's nothing is kept; Landlock is there wherever its own tests pass.
    assert!(answer["confined"]["capabilities"].as_array().unwrap().is_empty(), "{answer}");
    let home = folder.path().join("home");
    let answer = built(&home, &format!("oci-layout:{}:baked", image.display()));
    assert_eq!(content(&disk(&answer), "/etc/motd"), b"baked\n");
    // One that is cut off leaves nothing.
    let bytes = std::fs::read(&tar).unwrap();
    std::fs::write(&tar, &bytes[..700]).unwrap();
    let half = folder.path().join("half");
    let output =
        builder(&["bake", half.to_str().unwrap(), "--tag", "baked"]).stdin(File::open(&tar).unwrap()).output().unwrap();
    assert!(!output.status.success() && !half.exists(), "{}", String::from_utf8_lossy(&output.stderr));
}
