//! The host that the tests run on: our programs, and what they may leave behind, which is nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::process::{self, Pid, PidfdFlags, PidfdGetfdFlags};

/// Longest run of one command; emulation is slow, so it is long.
const COMMAND_DEADLINE: Duration = Duration::from_secs(600);
/// More than any process of a test has.
const MOST_DESCRIPTORS: i32 = 4096;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A variable that `tests/run-guests` sets.
pub(crate) fn given(name: &str) -> Result<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set: run tests/run-guests"))
}

/// `labyard` with these arguments.
pub(crate) fn labyard(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(given("LABYARD_LIBEXEC")?.join("labyard"));
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// Whether the tests are root's. Others are given by root what only root can make ([`crate::rootless`]).
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Its exit code; 128 and the signal's number where it was killed.
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Said {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails with everything that was said unless the code is `code`.
    pub(crate) fn expect(self, code: i32) -> Result<Self> {
        ensure!(self.code == code, "exit code {}, not {code}\n{}\n{}", self.code, self.text(), self.stderr);
        Ok(self)
    }
}

/// Runs a command to its end, with `input` on its standard input.
pub(crate) fn run_with(mut command: Command, input: &[u8]) -> Result<Said> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    let (input, id) = (input.to_vec(), child.id());
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input); // a program may end before it has read all
    });
    let (ended, over) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if over.recv_timeout(COMMAND_DEADLINE).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = signal(id, "KILL");
        }
    });
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    drop(ended);
    let _ = (guard.join(), writer.join());
    let code = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    let code = status.code().or(code).unwrap_or(-1);
    Ok(Said { code, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
}

/// Runs `labyard` to its end.
pub(crate) fn run(arguments: &[&str]) -> Result<Said> {
    run_with(labyard(arguments)?, &[]).with_context(|| format!("labyard {}", arguments.join(" ")))
}

/// Copies of all descriptors that a process has, and what each is. A vmm's are root's to look at in `/proc`, and its owner's to have: the user
/// namespace that it is in is theirs (ptrace(2), pidfd_getfd(2)).
pub(crate) fn descriptors(id: u32) -> Result<Vec<(PathBuf, OwnedFd)>> {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw).with_context(|| format!("process {id}"))?;
    let process = process::pidfd_open(id, PidfdFlags::empty()).with_context(|| format!("process {id}"))?;
    let mut found = Vec::new();
    for number in 0..MOST_DESCRIPTORS {
        match process::pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(copy) => found.push((fs::read_link(format!("/proc/self/fd/{}", copy.as_raw_fd()))?, copy)),
            Err(Errno::BADF) => {}
            Err(error) => bail!("descriptor {number} of process {id}: {error}"),
        }
    }
    Ok(found)
}

/// Sends a signal to one process by its id.
pub(crate) fn signal(id: u32, name: &str) -> Result<()> {
    let sent = Command::new("kill").args([&format!("-{name}"), &id.to_string()]).stderr(Stdio::null()).status()?;
    ensure!(sent.success(), "kill -{name} {id}: {sent}");
    Ok(())
}

/// Waits until `look` finds something; fails with what `seen` tells when the deadline passes.
pub(crate) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
    seen: impl FnOnce() -> String,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > deadline {
            bail!("{what}: not within {} s; seen:\n{}", deadline.as_secs(), seen());
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits for the end of a child that was killed or told to end.
pub(crate) fn reap(child: &mut Child) -> Result<()> {
    let id = child.id();
    wait_for("end of a child", Duration::from_secs(60), || Ok(child.try_wait()?), || format!("process {id}"))
        .map(|_| ())
}

/// How many huge pages of 2 MiB the host has set aside.
pub(crate) const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
/// Whether memory of memfds is in transparent huge pages.
pub(crate) const SHMEM_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// A file of the kernel's settings, with what it held before.
pub(crate) struct Setting {
    path: &'static str,
    before: String,
    mode: Option<u32>,
}

impl Setting {
    /// Changes it; it is as before once this is dropped.
    pub(crate) fn set(path: &'static str, value: &str) -> Result<Self> {
        let kept = Self::kept(path)?;
        fs::write(path, value).with_context(|| format!("{path}: {value}"))?;
        Ok(kept)
    }

    /// Lets everybody change it; value and mode are as before once this is dropped.
    pub(crate) fn open(path: &'static str) -> Result<Self> {
        let mut kept = Self::kept(path)?;
        let mut permissions = fs::metadata(path)?.permissions();
        kept.mode = Some(permissions.mode());
        permissions.set_mode(0o666);
        fs::set_permissions(path, permissions).with_context(|| path.to_owned())?;
        Ok(kept)
    }

    fn kept(path: &'static str) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
        // Of a choice the word in brackets holds.
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
        let before = chosen.unwrap_or(text.trim()).to_owned();
        Ok(Self { path, before, mode: None })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let closed = self.mode.map_or(Ok(()), |mode| fs::set_permissions(self.path, fs::Permissions::from_mode(mode)));
        if let Err(error) = fs::write(self.path, &self.before).and(closed) {
            eprintln!("{}: {error}", self.path);
        }
    }
}

/// What a lab could leave behind on this host.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traces {
    /// Command lines of our processes.
    processes: BTreeSet<String>,
    /// Mounts of this namespace.
    mounts: usize,
    /// Namespaces that some process is in.
    namespaces: BTreeSet<PathBuf>,
    /// Control groups of ours.
    groups: BTreeSet<PathBuf>,
    /// Unix sockets with a name in the state directory.
    sockets: BTreeSet<String>,
    /// What is below `playgrounds/`.
    playgrounds: BTreeSet<PathBuf>,
    /// What is in /tmp and /dev/shm.
    temporary: BTreeSet<PathBuf>,
}

impl Traces {
    /// As it is now.
    pub(crate) fn now() -> Result<Self> {
        let home = given("LABYARD_HOME")?;
        let (mut processes, mut namespaces) = (BTreeSet::new(), BTreeSet::new());
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // An orphan that has ended is PID 1's to reap, and not every PID 1 of a test host does.
            if is_reapable_by_init(&entry.path()) {
                continue;
            }
            // A process may end while we look at it: what cannot be read is gone.
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if id != std::process::id() && (line.contains("labyard") || line.contains("rootfs-builder")) {
                processes.insert(format!("{id} {line}"));
            }
            for namespace in fs::read_dir(entry.path().join("ns")).into_iter().flatten().flatten() {
                namespaces.extend(fs::read_link(namespace.path()));
            }
        }
        let unix = fs::read_to_string("/proc/net/unix")?;
        let home_text = home.to_string_lossy().into_owned();
        let named = unix.lines().filter(|line| line.contains(&home_text) || line.contains("labyard"));
        Ok(Self {
            processes,
            mounts: fs::read_to_string("/proc/self/mounts")?.lines().count(),
            namespaces,
            groups: groups(Path::new("/sys/fs/cgroup"), 6),
            sockets: named.map(str::to_owned).collect(),
            playgrounds: names(&home.join("playgrounds")),
            temporary: names(Path::new("/tmp")).into_iter().chain(names(Path::new("/dev/shm"))).collect(),
        })
    }

    /// Waits until everything is as it was: a process that has ended is there until its parent has heard of it.
    pub(crate) fn wait_until_back(&self) -> Result<()> {
        let back = || Ok((Self::now()? == *self).then_some(()));
        let seen = || format!("before: {self:#?}\nnow: {:#?}", Self::now());
        wait_for("nothing left behind", Duration::from_secs(30), back, seen)
    }
}

/// Whether a process has ended and its parent is PID 1 (proc_pid_stat(5): state and parent follow the name in parentheses).
fn is_reapable_by_init(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z 1 "))
}

/// Control groups that are named after us, so many folders deep.
fn groups(below: &Path, depth: u32) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for path in names(below).into_iter().filter(|path| depth > 0 && !path.is_symlink() && path.is_dir()) {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("labyard-")) {
            found.insert(path);
        } else {
            found.extend(groups(&path, depth - 1));
        }
    }
    found
}

fn names(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
