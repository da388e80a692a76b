//! Which lab relies on something in the store.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use labyard_supervisor::home::{Folder, Home, names};
use labyard_supervisor::plan::Plan;
use labyard_supervisor::record::{Standing, State};

use super::Failure;

/// What a lab wants of the store.
enum Wants {
    /// These files.
    Plan(Box<Plan>),
    /// Nobody knows yet.
    Unknown,
    Nothing,
}

fn wants(folder: &Folder) -> Result<Wants, Failure> {
    let Some(plan) = folder.read(names::PLAN)? else {
        let preparing = State::read(folder)?.is_some_and(|state| state.standing() == Standing::Preparing);
        return Ok(if preparing { Wants::Unknown } else { Wants::Nothing });
    };
    let plan: Plan = serde_json::from_slice(&plan)
        .map_err(|error| anyhow::Error::new(error).context(format!("lab `{}`: its plan", folder.name)))?;
    Ok(Wants::Plan(Box::new(plan)))
}

/// Names of the labs whose plan has a file below `own`, running or not.
pub(crate) fn labs(home: &Home, own: &Path) -> Result<Vec<String>, Failure> {
    let mut labs = Vec::new();
    for folder in home.folders()? {
        if let Wants::Plan(plan) = wants(&folder)?
            && plan.files.iter().any(|file| file.path.starts_with(own))
        {
            labs.push(folder.name);
        }
    }
    Ok(labs)
}

/// Every file that a lab's plan has, running or not.
pub(crate) fn files(home: &Home) -> Result<BTreeSet<PathBuf>, Failure> {
    let mut files = BTreeSet::new();
    for folder in home.folders()? {
        if let Wants::Plan(plan) = wants(&folder)? {
            files.extend(plan.files.into_iter().map(|file| file.path));
        }
    }
    Ok(files)
}

/// Why what lies below `own` has to stay, in words with the way out.
pub(crate) fn reason(home: &Home, own: &Path) -> Result<Option<String>, Failure> {
    if let Some(name) = preparing(home)? {
        return Ok(Some(format!("lab `{name}` is being prepared and may want it; try again when it is up")));
    }
    let labs = labs(home, own)?;
    Ok(labs.first().map(|name| format!("lab `{name}` uses it; end that first with `labyard down {name}`")))
}

/// A lab that may want anything of the store, because it is still being prepared.
pub(crate) fn preparing(home: &Home) -> Result<Option<String>, Failure> {
    for folder in home.folders()? {
        if let Wants::Unknown = wants(&folder)? {
            return Ok(Some(folder.name));
        }
    }
    Ok(None)
}
