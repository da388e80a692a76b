//! Init tasks: how far they are, what they printed, and one of them again.

use std::time::Duration;

use anyhow::Context;
use labyard_supervisor::client;
use labyard_supervisor::home::{Folder, Home};
use labyard_supervisor::record::{State, TaskState, TaskStatus};
use labyard_supervisor::words;

use super::args::TasksArgs;
use super::up::follow;
use super::{Failure, Outcome, event_loop, naming, output};

/// How often a task that runs again is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Bytes of output that are printed; more are not kept.
const MAX_OUTPUT_BYTES: u64 = 5 << 20;

pub(crate) fn tasks(home: &Home, wanted: &TasksArgs) -> Outcome {
    let folder = naming::lab_or_only(home, wanted.name.as_deref())?;
    let folder = folder.ok_or_else(|| Failure::input("no lab is there"))?;
    let state = State::read(&folder)?.context("the state is missing")?;
    let Some(name) = &wanted.task else {
        if wanted.json {
            output::document(&serde_json::json!({ "lab": folder.name, "tasks": state.tasks }))?;
        } else if state.tasks.is_empty() {
            output::complain(&format!("lab `{}` has no init tasks", folder.name));
        } else {
            table(&state.tasks);
        }
        return Ok(0);
    };
    let known = find(&folder, &state, name)?;
    let known = if wanted.retry { again(&folder, known)? } else { known.clone() };
    let text = words::tail(&folder.task_log(name), MAX_OUTPUT_BYTES).unwrap_or_default();
    if wanted.json {
        output::document(&serde_json::json!({ "lab": folder.name, "task": known, "output": text }))?;
    } else if !wanted.retry {
        output::bytes(text.as_bytes());
    }
    if wanted.retry && known.has_failed() {
        return Err(follow::task_failed(&folder, name, known.why.as_deref().unwrap_or_default()));
    }
    Ok(0)
}

fn find<'a>(folder: &Folder, state: &'a State, name: &str) -> Result<&'a TaskState, Failure> {
    state.tasks.iter().find(|task| task.name == name).ok_or_else(|| {
        let there: Vec<_> = state.tasks.iter().map(|task| task.name.as_str()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Failure::input(format!("no init task `{name}` in lab `{}`: there is {there}", folder.name))
    })
}

/// Runs it again, and waits for its end.
fn again(folder: &Folder, before: &TaskState) -> Result<TaskState, Failure> {
    let client = client::attach(folder)?;
    event_loop()?.block_on(client.retry(&before.name))?;
    loop {
        let state = State::read(folder)?.context("the lab was removed by another command")?;
        if state.end.is_some() {
            let reason = state.end_reason();
            return Err(anyhow::anyhow!("lab `{}` ended: {reason}", folder.name).into());
        }
        client::attach(folder)?;
        let task = find(folder, &state, &before.name)?;
        if matches!(task.status, TaskStatus::Failed | TaskStatus::Completed) && task.attempts > before.attempts {
            output::complain(&format!("task {}: {}", task.name, task.status.word()));
            return Ok(task.clone());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn table(tasks: &[TaskState]) {
    let rows = tasks.iter().map(|task| {
        let took = match (task.started_ms, task.ended_ms) {
            (Some(from), Some(to)) => format!("{:.1} s", to.saturating_sub(from) as f64 / 1000.0),
            _ => "-".to_owned(),
        };
        let why = task.why.as_deref().and_then(|why| why.lines().next()).unwrap_or_default();
        vec![task.name.clone(), task.machine.clone(), task.status.word().to_owned(), took, why.to_owned()]
    });
    let rows: Vec<_> = rows.collect();
    output::table(&["TASK", "MACHINE", "IS", "TOOK", "WHY"], &rows);
}
