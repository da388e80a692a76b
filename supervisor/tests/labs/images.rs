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
    let (_, stderr) = host.expect(2, &["image", "rm", "nothing-like-it"]);
    assert!(stderr.contains("`nothing-like-it`: not in the store; there is: ") && stderr.contains(short), "{stderr}");
    let (stdout, _) = host.expect(0, &["image", "rm", &key, &key, "--json"]);
    assert_eq!(document(&stdout)["images"], json!([key]));
    let (_, stderr) = host.expect(2, &["image", "rm", &key]);
    assert!(stderr.contains("the store, which has none"), "{stderr}");
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
    let fetched = std::fs::File::create(blobs.join(".part-02")).expect("making");
    rustix::fs::flock(&fetched, rustix::fs::FlockOperation::LockExclusive).expect("flock");
    let (stdout, _) = host.expect(0, &["image", "ls", "--json"]);
    assert_eq!(document(&stdout)["blobs_bytes"], 12288);
    let (stdout, _) = host.expect(0, &["image", "prune", "--json"]);
    assert_eq!(document(&stdout)["bytes"], 12288);
    let left: Vec<_> =
        std::fs::read_dir(&blobs).expect("listing").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, [".part-02"]);
}
