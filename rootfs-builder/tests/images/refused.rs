//! What is no image is refused: one line, exit code 2, nothing left behind.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::layout::{Layer, Layout, Packing};
use super::{left_in, run};

/// Builds `source` and looks for `parts` in the one line that comes back.
#[track_caller]
fn assert_refused(home: &Path, source: &str, parts: &[&str]) {
    let output = run(home, &["build", source, "--size", "64MiB", "--json"]);
    let text = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(output.status.code(), Some(2), "{source}: {text}");
    assert_eq!((errors.len(), text.lines().last()), (1, errors.first().copied()), "{source}: {text}");
    for part in parts {
        assert!(errors[0].contains(part), "{source}: `{part}` is not in {}", errors[0]);
    }
    assert_eq!(output.stdout, b"", "{source}");
    if home.join("images").exists() {
        assert_eq!(left_in(home), [""; 0], "{source}");
    }
}

fn one_layer(path: &Path) -> Layout {
    let mut layout = Layout::new(path);
    layout.layer(Layer::new().file("a", &[7; 10_000]), Packing::Gzip);
    layout.finish("v1");
    layout
}

#[test]
fn sources_that_are_no_layout_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path();
    fs::create_dir(path.join("empty")).unwrap();
    fs::write(path.join("file"), "text").unwrap();
    let source = |name: &str| format!("oci-layout:{}", path.join(name).display());
    assert_refused(path, &source("missing"), &["missing", "not an OCI image layout", "oci-layout"]);
    assert_refused(path, &source("empty"), &["empty", "not an OCI image layout"]);
    assert_refused(path, &source("file"), &["file", "not an OCI image layout"]);
    let layout = one_layer(&path.join("layout"));
    fs::write(layout.path.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert_refused(path, &source("layout"), &["2.0.0"]);
    let layout = one_layer(&path.join("layout"));
    fs::write(layout.path.join("index.json"), "{").unwrap();
    assert_refused(path, &source("layout"), &["index.json"]);
    fs::remove_file(layout.path.join("index.json")).unwrap();
    assert_refused(path, &source("layout"), &["index.json"]);
}

#[test]
fn what_an_image_is_called_is_no_word_to_the_terminal() {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    layout.layer(Layer::new().file("a", b"a"), Packing::Gzip);
    layout.finish("v1\u{1b}]0;mine\u{7}\u{9b}31m\u{202e}");
    let source = format!("oci-layout:{}:v2", layout.path.display());
    let output = run(home.path(), &["build", &source, "--size", "64MiB"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("tags: v1\u{fffd}]0;mine\u{fffd}\u{fffd}31m\u{fffd}"), "{text:?}");
    assert!(!text.contains(['\u{1b}', '\u{7}', '\u{9b}', '\u{202e}']), "{text:?}");
}

#[test]
fn pipes_and_devices_are_not_opened() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path();
    let fifo = path.join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let layout = one_layer(&path.join("layout"));
    fs::remove_file(layout.path.join("index.json")).unwrap();
    std::os::unix::fs::symlink(&fifo, layout.path.join("index.json")).unwrap();
    for source in [
        format!("rootfs-tar:{}", fifo.display()),
        format!("docker-archive:{}", fifo.display()),
        "rootfs-tar:/dev/null".to_owned(),
        "docker-archive:/dev/null".to_owned(),
        format!("oci-layout:{}", layout.path.display()),
    ] {
        // Nobody writes into the pipe: opened, it would be waited for.
        assert_refused(path, &source, &["not a file; give a tar archive"]);
    }
}

#[test]
fn a_choice_that_is_not_clear_is_refused_with_what_there_is() {
    let home = tempfile::tempdir().unwrap();
    let layout = one_layer(&home.path().join("layout"));
    let source = format!("oci-layout:{}", layout.path.display());
    assert_refused(home.path(), &format!("{source}:v2"), &["`v2`", "tags: v1"]);
    let mut manifests = vec![layout.manifest("amd64"), layout.manifest("amd64")];
    for (manifest, tag) in manifests.iter_mut().zip(["one", "two"]) {
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    }
    layout.index(&manifests);
    assert_refused(home.path(), &source, &["2 images", "one, two"]);
    let mut arm = layout.manifest("arm64");
    layout.index(std::slice::from_ref(&arm));
    assert_refused(home.path(), &source, &["linux/arm64", "linux/amd64"]);
    arm["platform"] = json!({ "architecture": "arm64", "os": "linux" });
    layout.index(&[arm]);
    assert_refused(home.path(), &source, &["no image for linux/amd64"]);
}

#[test]
fn bytes_that_are_not_what_a_digest_says_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let blobs = || {
        let layout = one_layer(&home.path().join("layout"));
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.path.join("index.json")).unwrap()).unwrap();
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let text: serde_json::Value = serde_json::from_slice(&fs::read(layout.blob_path(&manifest)).unwrap()).unwrap();
        let digest = |value: &serde_json::Value| value["digest"].as_str().unwrap().to_owned();
        let (config, layer) = (digest(&text["config"]), digest(&text["layers"][0]));
        (layout, [manifest, config, layer])
    };
    let source = format!("oci-layout:{}", home.path().join("layout").display());
    for which in 0..3 {
        let (layout, digests) = blobs();
        let path = layout.blob_path(&digests[which]);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_refused(home.path(), &source, &[&digests[which], "fetch the image again"]);
        fs::write(&path, [&bytes[..], b" "].concat()).unwrap();
        assert_refused(home.path(), &source, &[&digests[which], "bytes, but the image says"]);
        fs::remove_file(&path).unwrap();
        assert_refused(home.path(), &source, &[&digests[which], "not there"]);
    }
    // The layer is what its digest says, but not what the configuration says.
    let mut layout = Layout::new(&home.path().join("layout"));
    layout.layer(Layer::new().file("a", b""), Packing::Gzip);
    layout.swap_diff_id();
    layout.finish("v1");
    assert_refused(home.path(), &source, &["layer 1 of 1", "diff id"]);
}

#[test]
fn layers_that_would_lead_out_of_the_image_are_refused() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("garbage.tar"), vec![b'x'; 4096]).unwrap();
    let source = |name: &str| format!("rootfs-tar:{}", home.path().join(name).display());
    assert_refused(home.path(), &source("garbage.tar"), &["garbage.tar", "no tar header"]);
    assert_refused(home.path(), &source("missing.tar"), &["missing.tar"]);
    let mut bytes = Layer::new().file("aa/evil", b"").bytes();
    bytes[..2].copy_from_slice(b"..");
    let sum: u32 = (0..512).map(|at| if (148..156).contains(&at) { 32 } else { u32::from(bytes[at]) }).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    fs::write(home.path().join("evil.tar"), bytes).unwrap();
    assert_refused(home.path(), &source("evil.tar"), &["`../evil`", "`..`"]);
    let docker = format!("docker-archive:{}", home.path().join("evil.tar").display());
    assert_refused(home.path(), &docker, &["not an archive of `docker save`", "manifest.json"]);
}

#[test]
fn an_image_larger_than_its_disk_is_refused_with_the_way_out() {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    layout.layer(Layer::new().file("big", &[7; 70 << 20]), Packing::Plain);
    layout.finish("v1");
    assert_refused(home.path(), &format!("oci-layout:{}", layout.path.display()), &["`/big`", "--size"]);
    let output = run(home.path(), &["build", "oci-layout:layout", "--size", "4097"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_layer_that_unpacks_to_a_thousand_times_its_length_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    layout.layer(Layer::new().file("zeros", &[0; 66 << 20]), Packing::Zstd);
    layout.finish("v1");
    let source = format!("oci-layout:{}", layout.path.display());
    assert_refused(home.path(), &source, &["layer 1 of 1", "more than 67108864 bytes", "1000 times its own"]);
}

#[test]
fn sources_that_are_not_supported_say_what_is() {
    let home = tempfile::tempdir().unwrap();
    assert_refused(home.path(), "oci://127.0.0.1:5000/A:b", &["`127.0.0.1:5000/A:b`", "REGISTRY/REPOSITORY:TAG"]);
    assert_refused(home.path(), "debian", &["catalogue", "oci-layout", "oci://"]);
    for source in ["./folder", "oci-layout:"] {
        let output = run(home.path(), &["build", source]);
        assert_eq!(output.status.code(), Some(2), "{source}");
    }
}
