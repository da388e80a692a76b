//! `rootfs-builder`, called as a process: it reads what strangers wrote, so none of its code is linked here.

use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use labyard_sys::spawn;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::words::printable;

/// Most output that is kept.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// Most of a line of progress, and of its last words, that is passed on.
const MAX_LINE_BYTES: usize = 16 << 10;

/// How long it may take to remove what is half done once it is told to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why it did not do as told.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BuilderError {
    #[error("starting {program}")]
    Start { program: PathBuf, source: std::io::Error },
    #[error("reading what rootfs-builder says")]
    Read(#[source] std::io::Error),
    /// Its own words, and whether the input is to blame.
    #[error("{text}")]
    Refused { text: String, input: bool },
    #[error("rootfs-builder did not answer as it should: `{line}`")]
    Answer { line: String, source: serde_json::Error },
    #[error("interrupted")]
    Interrupted,
}

/// What `build --json` answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Built {
    /// Key of the image in the store.
    pub key: String,
    /// Its disk.
    pub path: PathBuf,
    /// It had been built before.
    pub cached: bool,
}

/// What `kernel add --json` and `kernel build --json` answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedKernel {
    /// The kernel's id.
    pub id: String,
    /// Its folder in the store.
    pub path: PathBuf,
    /// It was there before.
    pub cached: bool,
}

/// What `export --json` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Key of the image.
    pub key: String,
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// What `push --json` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushed {
    /// Where it is now.
    pub image: String,
    /// Digest of its manifest.
    pub digest: String,
    /// How many blobs it has.
    pub blobs: usize,
    /// How many of them were sent.
    pub sent: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How many another repository of the registry had.
    pub mounted: usize,
}

/// What `verify --json` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Everything that was looked at.
    pub objects: Vec<Finding>,
    /// How many of them have a fault.
    pub damaged: usize,
}

/// An image or a blob, and how it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `image` or `blob`.
    pub kind: String,
    /// Its key or its digest.
    pub name: String,
    /// Bytes that it has.
    pub bytes: u64,
    /// What is wrong with it, and the way out.
    pub fault: Option<String>,
    /// There was nothing to hold it against.
    pub unchecked: bool,
    /// It was damaged, and is gone.
    pub removed: bool,
}

/// What `bake --json` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baked {
    /// The layout.
    pub path: PathBuf,
    /// Digest of its manifest.
    pub digest: String,
    /// Files, folders, links and nodes in it.
    pub entries: u64,
    /// Bytes of its layer.
    pub bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Initramfs {
    path: PathBuf,
}

/// The program and the store that it writes to.
#[derive(Debug, Clone)]
pub struct Builder {
    /// `rootfs-builder`.
    pub program: PathBuf,
    /// The state directory.
    pub home: PathBuf,
}

impl Builder {
    /// Builds an image as a disk of this format, or finds it in the store. `progress` gets each line that it says meanwhile.
    ///
    /// # Errors
    /// What it says itself, or that `cancelled` came first.
    pub async fn build(
        &self,
        source: &str,
        size_bytes: u64,
        format: &str,
        progress: impl FnMut(&str),
        cancelled: impl Future<Output = ()>,
    ) -> Result<Built, BuilderError> {
        let size = labyard_spec::manifest::size::show(size_bytes);
        self.ask(&["build", source, "--size", &size, "--format", format], progress, cancelled).await
    }

    /// The initramfs of a kernel with this `labyard-init`; made when first asked for.
    ///
    /// # Errors
    /// What it says itself, or that `cancelled` came first.
    pub async fn initramfs(
        &self,
        kernel: &str,
        init: &Path,
        progress: impl FnMut(&str),
        cancelled: impl Future<Output = ()>,
    ) -> Result<PathBuf, BuilderError> {
        let init = init.to_string_lossy();
        let answer: Initramfs =
            self.ask(&["initramfs", "--kernel", kernel, "--init", &init], progress, cancelled).await?;
        Ok(answer.path)
    }

    /// Adds a kernel, or builds one first: `arguments` are those of `rootfs-builder kernel`.
    ///
    /// # Errors
    /// What it says itself, or that `cancelled` came first.
    pub async fn kernel(
        &self,
        arguments: &[&str],
        progress: impl FnMut(&str),
        cancelled: impl Future<Output = ()>,
    ) -> Result<AddedKernel, BuilderError> {
        self.ask(&[&["kernel"], arguments].concat(), progress, cancelled).await
    }

    /// Writes an image to a file, puts a file into the store, or holds the store against its digests: `arguments` are those of
    /// `rootfs-builder export`, `import`, `push` or `verify`.
    ///
    /// # Errors
    /// What it says itself, or that `cancelled` came first. What `verify` finds is an answer.
    pub async fn images<T: for<'de> Deserialize<'de>>(
        &self,
        arguments: &[&str],
        progress: impl FnMut(&str),
        cancelled: impl Future<Output = ()>,
    ) -> Result<T, BuilderError> {
        self.ask(arguments, progress, cancelled).await
    }

    /// Makes an image of a tar that comes through `tar`: `arguments` are those of `rootfs-builder bake`.
    ///
    /// # Errors
    /// What it says itself, or that `cancelled` came first.
    pub async fn bake(
        &self,
        arguments: &[&str],
        tar: PipeReader,
        progress: impl FnMut(&str),
        cancelled: impl Future<Output = ()>,
    ) -> Result<Baked, BuilderError> {
        self.ask_of(&[&["bake"], arguments].concat(), tar.into(), progress, cancelled).await
    }

    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        arguments: &[&str],
        progress: impl FnMut(&str),
        cancelled: impl Future<Output = ()>,
    ) -> Result<T, BuilderError> {
        self.ask_of(arguments, Stdio::null(), progress, cancelled).await
    }

    async fn ask_of<T: for<'de> Deserialize<'de>>(
        &self,
        arguments: &[&str],
        stdin: Stdio,
        mut progress: impl FnMut(&str),
        cancelled: impl Future<Output = ()>,
    ) -> Result<T, BuilderError> {
        let mut command = std::process::Command::new(&self.program);
        command.args(arguments).arg("--store").arg(&self.home).arg("--json");
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Nobody could find it again once this command has been killed.
        spawn::dies_with_parent(&mut command);
        let mut command = tokio::process::Command::from(command);
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| BuilderError::Start { program: self.program.clone(), source })?;
        // With it goes our end of what it reads: who feeds it is to notice that it has gone.
        drop(command);
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(BuilderError::Read(std::io::ErrorKind::BrokenPipe.into()));
        };
        let mut last_words = String::new();
        let listen = async {
            let mut answer = Vec::new();
            let mut lines = BufReader::new(stderr);
            let mut stdout = stdout.take(MAX_OUTPUT_BYTES);
            let told = async {
                while let Some(line) = line(&mut lines).await? {
                    progress(&line);
                    last_words = line;
                }
                Ok::<_, std::io::Error>(())
            };
            let (told, read) = tokio::join!(told, stdout.read_to_end(&mut answer));
            told.and(read).map_err(BuilderError::Read)?;
            let status = child.wait().await.map_err(BuilderError::Read)?;
            Ok::<_, BuilderError>((status, answer))
        };
        let heard = tokio::select! {
            heard = listen => heard,
            () = cancelled => Err(BuilderError::Interrupted),
        };
        if heard.is_err() {
            end(&mut child).await;
        }
        let (status, answer) = heard?;
        let answer = String::from_utf8_lossy(&answer);
        // One that answers has done its work, whatever it found.
        if !status.success() && (status.code() != Some(1) || answer.trim().is_empty()) {
            return Err(refusal(status, &last_words));
        }
        let line = answer.trim_end().lines().next_back().unwrap_or_default();
        serde_json::from_str(line).map_err(|source| BuilderError::Answer { line: line.to_owned(), source })
    }
}

/// The next line, without its end and not longer than it may be; it reads what strangers wrote, and may say it.
async fn line(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut began = false;
    loop {
        let there = from.fill_buf().await?;
        if there.is_empty() && !began {
            return Ok(None);
        }
        began = true;
        let end = there.iter().position(|byte| *byte == b'\n');
        let part = there.get(..end.unwrap_or(there.len())).unwrap_or_default();
        let room = MAX_LINE_BYTES.saturating_sub(line.len());
        line.extend_from_slice(part.get(..room).unwrap_or(part));
        let (used, is_last) = (end.map_or(part.len(), |end| end + 1), end.is_some() || there.is_empty());
        from.consume(used);
        if is_last {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

/// Asks it to end, so that it removes what is half done; one that does not listen is killed when it is dropped.
async fn end(child: &mut tokio::process::Child) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // Not reaped yet, so the number is its own. One that has just ended needs no signal.
        let _ = kill_process(pid, Signal::TERM);
        let _ = tokio::time::timeout(PATIENCE, child.wait()).await;
    }
}

fn refusal(status: ExitStatus, last_words: &str) -> BuilderError {
    let words = last_words.strip_prefix("error: ").unwrap_or(last_words).trim();
    let text = if words.is_empty() { format!("rootfs-builder ended with {status}") } else { printable(words) };
    BuilderError::Refused { text, input: status.code() == Some(2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_without_end_takes_no_more_than_a_line_may() {
        let text = [b"one\n\ntwo \xff\n".to_vec(), vec![b'x'; 1 << 20], b"\nlast".to_vec()].concat();
        // Pieces as a pipe gives them.
        let mut from = BufReader::with_capacity(1000, text.as_slice());
        let mut lines = Vec::new();
        while let Some(line) = line(&mut from).await.expect("reading") {
            lines.push(line);
        }
        assert_eq!(lines.len(), 5);
        assert_eq!((&*lines[0], &*lines[1], &*lines[2], &*lines[4]), ("one", "", "two \u{fffd}", "last"));
        assert_eq!(lines[3].len(), MAX_LINE_BYTES);
    }
}
