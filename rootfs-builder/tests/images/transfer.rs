//! Images as files, and whether what lies in a store is whole.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::layout::{Layer, Layout, Packing};
use super::{builder, built, disk, left_in, run};

/// A store with one image of a few pieces: its folder, the source and the answer of the build.
fn store() -> (tempfile::TempDir, String, Value) {
    let home = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&home.path().join("layout"));
    let bytes: Vec<u8> = (0..2_000_000u32).map(|at| (at / 7) as u8).collect();
    layout.layer(Layer::new().directory("etc/").file("etc/big", &bytes), Packing::Gzip);
    layout.layer(Layer::new().file("etc/small", b"small"), Packing::Zstd);
    layout.annotate(&json!({ "io.labyard.kernel.modules": "overlay" }));
    let source = format!("oci-layout:{}", layout.path.display());
    let answer = built(home.path(), &source);
    (home, source, answer)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn key(answer: &Value) -> &str {
    answer["key"].as_str().unwrap()
}

/// The answer of something that must work.
#[track_caller]
fn done(home: &Path, arguments: &[&str]) -> Value {
    let output = run(home, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line of an error with this exit code.
#[track_caller]
fn refused(home: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(home, arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    let line = text.lines().last().unwrap_or_default().to_owned();
    assert!(
        line.starts_with("error: ") && text.lines().filter(|line| line.starts_with("error: ")).count() == 1,
        "{text}"
    );
    line
}

fn exported(home: &Path, answer: &Value) -> PathBuf {
    let file = home.join("it.labyard");
    done(home, &["export", key(answer), text(&file)]);
    file
}

#[test]
fn an_image_goes_to_another_store_and_is_the_same_there() {
    let (home, source, answer) = store();
    let file = exported(home.path(), &answer);
    let len = fs::metadata(&file).unwrap().len();
    assert!(len > 2_000_000 && len < 8 << 20, "{len} bytes for 2 MB on a disk of 64 MiB");
    let other = tempfile::tempdir().unwrap();
    let imported = done(other.path(), &["import", text(&file), "--trust"]);
    assert_eq!((&imported["key"], &imported["cached"]), (&answer["key"], &json!(false)));
    assert_eq!(fs::read(disk(&imported)).unwrap(), fs::read(disk(&answer)).unwrap());
    let record = |answer: &Value| fs::read(disk(answer).with_file_name("image.json")).unwrap();
    assert_eq!(record(&imported), record(&answer));
    use std::os::unix::fs::MetadataExt;
    assert!(fs::metadata(disk(&imported)).unwrap().blocks() * 512 < 8 << 20, "it is not sparse");
    // It is there, for the next import and for a build of the same.
    assert_eq!(done(other.path(), &["import", text(&file)])["cached"], true);
    assert_eq!(built(other.path(), &source)["cached"], true);
    assert_eq!(left_in(other.path()), [key(&answer)]);
    // The same image is the same file, packed or not, and whatever was there stays.
    let again = other.path().join("again");
    done(other.path(), &["export", key(&answer), text(&again)]);
    assert_eq!(fs::read(&again).unwrap(), fs::read(&file).unwrap());
    let error = refused(other.path(), &["export", key(&answer), text(&again)], 2);
    assert!(error.contains("it is there already; give another name, or --force"), "{error}");
    done(other.path(), &["export", key(&answer), text(&again), "--force"]);
    let packed = other.path().join("packed");
    fs::write(&packed, zstd::encode_all(&*fs::read(&file).unwrap(), 1).unwrap()).unwrap();
    let third = tempfile::tempdir().unwrap();
    assert_eq!(done(third.path(), &["import", text(&packed)])["key"], answer["key"]);
    let error = refused(third.path(), &["export", "00", text(&again)], 2);
    assert!(error.contains("image `00`: not in the store"), "{error}");
    let error = refused(third.path(), &["export", key(&answer), "/no/such/folder/x"], 2);
    assert!(error.contains("/no/such/folder/x: there is no folder"), "{error}");
}

#[test]
fn an_imported_image_is_taken_for_a_source_only_once_it_was_built_from_it() {
    let (home, source, answer) = store();
    let file = exported(home.path(), &answer);
    let unproved = |store: &Path| {
        let record = store.join("images").join(key(&answer)).join("image.json");
        serde_json::from_slice::<Value>(&fs::read(record).unwrap()).unwrap()["unproved"] == true
    };
    let other = tempfile::tempdir().unwrap();
    done(other.path(), &["import", text(&file)]);
    assert!(unproved(other.path()));
    let built_again = built(other.path(), &source);
    assert_eq!((&built_again["cached"], unproved(other.path())), (&json!(false), false));
    assert_eq!(built(other.path(), &source)["cached"], true);
    assert_eq!(left_in(other.path()), [key(&answer)]);
    // Somebody else's disk under the same key: its sum is right, and it is not what the layers make.
    let bytes = fs::read(&file).unwrap();
    let forged = home.path().join("forged");
    fs::write(&forged, with_data(&bytes)).unwrap();
    for (arguments, code) in [(vec![], 2), (vec!["--trust"], 0)] {
        let victim = tempfile::tempdir().unwrap();
        done(victim.path(), &[&["import", text(&forged)], &*arguments].concat());
        let output = run(victim.path(), &["build", &source, "--size", "64MiB", "--json"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(code == 0 || said.contains("its disk is not what its layers make"), "{said}");
        assert_eq!(left_in(victim.path()), [key(&answer)]);
    }
}

/// The file with another byte on its disk, whose sums are right.
fn with_data(file: &[u8]) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let (path, disk) = (place.path().join("file"), place.path().join("disk"));
    let other = tempfile::tempdir().unwrap();
    fs::write(&path, file).unwrap();
    let imported = done(other.path(), &["import", text(&path), "--trust"]);
    let mut bytes = fs::read(super::disk(&imported)).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&disk, &bytes).unwrap();
    // Exported anew, the record says the digest that the disk has.
    let record_path = super::disk(&imported).with_file_name("image.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&record_path).unwrap()).unwrap();
    record.as_object_mut().unwrap().remove("disk");
    fs::set_permissions(&record_path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&record_path, record.to_string()).unwrap();
    fs::set_permissions(super::disk(&imported), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::copy(&disk, super::disk(&imported)).unwrap();
    let out = place.path().join("out");
    done(other.path(), &["export", key(&imported), text(&out)]);
    fs::read(&out).unwrap()
}

/// The file with its document changed, sizes mended.
fn with_head(file: &[u8], change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut tar = tar::Archive::new(file);
    let mut new = tar::Builder::new(vec![]);
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().into_owned();
        let mut bytes = vec![];
        entry.read_to_end(&mut bytes).unwrap();
        if name == Path::new("labyard-image.json") {
            let mut head = serde_json::from_slice(&bytes).unwrap();
            change(&mut head);
            bytes = head.to_string().into_bytes();
        }
        let mut header = entry.header().clone();
        header.set_size(bytes.len() as u64);
        new.append_data(&mut header, name, &*bytes).unwrap();
    }
    new.into_inner().unwrap()
}

#[test]
fn a_file_that_is_damaged_or_lies_is_refused_and_leaves_nothing() {
    let (home, _, answer) = store();
    let file = fs::read(exported(home.path(), &answer)).unwrap();
    let mut flipped = file.clone();
    let at = flipped.len() - 100_000;
    flipped[at] ^= 1;
    let other = "0".repeat(64);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "a tar archive of something else"),
        (
            "no archive",
            b"this is a text and no archive, long enough to be read as a header".repeat(20),
            "no tar archive",
        ),
        ("a flipped bit", flipped, "damaged on its way"),
        ("cut in the data", file[..file.len() / 2].to_vec(), "damaged or cut short"),
        ("cut in the document", file[..700].to_vec(), "not what it should be"),
        ("another format", with_head(&file, |head| head["format"] = json!(2)), "its format is 2"),
        ("another key", with_head(&file, |head| head["record"]["key"] = json!(other)), "is not that of its layers"),
        ("a path for a key", with_head(&file, |head| head["record"]["key"] = json!("../../x")), "is not that of its"),
        ("another size", with_head(&file, |head| head["record"]["size_bytes"] = json!(32 << 20)), "is not that of its"),
        ("other needs", with_head(&file, |head| head["record"]["kernel"] = json!({})), "is not that of its layers"),
        (
            "another digest",
            with_head(&file, |head| head["digest"] = json!("sha256:00")),
            "different digests of the disk",
        ),
        (
            "parts in disorder",
            with_head(&file, |head| head["extents"].as_array_mut().unwrap().reverse()),
            "overlaps another",
        ),
        (
            "a part behind the end",
            with_head(&file, |head| head["extents"] = json!([[u64::MAX, 2]])),
            "the end of the disk",
        ),
        ("too few parts", with_head(&file, |head| head["extents"] = json!([[0, 4096]])), "where its parts have 4096"),
        ("no document", with_head(&file, |head| *head = json!([])), "not what it should be"),
    ];
    for (case, bytes, expected) in cases {
        let store = tempfile::tempdir().unwrap();
        let path = store.path().join("file");
        fs::write(&path, bytes).unwrap();
        let error = refused(store.path(), &["import", text(&path)], 2);
        assert!(error.contains(expected) && error.contains(text(&path)), "{case}: {error}");
        assert_eq!(left_in(store.path()), [""; 0], "{case}");
    }
    let error = refused(home.path(), &["import", "/no/such/file"], 2);
    assert!(error.contains("/no/such/file"), "{error}");
}

#[test]
fn layouts_and_saved_images_are_imported_and_other_tars_are_not() {
    let (home, source, answer) = store();
    let layout = source.strip_prefix("oci-layout:").unwrap();
    let import = |path: &str| done(home.path(), &["import", path, "--size", "64MiB"]);
    assert_eq!((&import(layout)["key"], &import(layout)["cached"]), (&answer["key"], &json!(true)));
    let tar = home.path().join("layout.tar");
    let mut packed = tar::Builder::new(fs::File::create(&tar).unwrap());
    packed.append_dir_all(".", layout).unwrap();
    packed.into_inner().unwrap();
    assert_eq!(import(text(&tar))["key"], answer["key"]);
    let root = home.path().join("root.tar");
    fs::write(&root, Layer::new().file("a", b"a").bytes()).unwrap();
    let error = refused(home.path(), &["import", text(&root)], 2);
    assert!(error.contains("a tar archive of something else") && error.contains("pull rootfs-tar:PATH"), "{error}");
}

#[test]
fn what_is_damaged_in_a_store_is_found_and_named() {
    let (home, source, answer) = store();
    let clean = done(home.path(), &["verify"]);
    assert_eq!((&clean["damaged"], clean["objects"].as_array().unwrap().len()), (&json!(0), 1));
    // A blob of a registry, and one that somebody is fetching.
    let blobs = home.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let name = super::layout::digest(b"a blob");
    let blob = blobs.join(name.strip_prefix("sha256:").unwrap());
    fs::write(&blob, b"a blob").unwrap();
    fs::write(blobs.join(".part-00"), b"half").unwrap();
    assert_eq!(
        done(home.path(), &["verify"])["objects"][1],
        json!({
            "kind": "blob", "name": name, "bytes": 6, "fault": null, "unchecked": false, "removed": false
        })
    );
    let flip = |path: &Path, at: u64| {
        use std::os::unix::fs::FileExt;
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    flip(&disk(&answer), 50 << 20);
    flip(&blob, 3);
    let error = refused(home.path(), &["verify"], 1);
    assert_eq!(error, "error: 2 of 2 objects are damaged");
    let output = run(home.path(), &["verify", "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let fault = |at: usize| found["objects"][at]["fault"].as_str().unwrap().to_owned();
    assert_eq!((&found["objects"][0]["name"], found["damaged"].as_u64()), (&answer["key"], Some(2)));
    assert!(fault(0).contains("its disk is sha256:") && fault(0).contains("labyard image rm"), "{}", fault(0));
    assert!(fault(1).contains("its bytes are sha256:") && fault(1).contains("verify --remove"), "{}", fault(1));
    let error = refused(home.path(), &["export", key(&answer), text(&home.path().join("x"))], 1);
    assert!(error.contains("its disk is damaged"), "{error}");
    refused(home.path(), &["verify", "--remove"], 1);
    assert!(!blob.exists());
    // One image by itself, one that is not there, and one whose record is no record.
    refused(home.path(), &["verify", key(&answer)], 1);
    refused(home.path(), &["verify", "00"], 2);
    fs::remove_dir_all(disk(&answer).parent().unwrap()).unwrap();
    let again = built(home.path(), &source);
    done(home.path(), &["verify", key(&again)]);
    fs::write(disk(&again).with_file_name("image.json"), "{").unwrap();
    let output = run(home.path(), &["verify"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("not what this version writes; remove its folder"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

/// Runs the builder until it says a line for the `step`th time, then kills it; false where it ended before.
fn kill_at(home: &Path, arguments: &[&str], step: usize) -> bool {
    let mut child =
        builder(arguments).arg("--store").arg(home).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let reached = BufReader::new(child.stderr.take().unwrap()).lines().nth(step).is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    reached
}

#[test]
fn a_kill_at_any_step_leaves_what_is_complete_or_what_the_next_one_removes() {
    let (home, source, answer) = store();
    let file = exported(home.path(), &answer);
    let mut kills = 0;
    for arguments in [&["build", &*source, "--size", "64MiB"][..], &["import", text(&file)]] {
        for step in 0.. {
            let store = tempfile::tempdir().unwrap();
            if !kill_at(store.path(), arguments, step) {
                break;
            }
            kills += 1;
            let names = if store.path().join("images").exists() { left_in(store.path()) } else { vec![] };
            for name in names.iter().filter(|name| !name.starts_with(".tmp-")) {
                assert_eq!(done(store.path(), &["verify", name])["damaged"], 0, "{arguments:?}, step {step}");
            }
            done(store.path(), arguments);
            assert_eq!(left_in(store.path()), [key(&answer)], "{arguments:?}, step {step}");
        }
    }
    assert!(kills >= 5, "{kills}");
    // An export has no name until it is complete.
    let folder = tempfile::tempdir().unwrap();
    for step in 0..2 {
        let path = folder.path().join("half");
        assert!(kill_at(home.path(), &["export", key(&answer), text(&path), "--force"], step));
        if path.exists() {
            assert_eq!(fs::read(&path).unwrap(), fs::read(&file).unwrap());
        }
        let others = fs::read_dir(folder.path()).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != "half");
        assert_eq!(others.count(), 0, "step {step}");
    }
}
