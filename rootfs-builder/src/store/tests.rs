use std::fs;

use super::*;

fn kernel(id: &str, version: &str, series: &str, stock: bool) -> KernelRecord {
    KernelRecord {
        id: id.into(),
        version: version.into(),
        series: series.into(),
        digest: "sha256:00".into(),
        early_modules: vec!["virtio_blk.ko.xz".into()],
        late_modules: vec!["virtio_net".into()],
        stock,
        min_memory_mib: 64,
        format: KERNEL_FORMAT,
    }
}

fn put(store: &Store, record: &KernelRecord) {
    fs::create_dir(store.kernel_dir(record)).unwrap();
    let text = serde_json::to_vec(record).unwrap();
    fs::write(store.kernel_dir(record).join("kernel.json"), text).unwrap();
}

fn store() -> (tempfile::TempDir, Store) {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path().join("deep/home")).unwrap();
    (home, store)
}

#[test]
fn an_empty_store_has_nothing_and_says_so() {
    let (_home, store) = store();
    assert_eq!(store.images().unwrap(), []);
    assert_eq!(store.image("abc").unwrap(), None);
    let error = store.default_kernel().unwrap_err().to_string();
    assert!(error.contains("6.12") && error.contains("there is: none") && error.contains("kernel add"), "{error}");
}

#[test]
fn a_series_means_its_newest_and_ours_before_the_distributions() {
    let (_home, store) = store();
    for record in [
        kernel("6.9.1-a", "6.9.1", "6.9", true),
        kernel("6.12.9-b", "6.12.9", "6.12", true),
        kernel("6.12.10-c", "6.12.10", "6.12", true),
        kernel("6.18.0-e", "6.18.0", "6.18", true),
    ] {
        put(&store, &record);
    }
    assert_eq!(store.kernel("6.12").unwrap().id, "6.12.10-c");
    assert_eq!(store.default_kernel().unwrap().id, "6.12.10-c");
    assert_eq!(store.kernel("6.9.1").unwrap().id, "6.9.1-a");
    put(&store, &kernel("6.12.9-d", "6.12.9", "6.12", false));
    assert_eq!(store.kernel("6.12").unwrap().id, "6.12.9-d");
    assert_eq!(store.kernel("6.12-tuned").unwrap().id, "6.12.9-d");
    assert_eq!(store.kernel("6.12-stock").unwrap().id, "6.12.10-c");
    assert_eq!(store.default_kernel().unwrap().id, "6.12.9-d");
    assert!(store.kernel("6.9-tuned").is_err() && store.kernel("6.12-other").is_err());
    assert_eq!(store.kernels().unwrap()[0].id, "6.18.0-e");
}

#[test]
fn a_series_that_is_not_there_is_refused_with_those_that_are() {
    let (_home, store) = store();
    put(&store, &kernel("6.12.9-b", "6.12.9", "6.12", true));
    let error = store.kernel("6.1").unwrap_err().to_string();
    assert!(error.contains("`6.1`") && error.contains("6.12 (6.12.9-b)"), "{error}");
}

#[test]
fn a_folder_still_being_made_is_not_listed() {
    let (_home, store) = store();
    fs::create_dir(store.images_dir().join(".tmp-1")).unwrap();
    fs::create_dir(store.images_dir().join("no-record-yet")).unwrap();
    assert_eq!(store.images().unwrap(), []);
    for name in ["", ".tmp-1", "../kernels", "a/b"] {
        assert_eq!(store.image(name).unwrap(), None, "{name}");
    }
}

#[test]
fn a_record_that_is_broken_too_long_or_elsewhere_is_named() {
    let (_home, store) = store();
    let record = kernel("6.12.9-b", "6.12.9", "6.12", true);
    put(&store, &record);
    let path = store.kernel_dir(&record).join("kernel.json");
    for (text, part) in [
        ("{".to_owned(), "not what this version writes"),
        (" ".repeat(MAX_RECORD_BYTES as usize + 1), "more than"),
        (serde_json::to_string(&kernel("x", "1", "1", true)).unwrap(), "calls itself `x`"),
    ] {
        fs::write(&path, text).unwrap();
        let error = store.kernels().unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("kernel.json"), "{error}");
    }
}

#[test]
fn a_removed_kernel_is_gone_and_the_others_stay() {
    let (_home, store) = store();
    let (one, other) = (kernel("6.12.9-b", "6.12.9", "6.12", true), kernel("6.12.9-d", "6.12.9", "6.12", false));
    put(&store, &one);
    put(&store, &other);
    store.remove_kernel(&one).unwrap();
    assert_eq!(store.kernels().unwrap(), [other]);
    assert_eq!(fs::read_dir(store.kernels_dir()).unwrap().count(), 1);
    let error = store.remove_kernel(&one).unwrap_err().to_string();
    assert!(error.contains("6.12.9-b"), "{error}");
}

#[test]
fn a_kernel_that_another_version_added_is_listed_but_given_to_no_machine() {
    let (_home, store) = store();
    let good = kernel("6.12.8-a", "6.12.8", "6.12", true);
    put(&store, &good);
    let record = kernel("6.12.9-b", "6.12.9", "6.12", true);
    put(&store, &record);
    let path = store.kernel_dir(&record).join("kernel.json");
    let written = serde_json::to_value(&record).unwrap();
    for fields in [&["format"][..], &["format", "late_modules"], &["format", "late_modules", "min_memory_mib"]] {
        let mut old = written.clone();
        old.as_object_mut().unwrap().retain(|name, _| !fields.contains(&name.as_str()));
        fs::write(&path, old.to_string()).unwrap();
        assert_eq!(store.kernels().unwrap().len(), 2);
        for error in [store.kernel("6.12").unwrap_err(), store.default_kernel().unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("6.12.9-b") && error.contains("labyard kernel add"), "{error}");
        }
        assert_eq!(store.kernel("6.12.8").unwrap(), good);
    }
    fs::write(&path, serde_json::to_string(&KernelRecord { format: KERNEL_FORMAT + 1, ..record }).unwrap()).unwrap();
    assert!(store.kernel("6.12").is_err(), "what a later version loads is not known here");
}
