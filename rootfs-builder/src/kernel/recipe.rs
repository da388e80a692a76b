//! Building a tuned kernel: the recipe of `kernel/`, carried in the program, run as a script of its own.
//!
//! The script caches what it builds and cleans up after itself; here it is started, listened to, and told when to stop.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::store::Store;
use crate::watch::{Interrupted, Watch};
use crate::workdir::{Workdir, WorkdirError};

/// What can be built.
pub const SERIES: [&str; 2] = ["6.12", "6.1"];

/// The files of the recipe, by their names below `kernel/`.
const FILES: &[(&str, &str)] = &[
    ("build", include_str!("../../../kernel/build")),
    ("apt", include_str!("../../../kernel/apt")),
    ("config/acpi.config", include_str!("../../../kernel/config/acpi.config")),
    ("config/base.config", include_str!("../../../kernel/config/base.config")),
    ("config/containers.config", include_str!("../../../kernel/config/containers.config")),
    ("config/crypto.config", include_str!("../../../kernel/config/crypto.config")),
    ("config/fs.config", include_str!("../../../kernel/config/fs.config")),
    ("config/net.config", include_str!("../../../kernel/config/net.config")),
    ("config/netfilter.config", include_str!("../../../kernel/config/netfilter.config")),
    ("config/storage.config", include_str!("../../../kernel/config/storage.config")),
    ("config/virtio.config", include_str!("../../../kernel/config/virtio.config")),
    ("config/x86.config", include_str!("../../../kernel/config/x86.config")),
    ("config/6.1/base.config", include_str!("../../../kernel/config/6.1/base.config")),
    ("config/6.1/x86.config", include_str!("../../../kernel/config/6.1/x86.config")),
    ("config/6.12/base.config", include_str!("../../../kernel/config/6.12/base.config")),
    ("config/6.12/x86.config", include_str!("../../../kernel/config/6.12/x86.config")),
];

/// Between two looks whether it was interrupted.
const PATIENCE: Duration = Duration::from_millis(100);
/// Longest line that is passed on.
const MAX_LINE_BYTES: u64 = 4096;
/// The script's own code for what the person can mend.
const WRONG_INPUT: i32 = 2;

/// A kernel could not be built.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RecipeError {
    #[error("recipe {path}: writing it")]
    Write { path: PathBuf, source: io::Error },
    #[error("recipe: starting setpriv and bash (packages util-linux, bash)")]
    Start(#[source] io::Error),
    #[error("recipe: listening to it")]
    Listen(#[source] io::Error),
    /// Its own last words.
    #[error("{text}")]
    Failed { text: String, input: bool },
    #[error("recipe: it ended well but named no folder, only `{line}`")]
    Answer { line: String },
    #[error(transparent)]
    Workdir(#[from] WorkdirError),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl RecipeError {
    /// Something that the person can mend.
    pub fn is_input(&self) -> bool {
        matches!(self, Self::Failed { input: true, .. })
    }
}

/// Builds the tuned kernel of a series, or finds it in the cache; its folder ([`super::in_folder`]).
pub fn build(store: &Store, series: &str, watch: &Watch) -> Result<PathBuf, RecipeError> {
    let work = Workdir::enter(&store.kernels_dir(), &format!("recipe-{}", std::process::id()), watch)?;
    write_to(work.path())?;
    run(&work.path().join("build"), &["--series", series], watch)
}

fn write_to(folder: &Path) -> Result<(), RecipeError> {
    for (name, text) in FILES {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.and_then(|()| fs::write(&path, text)).map_err(|source| RecipeError::Write { path, source })?;
    }
    Ok(())
}

fn run(script: &Path, arguments: &[&str], watch: &Watch) -> Result<PathBuf, RecipeError> {
    // Should this program be killed outright, the script hears of it and removes what it made.
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "--", "bash"])
        .arg(script)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(RecipeError::Start)?;
    let heard = listen(&mut child, watch);
    if heard.is_err() {
        end(&mut child);
    }
    let (last_words, answer) = heard?;
    let status = child.wait().map_err(RecipeError::Listen)?;
    watch.check()?;
    if !status.success() {
        return Err(failure(status, &last_words));
    }
    let line = answer.lines().next_back().unwrap_or_default().to_owned();
    let folder = PathBuf::from(&line);
    if folder.is_absolute() && folder.is_dir() { Ok(folder) } else { Err(RecipeError::Answer { line }) }
}

/// Passes its progress on until it closes its outputs; its last line, and its answer.
fn listen(child: &mut Child, watch: &Watch) -> Result<(String, String), RecipeError> {
    let broken = || RecipeError::Listen(io::ErrorKind::BrokenPipe.into());
    let stderr = child.stderr.take().ok_or_else(broken)?;
    let mut stdout = child.stdout.take().ok_or_else(broken)?;
    let (sender, lines) = channel();
    // Ends when the script and all its children have closed their end, or nobody listens any more.
    std::thread::spawn(move || {
        let mut stderr = BufReader::new(stderr);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut stderr).take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut last = String::new();
    loop {
        watch.check()?;
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                watch.at(&line, 0, 0)?;
                last = line;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let mut answer = String::new();
    (&mut stdout).take(MAX_LINE_BYTES).read_to_string(&mut answer).map_err(RecipeError::Listen)?;
    Ok((last, answer))
}

/// Asks it to end and waits for it: it removes what it has made so far.
fn end(child: &mut Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Not reaped yet, so the number is its own. One that has ended needs no signal.
        let _ = kill_process(pid, Signal::TERM);
    }
    let _ = child.wait();
}

fn failure(status: ExitStatus, last_words: &str) -> RecipeError {
    let words = last_words.strip_prefix("error: ").unwrap_or(last_words).trim();
    let text = if words.is_empty() { format!("recipe: it ended with {status}") } else { words.to_owned() };
    RecipeError::Failed { text, input: status.code() == Some(WRONG_INPUT) }
}

#[cfg(test)]
mod tests;
