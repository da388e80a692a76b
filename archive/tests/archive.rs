//! Archives from the outside: trees that come back as they were, GNU tar as the peer, and what hostile archives try.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use labyard_archive::{ArchiveError, Choice, MAX_BYTES, Packing, Totals, UnpackError, Unpacking, pack, place, unpack};

fn how() -> Unpacking {
    Unpacking { rename: None, owners: false, devices: false, umask: 0, max_bytes: MAX_BYTES }
}

fn packed(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    pack(path, &Packing::default(), &mut out, &mut |note| panic!("{note}")).expect("packing");
    out
}

fn unpacked(archive: &[u8], into: &Path, how: &Unpacking) -> Result<Totals, UnpackError> {
    unpack(archive, fs::File::open(into).expect("a folder").as_fd(), how)
}

/// A tree with everything that a file system has but devices.
fn tree(folder: &Path) {
    fs::create_dir_all(folder.join("tree/inner/empty")).expect("folders");
    fs::write(folder.join("tree/a file"), b"hello").expect("a file");
    fs::write(folder.join("tree/nothing"), b"").expect("a file");
    fs::hard_link(folder.join("tree/a file"), folder.join("tree/inner/same")).expect("a link");
    symlink("../../outside", folder.join("tree/inner/link")).expect("a link");
    symlink("x".repeat(300), folder.join("tree/long link")).expect("a link");
    let long = folder.join("tree").join("d".repeat(150));
    fs::create_dir(&long).expect("a folder");
    fs::write(long.join("f".repeat(200)), vec![7; 1000]).expect("a file");
    fs::write(folder.join("tree").join(std::ffi::OsStr::from_bytes(b"\xff\xfe name")), b"x").expect("a file");
    let sparse = fs::File::create(folder.join("tree/sparse")).expect("a file");
    sparse.set_len(8 << 20).expect("a length");
    sparse.write_all_at(b"begin", 1 << 20).expect("writing");
    sparse.write_all_at(b"later", 5 << 20).expect("writing");
    fs::set_permissions(folder.join("tree/a file"), fs::Permissions::from_mode(0o4751)).expect("a mode");
    fs::set_permissions(folder.join("tree/inner"), fs::Permissions::from_mode(0o555)).expect("a mode");
}

/// All that can be seen of a tree, set-user-id bits aside.
fn seen(folder: &Path) -> Vec<String> {
    fn walk(path: &Path, below: &Path, into: &mut Vec<String>) {
        let found = fs::symlink_metadata(path).expect("looking");
        let name = path.strip_prefix(below).expect("below").as_os_str().as_bytes().escape_ascii().to_string();
        let mut line = format!("{name} {:o} {} {}", found.mode() & 0o170_777, found.mtime(), found.nlink());
        if found.is_file() {
            let content = fs::read(path).expect("reading");
            let sum = content.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            line.push_str(&format!(" {} {sum:x}", found.len()));
        } else if found.is_symlink() {
            line.push_str(&fs::read_link(path).expect("a link").display().to_string());
        }
        into.push(line);
        if found.is_dir() {
            let mut names: Vec<_> = fs::read_dir(path).expect("listing").flatten().map(|entry| entry.path()).collect();
            names.sort();
            names.iter().for_each(|path| walk(path, below, into));
        }
    }
    let mut lines = Vec::new();
    walk(folder, folder.parent().expect("a parent"), &mut lines);
    lines
}

#[test]
fn a_tree_comes_back_as_it_was_and_sparse_files_stay_sparse() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    tree(from.path());
    let archive = packed(&from.path().join("tree"));
    assert!(archive.len() < 256 << 10, "holes are not in it: {}", archive.len());
    let totals = unpacked(&archive, to.path(), &how()).expect("unpacking");
    assert_eq!(seen(&to.path().join("tree")), seen(&from.path().join("tree")));
    assert_eq!(totals.entries, 12);
    let sparse = fs::metadata(to.path().join("tree/sparse")).expect("a file");
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    let mode = fs::metadata(to.path().join("tree/a file")).expect("a file").mode();
    assert_eq!(mode & 0o7000, 0, "without owners there is no set-user-id");
    // Once more over what is there, links and read-only folders included.
    unpacked(&archive, to.path(), &how()).expect("unpacking again");
    assert_eq!(seen(&to.path().join("tree")), seen(&from.path().join("tree")));
}

#[test]
fn nothing_gets_a_permission_that_the_umask_takes_away() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    fs::create_dir_all(from.path().join("tree/inner")).expect("folders");
    fs::write(from.path().join("tree/file"), b"x").expect("a file");
    for name in ["tree", "tree/inner", "tree/file"] {
        fs::set_permissions(from.path().join(name), fs::Permissions::from_mode(0o777)).expect("a mode");
    }
    let archive = packed(&from.path().join("tree"));
    let modes = |how: &Unpacking| {
        unpacked(&archive, to.path(), how).expect("unpacking");
        let mode = |name| fs::metadata(to.path().join(name)).expect("it is there").mode() & 0o7777;
        ["tree", "tree/inner", "tree/file"].map(mode)
    };
    assert_eq!(modes(&Unpacking { umask: 0o027, ..how() }), [0o750; 3]);
    // Who asks for modes and owners as they are gets them.
    if rustix::process::geteuid().is_root() {
        assert_eq!(modes(&Unpacking { umask: 0o027, owners: true, ..how() }), [0o777; 3]);
    }
}

#[test]
fn owners_and_set_user_id_bits_are_kept_when_asked_for() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let file = from.path().join("file");
    fs::write(&file, b"x").expect("a file");
    let root = rustix::process::geteuid().is_root();
    let (uid, gid) =
        if root { (4_000_000, 77) } else { (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()) };
    std::os::unix::fs::chown(&file, Some(uid), Some(gid)).expect("an owner");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4711)).expect("a mode");
    unpacked(&packed(&file), to.path(), &Unpacking { owners: true, ..how() }).expect("unpacking");
    let found = fs::metadata(to.path().join("file")).expect("a file");
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (uid, gid, 0o4711));
}

#[test]
fn a_destination_is_a_folder_or_a_new_name() {
    let here = tempfile::tempdir().expect("a folder");
    tree(here.path());
    let archive = packed(&here.path().join("tree"));
    fs::create_dir(here.path().join("there")).expect("a folder");
    for (to, lands) in [("there", "there/tree/a file"), ("new", "new/a file"), ("there/other", "there/other/a file")] {
        let (folder, rename) = place(&here.path().join(to)).expect("a place");
        unpack(archive.as_slice(), folder.as_fd(), &Unpacking { rename, ..how() }).expect("unpacking");
        assert!(here.path().join(lands).is_file(), "{to}");
        assert_eq!(
            fs::metadata(here.path().join(lands)).expect("a file").nlink(),
            2,
            "{to}: hard links follow the name"
        );
    }
    let contents = packed(&here.path().join("tree/."));
    fs::create_dir(here.path().join("flat")).expect("a folder");
    unpacked(&contents, &here.path().join("flat"), &how()).expect("unpacking");
    assert!(here.path().join("flat/a file").is_file());
    assert!(place(&here.path().join("no/such")).is_err());
    assert!(place(&here.path().join("nothing/")).is_err());
}

fn gnu_tar(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("tar")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("GNU tar starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("waiting");
    writer.join().expect("writing").expect("writing");
    assert!(output.status.success(), "{arguments:?}");
    output.stdout
}

#[test]
fn gnu_tar_reads_what_is_written_here() {
    let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    tree(from.path());
    let archive = packed(&from.path().join("tree"));
    gnu_tar(&["-x", "-f", "-", "--no-same-owner", "-p", "-C", to.path().to_str().expect("text")], &archive);
    fs::set_permissions(to.path().join("tree/a file"), fs::Permissions::from_mode(0o4751)).expect("a mode");
    assert_eq!(seen(&to.path().join("tree")), seen(&from.path().join("tree")));
    assert!(fs::metadata(to.path().join("tree/sparse")).expect("a file").blocks() * 512 < 1 << 20);
}

#[test]
fn what_gnu_tar_writes_in_any_of_its_formats_is_read_here() {
    let from = tempfile::tempdir().expect("a folder");
    tree(from.path());
    fs::remove_file(from.path().join("tree/long link")).expect("too long for some formats");
    fs::remove_dir_all(from.path().join("tree").join("d".repeat(150))).expect("too long for some formats");
    // More parts than one old header has room for.
    let file = fs::File::options().write(true).open(from.path().join("tree/sparse")).expect("a file");
    (0..40u64).for_each(|part| file.write_all_at(b"part", part << 17).expect("writing"));
    for (format, options) in
        [("gnu", &["-S"][..]), ("posix", &["-S", "--sparse-version=1.0"]), ("posix", &[]), ("ustar", &[]), ("v7", &[])]
    {
        let to = tempfile::tempdir().expect("a folder");
        let format = format!("--format={format}");
        let folder = from.path().to_str().expect("text");
        let archive = gnu_tar(&[&["-c", "-f", "-", &format, "-C", folder], options, &["tree"]].concat(), &[]);
        unpacked(&archive, to.path(), &how()).unwrap_or_else(|error| panic!("{format} {options:?}: {error}"));
        assert_eq!(seen(&to.path().join("tree")), seen(&from.path().join("tree")), "{format} {options:?}");
    }
}

/// A header block by hand.
fn header(name: &str, kind: u8, size: u64, link: &str) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    resum(block)
}

fn resum(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let mut entry = header(name, b'0', content.len() as u64, "");
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn pax(records: &[u8]) -> Vec<u8> {
    let mut entry = header("pax", b'x', records.len() as u64, "");
    entry.extend(records);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (rest..).find(|len| len.to_string().len() + rest == *len).expect("a length");
    format!("{len} {key}={value}\n").into_bytes()
}

fn old_sparse(parts: &[(u64, u64)], stored: u64, real: u64) -> Vec<u8> {
    let mut block = header("sparse", b'S', stored, "");
    for (place, (offset, len)) in parts.iter().enumerate() {
        block[386 + place * 24..][..24].copy_from_slice(format!("{offset:011o}\0{len:011o}\0").as_bytes());
    }
    block[483..495].copy_from_slice(format!("{real:011o}\0").as_bytes());
    [
        resum(block),
        vec![b'x'; stored as usize].into_iter().chain(vec![0; (512 - stored as usize % 512) % 512]).collect(),
    ]
    .concat()
}

#[test]
fn hostile_archives_change_nothing_outside_and_say_why() {
    let outer = tempfile::tempdir().expect("a folder");
    let (root, outside) = (outer.path().join("root"), outer.path().join("outside"));
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("upwards", file("../outside/new", b"x"), "leads upwards"),
        ("upwards inside", file("a/../../outside/new", b"x"), "leads upwards"),
        ("absolute", file("/etc/labyard-test", b"x"), "is absolute"),
        ("absolute by pax", [pax(b"99 path=/etc/labyard-test\n"), file("x", b"x")].concat(), "pax header"),
        (
            "absolute by a right pax",
            [pax(&record("path", "/etc/labyard-test")), file("x", b"x")].concat(),
            "is absolute",
        ),
        (
            "upwards by a long name",
            {
                let mut long = header("././@LongLink", b'L', 15, "");
                long.extend(b"../outside/new\0");
                long.resize(1024, 0);
                [long, file("x", b"x")].concat()
            },
            "leads upwards",
        ),
        (
            "through a link that came with it",
            [header("link", b'2', 0, "../outside"), file("link/new", b"x")].concat(),
            "through no link",
        ),
        (
            "through an absolute link",
            [header("link", b'2', 0, outside.to_str().expect("text")), file("link/new", b"x")].concat(),
            "through no link",
        ),
        ("through a link that was there", file("planted/new", b"x"), "through no link"),
        (
            "a folder over a link, then into it",
            [header("planted/", b'5', 0, ""), file("planted/new", b"x")].concat(),
            "",
        ),
        ("over a link", file("victim-link", b"changed"), ""),
        ("hard link upwards", header("hard", b'1', 0, "../outside/victim"), "leads upwards"),
        ("hard link absolute", header("hard", b'1', 0, "/etc/passwd"), "is absolute"),
        ("hard link through a link", header("hard", b'1', 0, "planted/victim"), "through no link"),
        (
            "hard link to a link that leads out",
            [header("l", b'2', 0, "../outside/victim"), header("hard", b'1', 0, "l")].concat(),
            "did not come with it",
        ),
        ("hard link to what was there", header("hard", b'1', 0, "own"), "did not come with it"),
        ("hard link to nothing", header("hard", b'1', 0, "nothing"), "what it links to"),
        ("hard link to itself", header("hard", b'1', 0, "hard"), "what it links to"),
        ("hard link to the folder", header("hard", b'1', 0, "."), "folder itself"),
        ("device", header("null", b'3', 0, ""), "only made with owners"),
        ("pipe", header("pipe", b'6', 0, ""), "only made with owners"),
        ("a file in place of the root", file(".", b"x"), "folder itself"),
        ("a file over a folder", [header("dir/", b'5', 0, ""), file("dir", b"x")].concat(), "replacing"),
        ("a name of ours", file(".labyard-cp-1-1", b"x"), "unfinished"),
        ("an unknown kind", header("x", b'Q', 0, ""), "unknown type"),
        ("a link to nowhere", header("x", b'2', 0, ""), "no link can lead to"),
        ("no tar", b"hello".repeat(200), "no tar"),
        ("half a header", file("x", b"x")[..300].to_vec(), "within a header"),
        ("half a file", file("x", &[1; 2000])[..1000].to_vec(), "within a file"),
        ("a size beyond all", header("x", b'0', 0o77777777777, ""), "within a file"),
        ("a pax header beyond all", header("x", b'x', 0o77777777777, ""), "bytes, more than"),
        ("a long name beyond all", header("x", b'L', 0o77777777777, ""), "bytes, more than"),
        ("headers without end", pax(b"6 a=b\n").repeat(20), "without end"),
        ("a pax record that is none", [pax(b"nonsense"), file("x", b"x")].concat(), "pax header"),
        ("a pax record beyond its end", [pax(b"999 path=x\n"), file("x", b"x")].concat(), "pax header"),
        ("a pax record of no length", [pax(b"0 path=x\n"), file("x", b"x")].concat(), "pax header"),
        ("an owner beyond all", [pax(&record("uid", &"9".repeat(30))), file("x", b"x")].concat(), "no number"),
        ("sparse parts over each other", old_sparse(&[(0, 512), (0, 512)], 1024, 1024), "over each other"),
        ("sparse parts outside", old_sparse(&[(1024, 512)], 512, 1024), "outside"),
        ("sparse parts that are not there", old_sparse(&[(0, 1)], 512, 1024), "not what the archive has"),
        (
            "a sparse map without end",
            {
                let map = b"99999999\n".to_vec();
                let records = [("major", "1"), ("minor", "0"), ("realsize", "9999")];
                let records: Vec<u8> =
                    records.iter().flat_map(|(key, value)| record(&format!("GNU.sparse.{key}"), value)).collect();
                [pax(&records), file("x", &[map, vec![b'1'; 600]].concat())].concat()
            },
            "part that is no number",
        ),
    ];
    for (what, archive, part) in table {
        for folder in [&root, &outside] {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir(folder).expect("a folder");
        }
        fs::write(outside.join("victim"), b"untouched").expect("a file");
        fs::write(root.join("own"), b"own").expect("a file");
        symlink("../outside", root.join("planted")).expect("a link");
        symlink("../outside/victim", root.join("victim-link")).expect("a link");
        let outcome = unpacked(&archive, &root, &how());
        match (part, outcome) {
            ("", outcome) => drop(outcome.unwrap_or_else(|error| panic!("{what}: {error}"))),
            (part, Err(error)) => {
                let mut text = error.to_string();
                if let UnpackError::File { source, .. } | UnpackError::Archive(ArchiveError::Read(source)) = &error {
                    text.push_str(&source.to_string());
                }
                assert!(text.contains(part), "{what}: {text}");
            }
            (_, Ok(_)) => panic!("{what}: was unpacked"),
        }
        assert_eq!(fs::read(outside.join("victim")).expect("the victim"), b"untouched", "{what}");
        assert_eq!(fs::read_dir(&outside).expect("listing").count(), 1, "{what}");
        let drafts = fs::read_dir(&root).expect("listing").flatten();
        let drafts: Vec<_> = drafts.filter(|entry| entry.file_name().as_bytes().starts_with(b".labyard-cp-")).collect();
        assert!(drafts.is_empty(), "{what}: {drafts:?}");
    }
    assert!(!Path::new("/etc/labyard-test").exists());
}

#[test]
fn a_hole_of_petabytes_takes_no_time_and_data_ends_at_the_limit() {
    let to = tempfile::tempdir().expect("a folder");
    let outcome = unpacked(&old_sparse(&[(0, 512)], 512, 0o77777777777), to.path(), &how());
    assert_eq!(outcome.expect("unpacking").bytes, 512);
    // Data without end: whoever sends it is not listened to any longer.
    struct Endless(Vec<u8>);
    impl Read for Endless {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                into.fill(b'x');
                return Ok(into.len());
            }
            let n = self.0.as_slice().read(into)?;
            self.0.drain(..n);
            Ok(n)
        }
    }
    let folder = fs::File::open(to.path()).expect("a folder");
    let limited = Unpacking { max_bytes: 4 << 20, ..how() };
    let outcome = unpack(Endless(header("big", b'0', 0o77777777777, "")), folder.as_fd(), &limited);
    assert!(matches!(outcome, Err(UnpackError::Long(_))), "{outcome:?}");
    assert!(!to.path().join("big").exists());
}

#[test]
fn what_cannot_be_packed_is_said() {
    let from = tempfile::tempdir().expect("a folder");
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).expect("a socket");
    let mut notes = Vec::new();
    let totals = pack(from.path(), &Packing::default(), io::sink(), &mut |note| notes.push(note)).expect("packing");
    assert_eq!((totals.entries, notes.len()), (1, 1));
    let error = pack(&from.path().join("none"), &Packing::default(), io::sink(), &mut |_| {}).expect_err("nothing");
    assert!(error.to_string().contains("none"), "{error}");
}

/// Python's tarfile as the peer: what it says of each entry.
fn told(archive: &[u8]) -> String {
    const LIST: &str = "import sys, tarfile
for one in tarfile.open(fileobj=sys.stdin.buffer, mode='r|'):
    more = {key: value for key, value in one.pax_headers.items() if key == 'mtime' or 'xattr' in key}
    print(one.name, one.size, oct(one.mode), sorted(more.items()))";
    let mut python = Command::new("python3");
    let mut child =
        python.args(["-c", LIST]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 starts");
    child.stdin.take().expect("piped").write_all(archive).expect("writing");
    let output = child.wait_with_output().expect("waiting");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn attributes_and_fractions_of_seconds_go_along_where_they_are_asked_for() {
    // Not in /tmp, which may be of a kind that has no attributes.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "hello").expect("writing");
    rustix::fs::setxattr(&file, "user.labyard", b"a\nb=", rustix::fs::XattrFlags::empty()).expect("an attribute");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789);
    fs::File::open(&file).expect("opening").set_modified(time).expect("a time");
    let how = Packing { attributes: true, ..Packing::default() };
    let mut archive = Vec::new();
    pack(&file, &how, &mut archive, &mut |note| panic!("{note}")).expect("packing");
    assert_eq!(
        told(&archive),
        "file 5 0o644 [('SCHILY.xattr.user.labyard', 'a\\nb='), ('mtime', '1234567890.123456789')]\n"
    );
    assert_eq!(told(&packed(&file)), "file 5 0o644 []\n");
}

#[test]
fn who_packs_chooses_what_is_packed() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["run", "etc", "secret"] {
        fs::create_dir(folder.path().join(name)).expect("a folder");
        fs::write(folder.path().join(name).join("file"), "hello").expect("writing");
    }
    fs::write(folder.path().join("id"), "one").expect("writing");
    let choose = |name: &[u8]| match name {
        b"./run" | b"./id" => Choice::Empty,
        b"./secret" => Choice::Nothing,
        _ => Choice::Whole,
    };
    let how = Packing { choose: Some(choose), ..Packing::default() };
    let mut archive = Vec::new();
    pack(&folder.path().join("."), &how, &mut archive, &mut |note| panic!("{note}")).expect("packing");
    let told = told(&archive);
    let lines: Vec<_> = told.lines().map(|line| line.split(" 0o").next().expect("a part")).collect();
    assert_eq!(lines, [". 0", "./etc 0", "./etc/file 5", "./id 0", "./run 0"], "{told}");
}

#[test]
fn a_folder_that_comes_again_and_again_has_what_was_said_last() {
    let to = tempfile::tempdir().expect("a folder");
    let folder = |name: &str, mode: &[u8]| {
        let mut block = header(name, b'5', 0, "");
        block[100..108].copy_from_slice(mode);
        resum(block)
    };
    let mut archive = Vec::new();
    for _ in 0..1000 {
        archive.extend(folder("a/b/", b"0000700\0"));
        // Said before its inner one, and after: it is finished after it in any case.
        archive.extend(folder("a/", b"0000500\0"));
    }
    archive.extend(folder("a/b/", b"0000711\0"));
    let totals = unpacked(&archive, to.path(), &how()).expect("unpacking");
    assert_eq!(totals.entries, 2001);
    let mode = |name| fs::metadata(to.path().join(name)).expect("it is there").mode() & 0o7777;
    assert_eq!((mode("a/b"), mode("a")), (0o711, 0o500));
}
