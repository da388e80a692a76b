//! The supervisor process: one playground, from a folder that is prepared to a vmm that has ended.
//!
//! ```text
//!   state.json names a vmm that lives ──> adopt ──┐
//!   else plan.json ──> start in its jail, create ─┴─> follow events, serve the API ──(vmm ends)──> write why, end
//! ```
//!
//! One thread with an event loop; what blocks (the control socket) runs on threads of its own. Programs are started by one that does
//! nothing else ([`crate::starter`]), and all others have given up what that takes ([`crate::confine`]). Everything that it needs is
//! the folder, so it can be killed at any moment: the next one finds all of it there. It dies with nobody and kills nobody unasked.

mod adopt;
mod again;
mod api;
mod change;
mod expiry;
mod hold;
mod links;
mod members;
mod publish;
mod shared;
mod stop;
mod tasks;
mod watch;
mod ways_out;

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use labyard_spec::control::Event;

use crate::confine;
use crate::home::{Folder, HomeError, names};
use crate::host::{HostError, Programs};
use crate::jailed::{self, StartError, Vmm};
use crate::journal::{Journal, What};
use crate::plan::Plan;
use crate::record::{ConditionName, Standing, State, Then};
use crate::starter::Starter;
use crate::words::{chain, last_line, log};
use shared::{Phase, Saving, Shared};

/// How long events that are on their way may take once the vmm has ended.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);
/// How long answers that are being written may take at the end.
const FAREWELL_WITHIN: Duration = Duration::from_secs(2);

/// How long a command that changes the playground is waited for before an expired one is removed.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// Why the supervisor could not do its work.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum RunError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("lab `{0}`: no state.json and plan.json to start from; `labyard down {0}` removes what is left")]
    Unprepared(String),
    #[error("lab `{name}`: {reason}")]
    Over { name: String, reason: String },
    #[error("the supervisor's event loop")]
    Loop(#[source] io::Error),
    #[error("giving up what a supervisor does not need")]
    Confine(#[source] io::Error),
}

/// Supervises the playground in `folder` until its vmm has ended. `serving` is called once, when the API answers. The calling thread has
/// given up for good what a supervisor does not need (docs/sandboxes.md).
///
/// # Errors
/// Where there is nothing to supervise. An end of the vmm, also a bad one, is none: it is written to the folder.
pub fn run(folder: &Folder, serving: impl FnOnce()) -> Result<(), RunError> {
    raise_descriptor_limit();
    let starter = Starter::new().map_err(RunError::Loop)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Loop)?;
    let result = runtime.block_on(supervise(folder, starter, serving));
    // A thread may wait for a vmm that is gone for good.
    runtime.shutdown_background();
    result
}

/// Lets this process use what its hard limit allows: a plan's files are opened in batches, streams of guests come on top.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        log(&format!("raising the limit of open descriptors: {error}"));
    }
}

async fn supervise(folder: &Folder, starter: Starter, serving: impl FnOnce()) -> Result<(), RunError> {
    let unprepared = || RunError::Unprepared(folder.name.clone());
    let state = State::read(folder)?.ok_or_else(unprepared)?;
    let standing = state.standing();
    if standing == Standing::Ended {
        let reason = state.end_reason().to_owned();
        return Err(RunError::Over { name: folder.name.clone(), reason });
    }
    let journal = Journal::open(folder)?;
    let vmm = state.vmm.clone();
    let shared = Arc::new(Shared::new(folder.clone(), state, journal, starter));
    let (server, farewell) = api::serve(&shared).map_err(RunError::Loop)?;
    // The socket has its name and mode. This is the only thread yet, beside the one that starts programs.
    confine::enter(folder).map_err(RunError::Confine)?;
    serving();
    tokio::spawn(tasks::mind(Arc::clone(&shared)));
    let expiring = tokio::spawn(expiry::watch(Arc::clone(&shared)));
    let ended = match vmm {
        Some(vmm) => adopt::adopt(&shared, &vmm).await,
        None => start(&shared).await,
    };
    let reason = match ended {
        Ok(reason) => reason,
        Err(error) => chain(&error),
    };
    // What it had is gone before anybody is told that the lab is. Where groups are made nobody may write but who passes by permissions.
    let whose = folder.clone();
    if let Err(error) = shared.starter.run(move || crate::cgroup::remove(&whose)) {
        log(&format!("control groups: {error}"));
    }
    shared.end(&reason);
    shared.set_phase(Phase::Over);
    let _ = farewell.send(());
    let _ = tokio::time::timeout(FAREWELL_WITHIN, server).await;
    match tokio::time::timeout(FAREWELL_WITHIN, expiring).await {
        Ok(Ok(Then::Remove)) => remove(folder),
        _ => Ok(()),
    }
}

/// Removes a playground that has expired; a command that is about to change it comes first.
fn remove(folder: &Folder) -> Result<(), RunError> {
    let Some(_lock) = folder.lock(false, LOCK_PATIENCE)? else { return Ok(()) };
    match State::read(folder)?.map(|state| state.standing()) {
        Some(Standing::Ended) => Ok(folder.remove()?),
        // Somebody has started it again.
        _ => Ok(()),
    }
}

/// Starts the vmm and stays with it. Returns why it ended.
async fn start(shared: &Arc<Shared>) -> Result<String, RunError> {
    let folder = shared.folder.clone();
    let unprepared = || RunError::Unprepared(folder.name.clone());
    let plan = folder.read(names::PLAN)?.ok_or_else(unprepared)?;
    let mut plan: Plan = serde_json::from_slice(&plan).map_err(|_| unprepared())?;
    // Who was about to come or leave when a supervisor was killed is not here.
    let here = shared.state().machines;
    let is_here = |name: &str| here.iter().any(|here| here.name == name);
    plan.spec.machines.retain(|machine| is_here(&machine.name));
    for network in plan.uplink.iter_mut().flat_map(|uplink| &mut uplink.networks) {
        network.names.retain(|(name, _)| is_here(name));
    }
    let (plan, vmm) = start_vmm(shared, plan)?;
    let pidfd = match shared.vmm_pidfd() {
        Some(pidfd) => pidfd,
        // It ended between the two lines; its log says why.
        None => return Ok(how_it_ended(shared, vmm.wait())),
    };
    if let Some(warning) = vmm.confined.warning() {
        shared.note(None, &warning);
    }
    let jailed = match vmm.confined.limits() {
        Some(limits) => format!("the vmm answers from its jail, and may take {limits}"),
        None => "the vmm answers from its jail".to_owned(),
    };
    let (events, incoming) = watch::channel();
    let created = {
        let (shared, pidfd) = (Arc::clone(shared), Arc::clone(&pidfd));
        let create = move || {
            jailed::create(&shared.folder, &plan, &shared.starter, &pidfd, |ways_out| {
                if let Some(note) = ways_out.note() {
                    shared.note(None, &note);
                }
                ways_out::are(&shared, ways_out);
                shared.reached(None, ConditionName::Jailed, &jailed);
                watch::follow(&shared.folder, 0, events);
            })
        };
        let created = tokio::task::spawn_blocking(create);
        created.await.map_err(|panicked| RunError::Loop(io::Error::other(panicked)))
    };
    match created? {
        Ok(ways_out) => ways_out::adopt(shared, ways_out.into_children()),
        Err(error) => {
            vmm.end();
            ways_out::end(shared).await;
            return Err(error.into());
        }
    }
    shared.set_phase(Phase::Up);
    stay(shared, pidfd, Some(vmm), incoming).await
}

fn start_vmm(shared: &Arc<Shared>, plan: Plan) -> Result<(Plan, Vmm), RunError> {
    let owned = Arc::clone(shared);
    let start = move || -> Result<(Plan, Vmm), RunError> {
        let programs = Programs::locate()?;
        let vmm = jailed::start(&owned.folder, &plan, &programs, |who| Ok(owned.vmm_is(who)?))?;
        Ok((plan, vmm))
    };
    shared.starter.run(start).map_err(RunError::Loop)?
}

/// Follows the vmm to its end. Returns why it ended.
async fn stay(
    shared: &Arc<Shared>,
    pidfd: Arc<OwnedFd>,
    vmm: Option<Vmm>,
    mut incoming: watch::Incoming,
) -> Result<String, RunError> {
    let mut gone = watch::end_of(pidfd)?;
    let mut listening = true;
    loop {
        tokio::select! {
            _ = &mut gone => break,
            event = incoming.recv(), if listening => match event {
                Some(Ok((event, stream))) => happened(shared, &event, stream),
                Some(Err(why)) => shared.note(None, &format!("events of the vmm: {why}")),
                None => listening = false,
            },
        }
    }
    let drain = async {
        while let Some(Ok((event, stream))) = incoming.recv().await {
            happened(shared, &event, stream);
        }
    };
    let _ = tokio::time::timeout(DRAIN_WITHIN, drain).await;
    let status = vmm.and_then(Vmm::wait);
    watch::last_words(shared);
    // What it had is gone before anybody is told that the lab is.
    ways_out::end(shared).await;
    Ok(how_it_ended(shared, status))
}

fn happened(shared: &Arc<Shared>, event: &Event, stream: Option<std::os::unix::net::UnixStream>) {
    shared.happened(event);
    if let Some(stream) = stream {
        watch::guest_connected(shared, event, stream);
    }
}

/// One sentence on the end of the vmm, with its last words where it was not asked to end.
fn how_it_ended(shared: &Shared, status: Option<ExitStatus>) -> String {
    if shared.is_stopping() {
        return "stopped".to_owned();
    }
    if shared.saving(Saving::Done, Saving::Done) {
        return "saved".to_owned();
    }
    let how = match status {
        Some(status) => format!("the vmm ended with {status}"),
        None => "the vmm ended".to_owned(),
    };
    match last_line(&shared.folder.file(names::VMM_LOG)) {
        Some(line) => format!("{how}; its last words: {line}"),
        None => format!("{how} without a word"),
    }
}

impl Shared {
    /// Writes how it ended to the journal and the state.
    fn end(&self, reason: &str) {
        self.change(|inner| {
            inner.state.end = Some(crate::record::End { at_ms: crate::record::now_ms(), reason: reason.to_owned() });
            inner.journal.write(None, What::Ended(reason.to_owned()));
        });
    }
}
