//! Waits until a lab or a machine is what it is to be.

use std::time::{Duration, Instant};

use labyard_supervisor::client;
use labyard_supervisor::home::{Folder, Home};
use labyard_supervisor::record::{Machine, Standing, State, ended_text};

use super::args::{Goal, Wait};
use super::up::follow;
use super::{Failure, Outcome, code, naming, output};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) fn wait(home: &Home, wanted: &Wait) -> Outcome {
    let (folder, machine) = match wanted.name.as_deref().and_then(|name| name.split_once('/')) {
        Some((lab, machine)) => (naming::machine_of(home, lab, machine)?, Some(machine)),
        None => {
            let folder = naming::lab_or_only(home, wanted.name.as_deref())?;
            (folder.ok_or_else(|| Failure::input("no lab is there"))?, None)
        }
    };
    let what = machine.map_or_else(|| folder.name.clone(), |machine| format!("{}/{machine}", folder.name));
    let goal = wanted.goal.words();
    let until = wanted.timeout.map(|limit| Instant::now() + limit);
    loop {
        if reached(&folder, machine, wanted.goal)? {
            output::line(&format!("{what}: {goal}"));
            return Ok(0);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            let seconds = wanted.timeout.unwrap_or_default().as_secs();
            let error =
                anyhow::anyhow!("{what} is not {goal} within {seconds} s; `labyard status {}` tells more", folder.name);
            return Err(Failure { code: code::DEADLINE, error });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether it is so; an error where it cannot become so by itself.
fn reached(folder: &Folder, machine: Option<&str>, goal: Goal) -> Result<bool, Failure> {
    let Some(state) = State::read(folder)? else {
        return match goal {
            Goal::Stopped => Ok(true),
            _ => Err(anyhow::anyhow!("lab `{}` was removed by another command", folder.name).into()),
        };
    };
    let standing = state.standing();
    if standing == Standing::Unattended {
        client::attach(folder)?;
    }
    let over = matches!(standing, Standing::Ended | Standing::Interrupted);
    let found = machine.map(|name| state.machines.iter().find(|other| other.name == name));
    let found: Option<&Machine> = match found {
        Some(None) => {
            let name = machine.unwrap_or_default();
            return Err(anyhow::anyhow!("machine `{name}` of lab `{}` was removed", folder.name).into());
        }
        Some(found) => found,
        None => None,
    };
    let Some(condition) = goal.condition() else {
        return Ok(over || found.is_some_and(|machine| machine.ended.is_some()));
    };
    if over {
        let reason = state.end_reason();
        return Err(anyhow::anyhow!("lab `{}` is {}: {reason}", folder.name, standing.word()).into());
    }
    if matches!(goal, Goal::Ready | Goal::TasksDone)
        && machine.is_none()
        && let Some(failed) = state.tasks.iter().find(|task| task.has_failed())
    {
        return Err(follow::task_failed(folder, &failed.name, failed.why.as_deref().unwrap_or_default()));
    }
    let Some(machine) = found else {
        let everywhere = |machine: &Machine| machine.has(condition);
        // What is reached by each machine is reached by the lab when all have it.
        return Ok(state.conditions.iter().any(|known| known.name == condition)
            || (goal.is_of_machines() && state.machines.iter().all(everywhere)));
    };
    if let Some(ended) = &machine.ended {
        let how = ended_text(ended);
        let how = how.lines().next().unwrap_or_default();
        return Err(anyhow::anyhow!("machine `{}` has ended: {how}", machine.name).into());
    }
    Ok(machine.has(condition))
}
