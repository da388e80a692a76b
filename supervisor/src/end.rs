//! `down`: ends whatever runs of a playground and removes its folder, whichever part of it has died before.
//!
//! The supervisor is asked first, so that guests can power off. Then every process that is written down is made sure of, by
//! its pid and start time. Nothing else knows about a playground, so nothing is left.

use std::time::Duration;

use labyard_sys::pidfd::Process;

use crate::client::{self, ClientError};
use crate::home::{Folder, HomeError, Lock};
use crate::record::{Standing, State, Who};
use crate::words::chain;

/// How long a process may take to end by itself, or to be gone once killed.
const END_WITHIN: Duration = Duration::from_secs(10);
/// What the supervisor needs beside the guests' grace: to start the vmm, to cut the power, to kill it.
const SUPERVISOR_WITHIN: Duration = Duration::from_secs(45);

/// Why something is left.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum EndError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("{what} (process {pid}) does not end")]
    Stuck { what: &'static str, pid: i32, source: Option<std::io::Error> },
}

/// Ends a playground that the caller has locked; `note` gets what went otherwise than it should.
///
/// # Errors
/// Where a process cannot be ended or the folder not be removed; the folder stays then.
pub async fn end(folder: &Folder, lock: &Lock, grace: Duration, mut note: impl FnMut(&str)) -> Result<(), EndError> {
    let state = match State::read(folder) {
        Ok(state) => state,
        Err(error) => {
            // Without it nobody knows what runs; removing the folder would hide that.
            return Err(error.into());
        }
    };
    let running = state.as_ref().map(State::standing);
    if matches!(running, Some(Standing::Starting | Standing::Running | Standing::Unattended)) {
        match client::attach_locked(folder, lock) {
            Ok(supervisor) => match tokio::time::timeout(grace + SUPERVISOR_WITHIN, supervisor.down(grace)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => note(&format!("{}; its processes are killed", chain(&error))),
                Err(_) => note("the supervisor does not answer; its processes are killed"),
            },
            Err(ClientError::NotRunning { .. }) => {}
            Err(error) => note(&format!("{}; its processes are killed", chain(&error))),
        }
    }
    // Read anew: a supervisor that was replaced is another process.
    if let Some(state) = State::read(folder)? {
        make_sure("the supervisor", state.supervisor.as_ref(), END_WITHIN)?;
        make_sure("the vmm", state.vmm.as_ref(), Duration::ZERO)?;
        for uplink in &state.uplinks {
            make_sure("a way out", Some(&uplink.process), END_WITHIN)?;
        }
    }
    crate::cgroup::remove(folder);
    Ok(folder.remove()?)
}

/// Waits until whoever saw a vmm end has written that down, and is gone: what it writes later would be said of the next start.
///
/// # Errors
/// Where it cannot be ended.
pub fn supervisor_is_gone(state: &State) -> Result<(), EndError> {
    make_sure("the supervisor", state.supervisor.as_ref(), END_WITHIN)
}

/// Waits for a process to end by itself, then kills it.
fn make_sure(what: &'static str, who: Option<&Who>, patience: Duration) -> Result<(), EndError> {
    let Some(process) = who.and_then(Who::identity).and_then(|identity| identity.open().ok()) else { return Ok(()) };
    let pid = who.map_or(0, |who| who.pid);
    let stuck = |source| EndError::Stuck { what, pid, source };
    let gone = |process: &Process, limit| process.wait(limit).map_err(|source| stuck(Some(source)));
    if gone(&process, patience)? {
        return Ok(());
    }
    process.kill().map_err(|source| stuck(Some(source)))?;
    if gone(&process, END_WITHIN)? { Ok(()) } else { Err(stuck(None)) }
}
