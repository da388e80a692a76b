//! Archives that a machine sends to `labyard cp`, or a caller to a machine's agent: tars that nearly make sense.
//!
//! Rules: nothing outside of the folder is made, changed or followed; no more data than was allowed; what came can be packed, and comes out
//! of that as it is.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use labyard_archive::{Packing, Unpacking, pack, unpack};

use super::tars;
use crate::input::Input;

const NAMES: &[&str] = &[
    "a",
    "a/b",
    "a/b/c",
    "./a",
    "a/",
    "b",
    "out",
    "out/file",
    "../outside",
    "a/../../outside",
    "/outside",
    "",
    ".",
    "..",
    "a//b",
    "c\n",
];
/// What lies where nothing may reach.
const OUTSIDE: &[u8] = b"somebody else's";
const MAX_BYTES: u64 = 100_000;

/// Reads the bytes as an archive that is unpacked.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let place = tempfile::tempdir().expect("a folder");
    let at = |name: &str| place.path().join(name);
    fs::write(at("outside"), OUTSIDE).expect("room");
    fs::create_dir(at("inside")).expect("room");
    // A link that was there before leads out of the folder.
    symlink(place.path(), at("inside/out")).expect("room");
    let how = Unpacking {
        rename: input.one_in(4).then(|| b"first".to_vec()),
        owners: input.one_in(2),
        devices: input.one_in(2),
        umask: 0o22,
        max_bytes: if input.one_in(16) { 100 } else { MAX_BYTES },
    };
    let archive = tars::archive(&mut input, NAMES);
    let root = File::open(at("inside")).expect("the folder");
    let taken = unpack(&*archive, root.as_fd(), &how);
    if let Err(error) = &taken {
        drop(error.to_string());
    }
    assert_eq!(fs::read(at("outside")).expect("it is there"), OUTSIDE, "it was written to");
    let mut names: Vec<_> =
        fs::read_dir(place.path()).expect("the place").flatten().map(|entry| entry.file_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["inside", "outside"], "something was made outside");
    let Ok(totals) = taken else { return };
    assert!(totals.bytes <= how.max_bytes, "{totals:?}");
    again(&at("inside"), place.path(), &how);
}

/// What came is packed and unpacked once more.
fn again(inside: &Path, place: &Path, came: &Unpacking) {
    let mut packed = Vec::new();
    let how = Packing { specials: came.owners, ..Packing::default() };
    if pack(inside, &how, &mut packed, &mut |_| {}).is_err() {
        return; // a mode may keep its owner out, where that is not root
    }
    let second = place.join("second");
    fs::create_dir(&second).expect("room");
    let root = File::open(&second).expect("the folder");
    let how = Unpacking { rename: None, umask: 0, max_bytes: u64::MAX, ..came.clone() };
    unpack(&*packed, root.as_fd(), &how).expect("what was packed is unpacked");
    assert_eq!(listed(&second.join("inside")), listed(inside), "it came out otherwise");
}

/// Names below a folder, and of what kind and how long each is.
fn listed(folder: &Path) -> Vec<(std::ffi::OsString, fs::FileType, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let meta = entry.metadata().expect("it is there");
        let len = if meta.is_file() { meta.len() } else { 0 };
        all.push((entry.file_name(), meta.file_type(), len));
        if meta.is_dir() {
            let below = listed(&entry.path());
            all.extend(
                below.into_iter().map(|(name, kind, len)| {
                    ([&*entry.file_name(), &*name].join(std::ffi::OsStr::new("/")), kind, len)
                }),
            );
        }
    }
    all.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    all
}
