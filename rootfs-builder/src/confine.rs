//! A process that can only read its input and write its output: what it becomes before it reads what a stranger wrote.
//!
//! Privileges that exec could give, capabilities, files beside those that are named, sockets, programs and what else no reader needs are
//! given up for good. It is done twice where a registry is asked: before, when TCP, names and certificates are still needed, and
//! before layers are read.
//!
//! Only for a process of one thread: another would keep what it has, and memory is shared.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use labyard_sys::confine::{self, Kept};
use labyard_sys::filter::{self, Leave};
use labyard_sys::landlock::{self, Access, Beside, Landlock};
use rustix::fs::{Access as May, AtFlags, CWD, accessat};
use serde::Serialize;

/// How long a thread that has ended may still be counted.
const ENDING: Duration = Duration::from_secs(2);
/// Most names of a source that are looked at for whether they can be read.
const MAX_LOOKED_AT: usize = 100_000;

/// What TLS reads: certificates as rustls-native-certs looks for them; and how many threads there are, for the second time.
const NETWORK: &[&str] = &[
    "/proc/self/task",
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust",
    "/var/lib/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
];

/// What a process needs.
#[derive(Debug, Default, Clone)]
pub struct Needs {
    /// Files and folders that are read.
    pub reads: Vec<PathBuf>,
    /// Folders that are written to.
    pub writes: Vec<PathBuf>,
    /// Folders that are read, and of which damaged files are removed.
    pub removes: Vec<PathBuf>,
    /// A registry is spoken to.
    pub network: bool,
}

impl Needs {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.reads.iter().chain(&self.writes).chain(&self.removes)
    }
}

/// What holds now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confined {
    /// The version of Landlock that holds; `None` where the kernel has none that can do it, or none for the files that are named.
    pub landlock: Option<u32>,
    /// Capabilities that were kept, because root was to read or write what belongs to somebody else.
    pub capabilities: Vec<&'static str>,
}

/// Gives up everything else, for good.
///
/// # Errors
/// The step that failed, and that there are more threads.
pub fn enter(needs: &Needs) -> io::Result<Confined> {
    let step = |name: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{name}: {error}"));
    alone().map_err(step("threads"))?;
    confine::no_new_privileges().map_err(step("no_new_privs"))?;
    // Before: who has no capabilities may not know what he could have opened with them.
    let kept = capabilities(needs).map_err(step("capabilities"))?;
    let mut paths: Vec<(&Path, Access)> = Vec::new();
    paths.extend(needs.reads.iter().map(|path| (path.as_path(), Access::Read)));
    paths.extend(needs.removes.iter().map(|path| (path.as_path(), Access::Remove)));
    paths.extend(needs.writes.iter().map(|path| (path.as_path(), Access::Write)));
    // Where the contents of an archive go that is only looked at.
    paths.push((Path::new("/dev/null"), Access::Change));
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(|name| std::env::var_os(name).map(PathBuf::from));
    if needs.network {
        paths.extend(landlock::LOOKUP.iter().chain(NETWORK).map(|path| (Path::new(path), Access::Read)));
        paths.extend(named.iter().flatten().map(|path| (path.as_path(), Access::Read)));
    }
    let landlock = if !needs.paths().all(|path| landlock::can_name(path)) {
        None
    } else {
        let beside = Beside { connects: needs.network, ..Beside::default() };
        match landlock::allow_only(&paths, beside).map_err(step("Landlock"))? {
            Landlock::Abi(abi) => Some(abi),
            Landlock::Missing => None,
        }
    };
    filter::forbid(if needs.network { Leave::Network } else { Leave::Nothing }).map_err(step("filter"))?;
    let name = |kept: &Kept| match kept {
        Kept::ReadSearch => "CAP_DAC_READ_SEARCH",
        Kept::Override => "CAP_DAC_OVERRIDE",
        Kept::Network | Kept::Kill | Kept::LowPorts => unreachable!("the builder keeps none of these"),
    };
    Ok(Confined { landlock, capabilities: kept.iter().map(name).collect() })
}

/// A thread that was joined is counted until the kernel has put it away.
fn alone() -> io::Result<()> {
    let since = Instant::now();
    loop {
        match confine::threads()? {
            1 => return Ok(()),
            _ if since.elapsed() < ENDING => std::thread::yield_now(),
            more => return Err(io::Error::other(format!("{more} of them, where only one can be confined"))),
        }
    }
}

/// Gives up all but those without which root could not open what is named: files of another user, for which Landlock still holds.
fn capabilities(needs: &Needs) -> io::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    if confine::is_root() {
        confine::lower_capabilities()?;
        let mut left = MAX_LOOKED_AT;
        if !needs.writes.iter().chain(&needs.removes).all(|path| may(path, May::READ_OK | May::WRITE_OK | May::EXEC_OK))
        {
            kept.push(Kept::Override);
        } else if !needs.reads.iter().all(|path| is_readable(path, &mut left)) {
            kept.push(Kept::ReadSearch);
        }
    }
    confine::drop_capabilities_but(&kept)?;
    Ok(kept)
}

/// What is not there needs no right.
fn may(path: &Path, how: May) -> bool {
    !matches!(accessat(CWD, path, how, AtFlags::EACCESS), Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM))
}

/// Whether this and what is below can be read as a user.
fn is_readable(path: &Path, left: &mut usize) -> bool {
    *left = left.saturating_sub(1);
    if *left == 0 || !may(path, May::READ_OK) {
        return false;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
        return true;
    }
    match std::fs::read_dir(path) {
        Ok(entries) => may(path, May::EXEC_OK) && entries.flatten().all(|entry| is_readable(&entry.path(), left)),
        Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
    }
}
