//! Changes of what runs. Most are the vmm's alone and last as long as it does; the size of a drive is in the plan, too.
//!
//! The plan is written first: whatever is killed in between, the next vmm finds a drive that is as large as the plan says, or smaller,
//! which it makes larger. A size that the vmm refuses is taken back.

use std::sync::PoisonError;

use labyard_spec::control::{Change, Request};
use labyard_spec::playground::OverlaySpec;

use super::shared::Shared;
use crate::client::Wish;
use crate::control::{Control, ControlError};
use crate::home::{HomeError, names};
use crate::plan::Plan;

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("the lab has no plan.json to write the size to")]
    Unplanned,
    #[error("the lab's plan.json")]
    Plan(#[from] serde_json::Error),
}

/// Has the vmm make a change; waits for it.
pub(super) fn change(shared: &Shared, Wish { machine, change }: Wish) -> Result<(), ChangeError> {
    let tell = |change| -> Result<(), ControlError> {
        Control::connect(&shared.folder)?.tell(&Request::Change { machine: machine.clone(), change }, &[])
    };
    let (Some(name), Change::DriveResize { serial, bytes }) = (&machine, &change) else { return Ok(tell(change)?) };
    let _planning = shared.planning.lock().unwrap_or_else(PoisonError::into_inner);
    let old = shared.folder.read(names::PLAN)?.ok_or(ChangeError::Unplanned)?;
    let mut plan: Plan = serde_json::from_slice(&old)?;
    match overlay(&mut plan, name, serial) {
        // The vmm says what is wrong with anything else.
        Some(overlay) if overlay.capacity_bytes < *bytes => {
            overlay.capacity_bytes = *bytes;
            shared.folder.write(names::PLAN, &serde_json::to_vec(&plan)?)?;
            let told = tell(change);
            if matches!(told, Err(ControlError::Failed(_))) {
                shared.folder.write(names::PLAN, &old)?;
            }
            Ok(told?)
        }
        _ => Ok(tell(change)?),
    }
}

fn overlay<'a>(plan: &'a mut Plan, machine: &str, serial: &str) -> Option<&'a mut OverlaySpec> {
    let machine = plan.spec.machines.iter_mut().find(|other| other.name == machine)?;
    machine.drives.iter_mut().find(|drive| drive.serial == serial)?.overlay.as_mut()
}
