//! Trees made by hand go through the ext4 writer; e2fsprogs judges.

mod oracle;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use labyard_rootfs_builder::ext4::{self, Ext4Error, Options, Size, Written};
use labyard_rootfs_builder::tree::{Content, Kind, NodeId, Run, Time};
use labyard_rootfs_builder::watch::Watch;
use oracle::bench::{Bench, bytes};
use oracle::{assert_clean, assert_has, content, debugfs};

fn write(bench: &mut Bench, name: &str, size: Size) -> Result<(PathBuf, Written), Ext4Error> {
    let path = bench.folder.path().join(name);
    let disk = File::create(&path).expect("a writable folder");
    let options = Options { size, uuid: [0x5a; 16], hash_seed: [0xa5; 16], label: "test".into() };
    let spools = bench.spools();
    let written = ext4::write(&mut bench.tree, &spools, &options, &disk, &Watch::unattended())?;
    Ok((path, written))
}

const GIB: u64 = 1 << 30;

fn mapped(disk: &Path, path: &str) -> u64 {
    debugfs(disk, &format!("blocks {path}")).split_whitespace().count() as u64
}

#[test]
fn an_empty_tree_is_a_clean_disk_of_any_size() {
    for size in [2 << 20, 8 << 20, 100 << 20, 129 << 20, GIB, 4 * GIB, 20 * GIB, (600 * GIB) + 4096] {
        let mut bench = Bench::new();
        let (disk, written) =
            write(&mut bench, "disk", Size::Bytes(size)).unwrap_or_else(|error| panic!("{size}: {error}"));
        assert_clean(&disk);
        assert_eq!(written.bytes, size);
        assert_eq!(fs::metadata(&disk).unwrap().len(), size);
    }
}

#[test]
fn every_kind_of_node_is_kept_with_owner_mode_and_times() {
    let mut bench = Bench::new();
    let etc = bench.directory(NodeId::ROOT, "etc");
    let file = bench.file(etc, "hostname", b"lab\n");
    bench.link(etc, "second", file);
    bench.link(NodeId::ROOT, "third", file);
    bench.file(etc, "empty", b"");
    bench.put(etc, "fast", Kind::Symlink(vec![b'f'; 59].into()));
    bench.put(etc, "slow", Kind::Symlink(vec![b's'; 60].into()));
    bench.put(etc, "slowest", Kind::Symlink(vec![b'l'; 4095].into()));
    bench.put(etc, "null", Kind::CharDevice { major: 1, minor: 3 });
    bench.put(etc, "disk", Kind::BlockDevice { major: 259, minor: 70_000 });
    bench.put(etc, "pipe", Kind::Fifo);
    let meta = &mut bench.tree.node_mut(file).meta;
    (meta.mode, meta.uid, meta.gid) = (0o6755, 200_000, 70_001);
    meta.mtime = Time { seconds: 5_000_000_000, nanoseconds: 123_456_789 };
    let (disk, written) = write(&mut bench, "disk", Size::Bytes(GIB)).unwrap();
    assert_clean(&disk);
    assert_eq!(written.entries, 1 + 1 + 1 + 9 + 1, "root, lost+found, etc, nine names in it, one more link");
    let stat = debugfs(&disk, "stat /etc/hostname");
    assert_has(&stat, &["Mode:  06755", "User: 200000", "Group: 70001", "Links: 3", "Type: regular", "Size: 4"]);
    assert_has(&stat, &["mtime: 0x2a05f200:1d6f3455"]);
    assert_has(&debugfs(&disk, "stat /etc/fast"), &[&"f".repeat(59), "Blockcount: 0"]);
    assert_has(&debugfs(&disk, "stat /etc/slow"), &["Type: symlink", "Size: 60", "Blockcount: 8"]);
    assert_has(&debugfs(&disk, "stat /etc/null"), &["character special", "01:03"]);
    assert_has(&debugfs(&disk, "stat /etc/disk"), &["block special", "259:70000"]);
    assert_has(&debugfs(&disk, "stat /etc/pipe"), &["FIFO"]);
    assert_has(&debugfs(&disk, "stat /etc"), &["Links: 2", "Type: directory"]);
    assert_eq!(content(&disk, "/third"), b"lab\n");
    assert_has(&debugfs(&disk, "stats"), &["5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a", "clean", "test"]);
}

#[test]
fn extended_attributes_come_back_from_inode_and_block() {
    let mut bench = Bench::new();
    let file = bench.file(NodeId::ROOT, "ping", b"x");
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, id) in [(1u16, u32::MAX), (2, 1000), (4, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
        acl.extend([tag.to_le_bytes(), 6u16.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let long = bytes(3000);
    for (name, value) in [
        ("security.capability", &b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]),
        ("user.long", &long),
        ("user.empty", b""),
        ("user.b", b"second"),
        ("trusted.overlay", b"y"),
        ("system.posix_acl_access", &acl),
    ] {
        bench.tree.node_mut(file).meta.xattrs.insert(name.as_bytes().into(), value.into());
    }
    let (disk, _) = write(&mut bench, "disk", Size::Bytes(GIB)).unwrap();
    assert_clean(&disk);
    assert_has(&debugfs(&disk, "ea_list /ping"), &["user.long (3000)", "user.empty (0)", "trusted.overlay (1)"]);
    assert_has(&debugfs(&disk, "ea_get /ping user.b"), &["second"]);
    assert_has(&debugfs(&disk, "ea_get -x /ping security.capability"), &["01 00 00 02 00 20 00 00"]);
    assert_has(&debugfs(&disk, "ea_get -x /ping system.posix_acl_access"), &["02 00 00 00 01 00 06 00"]);
    let out = bench.folder.path().join("value");
    debugfs(&disk, &format!("ea_get -f {} /ping user.long", out.display()));
    assert_eq!(fs::read(out).unwrap(), long);
}

#[test]
fn ten_thousand_names_in_one_directory_and_deep_nesting_are_clean() {
    let mut bench = Bench::new();
    let many = bench.directory(NodeId::ROOT, "many");
    for number in 0..10_000 {
        bench.file(many, &format!("file-{number:05}-{}", "n".repeat(number % 200)), format!("{number}").as_bytes());
    }
    let folders = bench.directory(NodeId::ROOT, "folders");
    for number in 0..300 {
        bench.directory(folders, &format!("d{number}"));
    }
    let mut at = bench.directory(NodeId::ROOT, "deep");
    for _ in 0..500 {
        at = bench.directory(at, "d");
    }
    bench.file(at, &"n".repeat(255), b"bottom");
    let (disk, _) = write(&mut bench, "disk", Size::Bytes(GIB)).unwrap();
    assert_clean(&disk);
    assert_has(&debugfs(&disk, "stat /folders"), &["Links: 302"]);
    assert_eq!(content(&disk, &format!("/many/file-00777-{}", "n".repeat(777 % 200))), b"777");
    assert_eq!(content(&disk, &format!("/deep{}/{}", "/d".repeat(500), "n".repeat(255))), b"bottom");
}

#[test]
fn directories_of_more_than_a_block_are_indexed_and_e2fsck_agrees_with_every_hash() {
    let mut bench = Bench::new();
    let (name, folder) = ("n".repeat(180), |count| format!("of-{count}"));
    // What fits into a block with the dots has none; the next name makes an index; the last needs a level between.
    for count in [20, 21, 5_000, 20_000] {
        let directory = bench.directory(NodeId::ROOT, &folder(count));
        for number in 0..count {
            bench.put(directory, &format!("{number:05}-\u{e4}\u{20ac}{name}"), Kind::Fifo);
        }
    }
    let (disk, _) = write(&mut bench, "disk", Size::Fit).unwrap();
    assert_clean(&disk);
    let indexed = |count| debugfs(&disk, &format!("stat /{}", folder(count))).contains("Flags: 0x81000");
    assert_eq!([20, 21, 5_000, 20_000].map(indexed), [false, true, true, true]);
    assert_has(
        &debugfs(&disk, "htree_dump /of-21"),
        &["Hash Version: 1", "Indirect levels: 0", "Number of entries (limit): 507"],
    );
    assert_has(&debugfs(&disk, "htree_dump /of-20000"), &["Indirect levels: 1", "Number of entries (limit): 510"]);
    assert_eq!(debugfs(&disk, "ls -p /of-20000").lines().filter(|line| line.contains("nnn")).count(), 20_000);
}

#[test]
fn large_and_sparse_files_keep_their_content_and_holes_take_no_room() {
    let mut bench = Bench::new();
    let large = bytes(150 << 20);
    bench.file(NodeId::ROOT, "large", &large);
    let runs = [bench.run(4096 * 5 + 3, b"one"), bench.run(3 << 30, b"two"), bench.run((100 << 30) - 1, b"x")];
    bench.put(NodeId::ROOT, "sparse", Kind::File(Content { len: 100 << 30, runs: runs.into() }));
    // More extents than an inode holds, and than one block of the tree holds.
    for (name, parts) in [("few", 5u64), ("lots", 1500)] {
        let runs: Vec<Run> = (0..parts).map(|part| bench.run(part * (128 << 10), &[b'p'; 4096])).collect();
        let len = parts * (128 << 10);
        bench.put(NodeId::ROOT, name, Kind::File(Content { len, runs: runs.into() }));
    }
    let (disk, _) = write(&mut bench, "disk", Size::Bytes(GIB)).unwrap();
    assert_clean(&disk);
    assert!(content(&disk, "/large") == large);
    assert_eq!(mapped(&disk, "/sparse"), 3 * 16);
    assert_has(&debugfs(&disk, "stat /sparse"), &["Size: 107374182400"]);
    let few = content(&disk, "/few");
    assert!(
        few.chunks(128 << 10).all(|part| part[..4096] == [b'p'; 4096] && part[4096..].iter().all(|byte| *byte == 0))
    );
    assert!(fs::metadata(&disk).unwrap().blocks() * 512 < 200 << 20, "the disk is sparse");
}

#[test]
fn the_same_tree_is_the_same_bytes_and_a_fitting_disk_is_small() {
    let disks = ["one", "two"].map(|name| {
        let mut bench = Bench::new();
        let folder = bench.directory(NodeId::ROOT, "folder");
        // Put in another order: the image must not show it.
        let mut names: Vec<u32> = (0..500).collect();
        if name == "two" {
            names.reverse();
        }
        for number in names {
            bench.file(folder, &format!("f{number}"), &bytes(number as usize * 40));
        }
        let (whole, _) = write(&mut bench, "whole", Size::Bytes(64 << 20)).unwrap();
        let (fit, written) = write(&mut bench, "fit", Size::Fit).unwrap();
        assert_clean(&whole);
        assert_clean(&fit);
        assert!(written.bytes <= 9 << 20, "{}", written.bytes);
        (fs::read(whole).unwrap(), fs::read(fit).unwrap())
    });
    assert!(disks[0] == disks[1]);
}

#[test]
fn what_does_not_fit_is_refused_with_its_path_and_the_way_out() {
    let mut bench = Bench::new();
    let folder = bench.directory(NodeId::ROOT, "folder");
    bench.file(folder, "large", &bytes(20 << 20));
    let error = write(&mut bench, "disk", Size::Bytes(16 << 20)).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("`/folder/large`"), "{error}");
    assert!(error.to_string().contains("--size"), "{error}");
    for size in [0, 4097, 1 << 50] {
        assert!(write(&mut bench, "disk", Size::Bytes(size)).unwrap_err().is_input());
    }
    let mut bench = Bench::new();
    bench.file(NodeId::ROOT, "lost+found", b"");
    assert!(write(&mut bench, "disk", Size::Fit).unwrap_err().to_string().contains("lost+found"));
}
