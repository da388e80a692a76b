//! Layers of an image: tar archives that nearly make sense, one on the other, and sometimes the disk that they become.
//!
//! Rules: an archive is refused as input, never as a failure of the machine; names in the tree are plain names; content lies
//! within its file.

use std::fs::File;
use std::io::{Read, Write};

use labyard_rootfs_builder::digest::Digest;
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

/// An archive, or bytes that claim to be one.
fn archive(input: &mut Input<'_>) -> Vec<u8> {
    if input.one_in(16) {
        let len = input.below(2048);
        return input.bytes(len).to_vec();
    }
    let mut archive = Vec::new();
    for _ in 0..input.below(12) + 1 {
        if input.one_in(8) {
            sparse_pax(&mut archive, input);
        } else {
            entry(&mut archive, input, None);
        }
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

/// A sparse file of PAX format 0.1 or 1.0 that makes sense, or nearly.
fn sparse_pax(archive: &mut Vec<u8>, input: &mut Input<'_>) {
    let parts: Vec<(u64, u64)> = (0..u64::from(input.byte() % 5)).map(|part| (part * 4096, 512)).collect();
    let numbers = |parts: &[(u64, u64)]| parts.iter().flat_map(|(offset, len)| [*offset, *len]).collect::<Vec<u64>>();
    let data = vec![0x42; parts.len() * 512];
    let (keys, before) = if input.one_in(2) {
        let map: Vec<String> = numbers(&parts).iter().map(u64::to_string).collect();
        (vec![("GNU.sparse.map", map.join(",")), ("GNU.sparse.size", "65536".to_owned())], Vec::new())
    } else {
        let mut lines = format!("{}\n", if input.one_in(16) { input.long() } else { parts.len() as u64 }).into_bytes();
        for number in numbers(&parts) {
            let digits = if input.one_in(32) { format!("{:030}", input.word()) } else { number.to_string() };
            lines.extend_from_slice(format!("{digits}\n").as_bytes());
        }
        lines.resize(lines.len().next_multiple_of(BLOCK), 0);
        let words = [
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.realsize", "65536"),
            ("GNU.sparse.name", "sparse"),
        ];
        (words.map(|(key, value)| (key, value.to_owned())).into(), lines)
    };
    let records: Vec<u8> = keys.iter().flat_map(|(key, value)| record(key, value, input)).collect();
    entry(archive, input, Some((b'x', records)));
    entry(archive, input, Some((b'0', [before, data].concat())));
}

/// A ustar header (POSIX.1-2017, pax, "ustar Interchange Format") and what follows it.
fn entry(archive: &mut Vec<u8>, input: &mut Input<'_>, given: Option<(u8, Vec<u8>)>) {
    let is_given = given.is_some();
    let any = input.pick(b"0000555551122223467xxxgLKS\0A");
    let name = input.pick(NAMES);
    let (kind, given) = given.map_or((any, None), |(kind, data)| (kind, Some(data)));
    let data: Vec<u8> = match kind {
        _ if is_given => given.unwrap_or_default(),
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
        let (key, value) = (input.pick(KEYS), if input.one_in(4) { input.pick(NAMES) } else { input.pick(VALUES) });
        records.extend_from_slice(&record(key, value, input));
    }
    records
}

/// One record; its length counts its own digits.
fn record(key: &str, value: &str, input: &mut Input<'_>) -> Vec<u8> {
    let body = format!(" {key}={value}\n");
    let digits = (1..).find(|digits| (body.len() + digits).to_string().len() <= *digits).unwrap_or(1);
    let len = if input.one_in(16) { input.short().into() } else { body.len() + digits };
    format!("{len}{body}").into_bytes()
}
