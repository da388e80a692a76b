//! `labyard image`: the store's images from the command line. The builder is a fake.

use super::host::Host;
use serde_json::{Value, json};

fn document(text: &str) -> Value {
    serde_json::from_str(text).expect("one document")
}

#[test]
fn images_are_pulled_listed_inspected_and_removed() {
    let host = Host::new();
    let (stdout, _) = host.expect(0, &["image", "pull", "debian", "--size", "1MiB", "--json"]);
    let key = document(&stdout)["key"].as_str().expect("a key").to_owned();
    let short = &key[..key.len().min(12)];
    let (stdout, _) = host.expect(0, &["image", "pull", "debian", "--size", "1MiB"]);
    assert_eq!(stdout, format!("{short} was there\n"));
    let (stdout, _) = host.expect(0, &["image", "ls"]);
    assert!(stdout.lines().next().expect("headings").starts_with("KEY"), "{stdout}");
    assert!(stdout.lines().nth(1).expect("a row").starts_with(short), "{stdout}");
    let (stdout, _) = host.expect(0, &["image", "inspect", &key[..4]]);
    let shown = document(&stdout);
    assert_eq!((&shown["key"], &shown["labs"]), (&json!(key), &json!([])));
    assert!(shown["path"].as_str().expect("a path").ends_with("disk.ext4"));
    let (stdout, _) = host.expect(0, &["image", "pull", "debian", "--size", "1MiB", "--format", "erofs", "--json"]);
    let other = document(&stdout)["key"].as_str().expect("a key").to_owned();
    assert_ne!(other, key);
    let (stdout, _) = host.expect(0, &["image", "inspect", &other]);
    assert!(document(&stdout)["path"].as_str().expect("a path").ends_with("disk.erofs"));
    host.expect(0, &["image", "rm", &other]);
    let (_, stderr) = host.expect(2, &["image", "rm", "nothing-like-it"]);
    assert!(stderr.contains("`nothing-like-it`: not in the store; there is: ") && stderr.contains(short), "{stderr}");
    let (stdout, _) = host.expect(0, &["image", "rm", &key, &key, "--json"]);
    assert_eq!(document(&stdout)["images"], json!([key]));
    let (_, stderr) = host.expect(2, &["image", "rm", &key]);
    assert!(stderr.contains("the store, which has none"), "{stderr}");
}

#[test]
fn where_an_image_says_it_comes_from_is_no_word_to_the_terminal() {
    let host = Host::new();
    let (stdout, _) = host.expect(0, &["image", "pull", "debian", "--size", "1MiB", "--json"]);
    let key = document(&stdout)["key"].as_str().expect("a key").to_owned();
    let record = host.home().join("images").join(&key).join("image.json");
    let mut imported = document(&std::fs::read_to_string(&record).expect("a record"));
    let source = "a\u{1b}[2J\u{202e}b\nforged  1 MiB";
    imported["source"] = source.into();
    std::fs::write(&record, imported.to_string()).expect("writing");
    let (stdout, _) = host.expect(0, &["image", "ls"]);
    assert!(stdout.contains("a\u{fffd}[2J\u{fffd}b forged"), "{stdout:?}");
    assert!(stdout.lines().count() == 2 && !stdout.contains(['\u{1b}', '\u{202e}']), "{stdout:?}");
    let (stdout, _) = host.expect(0, &["image", "ls", "--json"]);
    assert_eq!(document(&stdout)["images"][0]["source"], source);
}

#[test]
fn an_image_that_a_lab_uses_stays() {
    let host = Host::new();
    host.up("lab", &["web"]);
    let (stdout, _) = host.expect(0, &["image", "ls", "--json"]);
    let image = document(&stdout)["images"][0].clone();
    assert_eq!(image["labs"], json!(["lab"]));
    let key = image["key"].as_str().expect("a key");
    let (_, stderr) = host.expect(2, &["image", "rm", key]);
    assert!(stderr.contains("lab `lab` uses it; end that first with `labyard down lab`"), "{stderr}");
    let (stdout, _) = host.expect(0, &["image", "prune", "--json"]);
    assert_eq!(document(&stdout)["images"], json!([]));
    host.expect(0, &["down", "lab"]);
    let (stdout, _) = host.expect(0, &["image", "prune", "--dry-run"]);
    assert!(stdout.contains("would go"), "{stdout}");
    let (stdout, _) = host.expect(0, &["image", "prune", "--json"]);
    assert_eq!(document(&stdout)["images"], json!([key]));
    host.up("lab", &["web"]);
    host.expect(0, &["down", "lab"]);
}

#[test]
fn blobs_of_registries_are_pruned_unless_somebody_fetches_them() {
    let host = Host::new();
    let blobs = host.home().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("a folder");
    std::fs::write(blobs.join("00"), vec![1; 8192]).expect("writing");
    std::fs::write(blobs.join(".part-01"), vec![1; 4096]).expect("writing");
    std::fs::create_dir(host.home().join("access")).expect("a folder");
    std::fs::write(host.home().join("access/00.json"), "{}").expect("writing");
    let fetched = std::fs::File::create(blobs.join(".part-02")).expect("making");
    rustix::fs::flock(&fetched, rustix::fs::FlockOperation::LockExclusive).expect("flock");
    let (stdout, _) = host.expect(0, &["image", "ls", "--json"]);
    assert_eq!(document(&stdout)["blobs_bytes"], 12288);
    let (stdout, _) = host.expect(0, &["image", "prune", "--json"]);
    assert_eq!(document(&stdout)["bytes"], 12288);
    let left: Vec<_> =
        std::fs::read_dir(&blobs).expect("listing").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, [".part-02"]);
    assert_eq!(std::fs::read_dir(host.home().join("access")).expect("listing").count(), 0);
}

#[test]
fn images_travel_as_files_and_a_damaged_one_is_told() {
    let host = Host::new();
    let (stdout, _) = host.expect(0, &["image", "pull", "debian", "--size", "1MiB", "--json"]);
    let key = document(&stdout)["key"].as_str().expect("a key").to_owned();
    let file = host.home().join("it.labyard").display().to_string();
    let (stdout, _) = host.expect(0, &["image", "export", &key[..6], &file, "--json"]);
    assert_eq!(document(&stdout), json!({ "key": key, "path": file, "bytes": key.len() }));
    let (stdout, _) = host.expect(0, &["image", "import", &file, "--size", "1MiB"]);
    assert_eq!(stdout, format!("{} was there\n", &key[..key.len().min(12)]));
    host.expect(2, &["image", "export", "nothing-like-it", &file]);

    let (stdout, _) = host.expect(0, &["image", "verify"]);
    assert_eq!(stdout, "image 0123456789ab: whole\nblob sha256:00: whole\n");
    std::fs::write(host.home().join("damaged"), "").expect("writing");
    let (stdout, stderr) = host.expect(1, &["image", "verify", &key]);
    assert!(stdout.starts_with("image 0123456789ab: its disk is another; remove it"), "{stdout}");
    assert_eq!(stderr, "error: 1 of 2 objects are damaged\n");
    let (stdout, _) = host.expect(1, &["image", "verify", "--json"]);
    assert_eq!((&document(&stdout)["damaged"], &document(&stdout)["objects"][0]["kind"]), (&json!(1), &json!("image")));
}

#[test]
fn what_images_share_is_told_apart_from_what_is_their_own() {
    let host = Host::new();
    let blobs = host.home().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("a folder");
    for (name, len) in [("aa", 8192), ("bb", 4096)] {
        std::fs::write(blobs.join(name), vec![1; len]).expect("writing");
    }
    for (source, list) in [("one", json!(["sha256:aa", "sha256:bb"])), ("two", json!(["sha256:aa", "sha256:aa"]))] {
        let (stdout, _) = host.expect(0, &["image", "pull", source, "--size", "1MiB", "--json"]);
        let path = document(&stdout)["path"].as_str().expect("a path").replace("disk.ext4", "image.json");
        let mut record = document(&std::fs::read_to_string(&path).expect("a record"));
        record["blobs"] = list;
        std::fs::write(&path, record.to_string()).expect("writing");
    }
    let (stdout, _) = host.expect(0, &["image", "ls", "--json"]);
    let shown = document(&stdout);
    let of = |source: &str| {
        let images = shown["images"].as_array().expect("a list");
        let image = images.iter().find(|image| image["source"] == source).expect("the image");
        let number = |name: &str| image[name].as_u64().expect("a number");
        (number("unique_bytes") - number("disk_bytes"), number("shared_bytes"))
    };
    assert_eq!((of("one"), of("two")), ((4096, 8192), (0, 8192)));
}

#[test]
fn layouts_and_images_of_the_store_are_pushed() {
    let host = Host::new();
    let (stdout, _) = host.expect(0, &["image", "pull", "debian", "--size", "1MiB", "--json"]);
    let key = document(&stdout)["key"].as_str().expect("a key").to_owned();
    let to = "oci://127.0.0.1:5000/it:1";
    let (stdout, _) = host.expect(0, &["image", "push", &key[..5], to, "--json"]);
    let answer = document(&stdout);
    assert_eq!((&answer["image"], &answer["bytes"]), (&json!(to), &json!(key.len())));
    let (stdout, _) = host.expect(0, &["image", "push", "oci-layout:/somewhere:it", to]);
    assert_eq!(stdout, format!("{to} sha256:0: 2 of 3 blobs sent, 1 MiB\n"));
    host.expect(2, &["image", "push", "nothing-like-it", to]);
    host.expect(2, &["image", "push", &key, "not a place"]);
}

#[test]
fn names_of_the_catalogue_are_listed_and_a_mistake_in_it_is_named() {
    let host = Host::new();
    let (stdout, _) = host.expect(0, &["image", "catalogue"]);
    assert!(stdout.lines().any(|line| line.starts_with("debian-12") && line.ends_with("built in")), "{stdout}");
    std::fs::write(host.home().join("catalogue"), "own oci://127.0.0.1:5000/own:1\n").expect("writing");
    let (stdout, _) = host.expect(0, &["image", "catalogue", "--json"]);
    let shown = document(&stdout);
    assert!(shown["path"].as_str().expect("a path").ends_with("home/catalogue"));
    let own = json!({ "name": "own", "source": "oci://127.0.0.1:5000/own:1", "own": true });
    assert!(shown["names"].as_array().expect("a list").contains(&own), "{stdout}");
    std::fs::write(host.home().join("catalogue"), "own\n").expect("writing");
    let (_, stderr) = host.expect(2, &["image", "catalogue"]);
    assert!(stderr.contains("catalogue:1: only `own`"), "{stderr}");
}
