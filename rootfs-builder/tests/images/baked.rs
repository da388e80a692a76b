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

#[test]
fn the_image_that_a_baked_one_is_like_is_read_confined() {
    let folder = tempfile::tempdir().unwrap();
    let mut layout = super::layout::Layout::new(&folder.path().join("layout"));
    layout.layer(super::layout::Layer::new().file("a", b"a"), super::layout::Packing::Plain);
    layout.finish("web");
    let bake = |name: &str| {
        let like = format!("oci-layout:{}:web", layout.path.display());
        let mut bake = builder(&["bake", folder.path().join(name).to_str().unwrap(), "--like", &like]);
        bake.arg("--store").arg(folder.path().join("home")).stdin(empty());
        bake.output().unwrap()
    };
    let output = bake("first");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A link of the image's leads to a file that is nobody's business; it has what is read, and could be anything.
    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().join("outside.json");
    std::fs::copy(layout.path.join("index.json"), &outside).unwrap();
    std::fs::remove_file(layout.path.join("index.json")).unwrap();
    std::os::unix::fs::symlink(&outside, layout.path.join("index.json")).unwrap();
    let output = bake("second");
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// An archive of nothing.
fn empty() -> File {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &[0; 1024]).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file
}
