//! Layers of an image: tar archives that nearly make sense, one on the other, and sometimes the disk that they become.
//!
//! Rules: an archive is refused as input, never as a failure of the machine; names in the tree are plain names; content lies
//! within its file.

use std::fs::{self, File};
use std::io::{Read, Write};

use labyard_rootfs_builder::baked;
use labyard_rootfs_builder::digest::Digest;
use labyard_rootfs_builder::ext4::{self, Options, Size};
use labyard_rootfs_builder::layer::{self, Layer, Limits, Spool};
use labyard_rootfs_builder::merge::Merge;
use labyard_rootfs_builder::section::Section;
use labyard_rootfs_builder::tree::{Kind, Spools, Tree};
use labyard_rootfs_builder::watch::Watch;
use serde_json::Value;

use super::tars;
use crate::input::Input;

/// What an image of this target may cost.
const LIMITS: Limits = Limits { unpacked_bytes: 1 << 20, entries: 500, names_bytes: 64 << 10 };
/// Bytes of the disk.
const DISK: u64 = 4 << 20;

/// Names that meet each other, and some that should lead nowhere.
const NAMES: &[&str] = &[
    "a",
    "a/b",
    "a/b/c",
    "./a",
    "/a",
    "a/",
    "b",
    "b/c",
    "a/../b",
    "../a",
    "..",
    ".",
    "",
    "/",
    "a//b",
    ".wh.a",
    "a/.wh.b",
    ".wh..wh..opq",
    "a/.wh..wh..opq",
    ".wh.",
    ".wh..",
    ".wh...",
    "a/.wh..wh.plnk",
    "lost+found",
    "b/a/b/a/b",
    "dev/null",
    "etc/passwd",
];

/// Reads the bytes as layers.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.one_in(8) {
        return bake(&mut input);
    }
    let make_disk = input.one_in(16);
    let mut merge = Merge::new(LIMITS, !input.one_in(8));
    let (mut spools, mut left) = (Spools::default(), LIMITS.unpacked_bytes);
    let Ok(file) = tempfile::tempfile() else { return };
    let number = spools.push(file.try_clone().expect("a descriptor"));
    let mut spool = Spool::new(file, number);
    for _ in 0..input.below(3) + 1 {
        merge.next_layer();
        let archive = tars::archive(&mut input, NAMES);
        let layer = Layer {
            name: "layer".to_owned(),
            section: Section::whole(stored(&packed(archive, &mut input))).expect("a length"),
            digest: input.one_in(32).then(|| Digest::of(b"another layer")),
            diff_id: input.one_in(32).then(|| Digest::of(b"another archive")),
        };
        match layer::unpack(&layer, &mut spool, left, &Watch::unattended(), |entry| merge.apply(entry)) {
            Ok(unpacked) => left -= unpacked.bytes,
            Err(error) => {
                assert!(error.is_input(), "bytes of a stranger are not the machine's fault: {error}");
                return;
            }
        }
    }
    let mut tree = merge.finish();
    check(&tree);
    if make_disk {
        let options = Options { size: Size::Bytes(DISK), uuid: [1; 16], hash_seed: [2; 16], label: "fuzz".to_owned() };
        let disk = tempfile::tempfile().expect("a file");
        if let Err(error) = ext4::write(&mut tree, &spools, &options, &disk, &Watch::unattended()) {
            assert!(error.is_input(), "a tree of a stranger is not the machine's fault: {error}");
        }
    }
}

/// What a machine that is baked sends becomes an image, and its layer is what was sent.
fn bake(input: &mut Input<'_>) {
    let place = tempfile::tempdir().expect("a folder");
    let to = place.path().join("baked");
    let sent = tars::archive(input, NAMES);
    let request = baked::Request { to: &to, tag: "fuzz", config: None, disk_bytes: DISK };
    let made = match baked::bake(&*sent, &request, &Watch::unattended()) {
        Ok(made) => made,
        Err(error) => {
            assert!(error.is_input(), "bytes of a guest are not the machine's fault: {error}");
            let left = fs::read_dir(place.path()).expect("the folder").count();
            assert_eq!(left, 0, "an image that is none left something");
            return;
        }
    };
    let document = |digest: &str| -> Value {
        let name = digest.strip_prefix("sha256:").expect("a digest");
        serde_json::from_slice(&fs::read(to.join("blobs/sha256").join(name)).expect("a blob")).expect("a document")
    };
    let manifest = document(&made.digest.to_string());
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let digest = text(&manifest["layers"][0]["digest"]);
    let diff_id = text(&document(&text(&manifest["config"]["digest"]))["rootfs"]["diff_ids"][0]);
    let blob = File::open(to.join("blobs/sha256").join(&digest["sha256:".len()..])).expect("the layer");
    let layer = Layer {
        name: "layer".to_owned(),
        section: Section::whole(blob).expect("a length"),
        digest: Some(digest.parse().expect("a digest")),
        diff_id: Some(diff_id.parse().expect("a digest")),
    };
    let mut spool = Spool::new(tempfile::tempfile().expect("a file"), 0);
    let mut entries = 0;
    let read = layer::unpack(&layer, &mut spool, u64::MAX, &Watch::unattended(), |_| {
        entries += 1;
        Ok(())
    });
    let read = read.expect("what was baked is a layer");
    assert_eq!((read.bytes, entries), (sent.len() as u64, made.entries), "it is not what was sent");
}

/// As registries have layers: plain, gzip or zstd, sometimes spoilt.
fn packed(archive: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = match input.byte() % 4 {
        0 => {
            let mut packed = Vec::new();
            let mut encoder = flate2::read::GzEncoder::new(&archive[..], flate2::Compression::fast());
            encoder.read_to_end(&mut packed).expect("packed");
            packed
        }
        1 => zstd::bulk::compress(&archive, 1).expect("packed"),
        _ => return archive,
    };
    if input.one_in(4) {
        let at = input.below(bytes.len());
        bytes[at] ^= input.byte();
    }
    bytes
}

fn stored(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

fn check(tree: &Tree) {
    let walked = tree.walk(&mut |_, id, _| -> Result<(), ()> {
        match &tree.node(id).kind {
            Kind::Directory(children) => {
                for name in children.keys() {
                    let plain = !name.is_empty()
                        && name.len() <= 255
                        && !name.contains(&b'/')
                        && **name != *b"."
                        && **name != *b"..";
                    assert!(plain, "the name {:?}", String::from_utf8_lossy(name));
                }
            }
            Kind::File(content) => {
                let mut end = 0;
                for run in &content.runs {
                    assert!(
                        run.at >= end && run.len <= content.len && run.at <= content.len - run.len,
                        "{run:?} in {} bytes",
                        content.len
                    );
                    end = run.at + run.len;
                }
            }
            Kind::Symlink(target) => assert!(!target.contains(&0), "a zero in a link"),
            _ => {}
        }
        Ok(())
    });
    assert_eq!(walked, Ok(()));
}
