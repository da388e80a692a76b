//! Layers of an image: tar archives that nearly make sense, one on the other, and sometimes the disk that they become.
//!
//! Rules: an archive is refused as input, never as a failure of the machine; names in the tree are plain names; content lies
//! within its file.

use std::fs::File;
use std::io::Write;

use labyard_rootfs_builder::ext4::{self, Options, Size};
use labyard_rootfs_builder::layer::{self, Layer, Limits, Spool};
use labyard_rootfs_builder::merge::Merge;
use labyard_rootfs_builder::section::Section;
use labyard_rootfs_builder::tree::{Kind, Spools, Tree};
use labyard_rootfs_builder::watch::Watch;

use crate::input::Input;

/// What an image of this target may cost.
const LIMITS: Limits = Limits { unpacked_bytes: 1 << 20, entries: 500, names_bytes: 64 << 10 };
/// Bytes of the disk.
const DISK: u64 = 4 << 20;
const BLOCK: usize = 512;

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
    let make_disk = input.one_in(16);
    let mut merge = Merge::new(LIMITS, !input.one_in(8));
    let (mut spools, mut left) = (Spools::default(), LIMITS.unpacked_bytes);
    let Ok(file) = tempfile::tempfile() else { return };
    let number = spools.push(file.try_clone().expect("a descriptor"));
    let mut spool = Spool::new(file, number);
    for _ in 0..input.below(3) + 1 {
        merge.next_layer();
        let archive = archive(&mut input);
        let layer = Layer {
            name: "layer".to_owned(),
            section: Section::whole(stored(&archive)).expect("a length"),
            digest: None,
            diff_id: None,
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

/// An archive, or bytes that claim to be one.
fn archive(input: &mut Input<'_>) -> Vec<u8> {
    if input.one_in(16) {
        let len = input.below(2048);
        return input.bytes(len).to_vec();
    }
    let mut archive = Vec::new();
    for _ in 0..input.below(12) + 1 {
        entry(&mut archive, input);
    }
    if input.one_in(4) && !archive.is_empty() {
        // Cut, or changed behind a good checksum.
        let at = input.below(archive.len());
        match input.byte() % 2 {
            0 => archive.truncate(at),
            _ => archive[at] = input.byte(),
        }
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

/// A ustar header (POSIX.1-2017, pax, "ustar Interchange Format") and what follows it.
fn entry(archive: &mut Vec<u8>, input: &mut Input<'_>) {
    let kind = input.pick(b"0000555551122223467xxxgLKS\0A");
    let name = input.pick(NAMES);
    let data: Vec<u8> = match kind {
        b'x' | b'g' => records(input),
        b'L' | b'K' => [input.pick(NAMES).as_bytes(), &[0]].concat(),
        b'0' | b'7' | b'S' | 0 => vec![0x42; input.below(1500)],
        _ => Vec::new(),
    };
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    let size = if input.one_in(16) { input.long() & 0x7_ffff_ffff } else { data.len() as u64 };
    for (at, width, value) in [
        (100, 8, 0o644),
        (108, 8, 1000),
        (116, 8, 0),
        (124, 12, size),
        (136, 12, 1_700_000_000),
        (329, 8, 1),
        (337, 8, 3),
    ] {
        let digits = format!("{value:0width$o}", width = width - 1);
        header[at..at + width - 1].copy_from_slice(&digits.as_bytes()[digits.len() - (width - 1)..]);
    }
    if input.one_in(16) {
        // A number in base 256 (GNU).
        let at = input.pick(&[100, 108, 124, 136]);
        header[at] = 0x80 | input.byte();
    }
    header[156] = kind;
    if matches!(kind, b'1' | b'2') {
        let target = input.pick(NAMES);
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
    }
    let magic: &[u8; 8] = if kind == b'S' || input.one_in(4) { b"ustar  \0" } else { b"ustar\x0000" };
    header[257..265].copy_from_slice(magic);
    if kind == b'S' {
        // Old GNU sparse: offset and length four times, more to come, real size (tar.h).
        for at in [386, 398, 410, 422] {
            let number = format!("{:011o}", u32::from(input.short()));
            header[at..at + 11].copy_from_slice(number.as_bytes());
        }
        header[482] = input.byte() % 2;
        header[483..494].copy_from_slice(format!("{:011o}", input.word() % 0x10_0000).as_bytes());
    }
    if input.one_in(8) {
        let at = input.below(BLOCK);
        header[at] = input.byte();
    }
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    archive.extend_from_slice(&header);
    archive.extend_from_slice(&data);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

/// Records of a pax header, with lengths that are mostly right.
fn records(input: &mut Input<'_>) -> Vec<u8> {
    const KEYS: &[&str] = &[
        "path",
        "linkpath",
        "size",
        "uid",
        "gid",
        "mtime",
        "SCHILY.xattr.user.a",
        "SCHILY.xattr.security.capability",
        "SCHILY.xattr.system.posix_acl_access",
        "GNU.sparse.major",
        "GNU.sparse.minor",
        "GNU.sparse.map",
        "GNU.sparse.realsize",
        "GNU.sparse.name",
        "hdrcharset",
        "comment",
    ];
    const VALUES: &[&str] = &[
        "",
        "0",
        "1",
        "5",
        "-1",
        "1.5",
        "-1.999999999",
        "18446744073709551616",
        "a/b",
        "0,5,10,5",
        "0,5,3,5",
        "\0",
        "1e9",
    ];
    let mut records = Vec::new();
    for _ in 0..input.below(4) + 1 {
        let body =
            format!(" {}={}\n", input.pick(KEYS), if input.one_in(4) { input.pick(NAMES) } else { input.pick(VALUES) });
        // The length counts its own digits.
        let mut len = body.len() + 1;
        len += usize::from(len + 1 > 10) + usize::from(len > 99);
        if input.one_in(8) {
            len = input.short().into();
        }
        records.extend_from_slice(format!("{len}{body}").as_bytes());
    }
    records
}
