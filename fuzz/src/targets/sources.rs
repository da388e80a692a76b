//! Layouts and archives with documents that nearly make sense: indexes, manifests, configurations.
//!
//! Rules: a source that is none is refused as input; what is taken has as many diff ids as layers; what can be opened in a folder can be
//! taken along from it, and from the store that such a folder is.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use labyard_rootfs_builder::digest::Digest;
use labyard_rootfs_builder::source::parcel::Parcel;
use labyard_rootfs_builder::source::{self, Places, SourceError};
use labyard_rootfs_builder::watch::Watch;
use labyard_spec::source::Source;
use serde_json::{Value, json};

use crate::input::Input;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const KINDS: &[&str] = &[
    MANIFEST,
    MANIFEST,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "",
];
const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/octet-stream",
];

/// Reads the bytes as a source.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let tag = if input.one_in(2) { Some("v1".to_owned()) } else { None };
    let source = match input.byte() % 12 {
        kind @ 0..8 => {
            if kind < 4 {
                layout(at, &mut input)
            } else {
                sound(at, &mut input)
            }
            let path = if input.one_in(3) { packed(at, &mut input) } else { at.to_owned() };
            Source::OciLayout { path, tag }
        }
        8..11 => {
            docker(at, &mut input);
            Source::DockerArchive(packed(at, &mut input))
        }
        _ => {
            layout(at, &mut input);
            let is_folder = input.one_in(4);
            Source::RootfsTar(if is_folder { at.to_owned() } else { packed(at, &mut input) })
        }
    };
    let places = Places { temporary: at, home: at, plain_http: false };
    let watch = Watch::unattended();
    let refused =
        |error: &SourceError| assert!(error.is_input(), "a stranger's documents are not the machine's fault: {error}");
    let opened = source::open(&source, places, &watch);
    match &opened {
        Ok(image) => {
            let is_tar = matches!(source, Source::RootfsTar(_));
            assert!(image.layers.len() <= 512 && image.whiteouts != is_tar, "{} layers", image.layers.len());
        }
        Err(error) => refused(error),
    }
    if let Source::OciLayout { path, tag } = &source {
        Parcel::of_layout(path, tag.as_deref(), at, &watch).map_or_else(|error| refused(&error), drop);
        if let Ok(image) = &opened
            && path == at
        {
            // The manifest, the configuration, the layers: all of it was seen to be there.
            Parcel::of_store(at, &image.digest).expect("an image that could be opened");
        }
    }
}

/// A document as it is, or spoilt.
fn text(value: &Value, input: &mut Input<'_>) -> Vec<u8> {
    let mut text = value.to_string().into_bytes();
    if input.one_in(12) {
        let at = input.below(text.len());
        match input.byte() % 3 {
            0 => text.truncate(at),
            1 => text[at] = input.byte(),
            _ => text.splice(at..at, input.bytes(4).to_vec()).for_each(drop),
        }
    }
    text
}

fn blob(at: &Path, kind: &str, bytes: &[u8], input: &mut Input<'_>) -> Value {
    let digest = Digest::of(bytes);
    let folder = at.join("blobs/sha256");
    fs::create_dir_all(&folder).expect("room");
    fs::write(folder.join(digest.hex()), bytes).expect("room");
    let mut descriptor = json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()});
    if input.one_in(16) {
        descriptor["digest"] = json!(input.pick(&["", "sha256:", "sha512:00", "sha256:../../../etc/passwd", "md5:0"]));
    }
    if input.one_in(16) {
        descriptor["size"] = json!(input.long());
    }
    if input.one_in(2) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": input.pick(&["v1", "v2", ""])});
    }
    if input.one_in(3) {
        descriptor["platform"] = json!({
            "architecture": input.pick(&["amd64", "amd64", "arm64", "unknown"]),
            "os": input.pick(&["linux", "linux", "windows"]),
        });
    }
    descriptor
}

fn config(layers: usize, input: &mut Input<'_>) -> Value {
    let count = if input.one_in(16) { input.below(5) } else { layers };
    let diff_ids: Vec<String> = (0..count).map(|number| Digest::of(&[number as u8]).to_string()).collect();
    let mut config = json!({
        "architecture": input.pick(&["amd64", "amd64", "amd64", "arm64"]),
        "os": "linux",
        "rootfs": {"type": input.pick(&["layers", "layers", "layers", "other"]), "diff_ids": diff_ids},
    });
    if input.one_in(2) {
        config["config"] = json!({
            "Entrypoint": input.pick(&[json!(null), json!(["/a"]), json!("a"), json!([])].each_ref()),
            "Cmd": input.pick(&[json!(null), json!(["b", "c"])].each_ref()),
            "Env": input.pick(&[json!(null), json!(["A=b", "C", "=d", ""])].each_ref()),
            "User": input.pick(&["", "root", "1:2", "a:b:c"]),
            "WorkingDir": input.pick(&["", "/w", "relative", "/a/../b"]),
            "StopSignal": input.pick(&["", "SIGTERM", "9", "SIGNONE", "99999"]),
            "Labels": input.pick(
                &[
                    json!(null),
                    json!({"a": "b"}),
                    json!({"a": 1}),
                    json!({"io.labyard.kernel.version": ">=6.1", "io.labyard.kernel.modules": "overlay"}),
                    json!({"io.labyard.kernel.version": "newest"}),
                ]
                .each_ref(),
            ),
        });
    }
    config
}

fn image(at: &Path, input: &mut Input<'_>, depth: u32) -> Value {
    let kind = input.pick(KINDS);
    if kind.contains("index") || kind.contains("list") {
        let count = if depth > 5 { 0 } else { input.below(3) };
        let manifests: Vec<Value> = (0..count).map(|_| image(at, input, depth + 1)).collect();
        let text = text(&json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}), input);
        return blob(at, kind, &text, input);
    }
    let layers = input.below(4);
    let config = config(layers, input);
    let config = text(&config, input);
    let config = blob(at, "application/vnd.oci.image.config.v1+json", &config, input);
    let layers: Vec<Value> = (0..layers).map(|_| blob(at, input.pick(LAYERS), b"layer", input)).collect();
    let text = text(&json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}), input);
    blob(at, kind, &text, input)
}

/// A compatibility specification, more or less.
fn specification(input: &mut Input<'_>) -> String {
    const KEYS: &[&str] = &["major", "minor", "full", "revision", "OVERLAY_FS", "vfio-pci", "a b", "a/b", "x"];
    const OPERATORS: &[&str] =
        &["In", "In", "Exists", "Exists", "NotIn", "Gt", "Ge", "Lt", "Le", "GtLt", "GeLe", "InRegexp", "DoesNotExist"];
    const VALUES: &[&str] =
        &["[]", "['6']", "['6']", "['6', '7']", "[y, m]", "['6.1.2', '7']", "['1.2.3.4']", "[six]", "x"];
    const FEATURES: &[&str] = &[
        "kernel.version",
        "kernel.version",
        "kernel.config",
        "kernel.config",
        "kernel.loadedmodule",
        "kernel.enabledmodule",
        "kernel.selinux",
        "cpu.model",
    ];
    let terms = |input: &mut Input<'_>| {
        let mut text = String::new();
        for _ in 0..input.below(3) {
            text += &format!("{{feature: {}, matchExpressions: {{", input.pick(FEATURES));
            let first = input.below(KEYS.len());
            for key in KEYS.iter().cycle().skip(first).take(input.below(3)) {
                text += &format!("{key}: {{op: {}, value: {}}}, ", input.pick(OPERATORS), input.pick(VALUES));
            }
            text += "}";
            if input.one_in(6) {
                text += &format!(", matchName: {{op: {}, value: {}}}", input.pick(OPERATORS), input.pick(VALUES));
            }
            text += "}, ";
        }
        text
    };
    let mut sets = String::new();
    for _ in 0..input.below(2) + 1 {
        sets += &format!("- rules: [{{name: a, matchFeatures: [{}]", terms(input));
        let alternatives: Vec<String> =
            (0..input.below(3)).map(|_| format!("{{matchFeatures: [{}]}}", terms(input))).collect();
        if !alternatives.is_empty() {
            sets += &format!(", matchAny: [{}]", alternatives.join(", "));
        }
        sets += "}]\n";
    }
    let version = input.pick(&["v1alpha1", "v1alpha1", "v1alpha1", "v1alpha1", "v2"]);
    format!("version: {version}\ncompatibilities:\n{sets}")
}

/// What is attached to an image.
fn artifact(at: &Path, subject: &Value, input: &mut Input<'_>) -> Value {
    let specification = specification(input).into_bytes();
    let layer = blob(at, "application/vnd.nfd.image-compatibility.spec.v1alpha1+yaml", &specification, input);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer], "subject": subject});
    let text = text(&manifest, input);
    let mut artifact = blob(at, MANIFEST, &text, input);
    artifact["artifactType"] = json!("application/vnd.nfd.image-compatibility.v1alpha1");
    artifact
}

fn layout(at: &Path, input: &mut Input<'_>) {
    let version = json!({"imageLayoutVersion": input.pick(&["1.0.0", "1.0.0", "1.0.0", "2.0.0", ""])});
    fs::write(at.join("oci-layout"), text(&version, input)).expect("room");
    let mut manifests: Vec<Value> = (0..input.below(3) + 1).map(|_| image(at, input, 0)).collect();
    for _ in 0..input.below(3) {
        let subject = input.pick(&manifests.iter().collect::<Vec<_>>()).clone();
        manifests.push(artifact(at, &subject, input));
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(at.join("index.json"), text(&index, input)).expect("room");
}

/// One image that is what it says, most of the time, and artifacts about it.
fn sound(at: &Path, input: &mut Input<'_>) {
    let layer = blob(at, LAYERS[0], b"layer", input);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"layer").to_string()]},
    });
    let config = blob(at, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes(), input);
    // Manifests of before 2021 do not say what they are.
    let mut manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    if !input.one_in(4) {
        manifest["mediaType"] = json!(MANIFEST);
    }
    let mut image = blob(at, MANIFEST, manifest.to_string().as_bytes(), input);
    image["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    image["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let mut manifests = vec![image.clone()];
    for _ in 0..input.below(2) + 1 {
        manifests.push(artifact(at, &image, input));
    }
    fs::write(at.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string()).expect("room");
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(at.join("index.json"), index.to_string()).expect("room");
}

/// What `docker save` writes; old versions link a layer that occurs twice.
fn docker(at: &Path, input: &mut Input<'_>) {
    let layers = input.below(3);
    let config = config(layers, input);
    fs::write(at.join("config.json"), text(&config, input)).expect("room");
    let names: Vec<String> = (0..layers).map(|number| format!("{number}.tar")).collect();
    for name in &names {
        if input.one_in(3) {
            symlink(input.pick(&["0.tar", "../0.tar", "1.tar", "none", "/etc/passwd"]), at.join(name)).expect("room");
        } else {
            fs::write(at.join(name), b"layer").expect("room");
        }
    }
    let name = input.pick(&["config.json", "config.json", "config.json", "../config.json", "none"]);
    let manifest = json!([{"Config": name, "RepoTags": ["a:b"], "Layers": names}]);
    fs::write(at.join("manifest.json"), text(&manifest, input)).expect("room");
}

/// The folder as a tar, packed once more or not.
fn packed(at: &Path, input: &mut Input<'_>) -> PathBuf {
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all("", at).expect("room");
    if input.one_in(4) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        builder.append_link(&mut header, input.pick(&["1.tar", "oci-layout", "a"]), "index.json").expect("room");
    }
    let mut tar = builder.into_inner().expect("room");
    match input.byte() % 8 {
        5 => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(&tar).expect("room");
            tar = packer.finish().expect("room");
        }
        6 => tar = zstd::bulk::compress(&tar, 1).expect("room"),
        7 => tar.truncate(input.below(tar.len())),
        _ => {}
    }
    if input.one_in(8) {
        let spoilt = input.below(tar.len().max(1));
        if let Some(byte) = tar.get_mut(spoilt) {
            *byte ^= 1 << (input.byte() % 8);
        }
    }
    let path = at.join("packed.tar");
    fs::write(&path, tar).expect("room");
    path
}
