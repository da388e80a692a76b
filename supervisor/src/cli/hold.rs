//! Lets a lab or one machine of it stand still, or go on.

use labyard_supervisor::client;
use labyard_supervisor::home::Home;

use super::args::Hold;
use super::{Failure, Outcome, event_loop, naming, output};

/// What is asked of the supervisor, and what is said when it is done.
pub(crate) type Doing = (&'static str, &'static str);
/// Stand still.
pub(crate) const PAUSE: Doing = ("pause", "paused");
/// Go on.
pub(crate) const RESUME: Doing = ("resume", "resumed");

pub(crate) fn hold(home: &Home, hold: &Hold, (verb, done): Doing) -> Outcome {
    let (folder, machine) = match hold.name.as_deref().and_then(|name| name.split_once('/')) {
        Some((lab, machine)) => (naming::machine_of(home, lab, machine)?, Some(machine)),
        None => {
            let folder = naming::lab_or_only(home, hold.name.as_deref())?;
            (folder.ok_or_else(|| Failure::input("no lab is there"))?, None)
        }
    };
    let client = client::attach(&folder)?;
    event_loop()?.block_on(client.stand_still(machine, verb))?;
    output::line(&format!("{}: {done}", machine.unwrap_or(&folder.name)));
    Ok(0)
}
