//! An image that shares layers with one of the store is built from what that one keeps: the same bytes, and nothing that the source does not have.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::Value;
use tar::EntryType;

use super::layout::{Layer, Layout, Packing};
use super::oracle::{assert_clean, content};
use super::stacks::{Step, stacked};
use super::{built, disk, left_in, run};

/// What a build says when it takes a layer from an earlier image.
const TAKING: &str = "taking layers from earlier images";
const READING: &str = "reading layers";

fn numbers(len: u32, by: u32) -> Vec<u8> {
    (0..len).flat_map(|at| (at / by).to_le_bytes()).collect()
}

/// A layer with all that matters: long and short files, holes, links, names that others hide.
fn lower() -> Layer {
    let mut middle = vec![0; 3_000_000];
    middle[1_200_000..1_300_000].fill(7);
    Layer::new()
        .directory("./")
        .directory("etc/")
        .file("etc/long", &numbers(700_000, 3))
        .file("etc/middle", &middle)
        .file("etc/zeros", &[0; 300_000])
        .file("etc/empty", b"")
        .file("etc/hidden", b"hidden by the first")
        .pax(&[("mtime", b"-7.5"), ("SCHILY.xattr.user.note", b"a note")])
        .file("etc/kept", b"kept")
        .link(EntryType::Link, "etc/second", "etc/kept")
        .link(EntryType::Symlink, "etc/link", "kept")
}

/// A layout with the lower layer and this one on it, under `path`.
fn with_top(path: &Path, top: Layer, packing: Packing) -> String {
    let mut layout = Layout::new(path);
    layout.layer(lower(), Packing::Gzip);
    layout.layer(top, packing);
    layout.finish("it");
    format!("oci-layout:{}", path.display())
}

struct Scene {
    home: tempfile::TempDir,
    first: Value,
}

/// A store with one image on the lower layer, which hides a file of it.
fn scene() -> Scene {
    let home = tempfile::tempdir().unwrap();
    let top = Layer::new().file("etc/.wh.hidden", b"").file("etc/top", b"first");
    let source = with_top(&home.path().join("first"), top, Packing::Gzip);
    Scene { first: built(&home.path().join("store"), &source), home }
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn other(&self, top: Layer) -> String {
        with_top(&self.path("other"), top, Packing::Gzip)
    }

    /// Builds in the store of the first image and in an empty one, which gives the same. What the first build said.
    #[track_caller]
    fn same(&self, source: &str) -> String {
        let arguments = ["build", source, "--size", "64MiB", "--json"];
        let output = run(&self.path("store"), &arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["cached"], false);
        let fresh = tempfile::tempdir().unwrap();
        let scratch = built(fresh.path(), source);
        assert_same(&answer, &scratch);
        said
    }
}

#[track_caller]
fn assert_same(one: &Value, other: &Value) {
    assert_eq!(one["key"], other["key"]);
    let record = |answer: &Value| fs::read_to_string(disk(answer).with_file_name("image.json")).unwrap();
    assert_eq!(record(one), record(other));
    assert!(fs::read(disk(one)).unwrap() == fs::read(disk(other)).unwrap(), "the disks differ");
}

#[test]
fn an_image_with_another_top_layer_is_the_one_that_is_made_from_scratch() {
    let scene = scene();
    let top = Layer::new().file("etc/hidden", b"replaced").file("etc/top", &numbers(100_000, 1)).file("a", b"moves");
    let said = scene.same(&scene.other(top));
    assert!(said.contains(TAKING) && said.contains(READING), "{said}");
    // What was made this way can be taken from, too, and so can both at once.
    let mut layout = Layout::new(&scene.path("third"));
    layout.layer(lower(), Packing::Gzip);
    layout.layer(Layer::new().file("etc/.wh.hidden", b"").file("etc/top", b"first"), Packing::Gzip);
    layout.layer(Layer::new().file("etc/third", b"third"), Packing::Zstd);
    layout.finish("it");
    let said = scene.same(&format!("oci-layout:{}", layout.path.display()));
    assert!(said.contains(TAKING), "{said}");
    // All layers are there, and the disk is another because it is longer.
    let source = format!("oci-layout:{}", layout.path.display());
    let output = run(&scene.path("store"), &["build", &source, "--size", "80MiB", "--json"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains(TAKING) && !said.contains(READING), "{said}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_clean(&disk(&answer));
    assert_eq!(content(&disk(&answer), "/etc/kept"), b"kept");
}

#[test]
fn what_the_earlier_image_has_hidden_is_read_again_where_it_is_seen() {
    let scene = scene();
    let source = scene.other(Layer::new().file("etc/top", b"second"));
    let said = scene.same(&source);
    assert!(said.contains(READING), "{said}");
    let answer = built(&scene.path("store"), &source);
    assert_eq!(content(&disk(&answer), "/etc/hidden"), b"hidden by the first");
}

#[test]
fn a_saved_archive_shares_layers_with_a_layout() {
    let scene = scene();
    let layer = lower().bytes();
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux",
        "rootfs": { "diff_ids": [super::layout::digest(&layer)] } });
    let manifest = serde_json::json!([{ "Config": "c.json", "RepoTags": ["a:b"], "Layers": ["one/layer.tar"] }]);
    let saved = |layer: &[u8]| {
        Layer::new()
            .file("manifest.json", manifest.to_string().as_bytes())
            .file("c.json", config.to_string().as_bytes())
            .file("one/layer.tar", layer)
            .bytes()
    };
    let top = Layer::new().file("etc/top", b"another");
    scene.same(&scene.other(top)); // has all that the lower layer has
    fs::write(scene.path("saved.tar"), saved(&layer)).unwrap();
    let source = format!("docker-archive:{}", scene.path("saved.tar").display());
    let said = scene.same(&source);
    assert!(said.contains(TAKING), "{said}");
    // One that only says that it has the layer.
    let mut other = layer.clone();
    other[1600] ^= 1; // in the long file
    fs::write(scene.path("saved.tar"), saved(&other)).unwrap();
    let output = run(&scene.path("store"), &["build", &source, "--size", "80MiB"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("but the image's diff id is"), "{error}");
}

#[test]
fn who_names_a_layer_of_the_store_must_have_its_bytes() {
    let scene = scene();
    let source = scene.other(Layer::new().file("etc/hidden", b"x"));
    let layout = Layout::new(&scene.path("other"));
    // The digest of the shared layer is the name of other bytes, of the same length.
    let index: Value = serde_json::from_slice(&fs::read(scene.path("other/index.json")).unwrap()).unwrap();
    let manifest = fs::read(layout.blob_path(index["manifests"][0]["digest"].as_str().unwrap())).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let path = layout.blob_path(manifest["layers"][0]["digest"].as_str().unwrap());
    let right = fs::read(&path).unwrap();
    fs::write(&path, vec![7; right.len()]).unwrap();
    let before = left_in(&scene.path("store"));
    let output = run(&scene.path("store"), &["build", &source, "--size", "64MiB"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("layer 1 of 2") && error.contains("but the image says"), "{error}");
    assert_eq!(left_in(&scene.path("store")), before);
    fs::write(&path, right).unwrap();
    assert!(scene.same(&source).contains(TAKING));
}

#[test]
fn a_finished_disk_is_for_who_has_its_layers_and_asked_for_them_once() {
    let scene = scene();
    let from = scene.path("first");
    let copy = scene.path("copy");
    assert!(super::tool("cp", &["-r", from.to_str().unwrap(), copy.to_str().unwrap()]).status.success());
    let source = format!("oci-layout:{}", copy.display());
    let build = || run(&scene.path("store"), &["build", &source, "--size", "64MiB", "--json"]);
    let largest = fs::read_dir(copy.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let layer = largest.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let right = fs::read(&layer).unwrap();
    fs::write(&layer, vec![7; right.len()]).unwrap();
    let output = build();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("layer 1 of 2") && error.contains("but the image says"), "{error}");

    fs::write(&layer, &right).unwrap();
    let has_to_show = || {
        let output = build();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["key"], &answer["cached"]), (&scene.first["key"], &Value::Bool(true)));
        said.contains("checking layers")
    };
    assert!(has_to_show());
    // Files that were written a moment ago are not known again: their times would not tell of another write.
    let end = Instant::now() + Duration::from_secs(60);
    while has_to_show() {
        assert!(Instant::now() < end, "the layers are hashed each time");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Changed in place, it is another file.
    fs::write(&layer, vec![7; right.len()]).unwrap();
    assert_eq!(build().status.code(), Some(2));
}

#[test]
fn what_has_rotted_is_not_copied() {
    let top = || Layer::new().file("etc/hidden", b"x").file("etc/top", b"second");
    // Somewhere in the long file.
    let damaged = scene();
    let path = disk(&damaged.first);
    let mut bytes = fs::read(&path).unwrap();
    let marked = numbers(700_000, 3)[4096 * 300..4096 * 301].to_vec();
    let at = bytes.chunks(4096).position(|block| block == marked).unwrap();
    bytes[at * 4096 + 5] ^= 1;
    fs::write(&path, bytes).unwrap();
    let said = damaged.same(&damaged.other(top()));
    assert!(said.contains("note: an earlier image that shares layers is damaged"), "{said}");
    // The index, or a disk that is not there: nobody has anything.
    for break_it in [
        |folder: &Path| fs::write(folder.join("layers"), b"not an index").unwrap(),
        |folder: &Path| {
            let mut bytes = fs::read(folder.join("layers")).unwrap();
            bytes.pop();
            fs::write(folder.join("layers"), bytes).unwrap();
        },
        |folder: &Path| fs::remove_file(folder.join("layers")).unwrap(),
        |folder: &Path| fs::remove_file(folder.join("disk.ext4")).unwrap(),
    ] {
        let scene = scene();
        break_it(disk(&scene.first).parent().unwrap());
        let said = scene.same(&scene.other(top()));
        assert!(!said.contains(TAKING), "{said}");
    }
}

fn check(lower: &[Vec<Step>], tops: &[Vec<Step>; 2]) {
    let home = tempfile::tempdir().unwrap();
    let source = |at: usize| {
        let layout = home.path().join(format!("layout-{at}"));
        stacked(&layout, &[lower, std::slice::from_ref(&tops[at])].concat());
        format!("oci-layout:{}", layout.display())
    };
    let (first, second) = (source(0), source(1));
    let store = home.path().join("store");
    built(&store, &first);
    let rebuilt = built(&store, &second);
    let scratch = built(&home.path().join("other"), &second);
    if rebuilt["cached"] == false {
        assert_same(&rebuilt, &scratch);
    }
}

#[test]
fn random_stacks_with_another_top_are_the_same_both_ways() {
    let cases = if std::env::var_os("LABYARD_SOAK").is_some() { 1000 } else { 24 };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let steps = || vec((any::<u8>(), any::<u16>(), any::<u32>()), 1..20);
    runner
        .run(&(vec(steps(), 1..5), [steps(), steps()]), |(lower, tops)| {
            check(&lower, &tops);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
