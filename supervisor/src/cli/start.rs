//! Starts a stopped lab on the drives that it left, or one machine that has ended while the others run.

use std::time::Duration;

use anyhow::Context;
use labyard_supervisor::client::{self, Client};
use labyard_supervisor::home::{Folder, Home, names};
use labyard_supervisor::journal::Reader;
use labyard_supervisor::record::{End, Standing, State, now_ms};
use labyard_supervisor::saved;
use labyard_supervisor::words::chain;
use labyard_supervisor::{end, host, quota};

use super::args::{Restart, Start, Stop};
use super::up::{Cancel, Progress, follow};
use super::{Failure, Outcome, code, event_loop, naming, output, rename, stop};

/// How long another command that changes the lab is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn start(home: &Home, wanted: &Start) -> Outcome {
    let progress = Progress::new(wanted.json);
    let (folder, machine) = match wanted.name.as_deref().and_then(|name| name.split_once('/')) {
        Some((lab, machine)) => (naming::machine_of(home, lab, machine)?, Some(machine)),
        None => {
            let folder = naming::lab_or_only(home, wanted.name.as_deref())?;
            (folder.ok_or_else(|| Failure::input("no lab is there; `labyard up` makes one"))?, None)
        }
    };
    let runtime = event_loop()?;
    let outcome = runtime.block_on(async {
        let cancel = Cancel::default();
        cancel.on_signals()?;
        let (events, started) = begin(&folder, machine, &progress).await?;
        if !wanted.detach {
            follow_all(&progress, &folder, events, &started, wanted.timeout, &cancel).await?;
        }
        Ok::<_, Failure>(())
    });
    runtime.shutdown_background();
    outcome?;
    if wanted.json {
        output::document(&State::read(&folder)?.context("the state vanished")?)?;
    }
    Ok(0)
}

/// Looks on until what was started can be used.
async fn follow_all(
    progress: &Progress,
    folder: &Folder,
    events: Reader,
    started: &Started,
    limit: Duration,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let machine = match started {
        Started::Nothing => return Ok(()),
        Started::Lab => None,
        Started::Machines(names) => Some(names.as_slice()),
    };
    let reached = follow::until_ready(progress, folder, events, machine, limit, cancel).await;
    reached.map_err(|failure| match failure.code {
        code::INTERRUPTED => Failure {
            error: anyhow::anyhow!("interrupted; lab `{0}` goes on starting: `labyard stop {0}` stops it", folder.name),
            ..failure
        },
        _ => failure,
    })
}

/// What was started.
pub(super) enum Started {
    Nothing,
    Lab,
    Machines(Vec<String>),
}

/// Starts what does not run, and returns events from then on.
async fn begin(folder: &Folder, machine: Option<&str>, progress: &Progress) -> Result<(Reader, Started), Failure> {
    let lock = folder.lock(false, LOCK_PATIENCE)?.context("the folder vanished")?;
    if let Some(state) = State::read(folder)?.filter(|state| state.standing() == Standing::Ended) {
        // Its last words are of before.
        end::supervisor_is_gone(&state)?;
    }
    let mut events = Reader::open(folder)?.context("the journal is missing")?;
    events.skip()?;
    let mut state = State::read(folder)?.context("the state is missing")?;
    let name = &folder.name;
    match (state.standing(), machine) {
        (Standing::Ended | Standing::Interrupted, Some(machine)) => {
            let word = state.standing().word();
            let text =
                format!("lab `{name}` is {word}, and so is `{machine}`: `labyard start {name}` starts all of it");
            return Err(Failure::input(text));
        }
        (Standing::Ended | Standing::Interrupted, None) => {
            whole(folder, &mut state)?;
            progress.say(&format!("lab {name} starts again, on the drives that it left"));
            return Ok((events, Started::Lab));
        }
        _ => {}
    }
    let client = client::attach_locked(folder, &lock)?;
    let ended: Vec<String> = client
        .status()
        .await?
        .machines
        .iter()
        .filter(|other| other.ended.is_some() && machine.is_none_or(|machine| machine == other.name))
        .map(|other| other.name.clone())
        .collect();
    if ended.is_empty() {
        let what = machine.map_or_else(|| format!("lab `{name}`"), |machine| format!("machine `{machine}`"));
        output::complain(&format!("{what} runs already: nothing to do"));
        return Ok((events, Started::Nothing));
    }
    start_machines(folder, &client, &ended, progress).await?;
    Ok((events, Started::Machines(ended)))
}

/// The state directory that a lab lies in.
fn home_of(folder: &Folder) -> Home {
    Home { path: folder.path.ancestors().nth(2).unwrap_or(&folder.path).to_owned() }
}

/// Starts machines that have ended, where there is room for all of them.
pub(super) async fn start_machines(
    folder: &Folder,
    client: &Client,
    machines: &[String],
    progress: &Progress,
) -> Result<(), Failure> {
    let state = client.status().await?;
    let asked = quota::Ask::of_machines(&state, machines);
    let _admitted = quota::admit(&home_of(folder), asked, None)?;
    for machine in machines {
        client.start_machine(machine).await?;
        progress.say(&format!("{machine} starts again, on the drives that it left"));
    }
    Ok(())
}

/// Starts a lab that has ended, under the lock of the caller.
pub(super) fn whole(folder: &Folder, state: &mut State) -> Result<(), Failure> {
    let name = &folder.name;
    if saved::is_there(folder) {
        return Err(Failure::input(format!("lab `{name}` was saved: `labyard restore {name}` lets it go on")));
    }
    if !folder.file(names::PLAN).is_file() {
        return Err(Failure::input(format!(
            "lab `{name}` was never prepared to its end: `labyard down {name}` removes what is left"
        )));
    }
    if state.name != *name {
        rename::settle(folder)?;
        state.name.clone_from(name);
    }
    host::check_kvm()?;
    let home = home_of(folder);
    let admitted = quota::admit(&home, quota::Ask::of_lab(folder, state, true)?, Some(name))?;
    state.begin_again()?;
    state.write(folder)?;
    drop(admitted);
    client::launch(folder, state).map_err(|error| {
        // It can be tried again.
        state.end = Some(End { at_ms: now_ms(), reason: chain(&error) });
        let _ = state.write(folder); // the reason is what counts
        error.into()
    })
}

pub(crate) fn restart(home: &Home, wanted: &Restart) -> Outcome {
    stop::quietly(home, &Stop { name: wanted.start.name.clone(), grace: wanted.grace })?;
    start(home, &wanted.start)
}
