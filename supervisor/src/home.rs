//! The state directory: where playgrounds lie, who may change one, and sockets whose paths would be too long.
//!
//! Only the owner can enter it (mode 0700). A playground is changed by whoever holds the flock on its `lock`; a folder is gone
//! the moment it is renamed, so that nobody meets half of one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use labyard_spec::manifest::check_name;
use rustix::fs::{FlockOperation, OFlags, flock};

/// Names in a playground's folder.
pub mod names {
    /// The manifest as given.
    pub const MANIFEST: &str = "manifest.yaml";
    /// [`crate::record::State`].
    pub const STATE: &str = "state.json";
    /// [`crate::plan::Plan`].
    pub const PLAN: &str = "plan.json";
    /// [`crate::tasks::Tasks`].
    pub const TASKS: &str = "tasks.json";
    /// One log for each init task.
    pub const TASK_LOGS: &str = "tasks";
    /// [`crate::journal`].
    pub const EVENTS: &str = "events.jsonl";
    /// In the state directory: the API of all labs ([`super::Home::bind`]).
    pub const SERVE_SOCKET: &str = "serve.sock";
    /// Held by who listens there.
    pub const SERVE_LOCK: &str = "serve.lock";
    /// Held by who changes the playground.
    pub const LOCK: &str = "lock";
    /// The supervisor's API.
    pub const SUPERVISOR_SOCKET: &str = "supervisor.sock";
    /// The vmm's control socket.
    pub const CONTROL_SOCKET: &str = "control.sock";
    /// What the supervisor says.
    pub const SUPERVISOR_LOG: &str = "supervisor.log";
    /// What the vmm says.
    pub const VMM_LOG: &str = "vmm.log";
    /// What the uplink says.
    pub const UPLINK_LOG: &str = "uplink.log";
    /// Where the uplink of a network hears tables of names.
    pub fn uplink_socket(network: &str) -> String {
        format!("uplink-{network}.sock")
    }
    /// What the vmm before said.
    pub const VMM_LOG_BEFORE: &str = "vmm.log.before";
    /// Written by the vmm when machines end.
    pub const LAST_WORDS: &str = "last-words.jsonl";
    /// What was saved of a lab that goes on later, whole ([`crate::saved`]).
    pub const SAVED: &str = "saved";
    /// The same while it is being written.
    pub const SAVED_DRAFT: &str = ".saved";
    /// One folder for each machine.
    pub const MACHINES: &str = "machines";
    /// In a machine's folder: what it printed.
    pub const CONSOLE_LOG: &str = "console.log";
    /// In a machine's folder: where in that each boot begins.
    pub const BOOTS: &str = "boots.jsonl";
    /// In a machine's folder: the archive with `/machine.json`.
    pub const MACHINE_ARCHIVE: &str = "machine.cpio";
}

/// Longest file of our own that is read whole.
const MAX_RECORD_BYTES: u64 = 16 << 20;
/// How often a lock that somebody holds is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// What goes wrong with the state directory.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HomeError {
    #[error("no state directory: set LABYARD_HOME, XDG_DATA_HOME or HOME")]
    Nowhere,
    #[error("{path}: {doing}")]
    File { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{path}: belongs to user {owner}, not to you ({you}); set LABYARD_HOME to a folder of your own")]
    Foreign { path: PathBuf, owner: u32, you: u32 },
    #[error(
        "{path}: others may write into it (mode {mode:o}), so nothing in it can be relied on; `chmod go-w {path}` ends that"
    )]
    Shared { path: PathBuf, mode: u32 },
    #[error("{path}: {bytes} bytes, more than this file can have")]
    Long { path: PathBuf, bytes: u64 },
    #[error("lab `{name}`: another command has been changing it for {seconds} s; wait for it or end it")]
    Busy { name: String, seconds: u64 },
    #[error("{path}: the other end is user {uid}, not you")]
    Peer { path: PathBuf, uid: u32 },
}

impl HomeError {
    /// A socket that nobody listens on.
    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::File { source, .. }
            if matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
    }
}

fn file_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_owned();
    move |source| HomeError::File { path, doing, source }
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Home {
    /// Where it is.
    pub path: PathBuf,
}

impl Home {
    /// `$LABYARD_HOME`, else `/var/lib/labyard` for root, else `$XDG_DATA_HOME/labyard`; made where it is missing.
    ///
    /// # Errors
    /// Where there is none, it cannot be made, it is somebody else's, or others may write into it.
    pub fn open() -> Result<Self, HomeError> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let path = match variable("LABYARD_HOME") {
            Some(path) => path,
            None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/labyard"),
            None => variable("XDG_DATA_HOME")
                .or_else(|| Some(variable("HOME")?.join(".local/share")))
                .ok_or(HomeError::Nowhere)?
                .join("labyard"),
        };
        let home = Self { path: std::path::absolute(&path).map_err(file_error(&path, "finding its full path"))? };
        make_folder(&home.playgrounds())?;
        let found = fs::metadata(&home.path).map_err(file_error(&home.path, "looking at it"))?;
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        let you = rustix::process::geteuid().as_raw();
        if owner != you {
            return Err(HomeError::Foreign { path: home.path, owner, you });
        }
        // A sticky one, too: what others put there has names of ours.
        if mode & 0o022 != 0 {
            return Err(HomeError::Shared { path: home.path, mode });
        }
        Ok(home)
    }

    fn playgrounds(&self) -> PathBuf {
        self.path.join("playgrounds")
    }

    /// The state directory as a folder of no lab.
    fn as_folder(&self) -> Folder {
        Folder { name: String::new(), path: self.path.clone() }
    }

    /// Makes a listening socket in it, in place of one that may be left over.
    ///
    /// # Errors
    /// What bind(2) says.
    pub fn bind(&self, name: &str) -> Result<UnixListener, HomeError> {
        self.as_folder().bind(name)
    }

    /// Takes a lock in it for as long as what comes back lives; `None` where somebody has it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn try_lock(&self, name: &str) -> Result<Option<File>, HomeError> {
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(file_error(&path, "opening"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(file_error(&path, "locking")(error.into())),
        }
    }

    /// The folder of a playground, which may not exist.
    pub fn folder(&self, name: &str) -> Folder {
        Folder { name: name.to_owned(), path: self.playgrounds().join(name) }
    }

    /// Every playground that has a folder, by name. What else lies there is nobody's (`lost+found` of a disk that is mounted there).
    ///
    /// # Errors
    /// What readdir says.
    pub fn folders(&self) -> Result<Vec<Folder>, HomeError> {
        let path = self.playgrounds();
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(file_error(&path, "listing playgrounds"))? {
            let entry = entry.map_err(file_error(&path, "listing playgrounds"))?;
            match entry.file_name().into_string() {
                Ok(name) if check_name(&name).is_ok() && entry.path().is_dir() => names.push(name),
                _ => {}
            }
        }
        names.sort();
        Ok(names.iter().map(|name| self.folder(name)).collect())
    }

    /// Finishes removals that were interrupted.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.playgrounds()) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(GONE) {
                // Somebody else may be doing the same.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// First letters of folders that are being removed.
const GONE: &str = ".gone-";

/// Makes a folder and its parents for the owner alone.
///
/// # Errors
/// What mkdir(2) says.
pub fn make_folder(path: &Path) -> Result<(), HomeError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(file_error(path, "making the folder"))
}

/// Opens a file for appending, mode 0600.
///
/// # Errors
/// What open(2) says.
pub fn append_to(path: &Path) -> Result<File, HomeError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(file_error(path, "opening for appending"))
}

/// A playground's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The playground's name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// The right to change a playground, until dropped.
#[derive(Debug)]
pub struct Lock {
    #[expect(dead_code, reason = "the flock ends when the file closes")]
    file: File,
}

impl Folder {
    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A machine's folder.
    pub fn machine(&self, machine: &str) -> PathBuf {
        self.path.join(names::MACHINES).join(machine)
    }

    /// Where the output of an init task is kept. A task's name may be any text: what could be a path is spelled out.
    pub fn task_log(&self, task: &str) -> PathBuf {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let name: String =
            task.chars().map(|c| if plain(c) { c.to_string() } else { format!("%{:x}", u32::from(c)) }).collect();
        self.path.join(names::TASK_LOGS).join(format!("{name}.log"))
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Takes the right to change it; `create` makes a folder that is missing. `None` where there is no folder to lock.
    ///
    /// # Errors
    /// [`HomeError::Busy`] where somebody holds it longer than `patience`.
    pub fn lock(&self, create: bool, patience: Duration) -> Result<Option<Lock>, HomeError> {
        let until = Instant::now() + patience;
        let path = self.file(names::LOCK);
        loop {
            if create {
                make_folder(&self.path)?;
            }
            let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !create => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(file_error(&path, "opening"))?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    // The folder may have been removed, or made anew, between the two calls.
                    let inode = |meta: io::Result<fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
                    if inode(file.metadata()) == inode(fs::metadata(&path)) {
                        return Ok(Some(Lock { file }));
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(HomeError::Busy { name: self.name.clone(), seconds: patience.as_secs() });
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(file_error(&path, "locking")(error.into())),
            }
        }
    }

    /// Writes a file by rename.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
        let path = self.file(name);
        let draft = self.file(&format!(".{name}.{}", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(bytes)?;
            // A state that is older than what it describes would be wrong after a power cut.
            file.sync_data()?;
            fs::rename(&draft, &path)
        };
        write().map_err(file_error(&path, "writing"))
    }

    /// Reads a file of ours; `None` where it is missing.
    ///
    /// # Errors
    /// What the file system says, or that it is too long to be ours.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, HomeError> {
        let path = self.file(name);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(&path, "reading")(error)),
            Ok(meta) if meta.len() > MAX_RECORD_BYTES => return Err(HomeError::Long { path, bytes: meta.len() }),
            Ok(_) => {}
        }
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(file_error(&path, "reading")),
        }
    }

    /// Removes it with all that is in it. One that is missing is no error.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self) -> Result<(), HomeError> {
        let gone = self.path.with_file_name(format!("{GONE}{}-{}", self.name, std::process::id()));
        match fs::rename(&self.path, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(file_error(&self.path, "removing"))?,
        }
        fs::remove_dir_all(&gone).map_err(file_error(&gone, "removing"))
    }

    /// Calls `act` with a path to `name` that is short whatever the folder's path is: a socket's ends at 108 bytes (unix(7)).
    fn by_short_path<T>(&self, name: &str, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty())?;
        act(Path::new(&format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())))
    }

    /// Makes a listening socket in it, in place of one that may be left over.
    ///
    /// # Errors
    /// What bind(2) says.
    pub fn bind(&self, name: &str) -> Result<UnixListener, HomeError> {
        let bind = |path: &Path| {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            Ok(listener)
        };
        self.by_short_path(name, bind).map_err(file_error(&self.file(name), "making the socket"))
    }

    /// Connects to a socket in it, and makes sure that the other end is the same user.
    ///
    /// # Errors
    /// What connect(2) says, or [`HomeError::Peer`].
    pub fn connect(&self, name: &str) -> Result<UnixStream, HomeError> {
        let path = self.file(name);
        let stream =
            self.by_short_path(name, |path| UnixStream::connect(path)).map_err(file_error(&path, "connecting"))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)
            .map_err(|error| file_error(&path, "asking who is there")(error.into()))?;
        if peer.uid != rustix::process::geteuid() {
            return Err(HomeError::Peer { path, uid: peer.uid.as_raw() });
        }
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(below: &Path, name: &str) -> Folder {
        Folder { name: name.to_owned(), path: below.join(name) }
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = folder(home.path(), "lab");
        assert!(folder.lock(false, Duration::ZERO).expect("locking").is_none(), "there is nothing to lock");
        let lock = folder.lock(true, Duration::ZERO).expect("locking");
        assert!(matches!(folder.lock(true, Duration::ZERO), Err(HomeError::Busy { .. })));
        drop(lock);
        assert!(folder.lock(false, Duration::ZERO).expect("locking").is_some());
    }

    #[test]
    fn a_socket_is_made_and_found_below_a_path_that_is_too_long_for_one() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = folder(&home.path().join("x".repeat(150)), "lab");
        make_folder(&folder.path).expect("a folder");
        let _first = folder.bind("a.sock").expect("binding");
        let listener = folder.bind("a.sock").expect("binding over one that is left");
        folder.connect("a.sock").expect("connecting");
        listener.accept().expect("a connection");
    }

    #[test]
    fn what_is_no_playground_among_playgrounds_is_passed_over() {
        let place = tempfile::tempdir().expect("a folder");
        let home = Home { path: place.path().to_owned() };
        for name in ["lab", "lost+found", ".gone-1"] {
            make_folder(&home.folder(name).path).expect("a folder");
        }
        fs::write(home.folder("notes").path, "").expect("a file");
        assert_eq!(home.folders().expect("listing"), [home.folder("lab")]);
    }

    #[test]
    fn a_folder_is_removed_whole_and_twice() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = folder(home.path(), "lab");
        make_folder(&folder.machine("web")).expect("a folder");
        folder.write("state.json", b"{}").expect("writing");
        assert_eq!(folder.read("state.json").expect("reading").as_deref(), Some(b"{}".as_slice()));
        folder.remove().expect("removing");
        folder.remove().expect("removing what is gone");
        assert_eq!(fs::read_dir(home.path()).expect("listing").count(), 0);
        assert_eq!(folder.read("state.json").expect("reading"), None);
    }
}
