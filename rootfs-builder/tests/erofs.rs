//! Trees made by hand go through the EROFS writer; erofs-utils judges, and what it extracts is compared.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod oracle;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use labyard_rootfs_builder::erofs::{self, ErofsError, Options};
use labyard_rootfs_builder::tree::{Kind, Meta, NodeId, Time};
use labyard_rootfs_builder::watch::Watch;
use oracle::bench::{Bench, bytes};

fn write(bench: &Bench, name: &str) -> Result<PathBuf, ErofsError> {
    let path = bench.folder.path().join(name);
    let disk = fs::File::create(&path).expect("a writable folder");
    let options = Options { uuid: [0x5a; 16], label: "data".into() };
    let written = erofs::write(&bench.tree, &bench.spools(), &options, &disk, &Watch::unattended())?;
    assert_eq!(written.bytes, fs::metadata(&path).expect("it is there").len());
    Ok(path)
}

fn run(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {said}");
    said
}

/// Checks an image, and where it can be extracted gives the folder.
fn extracted(disk: &Path) -> PathBuf {
    let out = disk.with_extension("out");
    let said = run("fsck.erofs", &[&format!("--extract={}", out.display()), "--preserve", disk.to_str().unwrap()]);
    assert!(!said.contains("<E>"), "{said}");
    out
}

#[test]
fn an_empty_tree_is_an_image_with_a_right_checksum() {
    let bench = Bench::new();
    let disk = write(&bench, "disk").unwrap();
    assert_eq!(fs::metadata(&disk).unwrap().len(), 4096);
    extracted(&disk);
    let told = run("dump.erofs", &["-s", disk.to_str().unwrap()]);
    for word in ["5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a", "sb_csum", "Filesystem root nid:                          36"]
    {
        assert!(told.contains(word), "{word}: {told}");
    }
    let mut raw = fs::read(&disk).unwrap();
    raw[2000] ^= 1;
    fs::write(&disk, raw).unwrap();
    let said = run("fsck.erofs", &[disk.to_str().unwrap()]);
    assert!(said.contains("checksum"), "a flipped bit beside the superblock: {said}");
}

#[test]
fn files_of_every_length_links_and_directories_come_back_as_they_were() {
    let mut bench = Bench::new();
    let folder = bench.directory(NodeId::ROOT, "lengths");
    let lengths = [0, 1, 2000, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 9000, 1 << 20, (1 << 20) + 1, 3_000_000];
    for len in lengths {
        bench.file(folder, &format!("{len}"), &bytes(len));
    }
    let many = bench.directory(NodeId::ROOT, "many");
    for number in 0..3000 {
        bench.file(many, &format!("{number:04}-{}", "n".repeat(number % 240)), format!("{number}").as_bytes());
    }
    for name in ["!before-the-dots", "-a", ".hidden", "..two", "zz"] {
        bench.file(many, name, name.as_bytes());
    }
    let file = bench.file(many, "one", b"lab\n");
    bench.link(folder, "two", file);
    for len in [1, 59, 60, 3000, 4095] {
        bench.put(NodeId::ROOT, &format!("to-{len}"), Kind::Symlink(vec![b'l'; len].into()));
    }
    let disk = write(&bench, "disk").unwrap();
    let out = extracted(&disk);
    for len in lengths {
        assert!(fs::read(out.join(format!("lengths/{len}"))).unwrap() == bytes(len), "{len} bytes");
    }
    assert_eq!(fs::read_dir(out.join("many")).unwrap().count(), 3006);
    for number in 0..3000 {
        let name = format!("many/{number:04}-{}", "n".repeat(number % 240));
        assert_eq!(fs::read(out.join(name)).unwrap(), format!("{number}").into_bytes());
    }
    assert_eq!(fs::read(out.join("many/!before-the-dots")).unwrap(), b"!before-the-dots");
    assert_eq!(fs::read(out.join("lengths/two")).unwrap(), b"lab\n");
    for len in [1, 59, 60, 3000, 4095] {
        assert_eq!(fs::read_link(out.join(format!("to-{len}"))).unwrap().as_os_str().len(), len);
    }
    let told = run("dump.erofs", &["--path=/lengths/two", disk.to_str().unwrap()]);
    assert!(told.contains("Links: 2"), "{told}");
    assert!(fs::metadata(&disk).unwrap().len() < 8 << 20, "small files lie beside their inodes");
}

#[test]
fn owners_modes_times_devices_and_attributes_are_kept() {
    let mut bench = Bench::new();
    let file = bench.file(NodeId::ROOT, "file", b"x");
    bench.put(NodeId::ROOT, "null", Kind::CharDevice { major: 1, minor: 3 });
    bench.put(NodeId::ROOT, "disk", Kind::BlockDevice { major: 259, minor: 70_000 });
    bench.put(NodeId::ROOT, "pipe", Kind::Fifo);
    let meta = &mut bench.tree.node_mut(file).meta;
    (meta.mode, meta.uid, meta.gid) = (0o6755, 200_000, 70_001);
    meta.mtime = Time { seconds: 5_000_000_000, nanoseconds: 123_456_789 };
    meta.xattrs = [("user.note", bytes(3000)), ("security.selinux", b"label".to_vec()), ("trusted.t", vec![])]
        .map(|(name, value)| (name.as_bytes().into(), value.into()))
        .into();
    let disk = write(&bench, "disk").unwrap();
    let out = extracted(&disk);
    let kept = fs::symlink_metadata(out.join("file")).unwrap();
    assert_eq!((kept.mtime(), kept.mtime_nsec()), (5_000_000_000, 123_456_789));
    // Only root can make what others own, and devices; then fsck.erofs has made them.
    if run("id", &["-u"]).trim() == "0" {
        assert_eq!((kept.uid(), kept.gid()), (200_000, 70_001));
        let null = fs::symlink_metadata(out.join("null")).unwrap();
        assert!(null.file_type().is_char_device() && null.rdev() == (1 << 8 | 3), "{:x}", null.rdev());
        let device = fs::symlink_metadata(out.join("disk")).unwrap();
        assert_eq!(device.rdev(), 259 << 8 | (70_000 & 0xff) | (70_000 & !0xff) << 12);
        assert!(fs::symlink_metadata(out.join("pipe")).unwrap().file_type().is_fifo());
    }
    let told = run("dump.erofs", &["--path=/file", disk.to_str().unwrap()]);
    assert!(told.contains("Uid: 200000   Gid: 70001  Access: 0755") && told.contains("Xattr size: 3044"), "{told}");
}

#[test]
fn holes_take_no_room_however_long_the_file_is() {
    let mut bench = Bench::new();
    let runs = [bench.run(0, &bytes(10)), bench.run((1 << 40) - 5000, &bytes(5000))];
    bench.sparse(NodeId::ROOT, "vast", 1 << 40, &runs);
    let runs = [bench.run(70_000, &bytes(100_000)), bench.run(900_000, &bytes(1))];
    bench.sparse(NodeId::ROOT, "sparse", 1_000_003, &runs);
    bench.sparse(NodeId::ROOT, "nothing", 1 << 20, &[]);
    let disk = write(&bench, "disk").unwrap();
    assert!(fs::metadata(&disk).unwrap().blocks() * 512 < 12 << 20, "two chunks of 4 MiB and a list of 1 MiB");
    let mut small = Bench::new();
    let runs = [small.run(70_000, &bytes(100_000)), small.run(900_000, &bytes(1))];
    small.sparse(NodeId::ROOT, "sparse", 1_000_003, &runs);
    small.sparse(NodeId::ROOT, "nothing", 1 << 20, &[]);
    let small_disk = write(&small, "small").unwrap();
    let out = extracted(&small_disk);
    // fsck.erofs 1.5 leaves holes out of what it extracts, so where the chunks are is asked of dump.erofs.
    let chunks =
        [vec![0; 4464], bytes(100_000), vec![0; 196_608 - 170_000 + 48_032], bytes(1), vec![0; 17_503]].concat();
    assert!(fs::read(out.join("sparse")).unwrap() == chunks);
    let told = run("dump.erofs", &["--path=/sparse", "-e", small_disk.to_str().unwrap()]);
    for extent in ["65536..  131072", "131072..  196608", "851968..  917504"] {
        assert!(told.contains(extent), "{extent}: {told}");
    }
    assert_eq!(fs::metadata(out.join("nothing")).unwrap().len(), 0, "all of it is left out");
}

#[test]
fn the_same_tree_is_the_same_bytes_and_what_has_no_place_is_refused() {
    let build = |order: [&str; 3]| {
        let mut bench = Bench::new();
        for name in order {
            bench.file(NodeId::ROOT, name, name.as_bytes());
        }
        fs::read(write(&bench, "disk").unwrap()).unwrap()
    };
    assert!(build(["a", "b", "c"]) == build(["c", "a", "b"]));
    let mut bench = Bench::new();
    let file = bench.file(NodeId::ROOT, "file", b"");
    bench.tree.node_mut(file).meta =
        Meta { xattrs: [(b"system.nfs4_acl".as_slice().into(), b"x".as_slice().into())].into(), ..Meta::default() };
    let said = write(&bench, "disk").unwrap_err();
    assert_eq!(said.to_string(), "`/file`: extended attribute `system.nfs4_acl` has no place in EROFS");
    assert!(said.is_input());
}
