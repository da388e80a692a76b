//! `rootfs-builder build` from the outside: layouts made by hand, the store, exit codes, interruption.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../oracle/mod.rs"]
mod oracle;

#[path = "../oracle/compare.rs"]
mod compare;

mod baked;
mod dockerfile;
mod layout;
mod made;
mod rebuild;
mod refused;
mod stacks;
mod transfer;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use labyard_rootfs_builder::store::Store;
use labyard_rootfs_builder::watch::Watch;
use labyard_rootfs_builder::workdir::Workdir;
use layout::{Layer, Layout, Packing};
use oracle::{assert_clean, content, tool};
use serde_json::{Value, json};
use tar::EntryType;

fn builder(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rootfs-builder"));
    command.args(arguments).env_remove("LABYARD_HOME").stdin(Stdio::null());
    command
}

/// Runs the builder on a store in `home`.
fn run(home: &Path, arguments: &[&str]) -> Output {
    builder(arguments).arg("--store").arg(home).output().unwrap()
}

/// The answer of a build that must work.
#[track_caller]
fn built(home: &Path, source: &str) -> Value {
    let output = run(home, &["build", source, "--size", "64MiB", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn disk(answer: &Value) -> PathBuf {
    PathBuf::from(answer["path"].as_str().unwrap())
}

/// Names in a store's folder of images.
fn left_in(home: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(home.join("images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Three layers with everything that an image may have.
fn rich(path: &Path) -> Layout {
    let mut layout = Layout::new(path);
    let base = Layer::new()
        .directory("./")
        .directory("usr/")
        .directory("usr/bin/")
        .link(EntryType::Symlink, "bin", "usr/bin")
        .put("usr/bin/su", EntryType::Regular, b"#!su", |header| header.set_mode(0o4755))
        .directory("usr/share/")
        .file("usr/share/old", b"old")
        .file("usr/share/kept", b"kept")
        .directory("opt/")
        .file("opt/lower", b"lower")
        .directory("dev/")
        .put("dev/null", EntryType::Char, b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        })
        .put("dev/big", EntryType::Block, b"", |header| {
            header.set_device_major(259).unwrap();
            header.set_device_minor(1000).unwrap();
        })
        .put("dev/pipe", EntryType::Fifo, b"", |_| {});
    layout.layer(base, Packing::Gzip);
    let long = format!("usr/share/{}", "n".repeat(250));
    // An access list: a version, then tag, rights and id of owner, one user, group, mask and others; rights as the mode says.
    let acl = [(1u16, 6u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)];
    let acl = acl.map(|(tag, rights, id)| [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
    let acl = [&2u32.to_le_bytes()[..], &acl.concat()].concat();
    let middle = Layer::new()
        .file("bin/app", &vec![b'a'; 300_000])
        .link(EntryType::Link, "usr/bin/app2", "usr/bin/app")
        .link(EntryType::Link, "usr/bin/su2", "usr/bin/su")
        .file("usr/share/.wh.old", b"")
        .pax(&[
            ("mtime", b"1234567890.987654321"),
            ("SCHILY.xattr.user.note", b"a note"),
            ("uid", b"123456"),
            ("SCHILY.xattr.system.posix_acl_access", &acl),
        ])
        .file(&long, b"long name")
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0")])
        .file("usr/bin/ping", b"ping")
        .link(EntryType::Symlink, "usr/share/deep", &"../".repeat(40));
    layout.layer(middle, Packing::Gzip); // umoci of Debian 12 knows no zstd
    let top = Layer::new()
        .directory("opt/")
        .file("opt/.wh..wh..opq", b"")
        .file("opt/upper", b"upper")
        .put("usr/share/", EntryType::Directory, b"", |header| {
            header.set_mode(0o2775);
            header.set_mtime(5);
        })
        .file("empty", b"");
    layout.layer(top, Packing::Plain);
    layout.finish("v1");
    layout
}

#[test]
fn an_image_is_what_umoci_unpacks() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    let answer = built(home.path(), &format!("oci-layout:{}:v1", layout.path.display()));
    assert_clean(&disk(&answer));
    let bundle = home.path().join("bundle");
    let image = format!("{}:v1", layout.path.display());
    let output = tool("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]);
    // Devices and owners of the reference need root; so does this test.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let differences = compare::differences(&bundle.join("rootfs"), &disk(&answer)).unwrap();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn the_answer_says_that_the_image_was_read_confined_and_a_link_out_of_the_source_leads_nowhere() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    let answer = built(home.path(), &format!("oci-layout:{}", layout.path.display()));
    assert_eq!(answer["confined"]["capabilities"], json!([]));
    if answer["confined"]["landlock"].is_null() {
        return; // this kernel has none, and that was said
    }
    // What a stranger's layout points at is not the stranger's to give.
    let outside = home.path().join("outside");
    fs::rename(layout.path.join("index.json"), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, layout.path.join("index.json")).unwrap();
    let output = run(home.path(), &["build", &format!("oci-layout:{}", layout.path.display())]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("ermission denied"), "{text}");
}

#[test]
fn a_read_only_disk_is_what_umoci_unpacks() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    let source = format!("oci-layout:{}:v1", layout.path.display());
    let disk = home.path().join("disk.erofs").display().to_string();
    let made = run(home.path(), &["build", &source, "--format", "erofs", "--output", &disk]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // In the store it is the same, as long as its content and beside the one that is written to.
    let kept = |size: &str| -> Value {
        let output = run(home.path(), &["build", &source, "--format", "erofs", "--size", size, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (ext4, first, second) = (built(home.path(), &source), kept("64MiB"), kept("1GiB"));
    assert_ne!(ext4["key"], first["key"]);
    assert_eq!((&first["key"], &first["cached"], &second["cached"]), (&second["key"], &json!(false), &json!(true)));
    assert!(fs::read(crate::disk(&first)).unwrap() == fs::read(&disk).unwrap());
    assert_eq!(first["bytes"], fs::metadata(&disk).unwrap().len());
    let (bundle, out) = (home.path().join("bundle"), home.path().join("out"));
    let image = format!("{}:v1", layout.path.display());
    assert!(tool("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]).status.success());
    let extracted = tool("fsck.erofs", &[&format!("--extract={}", out.display()), "--preserve", &disk]);
    assert!(extracted.status.success(), "{}", String::from_utf8_lossy(&extracted.stderr));
    // fsck.erofs 1.5 loses setuid bits and attributes; names, contents, kinds and owners are compared.
    let same = tool(
        "diff",
        &["-r", "--no-dereference", &bundle.join("rootfs").display().to_string(), &out.display().to_string()],
    );
    let said = String::from_utf8_lossy(&same.stdout).into_owned();
    let files: Vec<&str> = said
        .lines()
        .filter(|line| {
            !line.contains("is a character special")
                && !line.contains("is a block special")
                && !line.contains("is a fifo")
        })
        .collect();
    assert!(files.is_empty(), "{files:?}");
}

#[test]
fn the_record_says_what_the_image_is() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    let source = format!("oci-layout:{}", layout.path.display());
    let answer = built(home.path(), &source);
    let store = Store::open(home.path()).unwrap();
    let record = store.image(answer["key"].as_str().unwrap()).unwrap().unwrap();
    assert_eq!(record.source, source);
    assert_eq!(record.layers.len(), 3);
    assert_eq!((record.filesystem.as_str(), record.size_bytes, record.init), ("ext4", 64 << 20, false));
    let entrypoint = record.entrypoint.clone().unwrap();
    assert_eq!((entrypoint.argv, entrypoint.env), (vec!["/bin/app".into(), "--serve".into()], vec!["A=b".into()]));
    assert_eq!(entrypoint.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(store.disk(&record), disk(&answer));
    let uuid = oracle::debugfs(&disk(&answer), "stats");
    assert!(uuid.contains(&record.uuid), "{uuid}");
}

#[test]
fn the_same_image_is_the_same_bytes_and_the_second_time_it_is_there() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    let source = format!("oci-layout:{}", layout.path.display());
    let first = built(home.path(), &source);
    let second = built(home.path(), &source);
    assert_eq!((&first["cached"], &second["cached"]), (&json!(false), &json!(true)));
    assert_eq!(first["path"], second["path"]);
    let other = built(&home.path().join("other"), &source);
    assert!(fs::read(disk(&first)).unwrap() == fs::read(disk(&other)).unwrap());
    let file = home.path().join("file.ext4");
    let output = builder(&["build", &source, "--size", "64M", "-o", &file.display().to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(fs::read(disk(&first)).unwrap() == fs::read(file).unwrap());
    // Another size is another image.
    let output = run(home.path(), &["build", &source, "--size", "65MiB", "--json"]);
    assert!(output.status.success());
    assert_eq!(left_in(home.path()).len(), 2);
}

#[test]
fn every_way_to_hold_an_image_gives_the_same_tree() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path();
    let entries = || Layer::new().directory("etc/").file("etc/hostname", b"lab").file("etc/.wh.x", b"");
    let mut layout = Layout::new(&path.join("layout"));
    layout.layer(entries(), Packing::Gzip);
    // An index inside an index, with an image for another machine and one that is none.
    let mut nested = vec![layout.manifest("arm64"), layout.manifest("amd64")];
    nested[0]["platform"] = json!({ "architecture": "arm64", "os": "linux" });
    nested[1]["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    let kind = "application/vnd.oci.image.index.v1+json";
    let text = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": nested }).to_string();
    let mut attestation = layout.manifest("unknown");
    attestation["platform"] = json!({ "architecture": "unknown", "os": "unknown" });
    layout.index(&[layout.blob(kind, text.as_bytes()), attestation]);
    let from_layout = built(path, &format!("oci-layout:{}", layout.path.display()));
    // The layout as one file, as skopeo's oci-archive: is.
    let packed = path.join("layout.tar");
    tool("tar", &["-C", layout.path.to_str().unwrap(), "-cf", packed.to_str().unwrap(), "."]);
    fs::write(path.join("layout.tar.zst"), zstd::encode_all(&fs::read(&packed).unwrap()[..], 1).unwrap()).unwrap();
    for name in ["layout.tar", "layout.tar.zst"] {
        let archive = built(path, &format!("oci-layout:{}", path.join(name).display()));
        assert_eq!((&archive["key"], &archive["cached"]), (&from_layout["key"], &json!(true)));
    }
    // The same as `docker save` writes it, packed as a whole as well.
    let layer = entries();
    let archive = docker_archive(layer);
    fs::write(path.join("saved.tar"), &archive).unwrap();
    fs::write(path.join("saved.tar.zst"), zstd::encode_all(&archive[..], 1).unwrap()).unwrap();
    let saved = built(path, &format!("docker-archive:{}", path.join("saved.tar").display()));
    let packed = built(path, &format!("docker-archive:{}", path.join("saved.tar.zst").display()));
    assert_eq!((&packed["key"], &packed["cached"]), (&saved["key"], &json!(true)));
    for answer in [&from_layout, &saved] {
        assert_clean(&disk(answer));
        assert_eq!(content(&disk(answer), "/etc/hostname"), b"lab");
        assert_eq!(answer["entries"], 4);
    }
    // In a plain tar no name hides another.
    fs::write(path.join("root.tar"), entries().bytes()).unwrap();
    let plain = built(path, &format!("rootfs-tar:{}", path.join("root.tar").display()));
    assert_eq!(plain["entries"], 5);
    assert_eq!(built(path, &format!("rootfs-tar:{}", path.join("root.tar").display()))["cached"], true);
}

fn docker_archive(layer: Layer) -> Vec<u8> {
    let layer = layer.bytes();
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "diff_ids": [layout::digest(&layer)] } });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["a:b"], "Layers": ["one/layer.tar"] }]);
    Layer::new()
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("config.json", config.to_string().as_bytes())
        .directory("zero/")
        .file("zero/layer.tar", &layer)
        .directory("one/")
        .link(EntryType::Symlink, "one/layer.tar", "../zero/layer.tar")
        .bytes()
}

#[test]
fn ten_thousand_files_in_many_layers_are_a_clean_disk() {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    for number in 0..10 {
        let mut layer = Layer::new();
        for file in 0..1000 {
            layer = layer.file(&format!("d{}/f{number}-{file}", file % 50), format!("{number} {file}").as_bytes());
        }
        if number > 0 {
            layer = layer.file(&format!("d0/.wh.f{}-0", number - 1), b"");
        }
        layout.layer(layer, [Packing::Gzip, Packing::Zstd, Packing::Plain][number % 3]);
    }
    layout.finish("many");
    let answer = built(home.path(), &format!("oci-layout:{}:many", layout.path.display()));
    assert_clean(&disk(&answer));
    assert_eq!(answer["entries"], 10_000 - 9 + 50 + 2);
    assert_eq!(content(&disk(&answer), "/d7/f3-57"), b"3 57");
}

#[test]
fn two_builders_at_once_build_once() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    let source = format!("oci-layout:{}", layout.path.display());
    let children: Vec<_> = (0..4)
        .map(|_| {
            builder(&["build", &source, "--size", "64MiB", "--json", "--store"])
                .arg(home.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut built = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        built += usize::from(answer["cached"] == false);
    }
    assert_eq!(built, 1);
    assert_eq!(left_in(home.path()).len(), 1);
}

#[test]
fn an_interrupted_build_ends_with_130_and_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    let source = format!("oci-layout:{}", layout.path.display());
    let answer = built(home.path(), &source);
    fs::remove_dir_all(disk(&answer).parent().unwrap()).unwrap();
    // While this process holds the key, the builder waits, and says so.
    let images = home.path().join("images");
    let held = Workdir::enter(&images, answer["key"].as_str().unwrap(), &Watch::unattended()).unwrap();
    let mut child = builder(&["build", &source, "--size", "64MiB", "--store"])
        .arg(home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("waiting for another builder")));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(lines.any(|line| line.starts_with("error: interrupted")));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(held);
    assert_eq!(left_in(home.path()), [""; 0]);
}

#[test]
fn what_a_killed_builder_has_left_goes_at_the_next_build() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    fs::create_dir_all(home.path().join("images/.tmp-0123")).unwrap();
    fs::write(home.path().join("images/.tmp-0123/disk.ext4"), "half").unwrap();
    let answer = built(home.path(), &format!("oci-layout:{}", layout.path.display()));
    assert_eq!(left_in(home.path()), [answer["key"].as_str().unwrap()]);
}

#[test]
fn what_an_image_needs_of_the_kernel_is_kept_beside_it() {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    layout.layer(Layer::new().file("a", b"a"), Packing::Gzip);
    layout.finish("plain");
    let source = format!("oci-layout:{}", layout.path.display());
    let plain = built(home.path(), &source)["key"].clone();
    layout.annotate(&json!({ "io.labyard.kernel.version": ">=6.1", "io.labyard.kernel.modules": "overlay" }));
    // The same disk, but another image: its record says more.
    let needy = built(home.path(), &source)["key"].as_str().unwrap().to_owned();
    assert_ne!(plain, needy);
    let record = Store::open(home.path()).unwrap().image(&needy).unwrap().unwrap();
    assert_eq!(
        (record.kernel.version[0].to_string(), &*record.kernel.modules),
        (">=6.1".to_owned(), &["overlay".to_owned()][..])
    );

    layout.annotate(&json!({ "io.labyard.kernel.version": "newest" }));
    let output = run(home.path(), &["build", &source, "--size", "64MiB"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("label io.labyard.kernel.version: `newest`"), "{error}");
}

#[test]
fn what_an_artifact_says_that_an_image_needs_counts_beside_its_annotations() {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    layout.layer(Layer::new().file("a", b"a"), Packing::Gzip);
    layout.annotate(&json!({ "io.labyard.kernel.modules": "overlay" }));
    let source = format!("oci-layout:{}", layout.path.display());
    let plain = built(home.path(), &source)["key"].clone();
    let image = layout.manifest("amd64");
    let needs = |version: &str| {
        format!(
            "version: v1alpha1
compatibilities:
- rules:
  - name: it
    matchFeatures:
    - feature: kernel.version
      matchExpressions:
        major: {{op: {version}, value: ['6']}}
    - feature: kernel.loadedmodule
      matchExpressions:
        zfs: {{op: Exists}}
"
        )
    };
    let mut other = image.clone();
    other["digest"] = json!(layout::digest(b"another image"));
    // One that is about another image says nothing of this one.
    layout.index(&[image.clone(), layout.needs(&other, &needs("Ge"))]);
    assert_eq!(built(home.path(), &source)["key"], plain);
    layout.index(&[layout.needs(&image, &needs("Ge")), image.clone()]);
    let needy = built(home.path(), &source)["key"].as_str().unwrap().to_owned();
    let record = Store::open(home.path()).unwrap().image(&needy).unwrap().unwrap();
    assert_eq!(record.kernel.version[0].to_string(), ">=6");
    assert_eq!(record.kernel.modules, ["overlay", "zfs"]);

    layout.index(&[image.clone(), layout.needs(&image, &needs("InRegexp"))]);
    let output = run(home.path(), &["build", &source, "--size", "64MiB"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("compatibility specification sha256:"), "{error}");
    assert!(error.contains("rule `it`, kernel.version, major: `InRegexp`"), "{error}");
}

#[test]
fn a_name_of_the_catalogue_stands_for_its_source() {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    layout.layer(Layer::new().file("a", b"a"), Packing::Gzip);
    layout.finish("it");
    fs::write(home.path().join("catalogue"), "mine oci-layout:layout:it\n").unwrap();
    let key = built(home.path(), "mine")["key"].clone();
    assert_eq!(built(home.path(), &format!("oci-layout:{}", layout.path.display()))["key"], key);
    for (name, text, part) in [
        ("yours", "mine oci-layout:layout:it\n", "`yours`: no such name in the catalogue; there is: alpine, debian-12"),
        ("mine", "mine layout\n", "catalogue:1: `layout` is another name"),
    ] {
        fs::write(home.path().join("catalogue"), text).unwrap();
        let output = run(home.path(), &["build", name, "--size", "64MiB"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn what_skopeo_makes_of_an_image_is_the_same_image() {
    let home = tempfile::tempdir().unwrap();
    let layout = rich(&home.path().join("layout"));
    let from = format!("oci:{}", layout.path.display());
    let key = built(home.path(), &format!("oci-layout:{}", layout.path.display()))["key"].clone();
    for (to, source) in [
        ("docker-archive:saved.tar:it:1", "docker-archive:saved.tar"),
        ("oci-archive:packed.tar:it", "oci-layout:packed.tar:it"),
        ("oci:copy:it", "oci-layout:copy"),
    ] {
        let copy = ["--insecure-policy", "copy", "--quiet", &from, to];
        let copied = Command::new("skopeo").args(copy).current_dir(home.path()).status().unwrap();
        assert!(copied.success(), "{to}");
        let mut build = builder(&["build", source, "--size", "64MiB", "--json", "--store"]);
        let output = build.arg(home.path()).current_dir(home.path()).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&answer["key"], &answer["cached"]), (&key, &json!(true)), "{to}");
    }
}

#[test]
fn what_is_attached_to_an_image_is_no_second_one() {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    layout.layer(Layer::new().file("a", b"a"), Packing::Gzip);
    let image = layout.manifest("amd64");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut attached = layout.blob(kind, json!({ "subject": image, "layers": [] }).to_string().as_bytes());
    attached["artifactType"] = json!("application/vnd.example.signature");
    layout.index(&[attached, image]);
    built(home.path(), &format!("oci-layout:{}", layout.path.display()));
}
