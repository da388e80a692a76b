//! Labs that stand still: paused, saved, and let go on.

use std::sync::Arc;
use std::time::Duration;

use labyard_spec::control::Request;
use tokio::time::timeout;

use super::shared::{Phase, Saving, Shared};
use crate::control::{Control, ControlError};
use crate::saved::{self, SaveError, Written};
use crate::words::chain;

/// How long a vmm may take to start, or to be gone once killed.
const VMM_WITHIN: Duration = Duration::from_secs(10);

/// Why a lab was not saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum HoldError {
    /// Its state.
    #[error("lab `{lab}` {why}")]
    State {
        /// Whose.
        lab: String,
        /// What it is.
        why: &'static str,
    },
    /// The vmm or a file.
    #[error(transparent)]
    Save(#[from] SaveError),
}

/// Saves all machines and ends the vmm. It is killed: paused as it is, it has nothing to lose.
pub(super) async fn save(shared: &Arc<Shared>) -> Result<Written, HoldError> {
    let refuse = |why| HoldError::State { lab: shared.folder.name.clone(), why };
    let _ = timeout(VMM_WITHIN, shared.until(|_, phase| phase > Phase::Starting)).await;
    if *shared.bell().borrow() != Phase::Up || shared.is_stopping() {
        return Err(refuse("does not run, or is about to end"));
    }
    if !shared.saving(Saving::No, Saving::Begun) {
        return Err(refuse("is being saved already"));
    }
    let machines: Vec<_> = shared.state().machines.into_iter().map(|machine| machine.name).collect();
    let folder = shared.folder.clone();
    let written = tokio::task::spawn_blocking(move || saved::save(&folder, &machines)).await;
    let written = written.unwrap_or(Err(ControlError::Closed.into()));
    if written.is_err() {
        shared.saving(Saving::Begun, Saving::No);
        return Ok(written?);
    }
    shared.saving(Saving::Begun, Saving::Done);
    if let Some(process) = shared.state().vmm.and_then(|vmm| vmm.identity()).and_then(|vmm| vmm.open().ok())
        && let Err(error) = process.kill()
    {
        shared.note(None, &format!("ending the vmm of a saved lab: {error}"));
    }
    let _ = timeout(VMM_WITHIN, shared.until(|_, phase| phase == Phase::Over)).await;
    Ok(written?)
}

/// A vmm that was adopted beside something saved goes on.
pub(super) async fn go_on(shared: &Arc<Shared>) {
    let folder = shared.folder.clone();
    let gone_on = move || saved::go_on(&folder, &Control::connect(&folder)?);
    let gone_on = tokio::task::spawn_blocking(gone_on).await.unwrap_or(Err(ControlError::Closed.into()));
    match gone_on {
        Ok(true) => shared.note(None, "a save or a restore was interrupted: the machines go on"),
        Ok(false) => {}
        Err(error) => {
            shared.note(None, &format!("letting machines go on after an interrupted save: {}", chain(&error)))
        }
    }
}

/// Pauses or resumes.
pub(super) async fn tell(shared: &Shared, request: Request) -> Result<(), ControlError> {
    let folder = shared.folder.clone();
    let told = tokio::task::spawn_blocking(move || Control::connect(&folder)?.tell(&request, &[]));
    told.await.unwrap_or(Err(ControlError::Closed))
}
