//! Stops a lab or one machine of it: the guests are asked, and cut after a while. What they wrote stays, until `down`.

use std::time::Duration;

use labyard_supervisor::client::{self, ClientError};
use labyard_supervisor::home::{Folder, Home};
use labyard_supervisor::record::{Standing, State, ended_text};

use super::args::Stop;
use super::{Outcome, event_loop, naming, output};

/// What the supervisor needs beside the guests' grace: to start the vmm, to cut the power, to kill it.
const SUPERVISOR_WITHIN: Duration = Duration::from_secs(45);

pub(crate) fn stop(home: &Home, stop: &Stop) -> Outcome {
    match stop.name.as_deref().and_then(|name| name.split_once('/')) {
        Some((lab, machine)) => one_machine(&naming::machine_of(home, lab, machine)?, machine, stop.grace),
        None => match naming::lab_or_only(home, stop.name.as_deref())? {
            Some(folder) => whole_lab(&folder, stop.grace),
            None => {
                output::complain("no lab is there: nothing to do");
                Ok(0)
            }
        },
    }
}

/// The same, where nobody wants to hear of what does not run.
pub(crate) fn quietly(home: &Home, wanted: &Stop) -> Result<(), super::Failure> {
    let lab = wanted.name.as_deref().map(|name| name.split_once('/').map_or(name, |(lab, _)| lab));
    match naming::lab_or_only(home, lab)? {
        Some(folder) if has_ended(&folder)? => Ok(()),
        Some(_) => stop(home, wanted).map(|_| ()),
        None => Err(super::Failure::input("no lab is there")),
    }
}

fn whole_lab(folder: &Folder, grace: Duration) -> Outcome {
    if has_ended(folder)? {
        output::complain(&format!("lab `{}` does not run: nothing to do", folder.name));
        return Ok(0);
    }
    let client = client::attach(folder)?;
    within(grace, client.down(grace))?;
    let machines = State::read(folder)?.map(|state| state.machines).unwrap_or_default();
    for machine in machines {
        say(&machine.name, machine.ended.as_ref().map(ended_text));
    }
    Ok(0)
}

fn one_machine(folder: &Folder, machine: &str, grace: Duration) -> Outcome {
    if has_ended(folder)? {
        output::complain(&format!("machine `{machine}` does not run: nothing to do"));
        return Ok(0);
    }
    let client = client::attach(folder)?;
    let how = within(grace, client.stop_machine(machine, grace))?;
    say(machine, Some(how));
    Ok(0)
}

fn within<T>(grace: Duration, asked: impl Future<Output = Result<T, ClientError>>) -> Result<T, super::Failure> {
    let done = event_loop()?.block_on(async { tokio::time::timeout(grace + SUPERVISOR_WITHIN, asked).await });
    let late = |_| super::Failure {
        code: super::code::DEADLINE,
        error: anyhow::anyhow!("the supervisor does not answer; `labyard down` ends what is left"),
    };
    Ok(done.map_err(late)??)
}

/// Whether the lab has ended, so that there is nothing to stop. One that is just coming up has not.
fn has_ended(folder: &Folder) -> Result<bool, super::Failure> {
    let standing = State::read(folder)?.map(|state| state.standing());
    Ok(matches!(standing, Some(Standing::Ended | Standing::Interrupted)))
}

/// Of a guest that crashed, the first line: `logs` has the rest.
fn say(machine: &str, how: Option<String>) {
    let how = how.unwrap_or_else(|| "cut".to_owned());
    output::line(&format!("{machine}: {}", how.lines().next().unwrap_or_default()));
}
