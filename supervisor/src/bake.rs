//! Baking: a lab whose init tasks have run and whose machines have powered off becomes a manifest that names their drives as images.
//!
//! All of it is pure: which drives are kept and what would be lost ([`drives`]), the manifest that comes out ([`manifest`]), and the plan of
//! the machines that send their drives ([`plan`]). Those are the same machines without a network, whose layers are frozen: what little
//! a kernel writes as it mounts goes to layers that are thrown away.

use std::path::Path;

use labyard_rootfs_builder::store::KernelRecord;
use labyard_spec::guest::{self, MachineConfig};
use labyard_spec::manifest::lab::{self, Filesystem, Lab, Task};
use labyard_spec::manifest::{Placed, effective};
use labyard_spec::playground::{LayerSlots, Slot};
use labyard_spec::source::Source;

use crate::home::{Folder, names};
use crate::plan::{FileAccess, Plan, PlannedFile};
use crate::record::TaskState;

/// The name of each image in its layout.
pub const TAG: &str = "baked";

/// A drive that becomes an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Whose it is.
    pub machine: String,
    /// `dNN`.
    pub serial: String,
    /// The folder of its layout: the machine's name for a root, with the serial for another drive.
    pub image: String,
}

/// The drives that become images: of each of these machines those that it writes to and mounts.
///
/// # Errors
/// A machine that the lab does not have; a drive whose content would be lost; a task that would find another lab than it does now.
pub fn drives(lab: &Lab, machines: &[String]) -> Result<Vec<Kept>, String> {
    if let Some(unknown) = machines.iter().find(|name| lab.machines.iter().all(|machine| machine.name != **name)) {
        let there: Vec<_> = lab.machines.iter().map(|machine| machine.name.as_str()).collect();
        return Err(format!(
            "--machine {unknown}: no such machine in lab `{}`: there is {}",
            lab.name,
            there.join(", ")
        ));
    }
    let mut kept = Vec::new();
    for machine in lab.machines.iter().filter(|machine| machines.contains(&machine.name)) {
        if machine.drives.iter().any(|drive| drive.read_only && drive.mount.as_deref() == Some("/")) {
            return Err(format!(
                "machine `{}`: its root is only read, and what tasks write there is gone with each stop: name other machines with --machine",
                machine.name
            ));
        }
        for drive in machine.drives.iter().filter(|drive| !drive.read_only) {
            kept.push(self::drive(machine, drive)?);
        }
    }
    for task in lab.tasks.iter().filter(|task| machines.contains(&task.machine)) {
        if let Some(need) = needs(lab, task).into_iter().find(|need| !machines.contains(&need.machine)) {
            return Err(format!(
                "initTasks.{}: it needs `{}` of machine `{}`, which is not baked and would run it again at each start: bake both, or neither",
                task.name, need.name, need.machine
            ));
        }
    }
    Ok(kept)
}

fn drive(machine: &lab::Machine, drive: &lab::Drive) -> Result<Kept, String> {
    let (name, serial) = (&machine.name, &drive.serial);
    let what = match (&drive.mount, drive.filesystem) {
        (Some(mount), None | Some(Filesystem::Ext4)) => {
            let image = if mount == "/" { name.clone() } else { format!("{name}-{serial}") };
            return Ok(Kept { machine: name.clone(), serial: serial.clone(), image });
        }
        (None, _) => "it is not mounted",
        (Some(_), Some(_)) => "images are written as ext4",
    };
    Err(format!(
        "machine `{name}`: drive {serial} cannot become an image, because {what}, and what tasks write there would be lost: name other machines with --machine"
    ))
}

/// The tasks that a task needs itself.
fn needs<'a>(lab: &'a Lab, task: &Task) -> Vec<&'a Task> {
    lab.tasks.iter().filter(|other| task.needs.contains(&other.name)).collect()
}

/// The manifest whose machines start from images, which lie beside it, with the tasks of the others. Other files that it names are found from
/// `base`, the folder of the manifest that it comes from.
///
/// # Errors
/// A task that stays and got something from one that has run for good.
pub fn manifest(lab: &Lab, kept: &[Kept], base: &Path, states: &[TaskState]) -> Result<String, String> {
    let baked = |machine: &str| kept.iter().any(|kept| kept.machine == machine);
    let mut lab = lab.clone();
    let (gone, mut stay): (Vec<Task>, Vec<Task>) = lab.tasks.into_iter().partition(|task| baked(&task.machine));
    for task in &mut stay {
        for need in gone.iter().filter(|gone| task.needs.contains(&gone.name)) {
            if states.iter().any(|state| state.name == need.name && !state.env.is_empty()) {
                return Err(format!(
                    "initTasks.{}: it needs what `{}` has left in LABYARD_ENV, which is gone once machine `{}` is baked: bake machine `{}`, too",
                    task.name, need.name, need.machine, task.machine
                ));
            }
        }
        task.needs.retain(|need| gone.iter().all(|gone| gone.name != *need));
    }
    // What was chosen is in the images; who is left to ask for a parameter keeps it.
    if stay.is_empty() {
        lab.conditions.clear();
    }
    lab.tasks = stay;
    for machine in &mut lab.machines {
        for drive in &mut machine.drives {
            let image = kept.iter().find(|kept| kept.machine == machine.name && kept.serial == drive.serial);
            let source = match (image, &drive.source) {
                (Some(kept), _) => {
                    let path = Path::new(".").join(&kept.image);
                    Source::OciLayout { path, tag: Some(TAG.to_owned()) }
                }
                (None, Some(source)) => source.value.below(base),
                (None, None) => continue,
            };
            let place = drive.source.as_ref().map(|source| source.place).unwrap_or_default();
            drive.source = Some(Placed { value: source, place });
        }
    }
    Ok(effective::to_yaml(&effective::effective(&lab)))
}

/// The plan of machines that send these drives: of each its kernel, its modules and these drives, whose layers are read only.
///
/// Layers that are thrown away, two files each, are to be made before.
pub fn plan(before: &Plan, folder: &Folder, kept: &[Kept]) -> Plan {
    let mut plan = before.clone();
    let Plan { spec, files, .. } = &mut plan;
    spec.networks.clear();
    spec.machines.retain(|machine| kept.iter().any(|kept| kept.machine == machine.name));
    for machine in &mut spec.machines {
        machine.interfaces.clear();
        let is_kept = |serial: &str| kept.iter().any(|kept| kept.machine == machine.name && kept.serial == serial);
        machine.drives.retain(|drive| drive.serial == guest::MODULES_SERIAL || is_kept(&drive.serial));
        for drive in &mut machine.drives {
            let Some(overlay) = &mut drive.overlay else { continue };
            for slot in [overlay.top.data, overlay.top.map] {
                if let Some(file) = usize::try_from(slot.0).ok().and_then(|slot| files.get_mut(slot)) {
                    file.access = FileAccess::Read;
                }
            }
            let [data, map] = thrown_away(folder, &machine.name, &drive.serial).map(|path| {
                files.push(PlannedFile { path, access: FileAccess::Write });
                Slot(u32::try_from(files.len().saturating_sub(1)).unwrap_or(u32::MAX))
            });
            overlay.frozen.push(std::mem::replace(&mut overlay.top, LayerSlots { data, map }));
        }
    }
    plan.max_descriptors = plan.max_descriptors.saturating_add(4 * kept.len() as u64);
    plan.uplink = None;
    plan
}

/// Data and map of the layer that is written in place of a drive's own.
pub fn thrown_away(folder: &Folder, machine: &str, serial: &str) -> [std::path::PathBuf; 2] {
    ["overlay", "overlay.map"].map(|what| folder.machine(machine).join(format!("bake-{serial}.{what}")))
}

/// What the init of such a machine is told, and the archive that it is written to.
pub fn machine_config(machine: &lab::Machine, kernel: &KernelRecord, kept: &[Kept]) -> MachineConfig {
    let is_kept = |serial: &str| kept.iter().any(|kept| kept.machine == machine.name && kept.serial == serial);
    let drives = machine.drives.iter().filter(|drive| is_kept(&drive.serial)).map(|drive| guest::Drive {
        serial: drive.serial.clone(),
        mount: drive.mount.clone(),
        filesystem: Filesystem::Ext4.name().to_owned(),
        read_only: true,
    });
    MachineConfig {
        hostname: machine.name.clone(),
        hosts: Vec::new(),
        interfaces: Vec::new(),
        // Not asked, but they say who has written the file.
        nameservers: machine.interfaces.iter().filter_map(|nic| nic.gateway).collect(),
        drives: drives.collect(),
        entrypoint: None,
        early_modules: kernel.early_modules.clone(),
        late_modules: kernel.late_modules.clone(),
        startup_files: Vec::new(),
        users: Vec::new(),
        bake: true,
        boot_marker: false,
    }
}

/// Where that archive lies.
pub fn machine_archive(folder: &Folder, machine: &str) -> std::path::PathBuf {
    folder.machine(machine).join(names::MACHINE_ARCHIVE)
}

#[cfg(test)]
mod tests;
