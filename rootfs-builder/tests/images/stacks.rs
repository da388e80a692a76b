//! Stacks of layers made at random: the disk has what umoci unpacks, and e2fsck finds nothing.
//!
//! A number says what is done; a model of the tree so far decides to what, so that every entry is one that an image may have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tar::EntryType;

use super::layout::{Layer, Layout, Packing};
use super::oracle::{assert_clean, tool};
use super::{built, compare, disk};

/// Names that layers use again and again; one is longer than a tar header has room for.
const NAMES: [&str; 6] = ["a", "b", "c", "d.conf", "with space", LONG];
const LONG: &str = "long-name-of-more-than-one-hundred-bytes-which-is-what-a-header-of-the-old-format-has-room-for-so-it-takes-another-entry";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Other,
}

/// What is done, to which of the places that there are, and a number for the rest.
pub(super) type Step = (u8, u16, u32);

/// The tree so far: path without a slash in front, kind, and the layer that brought it.
struct Model {
    paths: BTreeMap<String, (Kind, usize)>,
    layer: usize,
    /// What this layer has touched: an entry is named once, and not hidden by its own layer.
    touched: BTreeSet<String>,
}

impl Model {
    fn directory(&self, pick: u16) -> String {
        let all: Vec<_> = self
            .paths
            .iter()
            .filter(|(path, (kind, _))| *kind == Kind::Directory && path.matches('/').count() < 3)
            .collect();
        match usize::from(pick) % (all.len() + 1) {
            0 => String::new(),
            at => format!("{}/", all[at - 1].0),
        }
    }

    fn place(&self, pick: u16, number: u32) -> String {
        self.directory(pick) + NAMES[number as usize % NAMES.len()]
    }

    /// Something that lower layers have, and this one has left alone with all below and above it.
    fn lower(&self, pick: u16, wanted: impl Fn(Kind) -> bool) -> Option<String> {
        let alone = |path: &str| !self.touched.iter().any(|touched| related(path, touched));
        let all: Vec<_> = self
            .paths
            .iter()
            .filter(|(path, (kind, layer))| *layer < self.layer && wanted(*kind) && alone(path))
            .map(|(path, _)| path.clone())
            .collect();
        all.get(usize::from(pick) % all.len().max(1)).cloned()
    }

    fn remove(&mut self, path: &str) {
        self.paths.retain(|other, _| other != path && !is_below(other, path));
    }

    fn put(&mut self, path: &str, kind: Kind) {
        let keep = kind == Kind::Directory && self.paths.get(path).is_some_and(|(kind, _)| *kind == Kind::Directory);
        if !keep {
            self.remove(path);
        }
        self.paths.insert(path.to_owned(), (kind, self.layer));
        self.touched.insert(path.to_owned());
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

fn related(one: &str, other: &str) -> bool {
    one == other || is_below(one, other) || is_below(other, one)
}

/// One step as an entry, where it is possible.
fn apply(model: &mut Model, layer: Layer, (what, pick, number): Step) -> Layer {
    let path = model.place(pick, number);
    // Named twice in one layer is legal, but then whoever unpacks decides; what replaces a folder of this layer, too.
    if what % 10 < 7 && model.touched.iter().any(|touched| *touched == path || is_below(touched, &path)) {
        return layer;
    }
    let dressed = |layer: Layer| match number % 5 {
        0 => layer.pax(&[("mtime", b"1234567890.987654321"), ("SCHILY.xattr.user.note", b"a note")]),
        1 => layer.pax(&[("uid", b"123456"), ("gid", b"2000000")]),
        2 => layer.pax(&[("SCHILY.xattr.user.empty", b"x"), ("SCHILY.xattr.user.second", &[b'v'; 300])]),
        _ => layer,
    };
    let mode = [0o644, 0o4755, 0o2711, 0o1777, 0][number as usize / 7 % 5];
    match what % 10 {
        0 | 1 => {
            model.put(&path, Kind::File);
            let bytes = vec![number as u8; [0, 1, 100, 4096, 5000, 70_000, 200_000][number as usize / 3 % 7]];
            dressed(layer).put(&path, EntryType::Regular, &bytes, |header| header.set_mode(mode))
        }
        2 | 3 => {
            model.put(&path, Kind::Directory);
            dressed(layer).put(&format!("{path}/"), EntryType::Directory, b"", |header| header.set_mode(mode | 0o700))
        }
        4 => {
            model.put(&path, Kind::Other);
            let target = ["a", "../b", "/c", "nowhere/at/all", LONG][number as usize / 5 % 5];
            layer.link(EntryType::Symlink, &path, target)
        }
        5 => {
            model.put(&path, Kind::Other);
            let kind = [EntryType::Char, EntryType::Block, EntryType::Fifo][number as usize / 5 % 3];
            layer.put(&path, kind, b"", |header| {
                header.set_device_major(if kind == EntryType::Fifo { 0 } else { 7 }).expect("it fits");
                header.set_device_minor(if kind == EntryType::Fifo { 0 } else { 300 }).expect("it fits");
            })
        }
        6 => {
            let files: Vec<_> = model
                .paths
                .iter()
                .filter(|(other, (kind, _))| *kind == Kind::File && !is_below(other, &path))
                .collect();
            let Some((target, _)) = files.get(number as usize / 7 % files.len().max(1)) else { return layer };
            let target = (*target).clone();
            if target == path {
                return layer;
            }
            model.put(&path, Kind::File);
            layer.link(EntryType::Link, &path, &target)
        }
        7 | 8 => {
            let Some(hidden) = model.lower(pick, |_| true) else { return layer };
            model.remove(&hidden);
            model.touched.insert(hidden.clone());
            let (folder, name) = hidden
                .rsplit_once('/')
                .map_or((String::new(), hidden.as_str()), |(folder, name)| (format!("{folder}/"), name));
            layer.file(&format!("{folder}.wh.{name}"), b"")
        }
        _ => {
            let Some(cleared) = model.lower(pick, |kind| kind == Kind::Directory) else { return layer };
            model.paths.retain(|other, _| !is_below(other, &cleared));
            layer.directory(&format!("{cleared}/")).file(&format!("{cleared}/.wh..wh..opq"), b"")
        }
    }
}

/// A layout at `path` with these layers.
pub(super) fn stacked(path: &Path, stack: &[Vec<Step>]) -> Layout {
    let mut layout = Layout::new(path);
    let mut model = Model { paths: BTreeMap::new(), layer: 0, touched: BTreeSet::new() };
    for (number, steps) in stack.iter().enumerate() {
        model.layer = number;
        model.touched.clear();
        let layer = steps.iter().fold(Layer::new().directory("./"), |layer, step| apply(&mut model, layer, *step));
        layout.layer(layer, if number % 2 == 0 { Packing::Gzip } else { Packing::Plain });
    }
    layout.finish("v1");
    layout
}

fn check(stack: &[Vec<Step>]) {
    let home = tempfile::tempdir().unwrap();
    let layout = stacked(&home.path().join("layout"), stack);
    let answer = built(home.path(), &format!("oci-layout:{}:v1", layout.path.display()));
    assert_clean(&disk(&answer));
    let bundle = home.path().join("bundle");
    let image = format!("{}:v1", layout.path.display());
    let output = tool("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let differences = compare::differences(&bundle.join("rootfs"), &disk(&answer)).unwrap();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn random_stacks_are_what_umoci_unpacks() {
    let cases = if std::env::var_os("LABYARD_SOAK").is_some() { 2000 } else { 24 };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    // The same stacks each time: a failure is found again.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let step = (any::<u8>(), any::<u16>(), any::<u32>());
    runner
        .run(&vec(vec(step, 1..20), 1..6), |stack| {
            check(&stack);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
