//! Building a tuned kernel: the recipe of `kernel/`, carried in the program, run as a script of its own.
//!
//! The script caches what it builds and cleans up after itself; here it is started, listened to, and told when to stop.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use crate::program::{self, ProgramError};
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
    let mut command = Command::new("bash");
    command.arg(script).args(arguments);
    let ended = program::run("bash", &command, watch).map_err(|error| match error {
        ProgramError::Start(error) => RecipeError::Start(error),
        ProgramError::Listen(error) => RecipeError::Listen(error),
        ProgramError::Interrupted(interrupted) => interrupted.into(),
    })?;
    if !ended.status.success() {
        return Err(failure(ended.status, &ended.last_words));
    }
    let line = ended.answer.lines().next_back().unwrap_or_default().to_owned();
    let folder = PathBuf::from(&line);
    if folder.is_absolute() && folder.is_dir() { Ok(folder) } else { Err(RecipeError::Answer { line }) }
}

fn failure(status: ExitStatus, last_words: &str) -> RecipeError {
    let words = last_words.strip_prefix("error: ").unwrap_or(last_words).trim();
    let text = if words.is_empty() { format!("recipe: it ended with {status}") } else { words.to_owned() };
    RecipeError::Failed { text, input: status.code() == Some(WRONG_INPUT) }
}

#[cfg(test)]
mod tests;
