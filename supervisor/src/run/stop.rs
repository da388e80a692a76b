//! The end of a playground or of one machine: ask the guest to power off, wait, cut the power, make sure.
//!
//! The agent is asked first, because it answers: it has the image's init do what it does on a power-off. Where it does not
//! answer, the power button is pressed, of which nobody knows who listens to it. A machine that has not come to its init cannot
//! be asked at all, and is not waited for; nor is one that waits for room on the host's disk.

use std::sync::Arc;
use std::time::Duration;

use labyard_spec::agent::{Kind, Request as AgentRequest};
use labyard_spec::control::{MachineState, Request};
use labyard_spec::guest::AGENT_PORT;
use tokio::time::timeout;

use super::shared::{Phase, Shared};
use crate::call;
use crate::control::{Control, ControlError};
use crate::record::{ConditionName, Machine, State};

/// How long a vmm may take to start or to end.
const VMM_WITHIN: Duration = Duration::from_secs(10);
/// How long an agent may take to answer before the button is pressed.
const AGENT_WITHIN: Duration = Duration::from_secs(10);

/// Ends the playground; guests get `grace` to power off. Returns when the vmm has ended and all is written down.
pub(super) async fn stop(shared: &Arc<Shared>, grace: Duration) {
    shared.stop_was_asked();
    // A vmm that is being started is waited for; one that does not come up is killed below.
    let _ = timeout(VMM_WITHIN, shared.until(|_, phase| phase > Phase::Starting)).await;
    let asked: Vec<String> =
        shared.state().machines.iter().filter(|machine| hears(machine)).map(|machine| machine.name.clone()).collect();
    let powering_off = async {
        let calls: Vec<_> =
            asked.iter().map(|machine| tokio::spawn(ask(Arc::clone(shared), machine.clone()))).collect();
        for call in calls {
            let _ = call.await;
        }
        let down = |machine: &Machine| machine.ended.is_some() || !asked.contains(&machine.name);
        shared.until(|state: &State, phase| phase == Phase::Over || state.machines.iter().all(down)).await;
    };
    if timeout(grace, powering_off).await.is_err() {
        shared.note(None, &format!("not every machine powered off within {} s: the power is cut", grace.as_secs()));
    }
    // It may be gone before it answers.
    let _ = timeout(VMM_WITHIN, tell(shared, Request::Kill { machine: None })).await;
    if timeout(VMM_WITHIN, shared.until(|_, phase| phase == Phase::Over)).await.is_err() {
        let vmm = shared.state().vmm.and_then(|vmm| vmm.identity());
        if let Some(process) = vmm.and_then(|vmm| vmm.open().ok()) {
            let _ = process.kill();
        }
        let _ = timeout(VMM_WITHIN, shared.until(|_, phase| phase == Phase::Over)).await;
    }
}

/// Ends one machine that the state knows; it gets `grace` to power off. How it has ended, also where that was long ago.
pub(super) async fn stop_machine(
    shared: &Arc<Shared>,
    machine: &str,
    grace: Duration,
) -> Result<MachineState, ControlError> {
    let _ = timeout(VMM_WITHIN, shared.until(|_, phase| phase > Phase::Starting)).await;
    let found = |state: &State| state.machines.iter().find(|other| other.name == machine).cloned();
    let ended = |state: &State| found(state).and_then(|machine| machine.ended);
    let over = |state: &State, phase| phase == Phase::Over || ended(state).is_some();
    if found(&shared.state()).is_some_and(|machine| hears(&machine)) {
        let powering_off = async {
            ask(Arc::clone(shared), machine.to_owned()).await;
            shared.until(over).await;
        };
        if timeout(grace, powering_off).await.is_err() {
            let text = format!("it did not power off within {} s: the power is cut", grace.as_secs());
            shared.note(Some(machine), &text);
        }
    }
    if ended(&shared.state()).is_none() {
        tell(shared, Request::Kill { machine: Some(machine.to_owned()) }).await?;
        let _ = timeout(VMM_WITHIN, shared.until(over)).await;
    }
    // A vmm that is gone has told nobody: with it, the power was cut.
    Ok(ended(&shared.state()).unwrap_or(MachineState::Killed))
}

/// Whether somebody in the machine can be asked: not in one that stands still because the host's disk has no room.
fn hears(machine: &Machine) -> bool {
    machine.ended.is_none() && machine.has(ConditionName::InitDone) && machine.full_drives.is_empty()
}

/// Asks a machine to power off. Whether it does shows in its end.
async fn ask(shared: Arc<Shared>, machine: String) {
    let asked = timeout(AGENT_WITHIN, ask_agent(&shared, &machine)).await;
    let Err(error) = asked.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) else { return };
    shared.note(Some(&machine), &format!("its agent does not power it off ({error}): the power button is pressed"));
    if let Err(error) = tell(&shared, Request::PowerButton { machine: machine.clone() }).await {
        shared.note(Some(&machine), &format!("pressing its power button: {error}"));
    }
}

async fn ask_agent(shared: &Shared, machine: &str) -> std::io::Result<()> {
    let folder = shared.folder.clone();
    let request = Request::Connect { machine: machine.to_owned(), port: AGENT_PORT };
    let stream = tokio::task::spawn_blocking(move || Control::connect(&folder)?.stream(&request));
    let stream = stream.await.map_err(std::io::Error::other)?;
    let stream = stream.map_err(|error| std::io::Error::other(crate::words::chain(&error)))?;
    stream.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(stream)?;
    call::send(&mut stream, Kind::Request, &serde_json::to_vec(&AgentRequest::PowerOff)?).await?;
    match call::receive(&mut stream).await {
        Ok(Some((Kind::Error, text))) => Err(std::io::Error::other(String::from_utf8_lossy(&text).into_owned())),
        // The answer may be overtaken by the end of the machine.
        _ => Ok(()),
    }
}

/// Tells the vmm something, on a thread that may wait.
async fn tell(shared: &Shared, request: Request) -> Result<(), ControlError> {
    let folder = shared.folder.clone();
    let told = tokio::task::spawn_blocking(move || Control::connect(&folder)?.tell(&request, &[]));
    told.await.unwrap_or(Err(ControlError::Closed))
}
