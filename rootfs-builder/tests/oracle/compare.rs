//! Is a disk the same as a folder? Kind, mode, owner, size, links, time to the nanosecond, device, link target, extended
//! attributes and content, path by path. The disk is read by debugfs alone, so our writer is not its own witness.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What both sides are asked about one path, as text.
type Facts = BTreeMap<PathBuf, String>;

/// Every path that differs, with both sides; empty where they are the same. `lost+found` is the disk's own.
pub(crate) fn differences(folder: &Path, disk: &Path) -> io::Result<Vec<String>> {
    let mut wanted = Facts::new();
    facts_of_folder(folder, Path::new("/"), &mut wanted)?;
    let paths: Vec<PathBuf> = wanted.keys().cloned().collect();
    let scratch = tempfile::tempdir()?;
    let copy = scratch.path().join("copy");
    fs::create_dir(&copy)?;
    debugfs(disk, &[format!("rdump / {}", copy.display()).into_bytes()])?;
    fs::remove_dir_all(copy.join("lost+found"))?;
    let mut found = facts_of_disk(disk, &paths)?;
    let mut list = Vec::new();
    for path in names_below(&copy, Path::new("/"))? {
        if !wanted.contains_key(&path) {
            list.push(format!("{}: only on the disk", path.display()));
        }
    }
    for (path, facts) in &wanted {
        let other = found.remove(path).unwrap_or_default();
        if *facts != other {
            list.push(format!("{}:\n  folder {facts}\n  disk   {other}", path.display()));
        }
        let (ours, theirs) = (below(folder, path), below(&copy, path));
        let kind = fs::symlink_metadata(&ours)?.file_type();
        if kind.is_file() && fs::read(&ours)? != fs::read(&theirs).unwrap_or_default() {
            list.push(format!("{}: the content differs", path.display()));
        }
        if kind.is_symlink() && fs::read_link(&ours)? != fs::read_link(&theirs).unwrap_or_default() {
            list.push(format!("{}: the target differs", path.display()));
        }
        for (name, value) in xattrs(&ours)? {
            let out = scratch.path().join("value");
            let quoted = path.display();
            let ask =
                [format!("ea_get -f {} ", out.display()).as_bytes(), &named(path), b" ", name.as_bytes()].concat();
            debugfs(disk, &[ask])?;
            if comparable(&name, fs::read(&out).unwrap_or_default()) != comparable(&name, value) {
                list.push(format!("{quoted}: attribute {name} differs"));
            }
            let _ = fs::remove_file(&out);
        }
    }
    Ok(list)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn names_below(root: &Path, at: &Path) -> io::Result<Vec<PathBuf>> {
    let mut list = vec![at.to_owned()];
    if fs::symlink_metadata(below(root, at))?.is_dir() {
        for entry in fs::read_dir(below(root, at))? {
            list.extend(names_below(root, &at.join(entry?.file_name()))?);
        }
    }
    Ok(list)
}

fn facts_of_folder(root: &Path, at: &Path, facts: &mut Facts) -> io::Result<()> {
    let path = below(root, at);
    let meta = fs::symlink_metadata(&path)?;
    let kind = meta.file_type();
    let name = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symlink",
        () if kind.is_char_device() => "character special",
        () if kind.is_block_device() => "block special",
        () if kind.is_fifo() => "FIFO",
        () => "regular",
    };
    // A directory's size is the file system's affair, and the root has lost+found beside the rest.
    let size = if kind.is_dir() { 0 } else { meta.size() };
    let links = if at == Path::new("/") { 0 } else { meta.nlink() };
    let device = match name {
        "character special" | "block special" => {
            format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()))
        }
        _ => String::new(),
    };
    let names: Vec<String> = xattrs(&path)?.into_keys().collect();
    facts.insert(
        at.to_owned(),
        format!(
            "{name} {:04o} {}:{} size {size} links {links} time {}.{:09} {device} {names:?}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
        ),
    );
    if kind.is_dir() {
        for entry in fs::read_dir(&path)? {
            facts_of_folder(root, &at.join(entry?.file_name()), facts)?;
        }
    }
    Ok(())
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut all = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(len);
        all.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(all)
}

fn facts_of_disk(disk: &Path, paths: &[PathBuf]) -> io::Result<Facts> {
    let requests: Vec<Vec<u8>> = paths.iter().map(|path| [b"stat ", &*named(path)].concat()).collect();
    let text = debugfs(disk, &requests)?;
    // With requests from a file debugfs repeats each one.
    let answers = text.split("debugfs: ").skip(1);
    Ok(paths
        .iter()
        .cloned()
        .zip(answers.map(facts_of_stat))
        .map(|(path, facts)| {
            let facts = if path == Path::new("/") { without_links(&facts) } else { facts };
            (path, facts)
        })
        .collect())
}

fn without_links(facts: &str) -> String {
    let mut words: Vec<&str> = facts.split(' ').collect();
    if let Some(at) = words.iter().position(|word| *word == "links") {
        words[at + 1] = "0";
    }
    words.join(" ")
}

/// The same line as [`facts_of_folder`] makes, from what `stat` of debugfs prints.
fn facts_of_stat(text: &str) -> String {
    let after = |label: &str| text.split_once(label).map_or("", |(_, rest)| rest).trim_start();
    let word = |label: &str| after(label).split_whitespace().next().unwrap_or_default().to_owned();
    let kind = after("Type: ").split("  ").next().unwrap_or_default().to_owned();
    let size = if kind == "directory" { "0".to_owned() } else { word("Size: ") };
    let time = word("mtime: ");
    let (seconds, extra) = time.trim_start_matches("0x").split_once(':').unwrap_or_default();
    let hex = |digits: &str| i64::from_str_radix(digits, 16).unwrap_or_default();
    let (low, extra) = (hex(seconds) as i32, hex(extra));
    let seconds = i64::from(low) + ((extra & 3) << 32);
    let device = match after("Device major/minor number: ").split_once(" (hex").map(|(numbers, _)| numbers) {
        Some(numbers) => {
            let numbers = numbers.split(':').map(|number| number.parse::<u32>().unwrap_or(u32::MAX).to_string());
            numbers.collect::<Vec<_>>().join(":")
        }
        None => String::new(),
    };
    let mut names: Vec<String> = after("Extended attributes:\n")
        .lines()
        .map(str::trim_start)
        .map_while(|line| line.split_once(" (").filter(|(_, rest)| is_length(rest)))
        .map(|(name, _)| name.to_owned())
        .collect();
    names.sort();
    let mode = u32::from_str_radix(&word("Mode: "), 8).unwrap_or_default();
    format!(
        "{kind} {mode:04o} {}:{} size {size} links {} time {seconds}.{:09} {device} {names:?}",
        word("User: "),
        word("Group: "),
        word("Links: "),
        extra >> 2,
    )
}

/// `300)`, and perhaps a value behind it; values that are long are not shown.
fn is_length(text: &str) -> bool {
    text.split_once(')').is_some_and(|(digits, _)| digits.parse::<u32>().is_ok())
}

/// An attribute without what two readers of the same disk tell in different ways: entries of an access list that name nobody have the id -1 by
/// the kernel's account and 0 by that of libext2fs (include/uapi/linux/posix_acl_xattr.h: a version, then tag, rights and id).
fn comparable(name: &str, mut value: Vec<u8>) -> Vec<u8> {
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    if name.starts_with("system.posix_acl_") && value.len() > 4 {
        for entry in value[4..].chunks_exact_mut(8) {
            if ![USER, GROUP].contains(&u16::from_le_bytes([entry[0], entry[1]])) {
                entry[4..].fill(0);
            }
        }
    }
    value
}

/// A path for debugfs, which may be no text.
fn named(path: &Path) -> Vec<u8> {
    [b"\"", path.as_os_str().as_bytes(), b"\""].concat()
}

/// Answers to requests, given in a file.
fn debugfs(disk: &Path, requests: &[Vec<u8>]) -> io::Result<String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&requests.join(&b'\n'))?;
    file.write_all(b"\n")?;
    let output = Command::new("debugfs")
        .arg("-f")
        .arg(file.path())
        .arg(disk)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
