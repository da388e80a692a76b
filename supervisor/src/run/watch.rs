//! What comes from the vmm unasked: events, streams that guests open to the readiness port, and last words.
//!
//! All of it may be hostile. Events wait in a short queue; a guest's line is at most 4 KiB and a stream has few of them.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use labyard_spec::control::{Event, Happening};
use labyard_spec::guest::{Hello, READY_PORT};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::{mpsc, oneshot};

use super::RunError;
use super::shared::Shared;
use crate::control::{Control, ControlError};
use crate::home::{Folder, names};
use crate::record::ConditionName;
use crate::words::chain;

/// Events that wait for the supervisor; the vmm keeps the others.
const QUEUE: usize = 64;
/// Bytes of a readiness line.
const MAX_LINE_BYTES: usize = 4 << 10;
/// Lines of one stream: each role of a guest says one or two.
const MAX_LINES: usize = 16;
/// Streams to the readiness port at one time, of all machines.
const MAX_STREAMS: usize = 256;
/// Bytes of last words that are read.
const MAX_LAST_WORDS: u64 = 4 << 20;

/// Events with the streams beside them, or why there are no more.
pub(super) type Incoming = mpsc::Receiver<Result<(Event, Option<UnixStream>), String>>;
/// The other end.
pub(super) type Sender = mpsc::Sender<Result<(Event, Option<UnixStream>), String>>;

pub(super) fn channel() -> (Sender, Incoming) {
    mpsc::channel(QUEUE)
}

/// Follows the vmm's events from `after` on, on a thread of its own.
pub(super) fn follow(folder: &Folder, after: u64, to: Sender) {
    let folder = folder.clone();
    let failed = to.clone();
    let follow = move || {
        let told = || -> Result<(), ControlError> {
            let events = Control::connect(&folder)?.events(after)?;
            loop {
                let event = events.next()?;
                if to.blocking_send(Ok(event)).is_err() {
                    return Ok(());
                }
            }
        };
        match told() {
            // The usual end: the vmm has gone.
            Ok(()) | Err(ControlError::Closed) => {}
            Err(error) => {
                let _ = to.blocking_send(Err(chain(&error)));
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("events".to_owned()).spawn(follow) {
        let _ = failed.try_send(Err(format!("no thread to follow them: {error}")));
    }
}

/// Fires when the process behind the pidfd has ended.
pub(super) fn end_of(pidfd: Arc<OwnedFd>) -> Result<oneshot::Receiver<()>, RunError> {
    let (ended, gone) = oneshot::channel();
    let wait = move || {
        // Whatever poll says, nothing more can be learned from this descriptor.
        let _ = labyard_sys::wait::readable(pidfd.as_fd(), None);
        let _ = ended.send(());
    };
    std::thread::Builder::new().name("vmm-end".to_owned()).spawn(wait).map_err(RunError::Loop)?;
    Ok(gone)
}

/// A guest has opened a stream to the host. Only the readiness port is answered.
pub(super) fn guest_connected(shared: &Arc<Shared>, event: &Event, stream: UnixStream) {
    let Happening::GuestConnected { port: READY_PORT } = event.what else { return };
    let machine = event.machine.clone();
    if !shared.hello_begins(MAX_STREAMS) {
        return shared.note(Some(&machine), &format!("{MAX_STREAMS} readiness streams are open: one more was closed"));
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        if let Err(error) = read_hellos(&shared, &machine, stream).await {
            shared.note(Some(&machine), &format!("readiness: {error}"));
        }
        shared.hello_ends();
    });
}

async fn read_hellos(shared: &Arc<Shared>, machine: &str, stream: UnixStream) -> std::io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut stream = BufReader::new(tokio::net::UnixStream::from_std(stream)?);
    for _ in 0..MAX_LINES {
        let mut line = Vec::new();
        let most = MAX_LINE_BYTES as u64 + 1;
        if (&mut stream).take(most).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(std::io::Error::other(format!("a line of more than {MAX_LINE_BYTES} bytes")));
        }
        match serde_json::from_slice(&line).map_err(std::io::Error::other)? {
            Hello::InitDone { kernel } => {
                shared.reached(Some(machine), ConditionName::InitDone, &format!("root mounted, kernel {kernel}"));
            }
            Hello::AgentReady => {
                shared.reached(Some(machine), ConditionName::AgentReachable, "the agent listens");
                // After a reboot, too, for which init has written what was true at its first boot.
                tokio::spawn(super::members::tell_hosts(Arc::clone(shared), machine.to_owned()));
            }
            Hello::InitFailed { error } => shared.note(Some(machine), &format!("init failed: {error}")),
        }
    }
    Err(std::io::Error::other(format!("more than {MAX_LINES} lines")))
}

/// Reads what the vmm wrote down when machines ended, for those whose end came by no event.
pub(super) fn last_words(shared: &Shared) {
    let Ok(file) = std::fs::File::open(shared.folder.file(names::LAST_WORDS)) else { return };
    let mut text = Vec::new();
    if file.take(MAX_LAST_WORDS).read_to_end(&mut text).is_err() {
        return;
    }
    let known = crate::journal::last_vmm_event(&shared.folder);
    for line in text.split(|byte| *byte == b'\n') {
        // A machine that was started anew after its end is not over because of that.
        if let Ok(Event { number, machine, what: Happening::Ended(state), .. }) = serde_json::from_slice(line)
            && number > known
        {
            shared.machine_ended(&machine, &state);
        }
    }
}
