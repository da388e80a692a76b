//! Layers as tar bytes go through [`layer::unpack`] into a tree: what image tools write, and the hostile table.

use std::fs::File;
use std::io::Write;

use tar::{Builder, EntryType, Header};

use super::*;
use crate::layer::{self, Layer, LayerError, Spool};
use crate::report::one_line;
use crate::section::Section;
use crate::tree::{Spools, Time};
use crate::watch::Watch;

const LIMITS: Limits = Limits { unpacked_bytes: 64 << 20, entries: 10_000, names_bytes: 1 << 20 };

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("room for it");
    file
}

/// Puts layers on one another; the tree and its contents.
fn merged(layers: &[Vec<u8>]) -> Result<(Tree, Spools), LayerError> {
    let spool_file = file(b"");
    let mut spools = Spools::default();
    let number = spools.push(spool_file.try_clone().expect("a descriptor"));
    let mut spool = Spool::new(spool_file, number);
    let mut merge = Merge::new(LIMITS, true);
    for bytes in layers {
        merge.next_layer();
        let section = Section::whole(file(bytes)).expect("a section");
        let layer = Layer { name: "layer".into(), section, digest: None, diff_id: None };
        layer::unpack(&layer, &mut spool, LIMITS.unpacked_bytes, &Watch::unattended(), |entry| merge.apply(entry))?;
    }
    Ok((merge.finish(), spools))
}

/// One layer from `name`, `kind` and what the kind needs.
fn layer(entries: &[(&str, What)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, what) in entries {
        let (kind, link, bytes): (_, &[u8], &[u8]) = match what {
            What::Directory => (EntryType::Directory, b"", b""),
            What::File(_) => (EntryType::Regular, b"", name.as_bytes()),
            What::Symlink(target) => (EntryType::Symlink, target, b""),
            What::HardLink(target) => (EntryType::Link, target, b""),
            What::CharDevice { .. } => (EntryType::Char, b"", b""),
            What::BlockDevice { .. } => (EntryType::Block, b"", b""),
            What::Fifo => (EntryType::Fifo, b"", b""),
        };
        raw(&mut builder, name.as_bytes(), kind, link, bytes);
    }
    builder.into_inner().expect("an archive in memory")
}

/// An entry that the crate's checks on names do not see.
fn raw(builder: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, link: &[u8], bytes: &[u8]) {
    let mut header = Header::new_gnu();
    for (field, long) in [(name, EntryType::GNULongName), (link, EntryType::GNULongLink)] {
        if field.len() >= 100 {
            let mut before = Header::new_gnu();
            before.set_entry_type(long);
            before.set_size(field.len() as u64 + 1);
            before.set_cksum();
            builder.append(&before, &[field, b"\0"].concat()[..]).expect("memory");
        }
    }
    let gnu = header.as_gnu_mut().expect("a GNU header");
    for (into, from) in [(&mut gnu.name, name), (&mut gnu.linkname, link)] {
        let len = from.len().min(into.len());
        into[..len].copy_from_slice(&from[..len]);
    }
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(1_700_000_000);
    header.set_size(bytes.len() as u64);
    if matches!(kind, EntryType::Char | EntryType::Block) {
        header.set_device_major(1).expect("a GNU header");
        header.set_device_minor(3).expect("a GNU header");
    }
    header.set_cksum();
    builder.append(&header, bytes).expect("memory");
}

fn some() -> What {
    What::File(Default::default())
}

fn link(target: &str) -> What {
    What::Symlink(target.into())
}

fn same(target: &str) -> What {
    What::HardLink(target.into())
}

/// Every path of the tree, with its kind where it is not a plain file.
fn paths(tree: &Tree) -> Vec<String> {
    fn below(tree: &Tree, at: NodeId, path: &str, list: &mut Vec<String>) {
        for (name, child) in tree.children(at).expect("a directory") {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            match &tree.node(child.node).kind {
                Kind::Directory(_) => {
                    list.push(format!("{path}/"));
                    below(tree, child.node, &path, list);
                }
                Kind::Symlink(target) => list.push(format!("{path} -> {}", String::from_utf8_lossy(target))),
                _ => list.push(path),
            }
        }
    }
    let mut list = Vec::new();
    below(tree, NodeId::ROOT, "", &mut list);
    list
}

fn content(tree: &Tree, spools: &Spools, path: &str) -> Vec<u8> {
    let Kind::File(content) = &tree.node(tree.find(path).expect(path)).kind else { panic!("{path} is no file") };
    let mut bytes = vec![0; content.len as usize];
    spools.read(content, 0, &mut bytes).expect("the spool");
    bytes
}

#[track_caller]
fn assert_tree(layers: &[Vec<u8>], expected: &[&str]) {
    let (tree, _) = merged(layers).expect("layers that merge");
    assert_eq!(paths(&tree), expected);
}

#[test]
fn a_whiteout_hides_what_is_below_and_nothing_of_its_own_layer() {
    let base = layer(&[("a/", What::Directory), ("a/x", some()), ("a/y", some()), ("b", some())]);
    assert_tree(&[base.clone(), layer(&[(".wh.a", some())])], &["/b"]);
    assert_tree(&[base.clone(), layer(&[("a/.wh.x", some()), (".wh.b", some())])], &["/a/", "/a/y"]);
    // Before or after: the layer's own entries stay.
    let own = [("a/", What::Directory), ("a/new", some())];
    let after = layer(&[own[0].clone(), own[1].clone(), (".wh.a", some())]);
    let before = layer(&[(".wh.a", some()), own[0].clone(), own[1].clone()]);
    assert_tree(&[base.clone(), after], &["/a/", "/a/new", "/b"]);
    assert_tree(&[base.clone(), before], &["/a/", "/a/new", "/b"]);
    // What is hidden need not be there, and a layer above may bring it back.
    assert_tree(&[base, layer(&[("none/.wh.x", some()), (".wh.a", some())]), layer(&[("a", some())])], &["/a", "/b"]);
}

#[test]
fn an_opaque_directory_hides_everything_below_wherever_its_mark_stands() {
    let base = layer(&[("a/", What::Directory), ("a/x", some()), ("a/d/", What::Directory), ("a/d/old", some())]);
    for entries in [
        vec![("a/", What::Directory), ("a/.wh..wh..opq", some()), ("a/d/new", some())],
        vec![("a/d/new", some()), ("a/.wh..wh..opq", some()), ("a/.wh..wh..opq", some())],
    ] {
        assert_tree(&[base.clone(), layer(&entries)], &["/a/", "/a/d/", "/a/d/new"]);
    }
    assert_tree(
        &[base, layer(&[("a/.wh..wh.plnk", some()), ("a/.wh..wh.aufs", some())])],
        &["/a/", "/a/d/", "/a/d/old", "/a/x"],
    );
}

#[test]
fn later_kinds_replace_earlier_ones_and_directories_are_joined() {
    let base = layer(&[("a/", What::Directory), ("a/x", some()), ("f", some()), ("l", link("a"))]);
    let above = layer(&[("a", some()), ("f/", What::Directory), ("f/in", some()), ("l/", What::Directory)]);
    assert_tree(&[base.clone(), above], &["/a", "/f/", "/f/in", "/l/"]);
    assert_tree(&[base, layer(&[("a/", What::Directory), ("a/y", some())])], &["/a/", "/a/x", "/a/y", "/f", "/l -> a"]);
}

#[test]
fn a_hard_link_is_the_same_node_also_to_a_lower_layer() {
    let base = layer(&[("usr/", What::Directory), ("usr/a", some()), ("bin", link("usr"))]);
    let above = layer(&[("b", same("usr/a")), ("c", same("/bin/a")), ("l", same("bin")), ("usr/.wh.a", some())]);
    let (tree, spools) = merged(&[base, above]).expect("layers that merge");
    assert_eq!(paths(&tree), ["/b", "/bin -> usr", "/c", "/l -> usr", "/usr/"]);
    assert_eq!(tree.find("b"), tree.find("c"));
    assert_eq!(content(&tree, &spools, "b"), b"usr/a");
}

#[test]
fn a_link_in_the_middle_of_a_path_leads_below_the_root_of_the_image_and_nowhere_else() {
    let base = layer(&[
        ("usr/bin/", What::Directory),
        ("bin", link("usr/bin")),
        ("out", link("../../../../etc")),
        ("abs", link("/etc")),
        ("dangling", link("not/there")),
    ]);
    let above = layer(&[("bin/sh", some()), ("out/passwd", some()), ("abs/shadow", some()), ("dangling/x", some())]);
    let (tree, _) = merged(&[base.clone(), above.clone()]).expect("layers that merge");
    for path in ["usr/bin/sh", "etc/passwd", "etc/shadow", "not/there/x"] {
        assert!(tree.find(path).is_some(), "{path}: {:?}", paths(&tree));
    }
    // A whiteout goes the same way.
    let (tree, _) = merged(&[base, above, layer(&[("out/.wh.passwd", some())])]).expect("layers that merge");
    assert!(tree.find("etc/passwd").is_none() && tree.find("etc/shadow").is_some());
}

#[test]
fn owner_mode_time_attributes_and_long_names_are_kept() {
    let long = format!("{}/{}", "d".repeat(200), "n".repeat(255));
    let mut builder = Builder::new(Vec::new());
    let records: [(&str, &[u8]); 4] = [
        ("mtime", b"1700000000.123456789"),
        ("SCHILY.xattr.user.a", b"one\ntwo\0"),
        ("uid", b"4000000000"),
        ("path", long.as_bytes()),
    ];
    builder.append_pax_extensions(records).expect("memory");
    raw(&mut builder, b"short", EntryType::Regular, b"", b"bytes");
    raw(&mut builder, b"./", EntryType::Directory, b"", b"");
    raw(&mut builder, b"/absolute", EntryType::Symlink, &[b't'; 3000], b"");
    raw(&mut builder, b"dev/null", EntryType::Char, b"", b"");
    let (tree, spools) = merged(&[builder.into_inner().expect("memory")]).expect("a layer");
    let node = tree.node(tree.find(&long).expect("the long name"));
    assert_eq!(node.meta.mtime, Time { seconds: 1_700_000_000, nanoseconds: 123_456_789 });
    assert_eq!((node.meta.uid, node.meta.gid, node.meta.mode), (4_000_000_000, 2, 0o644));
    assert_eq!(node.meta.xattrs[&b"user.a"[..]], (*b"one\ntwo\0")[..].into());
    assert_eq!(content(&tree, &spools, &long), b"bytes");
    assert_eq!(tree.node(NodeId::ROOT).meta.uid, 1);
    assert_eq!(tree.node(tree.find("absolute").expect("it")).kind, Kind::Symlink([b't'; 3000].into()));
    assert_eq!(tree.node(tree.find("dev/null").expect("it")).kind, Kind::CharDevice { major: 1, minor: 3 });
}

#[test]
fn sparse_files_of_every_version_are_the_same_file() {
    let mut expected = vec![0; 10_000];
    expected[512..1024].fill(b'a');
    expected[9000..9100].fill(b'b');
    let data = [vec![b'a'; 512], vec![b'b'; 100]].concat();
    let mut old = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(612);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    gnu.name[..1].copy_from_slice(b"s");
    gnu.set_real_size(10_000);
    for (slot, (offset, len)) in gnu.sparse.iter_mut().zip([(512, 512), (9000, 100)]) {
        slot.set_offset(offset);
        slot.set_length(len);
    }
    header.set_cksum();
    old.append(&header, &data[..]).expect("memory");
    let mut pax_01 = Builder::new(Vec::new());
    pax_01
        .append_pax_extensions([
            ("GNU.sparse.size", &b"10000"[..]),
            ("GNU.sparse.map", b"512,512,9000,100"),
            ("GNU.sparse.name", b"s"),
        ])
        .expect("memory");
    raw(&mut pax_01, b"GNUSparseFile.0/s", EntryType::Regular, b"", &data);
    let mut pax_10 = Builder::new(Vec::new());
    pax_10
        .append_pax_extensions([
            ("GNU.sparse.major", &b"1"[..]),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"10000"),
            ("GNU.sparse.name", b"s"),
        ])
        .expect("memory");
    let mut map = b"2\n512\n512\n9000\n100\n".to_vec();
    map.resize(512, 0);
    raw(&mut pax_10, b"GNUSparseFile.0/s", EntryType::Regular, b"", &[map, data].concat());
    for builder in [old, pax_01, pax_10] {
        let (tree, spools) = merged(&[builder.into_inner().expect("memory")]).expect("a layer");
        assert_eq!(paths(&tree), ["/s"]);
        assert!(content(&tree, &spools, "s") == expected);
    }
}

#[test]
fn the_hostile_table_is_refused_entry_by_entry() {
    let deep = "d/".repeat(MAX_DEPTH + 1);
    let name = "n".repeat(256);
    let loops = [("a", link("b")), ("b", link("a")), ("a/x", some())];
    for (entries, part) in [
        (vec![("../evil", some())], "`..`"),
        (vec![("a/../../evil", some())], "`..`"),
        (vec![("a", same("../../etc/passwd"))], "`..`"),
        (vec![("a", same("not-there"))], "not there"),
        (vec![("d/", What::Directory), ("a", same("d"))], "a directory"),
        (vec![("a", same("/"))], "a directory"),
        (vec![("f", some()), ("f/x", some())], "not a directory"),
        (vec![("./", some())], "root can only be a directory"),
        (vec![(".wh.", some())], "hides a name that is none"),
        (vec![("d/.wh...", some())], ""),
        (vec![(&deep, What::Directory)], "deeper than"),
        (vec![(&name, some())], "more than 255"),
        (vec![("l", link(""))], "its target of 0 bytes"),
        (loops.to_vec(), "more than 40 symbolic links"),
    ] {
        match merged(&[layer(&entries)]) {
            Ok((tree, _)) => assert!(part.is_empty() && paths(&tree).is_empty(), "{entries:?}: {:?}", paths(&tree)),
            Err(error) => {
                let text = one_line(&error);
                assert!(error.is_input() && !part.is_empty() && text.contains(part), "{entries:?}: {text}");
            }
        }
    }
}

/// A header of its own making: what `change` does to it is what is wrong.
fn bent(change: impl Fn(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_path("a").expect("a short name");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    change(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(2048, 0);
    bytes
}

#[test]
fn broken_archives_are_refused_before_they_cost_anything() {
    let whole = layer(&[("a", some())]);
    let mut wrong_sum = whole.clone();
    wrong_sum[0] = b'b';
    let pax = |text: &[u8]| {
        let mut builder = Builder::new(Vec::new());
        raw(&mut builder, b"p", EntryType::XHeader, b"", text);
        raw(&mut builder, b"a", EntryType::Regular, b"", b"");
        builder.into_inner().expect("memory")
    };
    for (bytes, part) in [
        (b"not a tar at all, whatever it is".repeat(40), "no tar header at byte 0"),
        (b"short".to_vec(), "cut off"),
        (wrong_sum, "no tar header at byte 0"),
        (whole[..512].to_vec(), "cut off"),
        (whole[..513].to_vec(), "cut off"),
        (bent(|header| header.set_size(1 << 62)), "cut off"),
        (bent(|header| header.as_old_mut().mode.fill(b'9')), "field mode"),
        (bent(|header| header.set_uid(1 << 40)), "field uid"),
        (bent(|header| header.set_entry_type(EntryType::new(b'D'))), "entry type `D`"),
        (bent(|header| header.set_entry_type(EntryType::Char)), "devmajor"),
        (bent(|header| header.set_entry_type(EntryType::GNUSparse)), "sparse"),
        (
            bent(|header| {
                header.set_entry_type(EntryType::XHeader);
                header.set_size(1 << 40);
            }),
            "more than 1048576",
        ),
        (
            bent(|header| {
                header.set_entry_type(EntryType::GNULongName);
                header.set_size(1 << 40);
            }),
            "more than 65536",
        ),
        (pax(b"no record"), "PAX rules"),
        (pax(b"11 size=-1\n"), "PAX rules"),
        (pax(b"30 GNU.sparse.map=99,1,0,1,2\n\n"), "sparse"),
        (pax(b"22 GNU.sparse.major=7\n"), "sparse"),
        (pax(b"9 path=\0\n"), "zero byte"),
    ] {
        let error = merged(&[bytes]).expect_err(part);
        assert!(error.is_input() && one_line(&error).contains(part), "{part}: {}", one_line(&error));
    }
    let mut builder = Builder::new(Vec::new());
    for _ in 0..20 {
        raw(&mut builder, b"p", EntryType::XHeader, b"", b"");
    }
    let error = merged(&[builder.into_inner().expect("memory")]).expect_err("too many");
    assert!(one_line(&error).contains("more than 16 headers"), "{error}");
}

#[test]
fn bombs_end_at_the_limits() {
    // 65 MiB of zeros are a few KiB when they are packed.
    let mut header = Header::new_gnu();
    header.set_path("zeros").expect("a short name");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(1 << 40);
    header.set_cksum();
    let mut packer = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    packer.write_all(header.as_bytes()).expect("memory");
    for _ in 0..65 {
        packer.write_all(&[0; 1 << 20]).expect("memory");
    }
    let error = merged(&[packer.finish().expect("memory")]).expect_err("a bomb");
    assert!(matches!(error, LayerError::TooLong { .. }) && error.is_input(), "{error}");
    let many: Vec<(String, What)> = (0..10_001).map(|at| (format!("f{at}"), some())).collect();
    let many: Vec<(&str, What)> = many.iter().map(|(name, what)| (name.as_str(), what.clone())).collect();
    let error = merged(&[layer(&many)]).expect_err("too many");
    assert!(one_line(&error).contains("more than 10000 entries"), "{error}");
    let long = "t".repeat(4000);
    let many: Vec<(&str, What)> = (0..300).map(|_| ("l", link(&long))).collect();
    let error = merged(&[layer(&many)]).expect_err("too long");
    assert!(one_line(&error).contains("more than 1048576 bytes"), "{error}");
}

#[test]
fn a_digest_that_differs_is_said_before_anything_else() {
    let section = Section::whole(file(b"garbage")).expect("a section");
    let expected = crate::digest::Digest::of(b"something else");
    let layer = Layer { name: "layer 1".into(), section, digest: Some(expected), diff_id: None };
    let mut spool = Spool::new(file(b""), 0);
    let error = layer::unpack(&layer, &mut spool, 1 << 20, &Watch::unattended(), |_| Ok(())).expect_err("a digest");
    assert!(matches!(error, LayerError::Digest { .. }) && error.is_input(), "{error}");
    let whole = layer_with_wrong_diff_id();
    let error = layer::unpack(&whole, &mut spool, 1 << 20, &Watch::unattended(), |_| Ok(())).expect_err("a diff id");
    assert!(matches!(error, LayerError::DiffId { .. }) && error.is_input(), "{error}");
}

fn layer_with_wrong_diff_id() -> Layer {
    let section = Section::whole(file(&layer(&[("a", some())]))).expect("a section");
    let diff_id = Some(crate::digest::Digest::of(b"something else"));
    Layer { name: "layer 1".into(), section, digest: None, diff_id }
}
