//! Tries to get out of a builder that has confined itself: `confined SOURCE STORE network|parse WAY` does what the program does before it reads a
//! stranger's bytes, tries one way, and says what became of it. Without a way it names all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::{env, io};

use labyard_rootfs_builder::confine::{self, Needs};
use labyard_sys::attempts;

/// What a builder itself could try: a way, and how.
type Way = (&'static str, fn(&Path, &Path) -> io::Result<()>);

const WAYS: &[Way] = &[
    ("files=read the source", |source, _| fs::read(source).map(drop)),
    ("files=write to the store", |_, store| fs::write(store.join("images/file"), "ours")),
    ("files=write to the source", |source, _| File::options().write(true).open(source).map(drop)),
    ("files=remove the source", |source, _| fs::remove_file(source)),
    ("files=read beside the source", |source, _| fs::read(source.with_file_name("beside")).map(drop)),
    ("files=write beside the store", |_, store| fs::write(store.with_file_name("file"), "not ours")),
    ("files=read the labs of the store", |_, store| fs::read(store.join("labs/secret")).map(drop)),
    ("files=a link in the store", |_, store| std::os::unix::fs::symlink("/etc/passwd", store.join("images/link"))),
    ("files=move out of the store", |source, store| {
        fs::write(store.join("images/moved"), "ours").and_then(|()| fs::rename(store.join("images/moved"), source))
    }),
    ("sockets=a socket of a file", |_, store| {
        std::os::unix::net::UnixListener::bind(store.join("images/socket")).map(drop)
    }),
    ("processes=another process", |_, _| std::process::Command::new("/bin/true").spawn().map(drop)),
    ("processes=a thread", |_, _| std::thread::Builder::new().spawn(|| ()).map(drop)),
];

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [source, store, level, way] = arguments.as_slice() else {
        WAYS.iter().for_each(|(name, _)| println!("{name}"));
        attempts::confined().for_each(|attempt| println!("{}={}", attempt.group, attempt.what));
        return Ok(());
    };
    let (source, store) = (PathBuf::from(source), PathBuf::from(store));
    let needs = |network| Needs {
        reads: vec![source.clone()],
        writes: vec![store.join("images")],
        removes: Vec::new(),
        network,
    };
    confine::enter(&needs(true))?;
    if level == "parse" {
        confine::enter(&needs(false))?;
    }
    let said = match WAYS.iter().find(|(name, _)| name == way) {
        Some((_, run)) => attempts::outcome(run(&source, &store)),
        None => attempts::tried(way)?,
    };
    println!("{said}");
    Ok(())
}
