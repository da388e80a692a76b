//! Machines and networks that come to a lab and leave it while the others run.
//!
//! `plan.json` has at least the machines of `state.json` and the networks of the vmm, whatever is killed in between: who leaves goes from the
//! state or the vmm first, who comes goes into the plan first. A vmm that is started has those of the state (`super::start`); one that is adopted is asked whom it has.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use labyard_spec::agent::{Hosts, Kind, Request as AgentRequest};
use labyard_spec::control::{MachineState, Request};
use labyard_spec::guest::{AGENT_PORT, HostEntry};
use tokio::time::timeout;

use super::shared::{Inner, Shared};
use super::{stop, ways_out};
use crate::call;
use crate::cgroup::{self, CgroupError};
use crate::client::Members;
use crate::control::{Control, ControlError};
use crate::home::{HomeError, names};
use crate::jailed::{self, StartError};
use crate::plan::Plan;
use crate::record::{ConditionName, Machine, State, TaskState, TaskStatus};
use crate::tasks::Tasks;
use crate::words::chain;

/// How long an agent may take to change its `/etc/hosts`.
const HOSTS_WITHIN: Duration = Duration::from_secs(10);
/// Lines that one call carries: far less than a frame.
const HOSTS_AT_ONCE: usize = 256;

/// Why somebody did not come or leave.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemberError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Limits(#[from] CgroupError),
    #[error("the lab's plan.json")]
    Plan(#[from] serde_json::Error),
    #[error("the lab has no plan.json")]
    Unplanned,
}

/// Ends a machine and forgets it; it gets `grace` to power off. Its folder is left to who asked.
pub(super) async fn remove(shared: &Arc<Shared>, machine: &str, grace: Duration) -> Result<MachineState, MemberError> {
    let ended = stop::stop_machine(shared, machine, grace).await?;
    tell(shared, Request::Remove { machine: machine.to_owned() }).await?;
    shared.change(|inner| {
        inner.state.machines.retain(|other| other.name != machine);
        let left = inner.state.left.get_or_insert_default();
        if !left.iter().any(|other| other == machine) {
            left.push(machine.to_owned());
        }
        inner.forget_calls(machine);
        inner.may_be_ready();
    });
    shared.note(None, &format!("machine {machine} has left the lab"));
    ways_out::tell(shared).await;
    tell_all_hosts(shared).await;
    Ok(ended)
}

/// Makes the lab what is asked for: networks first, then machines that are not there. Who is not asked for has left before.
pub(super) async fn come(shared: &Arc<Shared>, asked: Members) -> Result<(), MemberError> {
    let Members { manifest, mut plan, machines, tasks } = asked;
    let before = shared.state();
    let place = |name: &str| before.machines.iter().position(|known| known.name == name).unwrap_or(usize::MAX);
    // Who comes later is last, in the plan and the vmm alike: what is saved is saved in this order.
    plan.spec.machines.sort_by_key(|machine| place(&machine.name));
    let come: Vec<Machine> = machines.into_iter().filter(|machine| place(&machine.name) == usize::MAX).collect();
    let shared_too = Arc::clone(shared);
    let joining = tokio::task::spawn_blocking(move || join(&shared_too, &plan, come, &tasks));
    let joined = joining.await.unwrap_or(Err(ControlError::Closed.into()));
    // Some may have come before one could not.
    ways_out::tell(shared).await;
    joined?;
    shared.change(|inner| inner.state.manifest = manifest);
    tell_all_hosts(shared).await;
    Ok(())
}

fn join(shared: &Shared, plan: &Plan, come: Vec<Machine>, tasks: &Tasks) -> Result<(), MemberError> {
    let _planning = shared.planning.lock().unwrap_or_else(PoisonError::into_inner);
    let control = Control::connect(&shared.folder)?;
    let old = shared.folder.read(names::PLAN)?.ok_or(MemberError::Unplanned)?;
    let old: Plan = serde_json::from_slice(&old)?;
    let has = |plan: &Plan, name: &str| plan.spec.networks.iter().any(|network| network.name == name);
    for network in old.spec.networks.iter().filter(|network| !has(plan, &network.name)) {
        control.tell(&Request::RemoveNetwork { network: network.name.clone() }, &[])?;
        ways_out::close(shared, &network.name);
    }
    // A network that the vmm has is in the plan, so that whoever comes after a kill can have it leave.
    shared.folder.write(names::PLAN, &serde_json::to_vec(plan)?)?;
    // Also those that the plan before has: it may have been written, and no more.
    for network in &plan.spec.networks {
        control.tell(&Request::AddNetwork(network.clone()), &[])?;
    }
    ways_out::open(shared, &control, plan)?;
    // What nobody asked for grows with the lab: whoever comes would be out of memory in the limits of those who were there.
    cgroup::change(&shared.folder, &plan.host_limits(), plan.limits.allow_unlimited)?;
    tasks.write(&shared.folder)?;
    let names: Vec<&str> = come.iter().map(|machine| machine.name.as_str()).collect();
    shared.change(|inner| inner.has_tasks(tasks, &names));
    let joined = join_each(shared, plan, come);
    if joined.is_err() {
        forget_tasks(shared, tasks);
    }
    joined
}

/// Who could not come has no tasks, and nobody waits for those. What needed one of them has failed, and runs where somebody says so.
fn forget_tasks(shared: &Shared, tasks: &Tasks) {
    let there: Vec<String> = shared.state().machines.into_iter().map(|machine| machine.name).collect();
    let is_there = |machine: &str| there.iter().any(|name| name == machine);
    let is_lost = |name: &&str| tasks.tasks.iter().any(|task| task.name == **name && !is_there(&task.machine));
    let kept = tasks.clone().of(is_there);
    shared.change(|inner| inner.has_tasks(&kept, &[]));
    for task in kept.tasks.iter().filter(|task| tasks.before(&task.name).iter().any(is_lost)) {
        let why = "the machine of a task that it needs could not come";
        shared.task(&task.name, TaskStatus::Failed, why, |state| state.why = Some(why.to_owned()));
    }
    // Last, so that nothing starts that has just lost what it needs. A full disk may be why nobody came: what runs goes by the state.
    if let Err(error) = kept.write(&shared.folder) {
        shared.note(None, &format!("init tasks: {}", chain(&error)));
    }
}

fn join_each(shared: &Shared, plan: &Plan, come: Vec<Machine>) -> Result<(), MemberError> {
    for machine in come {
        let name = machine.name.clone();
        let spec = plan.spec.machines.iter().find(|other| other.name == name).ok_or(MemberError::Unplanned)?;
        shared.change(|inner| inner.comes(machine));
        if let Err(error) = jailed::add_machine(&shared.folder, plan, spec) {
            shared.change(|inner| inner.state.machines.retain(|other| other.name != name));
            return Err(error.into());
        }
        shared.note(None, &format!("machine {name} has come to the lab"));
    }
    Ok(())
}

impl Inner {
    /// A machine that is about to start among others.
    fn comes(&mut self, machine: Machine) {
        self.state.left.get_or_insert_default().retain(|left| *left != machine.name);
        self.state.conditions.retain(|condition| condition.name != ConditionName::Ready);
        self.state.machines.retain(|other| other.name != machine.name);
        self.state.machines.push(machine);
    }
}

impl Inner {
    /// The init tasks are these from now on; those of machines that come have not run.
    fn has_tasks(&mut self, tasks: &Tasks, come: &[&str]) {
        let known = std::mem::take(&mut self.state.tasks);
        let new = |machine: &str| come.contains(&machine);
        let as_it_was = |state: TaskState| {
            let same = known.iter().find(|known| known.name == state.name && known.machine == state.machine);
            same.filter(|same| !new(&same.machine)).cloned().unwrap_or(state)
        };
        self.state.tasks = tasks.states().into_iter().map(as_it_was).collect();
        let done = self.state.tasks.iter().all(|task| task.status == TaskStatus::Completed);
        if !done {
            self.state.conditions.retain(|condition| condition.name != ConditionName::TasksDone);
        } else if !self.state.tasks.is_empty() {
            self.tasks_may_be_done();
        }
        self.may_be_ready();
    }
}

/// What a machine finds by name, now that others have come and gone.
fn hosts_of(state: &State, machine: &str) -> Option<(Vec<HostEntry>, Vec<String>)> {
    let left = state.left.clone()?;
    let own = &state.machines.iter().find(|other| other.name == machine)?.addresses;
    let entries = state.machines.iter().flat_map(|other| {
        let shares = |network: &String| own.iter().any(|(own, _)| own == network);
        let four = other.addresses.iter().filter(move |(network, _)| shares(network)).map(|(_, ip)| (*ip).into());
        let six = other.addresses6.iter().filter(move |(network, _)| shares(network)).map(|(_, ip)| (*ip).into());
        four.chain(six).map(|address| HostEntry { address, names: vec![other.name.clone()] })
    });
    Some((entries.collect(), left))
}

/// Tells every machine that can be asked, at the same time.
async fn tell_all_hosts(shared: &Arc<Shared>) {
    let reached = |machine: &Machine| machine.ended.is_none() && machine.has(ConditionName::AgentReachable);
    let machines: Vec<_> = shared.state().machines.into_iter().filter(reached).map(|machine| machine.name).collect();
    let telling: Vec<_> = machines.into_iter().map(|name| tokio::spawn(tell_hosts(Arc::clone(shared), name))).collect();
    for one in telling {
        let _ = one.await;
    }
}

/// Tells a machine whom it finds by name, where that is not what it began with.
pub(super) async fn tell_hosts(shared: Arc<Shared>, machine: String) {
    let Some((here, gone)) = hosts_of(&shared.state(), &machine) else { return };
    let told = timeout(HOSTS_WITHIN, ask_agent(&shared, &machine, here, gone)).await;
    if let Err(error) = told.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        shared.note(Some(&machine), &format!("its /etc/hosts is as it was: {error}"));
    }
}

async fn ask_agent(shared: &Shared, machine: &str, here: Vec<HostEntry>, gone: Vec<String>) -> std::io::Result<()> {
    let chunks = here.chunks(HOSTS_AT_ONCE).map(<[HostEntry]>::to_vec);
    let chunks: Vec<_> = chunks.map(|here| Hosts { here, gone: Vec::new() }).collect();
    // Lines of who is here are put in after those of who has gone are taken out.
    let names: HashMap<_, ()> = here.iter().flat_map(|entry| &entry.names).map(|name| (name.as_str(), ())).collect();
    let gone: Vec<_> = gone.into_iter().filter(|name| !names.contains_key(name.as_str())).collect();
    let first = (!gone.is_empty()).then_some(Hosts { here: Vec::new(), gone });
    for hosts in first.into_iter().chain(chunks) {
        let folder = shared.folder.clone();
        let request = Request::Connect { machine: machine.to_owned(), port: AGENT_PORT };
        let stream = tokio::task::spawn_blocking(move || Control::connect(&folder)?.stream(&request));
        let stream = stream.await.map_err(std::io::Error::other)?;
        let stream = stream.map_err(|error| std::io::Error::other(chain(&error)))?;
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        call::send(&mut stream, Kind::Request, &serde_json::to_vec(&AgentRequest::Hosts(hosts))?).await?;
        match call::receive(&mut stream).await? {
            Some((Kind::Exit, _)) => {}
            Some((_, text)) => return Err(std::io::Error::other(String::from_utf8_lossy(&text).into_owned())),
            None => return Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(())
}

async fn tell(shared: &Shared, request: Request) -> Result<(), ControlError> {
    super::hold::tell(shared, request).await
}
