//! Machines: kernel, users, drives, size, files. Addresses come later, when all machines are known.

use std::collections::BTreeSet;

use super::super::document::{
    At, Drive as Written, Kernel, Machine as WrittenMachine, Maybe, Playground, Snapshot, StartupFile as WrittenFile,
};
use super::super::lab::{Drive, Filesystem, Machine, StartupFile, User};
use super::super::place::{Broken, broken, placed, written};
use super::super::{MAX_DRIVES, MAX_MACHINES, Placed, size};
use super::{host_name, one_of, own};

/// vsock context id of the first machine (0 to 2 are taken: vsock(7)).
const FIRST_CID: u32 = 3;
const DEFAULT_MEMORY_MIB: u64 = 512;
const LEAST_MEMORY: u64 = 32 << 20;
const DEFAULT_DRIVE: u64 = 4 << 30;
const LEAST_DRIVE: u64 = 1 << 20;
const MOST_BYTES: u64 = 64 << 40;
/// Longest blank disk that is made on the host: its file system takes space there by its length, for a journal up to 2 GiB.
const MOST_BLANK: u64 = 4 << 40;
const MAX_STARTUP_FILES: usize = 10;

type Checked<T> = Result<T, Box<Broken>>;

/// All machines, without interfaces.
pub(super) fn check(playground: &Playground, text: &str, notes: &mut Vec<String>) -> Checked<Vec<Machine>> {
    let list = &playground.machines;
    if list.value.is_empty() || list.value.len() > MAX_MACHINES {
        return Err(broken(list, "machines", format!("{} machines, not 1 to {MAX_MACHINES}", list.value.len())));
    }
    let mut machines: Vec<Machine> = Vec::new();
    for (at, position) in list.value.iter().zip(0..) {
        let machine = machine(&at.value, position, text, notes)?;
        if let Some(first) = machines.iter().position(|other| other.name == machine.name) {
            let path = format!("machines[{position}].name");
            let message = format!("`{}` is the name of machines[{first}] already", machine.name);
            return Err(broken(&at.value.name, &path, message));
        }
        machines.push(machine);
    }
    Ok(machines)
}

fn machine(machine: &WrittenMachine, position: u32, text: &str, notes: &mut Vec<String>) -> Checked<Machine> {
    let path = format!("machines[{position}]");
    host_name(&machine.name, &format!("{path}.name"))?;
    if let Some(backend) = &machine.backend {
        one_of(backend, &format!("{path}.backend"), &["firecracker", "cloud-hypervisor"])?;
        notes.push(format!("{path}.backend: `{}` has no effect: the monitor is Labyard's own", backend.value));
    }
    let resources = machine.resources.as_ref();
    let cpu_count = match resources.and_then(|resources| resources.cpu_count.as_ref()) {
        Some(count) if count.value == 0 => {
            return Err(broken(count, &format!("{path}.resources.cpuCount"), "0 vCPUs: at least 1 is needed"));
        }
        count => count.map_or(1, |count| count.value),
    };
    let memory = resources.and_then(|resources| resources.ram_size.as_ref());
    let memory_path = format!("{path}.resources.ramSize");
    let memory_mib = match memory {
        None => DEFAULT_MEMORY_MIB,
        Some(written) => {
            let bytes = sized(written, &memory_path, LEAST_MEMORY)?;
            if bytes % (1 << 20) != 0 {
                let (below, above) = (bytes >> 20, bytes.div_ceil(1 << 20));
                let message =
                    format!("`{}` is not a whole number of MiB: write {below}MiB or {above}MiB", written.value);
                return Err(broken(written, &memory_path, message));
            }
            bytes >> 20
        }
    };
    let own = own::check(machine, memory_mib, &path)?;
    Ok(Machine {
        name: machine.name.value.clone(),
        kernel: kernel(&machine.kernel, &format!("{path}.kernel"), text)?,
        users: users(machine, &path)?,
        drives: drives(&machine.drives, &format!("{path}.drives"))?,
        interfaces: Vec::new(),
        cpu_count,
        memory_mib,
        startup_files: startup_files(&machine.startup_files, &format!("{path}.startupFiles"))?,
        no_ssh: machine.no_ssh.unwrap_or(false),
        cid: FIRST_CID + position,
        entry: own.entry,
        cpu_template: own.cpu_template,
        nested: own.nested,
        huge_pages: own.huge_pages,
    })
}

fn kernel(kernel: &Maybe<Kernel>, path: &str, text: &str) -> Checked<Option<Placed<String>>> {
    let Some(at) = kernel else { return Ok(None) };
    let series = match &at.value {
        Kernel::Series(series) => placed(at, series.clone()),
        Kernel::Number => {
            let digits = written(at, text).ok_or_else(|| broken(at, path, "quote the kernel's series: \"6.12\""))?;
            placed(at, digits.trim().to_owned())
        }
        Kernel::Fields(fields) => {
            if let Some(snapshot) = &fields.snapshot {
                return Err(hosted_snapshot(snapshot, path));
            }
            match &fields.source {
                Some(source) => placed(source, source.value.clone()),
                None => return Ok(None),
            }
        }
    };
    if series.value.is_empty() {
        return Err(broken(at, path, "an empty name: give a series such as \"6.12\" or leave the field out"));
    }
    Ok(Some(series))
}

fn users(machine: &WrittenMachine, path: &str) -> Checked<Vec<User>> {
    let Some(list) = &machine.users else {
        return Ok(vec![User { name: "root".into(), welcome: None }]);
    };
    let path = format!("{path}.users");
    if list.value.is_empty() {
        return Err(broken(list, &path, "at least one is needed; leave the field out for root"));
    }
    let mut users: Vec<User> = Vec::new();
    let mut names = BTreeSet::new();
    let mut default = None;
    for (at, position) in list.value.iter().zip(0..) {
        let user = &at.value;
        let path = format!("{path}[{position}]");
        let name = user.name.value.as_str();
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.len() > 32 || name.starts_with('-') || !name.chars().all(plain) {
            return Err(broken(&user.name, &format!("{path}.name"), format!("`{name}` is not a user name")));
        }
        if !names.insert(name) {
            return Err(broken(&user.name, &format!("{path}.name"), format!("`{name}` is listed twice")));
        }
        if user.default == Some(true) && default.replace(position).is_some() {
            return Err(broken(at, &format!("{path}.default"), "another user is the default already"));
        }
        users.push(User { name: name.to_owned(), welcome: user.welcome.clone() });
    }
    if let Some(users) = default.and_then(|default| users.get_mut(..=default)) {
        users.rotate_right(1);
    }
    Ok(users)
}

fn drives(list: &At<Vec<At<Written>>>, path: &str) -> Checked<Vec<Drive>> {
    if list.value.len() > MAX_DRIVES {
        return Err(broken(list, path, format!("{} drives, more than {MAX_DRIVES}", list.value.len())));
    }
    let mut drives: Vec<Drive> = Vec::new();
    for (at, position) in list.value.iter().zip(0..) {
        let path = format!("{path}[{position}]");
        let drive = drive(at, position, &path)?;
        if let (Some(mount), Some(written)) = (&drive.mount, &at.value.mount)
            && let Some(first) = drives.iter().position(|other: &Drive| other.mount.as_ref() == Some(mount))
        {
            let message = format!("`{mount}` is where drive {first} is mounted already");
            return Err(broken(written, &format!("{path}.mount"), message));
        }
        drives.push(drive);
    }
    if !drives.iter().any(|drive| drive.mount.as_deref() == Some("/")) {
        return Err(broken(list, path, "no drive has `mount: /`: one is the root"));
    }
    Ok(drives)
}

fn drive(at: &At<Written>, position: usize, path: &str) -> Checked<Drive> {
    let drive = &at.value;
    if let Some(snapshot) = &drive.snapshot {
        return Err(hosted_snapshot(snapshot, path));
    }
    let mount = drive.mount.as_ref().map(|mount| checked_mount(mount, &format!("{path}.mount"))).transpose()?;
    let is_root = mount.as_deref() == Some("/");
    let source = match &drive.source {
        None if is_root => {
            return Err(broken(at, &format!("{path}.source"), "missing: the root drive starts as an image"));
        }
        None => None,
        Some(source) if source.value == "snapshot" => {
            return Err(broken(
                source,
                &format!("{path}.source"),
                "snapshots of a hosted service cannot be started here",
            ));
        }
        Some(source) => Some(placed(
            source,
            source.value.parse().map_err(|error: String| broken(source, &format!("{path}.source"), error))?,
        )),
    };
    let size_bytes = match &drive.size {
        Some(size) => placed(size, sized(size, &format!("{path}.size"), LEAST_DRIVE)?),
        None => placed(at, DEFAULT_DRIVE),
    };
    let filesystem =
        drive.filesystem.as_ref().map(|name| filesystem(name, &format!("{path}.filesystem"))).transpose()?;
    let read_only = drive.read_only.unwrap_or(false);
    if let (Some(filesystem), Some(written)) = (filesystem, &drive.filesystem) {
        let problem = match (filesystem, &source) {
            (Filesystem::Erofs, None) => {
                "nothing can be written to it, so it starts as an image: give the drive a source"
            }
            (Filesystem::Erofs, Some(_)) if !read_only => "nothing can be written to it: add `readOnly: true`",
            (Filesystem::Ext4 | Filesystem::Erofs, _) | (_, None) => "",
            _ => "a drive with a source is ext4, or erofs where it is read-only",
        };
        if !problem.is_empty() {
            return Err(broken(written, &format!("{path}.filesystem"), format!("`{}`: {problem}", written.value)));
        }
    }
    let formatted = source.is_some() || mount.is_some();
    let is_made = source.is_none() && (filesystem.is_some() || formatted || read_only);
    if let Some(size) = drive.size.as_ref().filter(|_| is_made && size_bytes.value > MOST_BLANK) {
        let message = format!(
            "`{}` is more than {} for a blank drive that is made on the host, whose file system takes space there by its length: \
             leave filesystem, mount and readOnly out, and make it in the machine",
            size.value,
            size::show(MOST_BLANK)
        );
        return Err(broken(size, &format!("{path}.size"), message));
    }
    Ok(Drive {
        serial: format!("d{position:02}"),
        source,
        mount,
        size_bytes,
        filesystem: filesystem.or(formatted.then_some(Filesystem::Ext4)),
        read_only,
        persistent: drive.persistent.unwrap_or(false),
        engine: own::engine(drive, path)?,
    })
}

fn filesystem(name: &At<String>, path: &str) -> Checked<Filesystem> {
    let names = Filesystem::ALL.map(Filesystem::name);
    one_of(name, path, &names)?;
    Filesystem::ALL
        .into_iter()
        .find(|filesystem| filesystem.name() == name.value)
        .ok_or_else(|| broken(name, path, format!("`{}` is no file system", name.value)))
}

fn checked_mount(mount: &At<String>, path: &str) -> Checked<String> {
    absolute(mount, path)?;
    let trimmed = mount.value.trim_end_matches('/');
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

fn hosted_snapshot(snapshot: &At<Snapshot>, path: &str) -> Box<Broken> {
    let id = snapshot.value.id.as_deref().unwrap_or("without id");
    let message = format!("`{id}`: snapshots of a hosted service cannot be started here; name an image as the source");
    broken(snapshot, &format!("{path}.snapshot"), message)
}

/// An absolute path without tricks.
fn absolute(at: &At<String>, path: &str) -> Checked<()> {
    let text = at.value.as_str();
    if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
        return Err(broken(at, path, format!("`{text}` is not an absolute path without `..`")));
    }
    Ok(())
}

fn sized(at: &At<String>, path: &str, least: u64) -> Checked<u64> {
    let bytes = size::parse(&at.value).map_err(|message| broken(at, path, message))?;
    if bytes < least {
        return Err(broken(at, path, format!("`{}` is less than {}", at.value, size::show(least))));
    }
    if bytes > MOST_BYTES {
        return Err(broken(at, path, format!("`{}` is more than {}", at.value, size::show(MOST_BYTES))));
    }
    Ok(bytes)
}

fn startup_files(list: &Maybe<Vec<At<WrittenFile>>>, path: &str) -> Checked<Vec<StartupFile>> {
    let Some(list) = list else { return Ok(Vec::new()) };
    if list.value.len() > MAX_STARTUP_FILES {
        return Err(broken(list, path, format!("{} files, more than {MAX_STARTUP_FILES}", list.value.len())));
    }
    let mut files = Vec::new();
    for (at, position) in list.value.iter().zip(0..) {
        let file = &at.value;
        let path = format!("{path}[{position}]");
        absolute(&file.path, &format!("{path}.path"))?;
        if file.path.value.ends_with('/') {
            return Err(broken(&file.path, &format!("{path}.path"), format!("`{}` names a folder", file.path.value)));
        }
        let mode = file.mode.as_ref().map(|mode| file_mode(mode, &format!("{path}.mode"))).transpose()?;
        if let Some(owner) = &file.owner {
            let part =
                |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
            if owner.value.split(':').count() > 2 || !owner.value.split(':').all(part) {
                let message = format!("`{}` is none of user, user:group, uid, uid:gid", owner.value);
                return Err(broken(owner, &format!("{path}.owner"), message));
            }
        }
        files.push(StartupFile {
            path: file.path.value.clone(),
            content: file.content.value.clone(),
            append: file.append.unwrap_or(false),
            owner: file.owner.as_ref().map(|owner| owner.value.clone()),
            mode,
        });
    }
    Ok(files)
}

fn file_mode(mode: &At<String>, path: &str) -> Checked<u32> {
    u32::from_str_radix(&mode.value, 8)
        .ok()
        .filter(|bits| *bits <= 0o7777)
        .ok_or_else(|| broken(mode, path, format!("`{}` is not an octal mode such as \"644\"", mode.value)))
}
