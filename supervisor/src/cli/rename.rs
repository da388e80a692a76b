//! Another name for a lab that does not run: its folder, and every path in its plan.

use std::time::Duration;

use anyhow::Context;
use labyard_spec::manifest::check_name;
use labyard_supervisor::home::{Folder, Home, names};
use labyard_supervisor::plan::Plan;
use labyard_supervisor::record::{Standing, State};
use labyard_supervisor::saved;

use super::args::Rename;
use super::{Failure, Outcome, naming, output};

/// How long another command that changes the lab is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn rename(home: &Home, wanted: &Rename) -> Outcome {
    let folder = naming::lab(home, &wanted.name)?;
    check_name(&wanted.to).map_err(|error| Failure::input(format!("lab {error}")))?;
    let to = home.folder(&wanted.to);
    let _lock = folder.lock(false, LOCK_PATIENCE)?.context("the folder vanished")?;
    let state = State::read(&folder)?.context("the state is missing")?;
    let (name, new) = (&folder.name, &wanted.to);
    if state.standing() != Standing::Ended {
        let word = state.standing().word();
        return Err(Failure::input(format!("lab `{name}` is {word}: stop it first with `labyard stop {name}`")));
    }
    if saved::is_there(&folder) {
        return Err(Failure::input(format!("lab `{name}` was saved: `labyard restore {name}` and stop it first")));
    }
    if to.exists() {
        return Err(Failure::input(format!("lab `{new}` is there already: take another name")));
    }
    // From here on it is the other lab; who starts it finds what is still to be done by the name in the state.
    std::fs::rename(&folder.path, &to.path).with_context(|| format!("{}: renaming", folder.path.display()))?;
    settle(&to)?;
    output::line(&format!("{name}: {new} from now on"));
    Ok(0)
}

/// Makes plan and state those of the folder that they lie in, whatever it was called before.
pub(super) fn settle(folder: &Folder) -> Result<(), Failure> {
    let mut state = State::read(folder)?.context("the state is missing")?;
    if state.name == folder.name {
        return Ok(());
    }
    if let Some(plan) = folder.read(names::PLAN)? {
        let mut plan: Plan = serde_json::from_slice(&plan).context("the lab's plan.json")?;
        let before = folder.path.with_file_name(&state.name);
        plan.spec.name.clone_from(&folder.name);
        for file in &mut plan.files {
            if let Ok(rest) = file.path.strip_prefix(&before) {
                file.path = folder.path.join(rest);
            }
        }
        folder.write(names::PLAN, &serde_json::to_vec(&plan)?)?;
    }
    state.name.clone_from(&folder.name);
    Ok(state.write(folder)?)
}
