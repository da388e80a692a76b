//! One store, several people: who knows the digests of somebody's image does not get it for that.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::hostile::{Answers, serve, serve_at};
use crate::layout::{Layer, Layout};
use crate::proxy::{Fault, Proxy};
use crate::server::{Access, PASSWORD, Registry, USER, login};
use crate::{Scene, scene};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What ada has: pulled on her login, then forgotten.
fn private() -> Scene {
    let scene = scene(Access::Password);
    let it = scene.registry.image("it:1");
    login(&scene.home.path("auth.json"), it.split('/').next().unwrap(), USER, PASSWORD);
    scene.home.built(&it);
    fs::write(scene.home.path("auth.json"), "{}").unwrap();
    scene
}

/// The manifest of a layout's image, and its configuration.
fn documents(layout: &Layout) -> (Vec<u8>, String, Vec<u8>) {
    let index: Value = serde_json::from_slice(&fs::read(layout.path.join("index.json")).unwrap()).unwrap();
    let manifest = fs::read(layout.blob_path(index["manifests"][0]["digest"].as_str().unwrap())).unwrap();
    let parsed: Value = serde_json::from_slice(&manifest).unwrap();
    let config = parsed["config"]["digest"].as_str().unwrap().to_owned();
    let text = fs::read(layout.blob_path(&config)).unwrap();
    (manifest, config, text)
}

#[test]
fn a_registry_that_only_names_somebodys_blobs_gets_none_of_them() {
    let scene = private();
    let (manifest, config, text) = documents(&scene.layout);
    // It has the manifest; then the configuration, too; then all but the last layer.
    let mut answers: Answers = BTreeMap::from([("manifests/1".to_owned(), manifest)]);
    let first = scene.layout.layer_digests()[0].clone();
    let more = [(config, text), (first.clone(), fs::read(scene.layout.blob_path(&first)).unwrap())];
    for (digest, bytes) in more.into_iter().chain([Default::default()]) {
        let its = format!("127.0.0.1:{}/it:1", serve(answers.clone()));
        let (error, code) = scene.home.refused(&its);
        assert!(error.contains("404") && code == 1, "{error}");
        answers.insert(format!("blobs/{digest}"), bytes);
    }
    // Whoever serves bytes of the right length gets as little.
    let last = scene.layout.layer_digests()[1].clone();
    let len = fs::metadata(scene.layout.blob_path(&last)).unwrap().len() as usize;
    answers.insert(format!("blobs/{last}"), vec![7; len]);
    let (error, _) = scene.home.refused(&format!("127.0.0.1:{}/it:1", serve(answers)));
    assert!(error.contains("damaged"), "{error}");
    assert_eq!(scene.home.parts(), 0);
}

#[test]
fn somebody_in_the_place_of_the_registry_does_not_have_what_it_had() {
    let mut scene = private();
    let it = scene.registry.image("it:1");
    scene.registry.stop();
    let (manifest, config, text) = documents(&scene.layout);
    let mut answers: Answers =
        BTreeMap::from([("manifests/1".to_owned(), manifest), (format!("blobs/{config}"), text)]);
    for digest in scene.layout.layer_digests() {
        let len = fs::metadata(scene.layout.blob_path(&digest)).unwrap().len() as usize;
        answers.insert(format!("blobs/{digest}"), vec![7; len]);
    }
    serve_at(scene.registry.port, answers);
    login(&scene.home.path("auth.json"), it.split('/').next().unwrap(), "eve", "her own");
    let (error, _) = scene.home.refused(&it);
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn a_registry_that_gives_all_of_it_is_believed_and_so_is_whoever_asks_it() {
    let scene = private();
    let len: u64 = scene
        .layout
        .layer_digests()
        .iter()
        .map(|digest| fs::metadata(scene.layout.blob_path(digest)).unwrap().len())
        .sum();
    let other = Registry::start(Access::Password);
    other.push(&scene.layout.path, "copy:1");
    let proxy = Proxy::new(other.port, Fault::None);
    let host = format!("127.0.0.1:{}", proxy.port);
    let copy = format!("{host}/copy:1");
    let pull = |user: &str| {
        login(&scene.home.path("auth.json"), &host, user, PASSWORD);
        let before = proxy.bytes();
        scene.home.built(&copy);
        proxy.bytes() - before
    };
    let users = fs::read_to_string(other.users()).unwrap();
    fs::write(other.users(), format!("{users}{}", users.replace(USER, "bob"))).unwrap();
    let whole = pull(USER);
    assert!(whole > len, "{whole} bytes of {len}");
    // The next one shows that they may have it: a part of each blob. And who has shown that, need not at once again.
    let sampled = pull("bob");
    assert!(sampled > 64 << 10 && sampled < len / 4, "{sampled} bytes of {len}");
    let again = pull("bob");
    assert!(again < 16 << 10, "{again} bytes");
    login(&scene.home.path("auth.json"), &host, "eve", PASSWORD);
    assert!(scene.home.refused(&copy).0.contains("refuses"));
}

#[test]
fn what_anybody_could_have_is_shared_by_all_registries() {
    let scene = scene(Access::Everybody);
    scene.home.built(&scene.registry.image("it:1"));
    let other = Registry::start(Access::Password);
    other.push(&scene.layout.path, "copy:1");
    let proxy = Proxy::new(other.port, Fault::None);
    let host = format!("127.0.0.1:{}", proxy.port);
    login(&scene.home.path("auth.json"), &host, USER, PASSWORD);
    scene.home.built(&format!("{host}/copy:1"));
    assert!(proxy.bytes() < 16 << 10, "{} bytes", proxy.bytes());
}

#[test]
fn diff_ids_of_somebodys_layers_open_nothing_either() {
    let scene = private();
    // The same configuration, and so the same key, on layers of eve's own.
    let (_, config, text) = documents(&scene.layout);
    let layer = Layer::new().file("mine", b"mine").bytes();
    let digest = crate::layout::digest(&layer);
    let descriptor =
        json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.len() });
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "layers": [descriptor, descriptor],
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": text.len() } });
    let answers = BTreeMap::from([
        ("manifests/1".to_owned(), manifest.to_string().into_bytes()),
        (format!("blobs/{config}"), text),
        (format!("blobs/{digest}"), layer),
    ]);
    let (error, _) = scene.home.refused(&format!("127.0.0.1:{}/it:1", serve(answers)));
    assert!(error.contains("but the image's diff id is"), "{error}");
}

#[test]
fn blobs_of_which_nobody_knows_where_they_are_from_come_again() {
    let scene = private();
    fs::remove_dir_all(scene.home.path("store/blobs/origins")).unwrap();
    let proxy = Proxy::new(scene.registry.port, Fault::None);
    let host = format!("127.0.0.1:{}", proxy.port);
    login(&scene.home.path("auth.json"), &host, USER, PASSWORD);
    scene.home.built(&format!("{host}/it:1"));
    assert!(proxy.bytes() > 2 << 20, "{} bytes", proxy.bytes());
}
