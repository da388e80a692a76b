//! The end of a playground: ask every guest to power off, wait, cut the power, make sure.

use std::sync::Arc;
use std::time::Duration;

use labyard_spec::agent::{Kind, Request as AgentRequest};
use labyard_spec::control::Request;
use labyard_spec::guest::AGENT_PORT;
use tokio::time::timeout;

use super::shared::{Phase, Shared};
use crate::call;
use crate::control::{Control, ControlError};
use crate::record::{ConditionName, Machine, State};

/// How long a vmm may take to start or to end.
const VMM_WITHIN: Duration = Duration::from_secs(10);

/// Ends the playground; guests get `grace` to power off. Returns when the vmm has ended and all is written down.
pub(super) async fn stop(shared: &Arc<Shared>, grace: Duration) {
    shared.stop_was_asked();
    // A vmm that is being started is waited for; one that does not come up is killed below.
    let _ = timeout(VMM_WITHIN, shared.until(|_, phase| phase > Phase::Starting)).await;
    let asked: Vec<String> = shared
        .state()
        .machines
        .into_iter()
        .filter(|machine| machine.ended.is_none() && machine.has(ConditionName::AgentReachable))
        .map(|machine| machine.name)
        .collect();
    let powering_off = async {
        let calls: Vec<_> =
            asked.iter().map(|machine| tokio::spawn(power_off(Arc::clone(shared), machine.clone()))).collect();
        for call in calls {
            let _ = call.await;
        }
        let down = |machine: &Machine| machine.ended.is_some() || !asked.contains(&machine.name);
        shared.until(|state: &State, phase| phase == Phase::Over || state.machines.iter().all(down)).await;
    };
    if timeout(grace, powering_off).await.is_err() {
        shared.note(None, &format!("not every machine powered off within {} s: the power is cut", grace.as_secs()));
    }
    let folder = shared.folder.clone();
    let kill =
        move || -> Result<(), ControlError> { Control::connect(&folder)?.tell(&Request::Kill { machine: None }, &[]) };
    // It may be gone before it answers.
    let _ = timeout(VMM_WITHIN, tokio::task::spawn_blocking(kill)).await;
    if timeout(VMM_WITHIN, shared.until(|_, phase| phase == Phase::Over)).await.is_err() {
        let vmm = shared.state().vmm.and_then(|vmm| vmm.identity());
        if let Some(process) = vmm.and_then(|vmm| vmm.open().ok()) {
            let _ = process.kill();
        }
        let _ = timeout(VMM_WITHIN, shared.until(|_, phase| phase == Phase::Over)).await;
    }
}

/// Asks the agent of one machine. Whether it worked shows in the machine's end.
async fn power_off(shared: Arc<Shared>, machine: String) {
    let (folder, name) = (shared.folder.clone(), machine.clone());
    let dial = move || Control::connect(&folder)?.stream(&Request::Connect { machine: name, port: AGENT_PORT });
    let asked = async {
        let stream = tokio::task::spawn_blocking(dial).await.map_err(std::io::Error::other)?;
        let stream = stream.map_err(|error| std::io::Error::other(crate::words::chain(&error)))?;
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let request = serde_json::to_vec(&AgentRequest::PowerOff)?;
        call::send(&mut stream, Kind::Request, &request).await?;
        // The answer may be overtaken by the end of the machine.
        let _ = call::receive(&mut stream).await;
        Ok::<_, std::io::Error>(())
    };
    if let Err(error) = asked.await {
        shared.note(Some(&machine), &format!("asking it to power off: {error}"));
    }
}
