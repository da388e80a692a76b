//! Takes over a vmm whose supervisor has died: nothing in it changes, only what was missed is made up for.

use std::sync::Arc;
use std::time::Duration;

use labyard_spec::control::{MachineState, Request};
use labyard_spec::guest::AGENT_PORT;

use super::shared::{Phase, Shared};
use super::{RunError, hold, stay, watch, ways_out};
use crate::control::{Control, ControlError};
use crate::journal::last_vmm_event;
use crate::record::{ConditionName, Who};
use crate::words::chain;

/// Between two looks for an agent whose hello went to the supervisor before.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Stays with a vmm that runs. Returns why it ended.
pub(super) async fn adopt(shared: &Arc<Shared>, vmm: &Who) -> Result<String, RunError> {
    let Some(pidfd) = shared.vmm_pidfd() else {
        watch::last_words(shared);
        ways_out::end(shared).await;
        return Ok(super::how_it_ended(shared, None));
    };
    shared.note(None, &format!("a new supervisor has taken over the vmm {}", vmm.pid));
    let (events, incoming) = watch::channel();
    let last_event = last_vmm_event(&shared.folder);
    watch::follow(&shared.folder, last_event, events);
    match ask_status(shared).await {
        // One request makes all machines, and the supervisor before was killed before it was sent: nobody else will.
        Ok(machines) if machines.is_empty() && last_event == 0 && !shared.state().machines.is_empty() => {
            if let Some(process) = vmm.identity().and_then(|vmm| vmm.open().ok()) {
                let _ = process.kill(); // it may have ended by itself
            }
            let _ = watch::end_of(pidfd)?.await;
            ways_out::end(shared).await;
            return Ok("its supervisor was killed before any machine was there".to_owned());
        }
        Ok(machines) => {
            for (name, state) in &machines {
                shared.machine_ended(name, state);
            }
            let is_there = |name: &String| machines.iter().any(|(other, _)| other == name);
            // The supervisor before was killed before it was there; it can be started.
            for missing in shared.state().machines.iter().filter(|machine| !is_there(&machine.name)) {
                shared.machine_ended(&missing.name, &MachineState::Killed);
            }
        }
        // It lives and does not answer: it can still be killed.
        Err(why) => shared.note(None, &format!("the vmm does not say how it is: {why}")),
    }
    hold::go_on(shared).await;
    // The supervisor before may have been killed before it could tell.
    ways_out::tell(shared).await;
    for machine in shared.state().machines {
        if machine.ended.is_none() && !machine.has(ConditionName::AgentReachable) {
            tokio::spawn(look_for_agent(Arc::clone(shared), machine.name));
        }
    }
    shared.set_phase(Phase::Up);
    stay(shared, pidfd, None, incoming).await
}

async fn ask_status(shared: &Shared) -> Result<Vec<(String, MachineState)>, String> {
    let folder = shared.folder.clone();
    let asked = tokio::task::spawn_blocking(move || Control::connect(&folder)?.status()).await;
    let status = asked.map_err(|panicked| panicked.to_string())?.map_err(|error: ControlError| chain(&error))?;
    Ok(status.machines.into_iter().map(|machine| (machine.name, machine.state)).collect())
}

/// Its hello may have gone to the supervisor that died, so the agent is dialled until it answers or the machine ends.
async fn look_for_agent(shared: Arc<Shared>, machine: String) {
    loop {
        let (folder, name) = (shared.folder.clone(), machine.clone());
        let dial = move || Control::connect(&folder)?.stream(&Request::Connect { machine: name, port: AGENT_PORT });
        if let Ok(Ok(_stream)) = tokio::task::spawn_blocking(dial).await {
            shared.reached(Some(&machine), ConditionName::InitDone, "an agent runs, so init is done");
            shared.reached(Some(&machine), ConditionName::AgentReachable, "the agent answers");
            return;
        }
        let state = shared.state();
        let over = state.end.is_some()
            || state.machines.iter().any(|other| {
                other.name == machine && (other.ended.is_some() || other.has(ConditionName::AgentReachable))
            });
        if over {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
