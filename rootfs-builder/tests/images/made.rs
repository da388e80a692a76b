//! Images that other people's programs make: buildah, skopeo and mmdebstrap. The disk has what umoci unpacks.

use std::path::Path;
use std::process::{Command, Stdio};

use super::oracle::{assert_clean, tool};
use super::{compare, disk, run};
use serde_json::Value;

/// The answer of a build into a store of its own.
#[track_caller]
fn built(home: &Path, source: &str, size: &str) -> Value {
    let output = run(home, &["build", source, "--size", size, "--json"]);
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn assert_is(folder: &Path, answer: &Value) {
    assert_clean(&disk(answer));
    let differences = compare::differences(folder, &disk(answer)).unwrap();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}; has tools/setup run?");
}

#[test]
fn what_buildah_builds_and_skopeo_converts_is_what_umoci_unpacks() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path();
    // Devices, owners and buildah's own mounts need root; so does this test.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/made.sh");
    succeeds(Command::new("sh").arg(script).arg(folder));
    let mut keys = Vec::new();
    for (name, source) in [
        ("buildah", format!("oci-layout:{}:it", folder.join("buildah").display())),
        ("saved", format!("docker-archive:{}", folder.join("saved.tar").display())),
        ("zstd", format!("oci-layout:{}:it", folder.join("zstd").display())),
    ] {
        let answer = built(&folder.join("stores").join(name), &source, "256MiB");
        assert_is(&folder.join("bundle/rootfs"), &answer);
        keys.push(answer["key"].clone());
    }
    // Packed otherwise, it is the same image.
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[test]
fn the_example_image_by_mmdebstrap_is_what_umoci_unpacks() {
    let work = tempfile::tempdir().unwrap();
    let layout = work.path().join("layout");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/images/build");
    succeeds(Command::new(script).arg("debian").arg(&layout));
    let bundle = work.path().join("bundle");
    let image = format!("{}:debian", layout.display());
    assert!(tool("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]).status.success());
    let answer = built(work.path(), &format!("oci-layout:{image}"), "4GiB");
    assert_is(&bundle.join("rootfs"), &answer);
}
