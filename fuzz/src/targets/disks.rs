//! Trees of any shape become disks, and the tools of those who made the formats find nothing wrong with them.
//!
//! Rules: a tree that is refused is refused as input; e2fsck and fsck.erofs are content with what is not.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use labyard_rootfs_builder::ext4::{self, Options, Size};
use labyard_rootfs_builder::tree::{Child, Content, Kind, Meta, Node, NodeId, Run, Spools, Time, Tree};
use labyard_rootfs_builder::{erofs, watch::Watch};
use labyard_sys::memfd;

use crate::input::Input;

const MIB: u64 = 1 << 20;
/// Bytes that files may take their content from.
const SPOOL: u64 = 2 * MIB;
/// Names with a prefix that means something, and others.
const ATTRIBUTES: &[&str] = &[
    "user.a",
    "user.",
    "security.capability",
    "trusted.long-name-of-an-attribute",
    "system.posix_acl_access",
    "system.b",
    "c",
];

/// Reads the bytes as a tree.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let judged = input.one_in(4);
    let size = match input.byte() % 4 {
        0 => Size::Fit,
        1 => Size::Bytes(MIB * u64::from(input.byte())),
        2 => Size::Bytes(MIB << (input.byte() % 14)),
        _ => Size::Bytes(64 * MIB),
    };
    let mut tree = tree(&mut input);
    let spools = spools();
    let disk = disk();
    let options = erofs::Options { uuid: [1; 16], label: "fuzz".to_owned() };
    match erofs::write(&tree, &spools, &options, &disk, &Watch::unattended()) {
        Ok(_) if judged => judge("fsck.erofs", &[], &disk),
        Ok(_) => {}
        Err(error) => assert!(error.is_input(), "a stranger's tree is not the machine's fault: {error}"),
    }
    let disk = self::disk();
    let options = Options { size, uuid: [1; 16], hash_seed: [2; 16], label: "fuzz".to_owned() };
    match ext4::write(&mut tree, &spools, &options, &disk, &Watch::unattended()) {
        Ok(_) if judged => judge("e2fsck", &["-fn"], &disk),
        Ok(_) => {}
        Err(error) => assert!(error.is_input(), "a stranger's tree is not the machine's fault: {error}"),
    }
}

/// In memory: what is flushed to a disk of the host waits for that.
fn disk() -> File {
    memfd::create("a disk", 0).expect("a memfd")
}

/// The same file for every input: it is only read.
fn spools() -> Spools {
    static SPOOL_FILE: LazyLock<Arc<File>> = LazyLock::new(|| {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..SPOOL).map(|at| (at % 251) as u8).collect();
        file.write_all(&bytes).expect("room");
        Arc::new(file)
    });
    let mut spools = Spools::default();
    spools.push(Arc::clone(&SPOOL_FILE));
    spools
}

fn judge(program: &str, options: &[&str], disk: &File) {
    let disk = format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd());
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let said = Command::new(program).args(options).arg(disk).env("PATH", path).output();
    let said = said.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && !text.contains("<E>"), "{program}: {text}");
}

fn tree(input: &mut Input<'_>) -> Tree {
    let mut tree = Tree::new();
    let mut directories = vec![NodeId::ROOT];
    let mut others = Vec::new();
    for _ in 0..input.below(40) {
        let parent = input.pick(&directories);
        let kind = match input.byte() % 8 {
            0 | 1 => Kind::Directory(Default::default()),
            2 | 3 => Kind::File(content(input)),
            4 => Kind::Symlink(vec![b'l'; 1 + input.below(4100)].into()),
            5 => Kind::CharDevice { major: u32::from(input.short()) & 0xfff, minor: input.word() & 0xf_ffff },
            6 => Kind::BlockDevice { major: u32::from(input.short()) & 0xfff, minor: input.word() & 0xf_ffff },
            _ => Kind::Fifo,
        };
        let is_directory = matches!(kind, Kind::Directory(_));
        let node = tree.add(Node { meta: meta(input), kind });
        let child = Child { node, layer: 0 };
        let name = name(input);
        // What had the name is without one from now on, with all below it.
        let children = tree.children_mut(parent).expect("a directory");
        if children.get(&*name).is_some_and(|old| directories.contains(&old.node)) {
            continue;
        }
        children.insert(name, child);
        if is_directory {
            directories.push(node)
        } else {
            others.push(node)
        }
        if is_directory && input.one_in(4) {
            many(&mut tree, node, input);
        }
        if !others.is_empty() && input.one_in(8) {
            let child = Child { node: input.pick(&others), layer: 0 };
            tree.children_mut(parent).expect("a directory").entry(b"hard link".as_slice().into()).or_insert(child);
        }
    }
    tree
}

/// So many names that a directory has an index.
fn many(tree: &mut Tree, parent: NodeId, input: &mut Input<'_>) {
    let (count, len) = (input.below(3000), 1 + input.below(250));
    let node = tree.add(Node { meta: Meta::default(), kind: Kind::Fifo });
    let children = tree.children_mut(parent).expect("a directory");
    for number in 0..count {
        children.insert(format!("{number:0>len$}").into_bytes().into(), Child { node, layer: 0 });
    }
}

fn name(input: &mut Input<'_>) -> Box<[u8]> {
    let len = if input.one_in(4) { 1 + input.below(255) } else { 1 + input.below(8) };
    let mut name = input.bytes(len).to_vec();
    name.iter_mut().filter(|byte| matches!(**byte, 0 | b'/')).for_each(|byte| *byte = b'x');
    if matches!(&*name, b"" | b"." | b"..") { b"y".as_slice().into() } else { name.into() }
}

fn content(input: &mut Input<'_>) -> Content {
    if input.one_in(16) {
        return comb(input);
    }
    let (mut runs, mut end) = (Vec::new(), 0);
    for _ in 0..input.byte() % 6 {
        let gap = if input.one_in(2) { 0 } else { u64::from(input.word() % 300_000) };
        let len = u64::from(input.word()) % if input.one_in(4) { MIB } else { 9000 };
        runs.push(Run { at: end + gap, len, spool: 0, offset: u64::from(input.word()) % (SPOOL - len) });
        end += gap + len;
    }
    let len = end + if input.one_in(4) { u64::from(input.word()) << (input.byte() % 12) } else { 0 };
    Content { len, runs: runs.into() }
}

/// So many holes that the extents need blocks of their own, and those a level above them.
fn comb(input: &mut Input<'_>) -> Content {
    let teeth = if input.one_in(8) { 1400 } else { input.pick(&[4, 5, 40, 345]) };
    // A part of 64 KiB is stored where it has a tooth: with one in each there are no holes.
    let gap = input.pick(&[64 << 10, 128 << 10]);
    let run = |tooth| Run { at: tooth * gap, len: 1 + tooth, spool: 0, offset: 1 + tooth };
    Content { len: teeth * gap, runs: (0..teeth).map(run).collect() }
}

fn meta(input: &mut Input<'_>) -> Meta {
    let mut meta = Meta { mode: input.short() & 0o7777, uid: input.word(), gid: input.word(), ..Meta::default() };
    if input.one_in(4) {
        let seconds = i64::from(input.word().cast_signed()) << (input.byte() % 8);
        meta.mtime = Time { seconds, nanoseconds: input.word() % 1_000_000_000 };
    }
    for _ in 0..(input.byte() % 8).saturating_sub(5) {
        let most = if input.one_in(8) { 6000 } else { 200 };
        let len = input.below(most);
        meta.xattrs.insert(input.pick(ATTRIBUTES).as_bytes().into(), vec![b'v'; len].into());
    }
    meta
}
