//! A machine that has ended starts anew, from the plan as it is now.

use std::sync::PoisonError;

use super::shared::Shared;
use crate::home::{HomeError, names};
use crate::jailed::{self, StartError};
use crate::plan::Plan;

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgainError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the lab has no plan.json to start it from")]
    Unplanned,
    #[error("the lab's plan.json")]
    Plan(#[from] serde_json::Error),
}

/// Has the vmm start it; its boot shows in events.
pub(super) fn start(shared: &Shared, machine: &str) -> Result<(), AgainError> {
    // Nobody changes the plan meanwhile, and nobody else passes files.
    let _planning = shared.planning.lock().unwrap_or_else(PoisonError::into_inner);
    let plan = shared.folder.read(names::PLAN)?.ok_or(AgainError::Unplanned)?;
    let plan: Plan = serde_json::from_slice(&plan)?;
    let spec = plan.spec.machines.iter().find(|other| other.name == machine).ok_or(AgainError::Unplanned)?;
    Ok(jailed::start_machine(&shared.folder, &plan, spec)?)
}
