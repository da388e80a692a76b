//! Ways out of networks while the lab runs: they come and go with their networks, and know who is there.
//!
//! `state.json` has an uplink once the vmm has its tap, so one that is not there is started anew, and takes the place of any that is: that
//! one ends when the vmm lets go of its tap.

use std::os::fd::AsFd;
use std::process::Child;
use std::sync::{Arc, MutexGuard, PoisonError};

use labyard_spec::control::Request;
use labyard_spec::playground::{NetworkSpec, Slot};
use labyard_spec::uplink::{Table, UplinkNetwork};

use super::shared::Shared;
use crate::control::{Control, ControlError};
use crate::home::names;
use crate::plan::Plan;
use crate::record::State;
use crate::wayout::{self, WaysOut};

/// The vmm gets these with its machines: they are in the state before it has them.
pub(super) fn are(shared: &Shared, ways_out: &WaysOut) {
    let uplinks = ways_out.uplinks();
    if !uplinks.is_empty() {
        shared.change(|inner| inner.state.uplinks = uplinks);
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Vec<Child>> {
    // A list of processes is whole whoever panicked.
    let mut children = shared.uplinks.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain_mut(|child| child.try_wait().is_ok_and(|ended| ended.is_none()));
    children
}

/// These are children of this process.
pub(super) fn adopt(shared: &Shared, children: Vec<Child>) {
    lock(shared).extend(children);
}

/// Opens those of the plan that are missing. Why one cannot be is in the journal.
pub(super) fn open(shared: &Shared, control: &Control, plan: &Plan) -> Result<(), ControlError> {
    let mut children = lock(shared);
    let state = shared.state();
    let lives = |name: &str| state.uplinks.iter().any(|known| known.network == name && known.process.is_alive());
    let mut missing = wayout::specs(plan);
    missing.retain(|spec| spec.networks.iter().any(|network| !lives(&network.name)));
    if missing.is_empty() {
        return Ok(());
    }
    for network in missing.iter_mut().flat_map(|spec| &mut spec.networks) {
        network.names = machines_on(&state, &network.name);
        network.names6 = machines_on6(&state, network);
    }
    // One that has ended says so elsewhere.
    let Some(vmm) = shared.vmm_pidfd() else { return Ok(()) };
    let folder = shared.folder.clone();
    let opened = shared.starter.run(move || WaysOut::open(&folder, &missing, vmm.as_fd()));
    let mut ways_out = match opened {
        Ok(ways_out) => ways_out,
        Err(error) => {
            shared.note(None, &format!("ways out: {error}"));
            return Ok(());
        }
    };
    if let Some(note) = ways_out.note() {
        shared.note(None, &note);
    }
    let (uplinks, taps) = (ways_out.uplinks(), ways_out.take_taps());
    children.extend(ways_out.into_children());
    for ((network, tap), uplink) in taps.into_iter().zip(uplinks) {
        let Some(spec) = plan.spec.networks.iter().find(|other| other.name == network) else { continue };
        control.tell(&Request::Descriptors { first: Slot(0), count: 1 }, &[tap.as_fd()])?;
        control.tell(&Request::AddNetwork(NetworkSpec { tap: Some(Slot(0)), ..spec.clone() }), &[])?;
        shared.change(|inner| {
            inner.state.uplinks.retain(|other| other.network != network);
            inner.state.uplinks.push(uplink);
        });
    }
    Ok(())
}

/// The network is gone, and with it its tap: so is its uplink soon.
pub(super) fn close(shared: &Shared, network: &str) {
    let _children = lock(shared);
    for uplink in shared.state().uplinks.iter().filter(|uplink| uplink.network == network) {
        wayout::end(&shared.folder, uplink);
        shared.change(|inner| inner.state.uplinks.retain(|other| other.network != network));
        shared.note(None, &format!("network {network} is gone, and its way out with it"));
    }
}

/// The vmm has ended; waits for all of them.
pub(super) async fn end(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let ending = move || {
        let uplinks = shared.state().uplinks;
        for uplink in &uplinks {
            wayout::end(&shared.folder, uplink);
        }
        drop(lock(&shared));
        if !uplinks.is_empty() {
            shared.change(|inner| inner.state.uplinks.clear());
        }
    };
    let _ = tokio::task::spawn_blocking(ending).await; // what is left ends by itself
}

/// Tells each who is on its network, and which others there are.
pub(super) async fn tell(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    let telling = move || {
        // Whoever is told last is told what is true last.
        let _children = lock(&shared);
        let state = shared.state();
        if state.uplinks.is_empty() {
            return;
        }
        let plan = shared.folder.read(names::PLAN).ok().flatten();
        let plan: Option<Plan> = plan.and_then(|text| serde_json::from_slice(&text).ok());
        for spec in plan.iter().flat_map(wayout::specs) {
            for network in &spec.networks {
                if state.uplinks.iter().all(|uplink| uplink.network != network.name) {
                    continue;
                }
                let names = machines_on(&state, &network.name);
                let names6 = machines_on6(&state, network);
                let (others, others6) = (spec.others.clone(), spec.others6.clone());
                let table = Table { network: network.name.clone(), names, others, names6, others6 };
                if let Err(why) = wayout::tell(&shared.folder, &table) {
                    let text = format!("the gateway of network {} knows the names that it knew: {why}", network.name);
                    shared.note(None, &text);
                }
            }
        }
    };
    let _ = tokio::task::spawn_blocking(telling).await;
}

/// Machines of a network and their first addresses there.
fn machines_on(state: &State, network: &str) -> Vec<(String, std::net::Ipv4Addr)> {
    let on = |machine: &crate::record::Machine| {
        let (_, address) = machine.addresses.iter().find(|(name, _)| name == network)?;
        Some((machine.name.clone(), *address))
    };
    state.machines.iter().filter_map(on).collect()
}

/// The same of IPv6, where the network has it.
fn machines_on6(state: &State, network: &UplinkNetwork) -> Vec<(String, std::net::Ipv6Addr)> {
    let on = |machine: &crate::record::Machine| {
        let (_, address) = machine.addresses6.iter().find(|(name, _)| *name == network.name)?;
        Some((machine.name.clone(), *address))
    };
    state.machines.iter().filter(|_| network.six.is_some()).filter_map(on).collect()
}
