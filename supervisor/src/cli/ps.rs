//! What runs: the truth, whatever died. A vmm without a supervisor gets a new one.

use std::time::Duration;

use labyard_supervisor::client::{self, Client};
use labyard_supervisor::home::{Folder, Home};
use labyard_supervisor::record::{Condition, ConditionName, FullDrive, Machine, Standing, State, ended_text, now_ms};
use labyard_supervisor::saved;
use labyard_supervisor::words::chain;
use serde::Serialize;

use super::{Failure, Outcome, event_loop, output};

/// How long a supervisor may take to answer before the file counts.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// One lab, as `ps --json` shows it.
#[derive(Serialize)]
pub(super) struct Lab {
    pub(super) name: String,
    pub(super) standing: Standing,
    manifest: String,
    pub(super) created_ms: u64,
    supervisor_pid: Option<i32>,
    vmm_pid: Option<i32>,
    pub(super) conditions: Vec<Condition>,
    pub(super) machines: Vec<Shown>,
    pub(super) end: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) state: String,
    /// Why it stands still where nobody has paused it, and the way out.
    pub(super) reason: Option<String>,
    full_drives: Vec<FullDrive>,
    pub(super) ready: bool,
    pub(super) cpu_count: u32,
    pub(super) memory_mib: u64,
    page_size: u64,
    addresses: Vec<Address>,
    addresses6: Vec<Address>,
    pub(super) conditions: Vec<Condition>,
}

#[derive(Serialize)]
pub(super) struct Address {
    network: String,
    address: std::net::IpAddr,
}

/// All labs as they are; a vmm without a supervisor gets a new one.
pub(super) fn labs(home: &Home) -> Result<Vec<Lab>, Failure> {
    home.sweep();
    let mut labs = Vec::new();
    for folder in home.folders()? {
        let Some(mut state) = State::read(&folder)? else {
            // A command that was killed before it wrote anything, or one that is just beginning.
            labs.push(nothing_known(&folder.name));
            continue;
        };
        if state.standing() == Standing::Unattended {
            match client::attach(&folder) {
                Ok(_) => state = State::read(&folder)?.unwrap_or(state),
                Err(error) => output::complain(&format!("lab `{}`: {}", folder.name, chain(&error))),
            }
        }
        if state.standing() == Standing::Running
            && let Some(newer) = ask(&folder)?
        {
            state = newer;
        }
        labs.push(shown(state));
    }
    Ok(labs)
}

pub(crate) fn ps(home: &Home, json: bool) -> Outcome {
    let labs = labs(home)?;
    if json {
        output::document(&serde_json::json!({ "labs": labs }))?;
        return Ok(0);
    }
    let (mut rows, mut waiting) = (Vec::new(), Vec::new());
    for lab in &labs {
        let age = output::span(Duration::from_millis(now_ms().saturating_sub(lab.created_ms)));
        let standing = lab.standing.word().to_owned();
        if lab.machines.is_empty() {
            rows.push(vec![
                lab.name.clone(),
                "-".into(),
                standing.clone(),
                "-".into(),
                "-".into(),
                "-".into(),
                age.clone(),
            ]);
        }
        for machine in &lab.machines {
            let addresses = machine.addresses.iter().chain(&machine.addresses6);
            let addresses: Vec<_> =
                addresses.map(|address| format!("{}={}", address.network, address.address)).collect();
            rows.push(vec![
                lab.name.clone(),
                machine.name.clone(),
                standing.clone(),
                machine.state.lines().next().unwrap_or_default().to_owned(),
                format!("{} x {} MiB", machine.cpu_count, machine.memory_mib),
                addresses.join(" "),
                age.clone(),
            ]);
        }
    }
    for (lab, machine) in labs.iter().flat_map(|lab| lab.machines.iter().map(move |machine| (lab, machine))) {
        if let Some(reason) = &machine.reason {
            waiting.push(format!("{}/{}: paused, {reason}", lab.name, machine.name));
        }
    }
    output::table(&["LAB", "MACHINE", "LAB IS", "MACHINE IS", "SIZE", "ADDRESSES", "AGE"], &rows);
    waiting.iter().for_each(|line| output::line(line));
    for lab in &labs {
        match lab.standing {
            Standing::Ended if saved::is_there(&home.folder(&lab.name)) => {
                let why = lab.end.as_deref().unwrap_or_default();
                output::line(&format!("{}: {why}; `labyard restore {}` lets it go on", lab.name, lab.name));
            }
            Standing::Ended => {
                let why = lab.end.as_deref().unwrap_or_default();
                output::line(&format!("{}: {why}; `labyard down {}` removes it", lab.name, lab.name));
            }
            Standing::Interrupted => {
                output::line(&format!("{}: was interrupted; `labyard down {}` removes it", lab.name, lab.name));
            }
            _ => {}
        }
    }
    Ok(0)
}

/// The state as its supervisor has it: on a full disk it is newer than the file. Nothing where it does not answer in time.
fn ask(folder: &Folder) -> Result<Option<State>, Failure> {
    let Some(client) = Client::of(folder) else { return Ok(None) };
    let asked = event_loop()?.block_on(async { tokio::time::timeout(ANSWER_WITHIN, client.status()).await });
    Ok(asked.ok().and_then(Result::ok))
}

fn nothing_known(name: &str) -> Lab {
    Lab {
        name: name.to_owned(),
        standing: Standing::Interrupted,
        manifest: String::new(),
        created_ms: now_ms(),
        supervisor_pid: None,
        vmm_pid: None,
        conditions: Vec::new(),
        machines: Vec::new(),
        end: None,
    }
}

pub(super) fn shown(state: State) -> Lab {
    let standing = state.standing();
    let alive =
        |who: &Option<labyard_supervisor::record::Who>| who.as_ref().filter(|who| who.is_alive()).map(|who| who.pid);
    Lab {
        supervisor_pid: alive(&state.supervisor),
        vmm_pid: alive(&state.vmm),
        end: (standing == Standing::Ended).then(|| state.end_reason().to_owned()),
        standing,
        name: state.name,
        manifest: state.manifest,
        created_ms: state.created_ms,
        conditions: state.conditions,
        machines: state.machines.into_iter().map(|machine| shown_machine(machine, standing)).collect(),
    }
}

fn shown_machine(machine: Machine, standing: Standing) -> Shown {
    let runs = matches!(standing, Standing::Running | Standing::Unattended) && machine.ended.is_none();
    let reason = machine.waits_for().filter(|_| runs).map(str::to_owned);
    let ready = runs && !machine.paused && reason.is_none() && machine.has(ConditionName::Ready);
    let state = match &machine.ended {
        Some(ended) => ended_text(ended),
        None if reason.is_some() => "paused: host disk full".to_owned(),
        None if runs && machine.paused => "paused".to_owned(),
        None if ready => "ready".to_owned(),
        None if runs && machine.has(ConditionName::KernelStarted) => "booting".to_owned(),
        None if matches!(standing, Standing::Ended | Standing::Interrupted) => "gone".to_owned(),
        None => "waiting".to_owned(),
    };
    let addresses = machine.addresses.into_iter().map(|(network, ip)| Address { network, address: ip.into() });
    let addresses6 = machine.addresses6.into_iter().map(|(network, ip)| Address { network, address: ip.into() });
    Shown {
        name: machine.name,
        state,
        reason,
        full_drives: if runs { machine.full_drives } else { Vec::new() },
        ready,
        cpu_count: machine.cpu_count,
        memory_mib: machine.memory_mib,
        page_size: machine.page_size,
        addresses: addresses.collect(),
        addresses6: addresses6.collect(),
        conditions: machine.conditions,
    }
}
