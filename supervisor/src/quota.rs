//! Admission: what labs may take of the host (`config.toml` in the state directory), and what they take already.
//!
//! vCPUs, memory and machines are in use while a machine runs; the size of drives from `up` to `down`, since they may be written to
//! their end; a blank drive takes of the host what it is long also where it cannot be written to. What is asked for is let in whole or refused with the numbers, never made smaller.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use labyard_spec::manifest::{Lab, size};
use rustix::fs::{FlockOperation, flock, statvfs};
use serde::{Deserialize, Deserializer, Serialize};

use crate::disks;
use crate::home::{Folder, Home, HomeError, names};
use crate::plan::Plan;
use crate::record::{Machine, Standing, State};

/// Name of the file in the state directory.
pub const CONFIG: &str = "config.toml";
/// Held by who is being let in.
const LOCK: &str = "admission.lock";

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum QuotaError {
    #[error("{path}: {why}")]
    Config { path: std::path::PathBuf, why: String },
    #[error(
        "{asked} {what} asked for, {used} in use by other labs: more than the {most} that all labs together may have ({CONFIG}, user.{field})"
    )]
    User { what: &'static str, field: &'static str, asked: String, used: String, most: String },
    #[error("{asked} {what} asked for: more than the {most} that one lab may have ({CONFIG}, lab.{field})")]
    Lab { what: &'static str, field: &'static str, asked: String, most: String },
    #[error(
        "{asked_mib} MiB of memory asked for, {used_mib} MiB in use by other labs: more than the {has_mib} MiB of this host without the \
         {reserve_mib} MiB that are kept for it ({CONFIG}, host.reserve_memory); stop a lab, or ask for less ramSize"
    )]
    Memory { asked_mib: u64, used_mib: u64, has_mib: u64, reserve_mib: u64 },
    #[error(
        "{free} are free where labs lie, fewer than the {reserve} that are kept for the host ({CONFIG}, host.reserve_disk)"
    )]
    Disk { free: String, reserve: String },
}

/// Why what was asked for is not let in.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AdmitError {
    #[error(transparent)]
    Quota(#[from] QuotaError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Host(#[from] crate::host::HostError),
    #[error("{path}: letting a lab in")]
    File { path: std::path::PathBuf, source: std::io::Error },
}

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What machines may not have.
    pub host: Reserve,
    /// For all labs of this state directory together.
    pub user: Limits,
    /// For each lab.
    pub lab: Limits,
}

/// What is kept for the host, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Reserve {
    #[serde(deserialize_with = "bytes")]
    pub reserve_memory: u64,
    #[serde(deserialize_with = "bytes")]
    pub reserve_disk: u64,
}

/// What may be taken; what is missing is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// vCPUs of machines that run.
    pub cpus: Option<u64>,
    /// Their memory in bytes.
    #[serde(deserialize_with = "maybe_bytes")]
    pub memory: Option<u64>,
    /// Sizes of all drives in bytes.
    #[serde(deserialize_with = "maybe_bytes")]
    pub disk: Option<u64>,
    /// Machines that run.
    pub machines: Option<u64>,
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    size::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn maybe_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    bytes(from).map(Some)
}

impl Config {
    /// Reads it; one that limits nothing where there is none.
    ///
    /// # Errors
    /// What is wrong with it, with line and column.
    pub fn read(home: &Home) -> Result<Self, QuotaError> {
        let path = home.path.join(CONFIG);
        let failed = |why: String| QuotaError::Config { path: path.clone(), why };
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| failed(error.to_string().trim_end().to_owned())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// What is asked for, or in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Ask {
    pub cpus: u64,
    pub memory_mib: u64,
    pub disk_bytes: u64,
    pub machines: u64,
}

impl Ask {
    /// Of a lab that is to be made.
    pub fn of(lab: &Lab) -> Self {
        let mut ask = Self::default();
        for machine in &lab.machines {
            ask.add_machine(machine.cpu_count, machine.memory_mib);
            // An image that is only read is the store's; a blank disk is made for who asks for it.
            let drives = machine.drives.iter().filter(|drive| !drive.read_only || drive.source.is_none());
            ask.disk_bytes = drives.fold(ask.disk_bytes, |sum, drive| sum.saturating_add(drive.size_bytes.value));
        }
        ask
    }

    /// Of a lab that is there: its drives, and where it runs the machines that have not ended.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of_lab(folder: &Folder, state: &State, runs: bool) -> Result<Self, HomeError> {
        let mut ask = Self::default();
        if runs {
            state.machines.iter().for_each(|machine| ask.add_machine(machine.cpu_count, machine.memory_mib));
        }
        let plan = folder.read(names::PLAN)?.and_then(|plan| serde_json::from_slice::<Plan>(&plan).ok());
        if let Some(plan) = &plan {
            for drive in plan.spec.machines.iter().flat_map(|machine| &machine.drives) {
                let base = drive.base.as_ref().and_then(|base| plan.files.get(usize::try_from(base.file.0).ok()?));
                let bytes = match (&drive.overlay, base) {
                    (Some(overlay), _) => overlay.capacity_bytes,
                    (None, Some(base)) if disks::is_blank(&base.path) => {
                        std::fs::metadata(&base.path).map_or(0, |found| found.len())
                    }
                    (None, _) => 0,
                };
                ask.disk_bytes = ask.disk_bytes.saturating_add(bytes);
            }
        }
        Ok(ask)
    }

    /// Of some machines of a lab whose drives are there.
    pub fn of_machines(state: &State, machines: &[String]) -> Self {
        let mut ask = Self::default();
        for machine in state.machines.iter().filter(|machine| machines.contains(&machine.name)) {
            ask.add_machine(machine.cpu_count, machine.memory_mib);
        }
        ask
    }

    fn add_machine(&mut self, cpus: u32, memory_mib: u64) {
        self.cpus += u64::from(cpus);
        self.memory_mib = self.memory_mib.saturating_add(memory_mib);
        self.machines += 1;
    }
}

/// What labs take already, without `except`.
///
/// # Errors
/// What the file system says.
pub fn in_use(home: &Home, except: Option<&str>) -> Result<Ask, HomeError> {
    let mut used = Ask::default();
    for folder in home.folders()?.iter().filter(|folder| Some(folder.name.as_str()) != except) {
        let Some(mut state) = State::read(folder)? else { continue };
        let runs = !matches!(state.standing(), Standing::Ended | Standing::Interrupted);
        state.machines.retain(|machine: &Machine| machine.ended.is_none());
        let one = Ask::of_lab(folder, &state, runs)?;
        used.cpus += one.cpus;
        used.memory_mib = used.memory_mib.saturating_add(one.memory_mib);
        used.disk_bytes = used.disk_bytes.saturating_add(one.disk_bytes);
        used.machines += one.machines;
    }
    Ok(used)
}

/// Nobody else is let in while this lives.
#[derive(Debug)]
pub struct Admitted {
    #[expect(dead_code, reason = "closing it gives the lock back")]
    lock: File,
}

/// Lets in what is asked for beside all labs but `except`. To be held until it is written down.
///
/// # Errors
/// [`AdmitError::Quota`] with the numbers; what the file system says.
pub fn admit(home: &Home, ask: Ask, except: Option<&str>) -> Result<Admitted, AdmitError> {
    let path = home.path.join(LOCK);
    let open = || -> std::io::Result<File> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        // Held for moments only.
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    };
    let failed = |source| AdmitError::File { path: home.path.clone(), source };
    let lock = open().map_err(failed)?;
    let config = Config::read(home)?;
    let used = in_use(home, except)?;
    check(&config, ask, used, crate::host::memory_mib()?)?;
    let free = statvfs(&home.path).map_err(|error| failed(error.into()))?;
    check_disk(&config, free.f_bavail.saturating_mul(free.f_frsize))?;
    Ok(Admitted { lock })
}

fn check(config: &Config, ask: Ask, used: Ask, has_mib: Option<u64>) -> Result<(), QuotaError> {
    let count = |number: u64| number.to_string();
    let mib = |number: u64| size::show(number << 20);
    type Row = (&'static str, &'static str, u64, u64, fn(&Limits) -> Option<u64>);
    let rows: [(Row, &dyn Fn(u64) -> String); 4] = [
        (("vCPUs", "cpus", ask.cpus, used.cpus, |limits| limits.cpus), &count),
        (
            ("of memory", "memory", ask.memory_mib, used.memory_mib, |limits| limits.memory.map(|bytes| bytes >> 20)),
            &mib,
        ),
        (("of drives", "disk", ask.disk_bytes, used.disk_bytes, |limits| limits.disk), &size::show),
        (("machines", "machines", ask.machines, used.machines, |limits| limits.machines), &count),
    ];
    for ((what, field, asked, _, limit), show) in &rows {
        if let Some(most) = limit(&config.lab).filter(|most| asked > most) {
            return Err(QuotaError::Lab { what, field, asked: show(*asked), most: show(most) });
        }
    }
    for ((what, field, asked, used, limit), show) in &rows {
        if let Some(most) = limit(&config.user).filter(|most| *asked > 0 && asked.saturating_add(*used) > *most) {
            return Err(QuotaError::User { what, field, asked: show(*asked), used: show(*used), most: show(most) });
        }
    }
    let reserve_mib = config.host.reserve_memory >> 20;
    match has_mib {
        Some(has)
            if reserve_mib > 0 && ask.memory_mib.saturating_add(used.memory_mib) > has.saturating_sub(reserve_mib) =>
        {
            Err(QuotaError::Memory {
                asked_mib: ask.memory_mib,
                used_mib: used.memory_mib,
                has_mib: has.saturating_sub(reserve_mib),
                reserve_mib,
            })
        }
        _ => Ok(()),
    }
}

fn check_disk(config: &Config, free: u64) -> Result<(), QuotaError> {
    let reserve = config.host.reserve_disk;
    if free < reserve {
        return Err(QuotaError::Disk { free: format!("{} MiB", free >> 20), reserve: size::show(reserve) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_refused_with_the_numbers() {
        let text = "[host]\nreserve_memory = \"1GiB\"\nreserve_disk = \"2GiB\"\n[user]\ncpus = 8\nmemory = \"4GiB\"\n[lab]\nmachines = 3\ndisk = \"10GiB\"\n";
        let config: Config = toml::from_str(text).expect("a config");
        let ask = Ask { cpus: 4, memory_mib: 1024, disk_bytes: 4 << 30, machines: 2 };
        let refuse = |ask, used, has| check(&config, ask, used, has).expect_err("too much").to_string();
        assert!(check(&config, ask, ask, Some(4096)).is_ok());
        let busy = Ask { cpus: 5, ..ask };
        let text = refuse(ask, busy, None);
        assert_eq!(
            text,
            "4 vCPUs asked for, 5 in use by other labs: more than the 8 that all labs together may have (config.toml, user.cpus)"
        );
        let text = refuse(Ask { memory_mib: 4096, ..ask }, ask, None);
        assert!(text.starts_with("4GiB of memory asked for, 1GiB in use by other labs: more than the 4GiB"), "{text}");
        let text = refuse(Ask { machines: 4, ..ask }, Ask::default(), None);
        assert_eq!(text, "4 machines asked for: more than the 3 that one lab may have (config.toml, lab.machines)");
        assert!(
            refuse(Ask { disk_bytes: 11 << 30, ..ask }, ask, None)
                .contains("11GiB of drives asked for: more than the 10GiB")
        );
        let text = refuse(ask, ask, Some(2048));
        assert!(
            text.starts_with(
                "1024 MiB of memory asked for, 1024 MiB in use by other labs: more than the 1024 MiB of this host"
            ),
            "{text}"
        );
        assert!(check_disk(&config, 1 << 30).expect_err("full").to_string().starts_with("1024 MiB are free"));
        assert!(check(&Config::default(), Ask { cpus: 1 << 40, ..ask }, ask, Some(0)).is_ok(), "nothing is limited");
    }

    #[test]
    fn a_config_that_makes_no_sense_says_where() {
        for (text, why) in [
            ("[lab]\ncpu = 3\n", "unknown field `cpu`"),
            ("[user]\nmemory = \"4GB\"\n", "write 4GiB"),
            ("[user]\nmemory = 4\n", "invalid type"),
        ] {
            let error = toml::from_str::<Config>(text).expect_err(text).to_string();
            assert!(error.contains(why) && error.contains("line 2"), "{error}");
        }
    }
}
