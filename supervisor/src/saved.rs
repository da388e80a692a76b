//! Labs that were saved: what `save` leaves in a playground's folder and `restore` takes (`docs/formats.md`, "Saved machines").
//!
//! ```text
//!   .saved/   being written, means nothing        saved/   whole and durable: its vmm is killed, nothing moves any more
//! ```
//!
//! Memory belongs to the drives as they were at that moment. So a vmm that lives beside what was saved goes on and what was saved
//! is thrown away first: after a restore, and after a save whose supervisor was killed before it had ended the vmm.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use labyard_spec::control::{MAX_DESCRIPTORS, Request, SavedFiles};
use labyard_spec::playground::Slot;
use serde::{Deserialize, Serialize};

use crate::control::{Control, ControlError};
use crate::home::{Folder, HomeError, make_folder, names};

/// How long it may take to write or read the memory of all machines.
pub const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// Name of the file with the state of all machines.
const STATE: &str = "state";
/// Bytes of a file's block (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// Why nothing was saved.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SaveError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("{path}: {doing}")]
    File { path: std::path::PathBuf, doing: &'static str, source: io::Error },
    #[error(transparent)]
    Control(#[from] ControlError),
}

fn file_error(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> SaveError {
    let path = path.to_owned();
    move |source| SaveError::File { path, doing, source }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Memory of all machines.
    pub memory_bytes: u64,
    /// What the files take on the host's disk.
    pub disk_bytes: u64,
}

/// Whether something was saved that can go on.
pub fn is_there(folder: &Folder) -> bool {
    folder.file(names::SAVED).exists()
}

/// Name of the file with a machine's memory.
fn memory_name(machine: &str) -> String {
    format!("{machine}.memory")
}

/// Pauses all machines and writes them, durably. They are left paused: the caller ends them, or throws what was saved away.
///
/// # Errors
/// What the vmm or the file system says; nothing was saved then, and those that ran run on.
pub fn save(folder: &Folder, machines: &[String]) -> Result<Written, SaveError> {
    let draft = folder.file(names::SAVED_DRAFT);
    discard(&draft)?;
    make_folder(&draft)?;
    let written = write(folder, &draft, machines);
    if written.is_err() {
        // What is half written helps nobody; the reason is what counts.
        let _ = fs::remove_dir_all(&draft);
    }
    written
}

fn write(folder: &Folder, draft: &Path, machines: &[String]) -> Result<Written, SaveError> {
    let make = |name: &str| {
        let path = draft.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        file.map_err(file_error(&path, "making"))
    };
    let mut files = vec![make(STATE)?];
    for machine in machines {
        files.push(make(&memory_name(machine))?);
    }
    let control = Control::connect(folder)?;
    let slots = hand_over(&control, 0, &files)?;
    control.patience(Some(PATIENCE))?;
    control.tell(&Request::Save(slots), &[])?;
    let complete = || -> io::Result<Written> {
        let mut written = Written { memory_bytes: 0, disk_bytes: 0 };
        for (number, file) in files.iter().enumerate() {
            let meta = file.metadata()?;
            written.memory_bytes += if number > 0 { meta.len() } else { 0 };
            written.disk_bytes += meta.blocks() * BLOCK_BYTES;
            file.sync_all()?;
        }
        File::open(draft)?.sync_all()?;
        fs::rename(draft, folder.file(names::SAVED))?;
        File::open(&folder.path)?.sync_all()?;
        Ok(written)
    };
    let written = complete().map_err(file_error(draft, "making what was saved durable"));
    if written.is_err() {
        go_on(folder, &control)?;
    }
    written
}

/// Files for the vmm, under slots from `first` on: the state, then memory of each machine.
///
/// # Errors
/// What the vmm says.
pub fn hand_over(control: &Control, first: u32, files: &[File]) -> Result<SavedFiles, ControlError> {
    let mut next = first;
    for batch in files.chunks(MAX_DESCRIPTORS) {
        let borrowed: Vec<_> = batch.iter().map(AsFd::as_fd).collect();
        let count = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        control.tell(&Request::Descriptors { first: Slot(next), count }, &borrowed)?;
        next += count;
    }
    Ok(SavedFiles { state: Slot(first), memory: (first + 1..next).map(Slot).collect() })
}

/// Opens what was saved: the state, then memory of each machine. `None` where nothing was.
///
/// # Errors
/// A file is missing or cannot be read.
pub fn open(folder: &Folder, machines: &[String]) -> Result<Option<Vec<File>>, SaveError> {
    if !is_there(folder) {
        return Ok(None);
    }
    let names = std::iter::once(STATE.to_owned()).chain(machines.iter().map(|machine| memory_name(machine)));
    let open = |name: String| {
        let path = folder.file(names::SAVED).join(name);
        File::open(&path).map_err(file_error(&path, "opening"))
    };
    names.map(open).collect::<Result<_, _>>().map(Some)
}

/// Throws away what was saved, whole or not, and lets all machines go on, in that order. `false` where nothing was.
///
/// # Errors
/// What the vmm or the file system says; the machines are paused then.
pub fn go_on(folder: &Folder, control: &Control) -> Result<bool, SaveError> {
    let (whole, draft) = (folder.file(names::SAVED), folder.file(names::SAVED_DRAFT));
    if !whole.exists() && !draft.exists() {
        return Ok(false);
    }
    discard(&draft)?;
    if whole.exists() {
        // From this moment on nobody can restore it.
        fs::rename(&whole, &draft).map_err(file_error(&whole, "putting it away"))?;
        File::open(&folder.path).and_then(|folder| folder.sync_all()).map_err(file_error(&whole, "putting it away"))?;
    }
    control.tell(&Request::Resume { machine: None }, &[])?;
    discard(&draft)?;
    Ok(true)
}

fn discard(path: &Path) -> Result<(), SaveError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(path, "removing")(error)),
        _ => Ok(()),
    }
}
