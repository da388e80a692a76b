//! Tries to get out of a supervisor that has confined itself: `confined-supervisor FOLDER WAY` does what the supervisor of the lab in FOLDER does before
//! it hears anybody, tries one way, and says what became of it. Without a way it names all.

use std::fs::{self, File};
use std::path::Path;
use std::{env, io};

use labyard_supervisor::confine;
use labyard_supervisor::home::Folder;
use labyard_sys::attempts;

/// What a supervisor itself could try: a way, and how.
type Way = (&'static str, fn(&Folder) -> io::Result<()>);

const WAYS: &[Way] = &[
    ("files=write to the lab's folder", |lab| fs::write(lab.file("state.json"), "{}")),
    ("files=a socket in the lab's folder", |lab| {
        std::os::unix::net::UnixListener::bind(lab.file("own.sock")).map(drop)
    }),
    ("files=a link in the lab's folder", |lab| std::os::unix::fs::symlink("/etc/passwd", lab.file("link"))),
    ("files=remove the lab", |lab| lab.remove().map_err(io::Error::other)),
    ("files=read another lab", |lab| fs::read(lab.path.with_file_name("other").join("state.json")).map(drop)),
    ("files=remove another lab", |lab| fs::remove_dir_all(lab.path.with_file_name("other"))),
    ("files=read an image", |lab| fs::read(store(lab).join("images/disk")).map(drop)),
    ("files=write to an image", |lab| File::options().write(true).open(store(lab).join("images/disk")).map(drop)),
    ("files=read what a registry gave", |lab| fs::read(store(lab).join("blobs/blob")).map(drop)),
    ("sockets=listen to TCP", |_| std::net::TcpListener::bind("127.0.0.1:0").map(drop)),
    ("processes=another process", |_| std::process::Command::new("/bin/true").spawn().map(drop)),
    ("processes=a thread", |_| std::thread::Builder::new().spawn(|| ()).map(drop)),
];

fn store(lab: &Folder) -> &Path {
    lab.path.ancestors().nth(2).unwrap_or(&lab.path)
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, way] = arguments.as_slice() else {
        WAYS.iter().for_each(|(name, _)| println!("{name}"));
        attempts::confined().for_each(|attempt| println!("{}={}", attempt.group, attempt.what));
        return Ok(());
    };
    let lab = Folder { name: "lab".to_owned(), path: folder.into() };
    confine::enter(&lab)?;
    let said = match WAYS.iter().find(|(name, _)| name == way) {
        Some((_, run)) => attempts::outcome(run(&lab)),
        None => attempts::tried(way)?,
    };
    println!("{said}");
    Ok(())
}
