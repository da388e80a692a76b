//! One lab in detail: what it reached and when, what its machines are made of, and what their devices did.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use anyhow::Context;
use labyard_spec::control;
use labyard_spec::manifest::size;
use labyard_spec::playground::MachineSpec;
use labyard_supervisor::client;
use labyard_supervisor::home::{Folder, Home, names};
use labyard_supervisor::plan::Plan;
use labyard_supervisor::record::{Condition, Expiry, Machine, Standing, State, TaskState, now_ms};
use labyard_supervisor::words::chain;
use serde::Serialize;

use super::args::Saved;
use super::ps::{self, Lab};
use super::{Failure, Outcome, event_loop, expire, naming, output};

/// Bytes of a file's block (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What is told, as `status --json` shows it.
#[derive(Serialize)]
struct Detail {
    #[serde(flatten)]
    lab: Lab,
    expiry: Expiry,
    tasks: Vec<TaskState>,
    networks: Vec<Network>,
    nics: Vec<Nic>,
    drives: Vec<Drive>,
    counters: BTreeMap<String, BTreeMap<String, BTreeMap<String, u64>>>,
    faults: BTreeMap<String, BTreeMap<String, u64>>,
}

#[derive(Serialize)]
struct Network {
    name: String,
    subnet: String,
    gateway: std::net::Ipv4Addr,
    private: bool,
    /// Which way out it has, where it has one.
    way_out: Option<String>,
    subnet6: Option<String>,
    gateway6: Option<std::net::Ipv6Addr>,
}

#[derive(Serialize)]
struct Nic {
    machine: String,
    interface: String,
    network: String,
    address: Option<std::net::Ipv4Addr>,
    address6: Option<std::net::Ipv6Addr>,
    mac: String,
}

#[derive(Serialize)]
struct Drive {
    machine: String,
    drive: String,
    base: Option<String>,
    read_only: bool,
    capacity_bytes: Option<u64>,
    /// Of the host, for what the machine wrote.
    disk_bytes: u64,
}

pub(crate) fn status(home: &Home, wanted: &Saved) -> Outcome {
    let folder = naming::lab_or_only(home, wanted.name.as_deref())?;
    let folder = folder.ok_or_else(|| Failure::input("no lab is there"))?;
    let state = State::read(&folder)?.context("the state is missing: `labyard down` removes what is left")?;
    let (state, vmm) = match state.standing() {
        Standing::Running | Standing::Unattended => ask(&folder, state)?,
        _ => (state, None),
    };
    let detail = detail(&folder, state, vmm.as_ref())?;
    if wanted.json {
        output::document(&detail)?;
    } else {
        print(&detail);
    }
    Ok(0)
}

/// The state and the counters, as they are now; a vmm that does not answer is no reason to say nothing.
fn ask(folder: &Folder, state: State) -> Result<(State, Option<control::Status>), Failure> {
    let runtime = event_loop()?;
    let client = match client::attach(folder) {
        Ok(client) => client,
        Err(error) => {
            output::complain(&chain(&error));
            return Ok((state, None));
        }
    };
    let state = runtime.block_on(client.status()).unwrap_or(state);
    match runtime.block_on(client.vmm()) {
        Ok(vmm) => Ok((state, Some(vmm))),
        Err(error) => {
            output::complain(&format!("no counters: {}", chain(&error)));
            Ok((state, None))
        }
    }
}

fn detail(folder: &Folder, state: State, vmm: Option<&control::Status>) -> Result<Detail, Failure> {
    let plan = folder.read(names::PLAN)?;
    let plan: Option<Plan> =
        plan.map(|plan| serde_json::from_slice(&plan)).transpose().context("the lab's plan.json")?;
    let (mut networks, mut nics, mut drives) = (Vec::new(), Vec::new(), Vec::new());
    let way_out = |network: &str| {
        let uplink = state.uplinks.iter().find(|uplink| uplink.network == network && uplink.process.is_alive())?;
        Some(uplink.way.clone())
    };
    for network in plan.iter().flat_map(|plan| &plan.spec.networks) {
        networks.push(Network {
            name: network.name.clone(),
            subnet: network.subnet.to_string(),
            gateway: network.gateway,
            private: network.private,
            way_out: way_out(&network.name),
            subnet6: network.six.map(|six| six.subnet.to_string()),
            gateway6: network.six.map(|six| six.gateway),
        });
    }
    for (plan, machine) in plan.iter().flat_map(|plan| plan.spec.machines.iter().map(move |machine| (plan, machine))) {
        let known = state.machines.iter().find(|known| known.name == machine.name);
        for (position, nic) in machine.interfaces.iter().enumerate() {
            nics.push(Nic {
                machine: machine.name.clone(),
                interface: format!("eth{position}"),
                network: nic.network.clone(),
                address: known.and_then(|known| known.addresses.get(position)).map(|(_, address)| *address),
                address6: known.and_then(|known| six(known, machine, position)),
                mac: nic.mac.to_string(),
            });
        }
        for drive in &machine.drives {
            let written = drive.overlay.iter().flat_map(|overlay| [overlay.top.data, overlay.top.map]);
            let files = written.filter_map(|slot| plan.files.get(usize::try_from(slot.0).ok()?));
            let blocks = files.filter_map(|file| std::fs::metadata(&file.path).ok()).map(|meta| meta.blocks());
            drives.push(Drive {
                machine: machine.name.clone(),
                drive: drive.serial.clone(),
                base: drive.base.as_ref().map(|base| base.name.clone()),
                read_only: drive.read_only,
                capacity_bytes: drive.overlay.as_ref().map(|overlay| overlay.capacity_bytes),
                disk_bytes: blocks.sum::<u64>() * BLOCK_BYTES,
            });
        }
    }
    let machines = || vmm.iter().flat_map(|vmm| &vmm.machines);
    Ok(Detail {
        expiry: state.expiry,
        tasks: state.tasks.clone(),
        counters: machines()
            .map(|machine| {
                let devices =
                    machine.counters.iter().cloned().map(|(device, values)| (device, values.into_iter().collect()));
                (machine.name.clone(), devices.collect())
            })
            .collect(),
        faults: machines().map(|machine| (machine.name.clone(), machine.faults.iter().cloned().collect())).collect(),
        lab: ps::shown(state),
        networks,
        nics,
        drives,
    })
}

/// The IPv6 address of an interface. A machine may have more than one on a network, so it is found by how many of the interfaces before it are on the same.
fn six(known: &Machine, planned: &MachineSpec, position: usize) -> Option<std::net::Ipv6Addr> {
    let network = &planned.interfaces.get(position)?.network;
    let before = planned.interfaces.iter().take(position).filter(|nic| nic.network == *network).count();
    known.addresses6.iter().filter(|(of, _)| of == network).nth(before).map(|(_, address)| *address)
}

fn print(detail: &Detail) {
    let lab = &detail.lab;
    let age = output::span(Duration::from_millis(now_ms().saturating_sub(lab.created_ms)));
    let end = lab.end.as_ref().map(|end| format!(": {end}")).unwrap_or_default();
    output::line(&format!(
        "{}: {}{end}, made {age} ago, {}",
        lab.name,
        lab.standing.word(),
        expire::said(&detail.expiry)
    ));
    conditions("  ", &lab.conditions);
    for machine in &lab.machines {
        let state = machine.state.lines().next().unwrap_or_default();
        output::line(&format!(
            "\n{}/{}: {state}, {} x {} MiB",
            lab.name, machine.name, machine.cpu_count, machine.memory_mib
        ));
        conditions("  ", &machine.conditions);
        let of = |name: &str| name == machine.name;
        for nic in detail.nics.iter().filter(|nic| of(&nic.machine)) {
            let addresses = nic.address.map(IpAddr::from).into_iter().chain(nic.address6.map(IpAddr::from));
            let address = addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(" and ");
            output::line(&format!("  {}  {} on {}, {}", nic.interface, address, nic.network, nic.mac));
        }
        for drive in detail.drives.iter().filter(|drive| of(&drive.machine)) {
            let size = drive.capacity_bytes.map_or_else(|| "read only".to_owned(), size::show);
            let base = drive.base.as_ref().map(|base| format!(" over {base}")).unwrap_or_default();
            output::line(&format!("  {}   {size}{base}, {} KiB on the host", drive.drive, drive.disk_bytes >> 10));
        }
        for (device, values) in detail.counters.get(&machine.name).into_iter().flatten() {
            let values: Vec<_> =
                values.iter().filter(|(_, value)| **value > 0).map(|(name, value)| format!("{name} {value}")).collect();
            if !values.is_empty() {
                output::line(&format!("  {device}: {}", values.join(", ")));
            }
        }
    }
    for network in &detail.networks {
        let way = match &network.way_out {
            Some(way) => format!("way out: {way}"),
            None if network.private => "private".to_owned(),
            None => "not private, without a way out".to_owned(),
        };
        output::line(&format!("\nnetwork {}: {}, gateway {}, {way}", network.name, network.subnet, network.gateway));
        if let (Some(subnet), Some(gateway)) = (&network.subnet6, network.gateway6) {
            output::line(&format!("  {subnet}, gateway {gateway}"));
        }
    }
    for task in &detail.tasks {
        let why = task.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        output::line(&format!("\ntask {} on {}: {}{why}", task.name, task.machine, task.status.word()));
    }
}

/// Conditions in order, each with its time and how long it took after the one before.
fn conditions(indent: &str, conditions: &[Condition]) {
    let mut before = None;
    for condition in conditions {
        let took = before.map(|at: u64| format!(" (+{:.2} s)", condition.at_ms.saturating_sub(at) as f64 / 1000.0));
        let (at, took) = (output::moment(condition.at_ms), took.unwrap_or_default());
        output::line(&format!("{indent}{at} {:?}{took}: {}", condition.name, condition.message));
        before = Some(condition.at_ms);
    }
}
