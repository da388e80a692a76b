//! Drives of machines: as files, and their sizes.

use std::io::IsTerminal;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use labyard_spec::control::Change;
use labyard_spec::playground::DriveSpec;
use labyard_supervisor::client::{self, Wish};
use labyard_supervisor::export::{self, ExportError, Exported, Format};
use labyard_supervisor::home::{Folder, Home, names};
use labyard_supervisor::plan::Plan;
use labyard_supervisor::record::{Standing, State};
use serde_json::json;

use super::args::{DriveExport, DriveName, DriveResize, ExportFormat, Machine};
use super::up::Cancel;
use super::{Failure, Outcome, event_loop, naming, output};

pub(crate) fn export(home: &Home, export: &DriveExport) -> Outcome {
    let (folder, machine, drive, plan) = find(home, &export.drive, naming::Among::All)?;
    if let Some(state) = State::read(&folder)?
        && matches!(state.standing(), Standing::Starting | Standing::Running | Standing::Unattended)
        && state.machines.iter().any(|other| other.name == machine && other.ended.is_none())
    {
        let name = &folder.name;
        return Err(Failure::input(format!(
            "machine `{machine}` runs: stop it first with `labyard stop {name}/{machine}`"
        )));
    }
    let format = match export.format {
        ExportFormat::Raw => Format::Raw,
        ExportFormat::Qcow2 => Format::Qcow2,
    };
    let capacity = drive.overlay.as_ref().map_or(0, |overlay| overlay.capacity_bytes);
    let progress = Progress::new(capacity);
    let (path, force, serial) = (export.file.clone(), export.force, drive.serial.clone());
    let runtime = event_loop()?;
    let written = runtime.block_on(async {
        let cancel = Cancel::default();
        cancel.on_signals()?;
        let told = progress.clone();
        let work = move || export::export(&plan, &drive, &path, (format, force), cancel.flag(), |at| told.reached(at));
        match tokio::task::spawn_blocking(work).await? {
            Err(ExportError::Interrupted) => Err(Cancel::failure()),
            other => Ok(other?),
        }
    });
    progress.end();
    let Exported { capacity_bytes, data_bytes, file_bytes } = written?;
    let file = std::path::absolute(&export.file)?;
    if export.json {
        output::document(&json!({
            "lab": folder.name, "machine": machine, "drive": serial, "file": file, "format": format,
            "capacity_bytes": capacity_bytes, "data_bytes": data_bytes, "file_bytes": file_bytes,
        }))?;
    } else {
        let (capacity, data) = (HumanBytes(capacity_bytes), HumanBytes(data_bytes));
        output::line(&format!("{}: drive {serial} of {machine}, {capacity}, {data} of it data", file.display()));
    }
    Ok(0)
}

pub(crate) fn resize(home: &Home, resize: &DriveResize) -> Outcome {
    let (folder, machine, drive, _) = find(home, &resize.drive, naming::Among::Running)?;
    let client = client::attach(&folder)?;
    let serial = drive.serial;
    let change = Change::DriveResize { serial: serial.clone(), bytes: resize.size };
    event_loop()?.block_on(client.change(&Wish { machine: Some(machine.clone()), change }))?;
    output::line(&format!("drive {serial} of {machine}: {}", labyard_spec::manifest::size::show(resize.size)));
    Ok(0)
}

/// The drive that is meant: the one that is named, else the machine's only one.
fn find(home: &Home, name: &DriveName, among: naming::Among) -> Result<(Folder, String, DriveSpec, Plan), Failure> {
    let (machine, wanted) = match name.drive.split_once(':') {
        Some((machine, drive)) => (machine, Some(drive)),
        None => (name.drive.as_str(), None),
    };
    let asked = Machine { machine: machine.to_owned(), playground: name.playground.clone() };
    let (folder, machine) = naming::machine(home, &asked, among)?;
    let plan = folder.read(names::PLAN)?;
    let plan =
        plan.ok_or_else(|| Failure::input(format!("lab `{}` has no drives yet: it is being prepared", folder.name)))?;
    let plan: Plan = serde_json::from_slice(&plan)
        .map_err(|error| anyhow::Error::new(error).context(format!("lab `{}`: its plan", folder.name)))?;
    let drives = plan.spec.machines.iter().find(|other| other.name == machine).map(|found| found.drives.as_slice());
    let drives = drives.unwrap_or_default();
    // The modules disk comes with the kernel and is nobody's to change; it can be named all the same.
    let own = |drive: &&DriveSpec| drive.serial != labyard_spec::guest::MODULES_SERIAL;
    let found = match wanted {
        Some(wanted) => drives.iter().find(|drive| drive.serial == wanted),
        None => drives.iter().find(own).filter(|_| drives.iter().filter(own).count() == 1),
    };
    let serials: Vec<_> = drives.iter().filter(own).map(|drive| drive.serial.as_str()).collect();
    let which = match wanted {
        Some(wanted) => format!("machine `{machine}` has no drive `{wanted}`"),
        None => format!("which drive of `{machine}`? Write {machine}:DRIVE"),
    };
    let found = found.ok_or_else(|| Failure::input(format!("{which}; there is {}", serials.join(", "))))?;
    Ok((folder, machine, found.clone(), plan.clone()))
}

/// How far an export is: a bar on a terminal, elsewhere nothing, since the file appears at once.
#[derive(Clone)]
struct Progress(Option<ProgressBar>);

impl Progress {
    fn new(capacity_bytes: u64) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {eta} left");
        let bar = || Some(ProgressBar::new(capacity_bytes).with_style(style.ok()?));
        Self(if std::io::stderr().is_terminal() { bar() } else { None })
    }

    fn reached(&self, offset: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(offset);
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
