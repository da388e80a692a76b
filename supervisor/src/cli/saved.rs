//! Saves a lab and ends it; lets a saved one go on.

use std::time::{Duration, Instant};

use anyhow::Context;
use labyard_supervisor::client;
use labyard_supervisor::home::{Folder, Home};
use labyard_supervisor::record::{Standing, State, Who};
use labyard_supervisor::saved;

use super::args::Saved;
use super::{Failure, Outcome, code, event_loop, naming, output};

/// How long another command that changes the lab is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);
/// How often it is looked whether the lab has gone on.
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn folder_of(home: &Home, wanted: &Saved) -> Result<Folder, Failure> {
    naming::lab_or_only(home, wanted.name.as_deref())?.ok_or_else(|| Failure::input("no lab is there"))
}

pub(crate) fn save(home: &Home, wanted: &Saved) -> Outcome {
    let folder = folder_of(home, wanted)?;
    let lock = folder.lock(false, LOCK_PATIENCE)?.context("the folder vanished")?;
    let client = client::attach_locked(&folder, &lock)?;
    let since = Instant::now();
    let written = event_loop()?.block_on(client.save())?;
    let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    if wanted.json {
        output::document(&serde_json::json!({
            "lab": folder.name, "memory_bytes": written.memory_bytes, "disk_bytes": written.disk_bytes, "took_ms": took_ms,
        }))?;
    } else {
        let (memory, disk) = (written.memory_bytes >> 20, written.disk_bytes >> 20);
        output::line(&format!(
            "{0}: saved, {memory} MiB of memory in {disk} MiB on disk; `labyard restore {0}` lets it go on",
            folder.name
        ));
    }
    Ok(0)
}

pub(crate) fn restore(home: &Home, wanted: &Saved) -> Outcome {
    let folder = folder_of(home, wanted)?;
    let lock = folder.lock(false, LOCK_PATIENCE)?.context("the folder vanished")?;
    let mut state = State::read(&folder)?.context("the state vanished")?;
    let standing = state.standing();
    if standing != Standing::Ended || !saved::is_there(&folder) {
        let name = &folder.name;
        return Err(Failure::input(format!(
            "lab `{name}` is {} and was not saved: `labyard save {name}` saves one that runs",
            standing.word()
        )));
    }
    (state.end, state.vmm, state.supervisor) = (None, None, None);
    for machine in &mut state.machines {
        machine.paused = machine.ended.is_none();
    }
    client::launch(&folder, &mut state)?;
    drop(lock);
    let state = gone_on(&folder)?;
    if wanted.json {
        output::document(&state)?;
    } else {
        output::line(&format!("{}: goes on", folder.name));
    }
    Ok(0)
}

/// Waits until all machines have gone on.
fn gone_on(folder: &Folder) -> Result<State, Failure> {
    let until = Instant::now() + saved::PATIENCE;
    while Instant::now() < until {
        let state = State::read(folder)?.context("the state vanished")?;
        let watched = state.supervisor.as_ref().is_some_and(Who::is_alive);
        match state.standing() {
            // Its supervisor is about to write down why.
            Standing::Ended if state.end.is_none() && watched => {}
            Standing::Ended | Standing::Interrupted => {
                let again = if saved::is_there(folder) { "; what was saved is still there" } else { "" };
                return Err(anyhow::anyhow!("lab `{}`: {}{again}", folder.name, state.end_reason()).into());
            }
            Standing::Unattended => drop(client::attach(folder)?),
            _ => {}
        }
        if !saved::is_there(folder) && state.vmm.is_some() && state.machines.iter().all(|machine| !machine.paused) {
            return Ok(state);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    let late = anyhow::anyhow!("lab `{}` has not gone on within {} s", folder.name, saved::PATIENCE.as_secs());
    Err(Failure { code: code::DEADLINE, error: late })
}
