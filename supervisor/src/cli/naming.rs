//! Which machine is meant: LAB/MACHINE, -p LAB MACHINE, or MACHINE where only one running lab has it.

use labyard_spec::manifest::check_name;
use labyard_supervisor::home::{Folder, Home};
use labyard_supervisor::record::{Standing, State};

use super::Failure;
use super::args::Machine;

/// Labs that are looked through for a bare name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    /// Those that run.
    Running,
    /// Those that run, else all.
    All,
}

/// The lab and the machine that are meant.
pub(crate) fn machine(home: &Home, wanted: &Machine, among: Among) -> Result<(Folder, String), Failure> {
    let (lab, name) = match (&wanted.playground, wanted.machine.split_once('/')) {
        (None, Some((lab, name))) => (Some(lab), name),
        (Some(lab), None) => (Some(lab.as_str()), wanted.machine.as_str()),
        (None, None) => (None, wanted.machine.as_str()),
        (Some(lab), Some(_)) => {
            return Err(Failure::input(format!("`{}` names a lab, and so does -p {lab}: give one", wanted.machine)));
        }
    };
    check_name(name).map_err(|error| Failure::input(format!("machine {error}")))?;
    if let Some(lab) = lab {
        return Ok((machine_of(home, lab, name)?, name.to_owned()));
    }
    let mut running = Vec::new();
    let mut others = Vec::new();
    for folder in home.folders()? {
        let Some(state) = State::read(&folder)? else { continue };
        if state.machines.iter().any(|machine| machine.name == name) {
            let runs = matches!(state.standing(), Standing::Starting | Standing::Running | Standing::Unattended);
            if runs { running.push(folder) } else { others.push(folder) }
        }
    }
    let mut found = if running.is_empty() && among == Among::All { others } else { running };
    match (found.pop(), found.is_empty()) {
        (Some(folder), true) => Ok((folder, name.to_owned())),
        (Some(folder), false) => {
            found.push(folder);
            let candidates: Vec<_> = found.iter().map(|folder| format!("{}/{name}", folder.name)).collect();
            Err(Failure::input(format!("`{name}` may be {}: say which", candidates.join(" or "))))
        }
        (None, _) => {
            Err(Failure::input(format!("no running lab has a machine `{name}`; `labyard ps` shows what runs")))
        }
    }
}

/// The folder of a lab that has this machine.
pub(crate) fn machine_of(home: &Home, lab: &str, name: &str) -> Result<Folder, Failure> {
    check_name(name).map_err(|error| Failure::input(format!("machine {error}")))?;
    let folder = self::lab(home, lab)?;
    if let Some(state) = State::read(&folder)?
        && !state.machines.iter().any(|machine| machine.name == name)
    {
        let there: Vec<_> = state.machines.iter().map(|machine| machine.name.as_str()).collect();
        return Err(Failure::input(format!("no machine `{name}` in lab `{lab}`: there is {}", there.join(", "))));
    }
    Ok(folder)
}

/// The folder of a lab that is there.
pub(crate) fn lab(home: &Home, name: &str) -> Result<Folder, Failure> {
    // A name is also a part of a path: nothing else may pass.
    check_name(name).map_err(|error| Failure::input(format!("lab {error}")))?;
    let folder = home.folder(name);
    if folder.exists() {
        return Ok(folder);
    }
    Err(Failure::input(format!("lab `{name}` is not there; {}", there_is(home)?)))
}

/// The lab with this name, else the only one.
pub(crate) fn lab_or_only(home: &Home, name: Option<&str>) -> Result<Option<Folder>, Failure> {
    if let Some(name) = name {
        return lab(home, name).map(Some);
    }
    let mut folders = home.folders()?;
    match (folders.pop(), folders.is_empty()) {
        (only, true) => Ok(only),
        _ => Err(Failure::input(format!("which lab? {}", there_is(home)?))),
    }
}

fn there_is(home: &Home) -> Result<String, Failure> {
    let names: Vec<_> = home.folders()?.into_iter().map(|folder| folder.name).collect();
    Ok(if names.is_empty() { "there is none".to_owned() } else { format!("there is {}", names.join(", ")) })
}
