//! Looks on while the supervisor brings the machines up, and says what it sees.

use std::time::{Duration, Instant};

use labyard_spec::control::{Happening, MachineState};
use labyard_supervisor::client;
use labyard_supervisor::home::{Folder, names};
use labyard_supervisor::journal::{Entry, Reader, What};
use labyard_supervisor::record::{ConditionName, State, TaskState, TaskStatus, Who, ended_text};
use labyard_supervisor::words;

use super::super::logs::sentence;
use super::super::{Failure, code};
use super::{Cancel, Progress};

/// How often the journal is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it is made sure that somebody still writes it.
const SUPERVISOR_LOOK: Duration = Duration::from_secs(1);
/// Bytes of a console that are shown when a machine fails.
const LAST_CONSOLE_BYTES: u64 = 2 << 10;

/// Waits until these machines can be used; all of them where none is named.
pub(in crate::cli) async fn until_ready(
    progress: &Progress,
    folder: &Folder,
    mut events: Reader,
    machines: Option<&[String]>,
    limit: Duration,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let until = Instant::now() + limit;
    let mut look = Instant::now();
    if machines.is_none()
        && let Some(failed) = State::read(folder)?.and_then(|state| state.tasks.into_iter().find(TaskState::has_failed))
    {
        return Err(task_failed(folder, &failed.name, failed.why.as_deref().unwrap_or_default()));
    }
    let mut waiting: Vec<&String> = machines.into_iter().flatten().collect();
    loop {
        for entry in events.entries()? {
            if !matches!(
                &entry.what,
                What::Vmm {
                    happening: Happening::Booting { .. }
                        | Happening::Started
                        | Happening::Mapped { .. }
                        | Happening::GuestConnected { .. },
                    ..
                }
            ) {
                progress.say(&sentence(&entry));
            }
            if let What::Condition { name: ConditionName::Ready, .. } = entry.what {
                waiting.retain(|name| entry.machine.as_ref() != Some(name));
                if waiting.is_empty() && (machines.is_some() || entry.machine.is_none()) {
                    return Ok(());
                }
            }
            // Of a machine that nobody waits for, the end is its own affair.
            if machines.is_none() || entry.machine.as_ref().is_none_or(|name| waiting.contains(&name)) {
                failed(folder, &entry)?;
            }
        }
        if Instant::now() >= until {
            return Err(late(folder, limit));
        }
        if look.elapsed() >= SUPERVISOR_LOOK {
            look = Instant::now();
            let Some(state) = State::read(folder)? else {
                return Err(anyhow::anyhow!("lab `{}` was removed by another command", folder.name).into());
            };
            if state.end.is_none() && !state.supervisor.as_ref().is_some_and(Who::is_alive) {
                progress.say("the supervisor has died: starting another");
                client::attach(folder)?;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = cancel.wait() => return Err(Cancel::failure()),
        }
    }
}

/// The failure that an entry means, if it means one.
fn failed(folder: &Folder, entry: &Entry) -> Result<(), Failure> {
    let name = &folder.name;
    match (&entry.what, &entry.machine) {
        (What::Ended(reason), _) => {
            Err(anyhow::anyhow!("lab `{name}` ended before it was ready: {reason}; `labyard down {name}` removes it")
                .into())
        }
        (What::Vmm { happening: Happening::Ended(state), .. }, Some(machine)) => {
            // A crash brings its last lines along; a power-off is explained by them.
            let console = match state {
                MachineState::Crashed(_) => None,
                _ => words::tail(&folder.machine(machine).join(names::CONSOLE_LOG), LAST_CONSOLE_BYTES),
            };
            let console = console.filter(|text| !text.trim().is_empty());
            let console = console.map(|text| format!("\n--- last lines of its console\n{}\n---", text.trim_end()));
            Err(anyhow::anyhow!(
                "machine `{machine}` ended before it was ready: {}{}\n`labyard logs {name}/{machine}` shows its console, `labyard down {name}` removes the lab",
                ended_text(state),
                console.unwrap_or_default(),
            )
            .into())
        }
        (What::Task { name, status: TaskStatus::Failed, why }, _) => Err(task_failed(folder, name, why)),
        _ => Ok(()),
    }
}

/// An init task failed: which, why, and the last that it said.
pub(in crate::cli) fn task_failed(folder: &Folder, task: &str, why: &str) -> Failure {
    let lab = &folder.name;
    let output = words::tail(&folder.task_log(task), LAST_CONSOLE_BYTES).filter(|text| !text.trim().is_empty());
    let output =
        output.map(|text| format!("\n--- last lines of its output\n{}\n---", text.trim_end())).unwrap_or_default();
    let error = anyhow::anyhow!(
        "init task `{task}` failed: {why}{output}\nthe lab runs on: `labyard tasks {lab} {task}` shows all of it, `labyard tasks {lab} {task} --retry` runs it again"
    );
    Failure { code: code::TASK, error }
}

fn late(folder: &Folder, limit: Duration) -> Failure {
    let state = State::read(folder).ok().flatten();
    let waiting: Vec<_> = state
        .iter()
        .flat_map(|state| &state.machines)
        .filter(|machine| !machine.has(ConditionName::Ready))
        .map(|machine| match machine.conditions.last() {
            Some(last) => format!("{} (last: {:?})", machine.name, last.name),
            None => format!("{} (nothing yet)", machine.name),
        })
        .collect();
    let error = anyhow::anyhow!(
        "not ready within {} s: {}; the lab runs on: `labyard logs` shows consoles, `labyard down {}` removes it",
        limit.as_secs(),
        waiting.join(", "),
        folder.name
    );
    Failure { code: code::DEADLINE, error }
}
