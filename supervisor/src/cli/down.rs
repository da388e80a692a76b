//! Ends labs. Done twice, the second time finds nothing to do.

use std::time::Duration;

use labyard_spec::manifest::check_name;
use labyard_supervisor::end;
use labyard_supervisor::home::{Folder, Home};

use super::args::Down;
use super::{Failure, Outcome, event_loop, naming, output};

/// How long a command that changes the lab is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn down(home: &Home, down: &Down) -> Outcome {
    home.sweep();
    let folders = match (&down.name, down.all) {
        (_, true) => home.folders()?,
        (Some(name), false) => {
            check_name(name).map_err(|error| Failure::input(format!("lab {error}")))?;
            let folder = home.folder(name);
            if !folder.exists() {
                output::complain(&format!("lab `{name}` is not there: nothing to do"));
                return Ok(0);
            }
            vec![folder]
        }
        (None, false) => naming::lab_or_only(home, None)?.into_iter().collect(),
    };
    if folders.is_empty() {
        output::complain("no lab is there: nothing to do");
    }
    let mut failed = None;
    for folder in folders {
        match one(&folder, down.grace) {
            Ok(()) => output::line(&format!("{}: gone", folder.name)),
            Err(failure) => {
                // The others can still be ended.
                if let Some(before) = failed.replace(failure) {
                    output::complain(&format!("error: {:#}", before.error));
                }
            }
        }
    }
    failed.map_or(Ok(0), Err)
}

/// Ends one lab.
pub(crate) fn one(folder: &Folder, grace: Duration) -> Result<(), Failure> {
    let Some(lock) = folder.lock(false, LOCK_PATIENCE)? else { return Ok(()) };
    let runtime = event_loop()?;
    let note = |text: &str| output::complain(&format!("{}: {text}", folder.name));
    runtime.block_on(end::end(folder, &lock, grace, note))?;
    Ok(())
}
