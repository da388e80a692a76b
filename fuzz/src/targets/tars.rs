//! Tar archives that nearly make sense: ustar, pax and GNU, with sparse files, written by hand because a library refuses what a hostile
//! writer would not.

use crate::input::Input;

const BLOCK: usize = 512;

/// An archive, or bytes that claim to be one.
pub(super) fn archive(input: &mut Input<'_>, names: &[&str]) -> Vec<u8> {
    if input.one_in(16) {
        let len = input.below(2048);
        return input.bytes(len).to_vec();
    }
    let mut archive = Vec::new();
    for _ in 0..input.below(12) + 1 {
        if input.one_in(8) {
            sparse_pax(&mut archive, input, names);
        } else {
            entry(&mut archive, input, names, None);
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
fn sparse_pax(archive: &mut Vec<u8>, input: &mut Input<'_>, names: &[&str]) {
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
    entry(archive, input, names, Some((b'x', records)));
    entry(archive, input, names, Some((b'0', [before, data].concat())));
}

/// A ustar header (POSIX.1-2017, pax, "ustar Interchange Format") and what follows it.
fn entry(archive: &mut Vec<u8>, input: &mut Input<'_>, names: &[&str], given: Option<(u8, Vec<u8>)>) {
    let is_given = given.is_some();
    let any = input.pick(b"0000555551122223467xxxgLKS\0A");
    let name = input.pick(names);
    let (kind, given) = given.map_or((any, None), |(kind, data)| (kind, Some(data)));
    let data: Vec<u8> = match kind {
        _ if is_given => given.unwrap_or_default(),
        b'x' | b'g' => records(input, names),
        b'L' | b'K' => [input.pick(names).as_bytes(), &[0]].concat(),
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
        let target = input.pick(names);
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
fn records(input: &mut Input<'_>, names: &[&str]) -> Vec<u8> {
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
        let (key, value) = (input.pick(KEYS), if input.one_in(4) { input.pick(names) } else { input.pick(VALUES) });
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
