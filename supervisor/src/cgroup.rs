//! Control groups: what a vmm may take of the host, whatever happens in it.
//!
//! A group of its own in each hierarchy that is needed, made for one start of a vmm and removed after its end; version 1 (one hierarchy
//! for each controller) and version 2 (one for all), as mounted. What was made is written down first, so that whoever comes later
//! removes it. A limit that somebody asked for and that cannot be set is an error; one of our own is a line in the journal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::home::{Folder, HomeError};
use crate::words;

/// The folders that were made.
const MADE: &str = "cgroups.json";
/// A period of the processor's time, in microseconds.
const PERIOD_US: u64 = 100_000;
/// How often, and how long between, a group is tried to be removed: its process may be on its way out.
const REMOVALS: u32 = 40;
const REMOVAL_PAUSE: Duration = Duration::from_millis(25);

/// Limits that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Hundredths of a processor.
    pub cpu_percent: Option<u64>,
    /// Memory, the machines' own included.
    pub memory_bytes: Option<u64>,
    /// Read, and written, on the disk of the state directory in a second.
    pub io_bytes: Option<u64>,
    /// A limit that cannot be set is said, and no error.
    pub allow_unlimited: bool,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    /// Time of processors, in hundredths.
    Cpu,
    /// Memory in bytes.
    Memory,
    /// Threads.
    Pids,
    /// Bytes of a disk in a second.
    Io,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Of what.
    pub controller: Controller,
    /// As much.
    pub value: u64,
    /// Somebody wants it; else it is our own.
    pub asked: bool,
}

/// Why a limit is not set.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CgroupError {
    #[error("limiting {what}: {why}; leave the limit out, or allow to go without it (--allow-unlimited)")]
    Asked { what: String, why: String },
    #[error(transparent)]
    Home(#[from] HomeError),
}

/// What keeps a lab from having its memory, and more, on the host's swap.
const SWAP: [&str; 2] = ["memory.swap.max", "memory.memsw.limit_in_bytes"];

impl Controller {
    /// Its names in version 1 and 2.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Cpu => ("cpu", "cpu"),
            Self::Memory => ("memory", "memory"),
            Self::Pids => ("pids", "pids"),
            Self::Io => ("blkio", "io"),
        }
    }
}

impl Limit {
    /// For people.
    fn text(self) -> String {
        match self.controller {
            Controller::Cpu => format!("{}.{:02} processors", self.value / 100, self.value % 100),
            Controller::Memory => format!("{} MiB of memory", self.value >> 20),
            Controller::Pids => format!("{} threads", self.value),
            Controller::Io => format!("{} KiB of disk in a second", self.value >> 10),
        }
    }

    /// Files, and what is written to them.
    fn files(self, version: Version, disk: Option<(u32, u32)>) -> Result<Vec<(&'static str, String)>, String> {
        let quota = self.value * (PERIOD_US / 100);
        let value = self.value;
        let disk = || {
            let (major, minor) = disk.ok_or("the state directory lies on no disk that can be limited")?;
            Ok::<_, String>(format!("{major}:{minor}"))
        };
        Ok(match (self.controller, version) {
            (Controller::Cpu, Version::One) => {
                vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
            }
            (Controller::Cpu, Version::Two) => vec![("cpu.max", format!("{quota} {PERIOD_US}"))],
            // Memory and swap together are never less than memory alone.
            (Controller::Memory, Version::One) => vec![
                ("memory.memsw.limit_in_bytes", "-1".to_owned()),
                ("memory.limit_in_bytes", value.to_string()),
                ("memory.memsw.limit_in_bytes", value.to_string()),
            ],
            (Controller::Memory, Version::Two) => {
                vec![("memory.max", value.to_string()), ("memory.swap.max", "0".to_owned())]
            }
            (Controller::Pids, _) => vec![("pids.max", value.to_string())],
            (Controller::Io, Version::One) => {
                let line = format!("{} {value}", disk()?);
                vec![("blkio.throttle.read_bps_device", line.clone()), ("blkio.throttle.write_bps_device", line)]
            }
            (Controller::Io, Version::Two) => vec![("io.max", format!("{} rbps={value} wbps={value}", disk()?))],
        })
    }
}

/// Of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where groups of ours can be made.
#[derive(Debug, PartialEq, Eq, Default)]
struct Places {
    one: BTreeMap<Controller, PathBuf>,
    two: Option<PathBuf>,
    /// The group of version 2 that the caller is in.
    own: Option<PathBuf>,
}

impl Places {
    /// From the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` (cgroups(7)).
    ///
    /// In version 1 below the caller's own group, whose limits hold then, too. In version 2 beside it: a group with processes in it
    /// has no controllers for its children, but for the root.
    fn of(mounts: &str, own: &str) -> Self {
        let group = |wanted: &dyn Fn(&str, &str) -> bool| {
            own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
                wanted(number, controllers).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let mut places = Self::default();
        for line in mounts.lines() {
            let Some((mount, rest)) = line.split_once(" - ") else { continue };
            let (mut mount, mut rest) = (mount.split(' '), rest.split(' '));
            let (Some(point), Some(kind), Some(options)) = (mount.nth(4), rest.next(), rest.nth(1)) else { continue };
            let point = PathBuf::from(point);
            match kind {
                "cgroup2" => {
                    let path = group(&|number, controllers| number == "0" && controllers.is_empty());
                    let path = path.unwrap_or_default();
                    places.own = Some(point.join(&path));
                    let beside = point.join(&path).parent().map(Path::to_owned).filter(|_| !path.is_empty());
                    places.two = Some(beside.unwrap_or(point));
                }
                "cgroup" => {
                    for controller in [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Io] {
                        let (name, _) = controller.names();
                        if options.split(',').any(|option| option == name) {
                            let has = |_: &str, controllers: &str| controllers.split(',').any(|other| other == name);
                            let path = group(&has).unwrap_or_default();
                            // In a container the path may be one of the host, and the mount only a part of its tree.
                            let own = Some(point.join(path)).filter(|own| own.is_dir());
                            places.one.insert(controller, own.unwrap_or_else(|| point.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        places
    }

    fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::of(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    /// Where a group is made for this controller, and of which version.
    fn find(&self, controller: Controller) -> Result<(Version, &Path), String> {
        if let Some(place) = self.one.get(&controller) {
            return Ok((Version::One, place));
        }
        let (_, name) = controller.names();
        let place = self.two.as_deref().ok_or("no control groups are mounted")?;
        let has = |file: &str| {
            let text = std::fs::read_to_string(place.join(file)).unwrap_or_default();
            text.split_ascii_whitespace().any(|other| other == name)
        };
        if !has("cgroup.controllers") {
            return Err(format!("{} has no controller `{name}`", place.display()));
        }
        if !has("cgroup.subtree_control") {
            let file = place.join("cgroup.subtree_control");
            std::fs::write(&file, format!("+{name}")).map_err(|error| at(&file, &error))?;
        }
        Ok((Version::Two, place))
    }
}

/// Where a group of version 2 would be made; `None` where that version is not mounted.
pub(crate) fn place_of_version_two() -> Option<PathBuf> {
    Places::here().two
}

/// Where control groups are mounted.
pub(crate) fn mounts() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_groups = |line: &str| {
        let (mount, rest) = line.split_once(" - ")?;
        let is_one = rest.starts_with("cgroup ") || rest.starts_with("cgroup2 ");
        is_one.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    };
    mounts.lines().filter_map(of_groups).collect()
}

/// The group of version 2 that this process is in.
pub(crate) fn own_of_version_two() -> Option<PathBuf> {
    Places::here().own
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Puts a process into groups with these limits, made for it. What holds now and what does not, for people.
///
/// # Errors
/// Where a limit that was asked for cannot be set. Nothing is left then.
pub fn confine(folder: &Folder, pid: u32, limits: &[Limit], allow_unlimited: bool) -> Result<Confined, CgroupError> {
    remove(folder);
    let (places, disk) = (Places::here(), disk(&folder.path));
    let name = format!("labyard-{}-{pid}", folder.name);
    let mut said = Confined::default();
    let mut made: Vec<PathBuf> = Vec::new();
    for limit in limits {
        let set = places.find(limit.controller).and_then(|(version, place)| {
            let files = limit.files(version, disk)?;
            let group = place.join(&name);
            if !made.contains(&group) {
                made.push(group.clone());
                write_down(folder, &made)?;
                if let Err(error) = std::fs::create_dir(&group) {
                    made.pop();
                    return Err(at(&group, &error));
                }
            }
            tell(&group, files)?;
            let file = group.join("cgroup.procs");
            std::fs::write(&file, pid.to_string()).map_err(|error| at(&file, &error))
        });
        match set {
            Ok(()) => said.set.push(limit.text()),
            Err(why) if limit.asked && !allow_unlimited => {
                remove(folder);
                return Err(CgroupError::Asked { what: limit.text(), why });
            }
            Err(why) => said.unset.push(format!("{} ({why})", limit.text())),
        }
    }
    Ok(said)
}

/// Writes what a limit says into the files of a group.
fn tell(group: &Path, files: Vec<(&'static str, String)>) -> Result<(), String> {
    for (name, value) in files {
        let file = group.join(name);
        // Kernels that count no swap of groups have no such file; there is nothing to limit then, or no way to.
        if SWAP.contains(&name) && !file.exists() {
            continue;
        }
        std::fs::write(&file, value).map_err(|error| at(&file, &error))?;
    }
    Ok(())
}

/// Sets other limits in the groups of a vmm that runs. Those that could not be set when it started are passed over.
///
/// # Errors
/// Where a limit that was asked for cannot be changed.
pub fn change(folder: &Folder, limits: &[Limit], allow_unlimited: bool) -> Result<(), CgroupError> {
    let Ok(Some(text)) = folder.read(MADE) else { return Ok(()) };
    let made: Vec<PathBuf> = serde_json::from_slice(&text).unwrap_or_default();
    let (places, disk) = (Places::here(), disk(&folder.path));
    for limit in limits {
        let Ok((version, place)) = places.find(limit.controller) else { continue };
        let Some(group) = made.iter().find(|group| group.parent() == Some(place)) else { continue };
        let set = limit.files(version, disk).and_then(|files| tell(group, files));
        match set {
            Err(why) if limit.asked && !allow_unlimited => return Err(CgroupError::Asked { what: limit.text(), why }),
            Err(why) => words::log(&format!("{}: {why}", limit.text())),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// How a process is limited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Confined {
    set: Vec<String>,
    unset: Vec<String>,
}

impl Confined {
    /// In a few words; nothing where nothing is limited.
    pub fn limits(&self) -> Option<String> {
        (!self.set.is_empty()).then(|| self.set.join(", "))
    }

    /// One line on what is not limited.
    pub fn warning(&self) -> Option<String> {
        let mut text = String::from("not limited, for this host's control groups do not let us: ");
        let _ = write!(text, "{}", self.unset.join(", ")); // text takes everything
        (!self.unset.is_empty()).then_some(text)
    }
}

fn write_down(folder: &Folder, made: &[PathBuf]) -> Result<(), String> {
    let text = serde_json::to_vec(made).map_err(|error| error.to_string())?;
    folder.write(MADE, &text).map_err(|error| words::chain(&error))
}

/// Removes the groups of a vmm that has ended. What cannot be removed is said in the log, and tried again by whoever comes next.
pub fn remove(folder: &Folder) {
    let Ok(Some(text)) = folder.read(MADE) else { return };
    let made: Vec<PathBuf> = serde_json::from_slice(&text).unwrap_or_default();
    let left: Vec<_> = made.iter().filter(|group| !is_removed(group)).collect();
    if left.is_empty() {
        let _ = std::fs::remove_file(folder.file(MADE)); // an empty promise harms nobody
    } else {
        words::log(&format!("control groups that are left: {left:?}"));
    }
}

fn is_removed(group: &Path) -> bool {
    for _ in 0..REMOVALS {
        match std::fs::remove_dir(group) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(REMOVAL_PAUSE),
            Err(_) => return false,
        }
    }
    false
}

/// The disk that a folder lies on, as controllers know it: the whole one, where it is a partition.
fn disk(folder: &Path) -> Option<(u32, u32)> {
    let device = std::fs::metadata(folder).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if !block.join("partition").exists() {
        return Some((major, minor));
    }
    let whole = std::fs::read_to_string(block.parent()?.join("dev")).ok()?;
    let (major, minor) = whole.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_made_below_the_own_one_of_version_1_and_beside_that_of_version_2() {
        let two = "31 23 0:28 / /nowhere rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let places = |own| Places::of(two, own).two;
        assert_eq!(places("0::/\n"), Some("/nowhere".into()));
        assert_eq!(places("0::/user.slice/a.scope\n"), Some("/nowhere/user.slice".into()));
        let hybrid = "32 31 0:29 / /nowhere/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      39 31 0:36 / /nowhere/pids rw,relatime - cgroup cgroup rw,pids\n\
                      41 31 0:38 / /nowhere/unified rw - cgroup2 cgroup2 rw\n";
        let places = Places::of(hybrid, "9:name=systemd:/\n8:pids:/a\n1:cpu,cpuacct:/b\n0::/\n");
        // Groups of the host that are not to be seen here.
        let one: Vec<_> = places.one.into_iter().collect();
        assert_eq!(one, [(Controller::Cpu, "/nowhere/cpu".into()), (Controller::Pids, "/nowhere/pids".into())]);
        assert_eq!(places.two, Some("/nowhere/unified".into()));
        assert_eq!(Places::of("", "0::/\n"), Places::default());
    }

    #[test]
    fn both_versions_are_told_the_same() {
        let limit = |controller, value| Limit { controller, value, asked: true };
        let files = |limit: Limit, version| {
            let files = limit.files(version, Some((8, 16))).expect("a disk");
            files.into_iter().map(|(file, value)| format!("{file}={value}")).collect::<Vec<_>>()
        };
        let cpu = limit(Controller::Cpu, 150);
        assert_eq!(files(cpu, Version::One), ["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=150000"]);
        assert_eq!(files(cpu, Version::Two), ["cpu.max=150000 100000"]);
        let io = limit(Controller::Io, 1 << 20);
        assert_eq!(
            files(io, Version::One),
            ["blkio.throttle.read_bps_device=8:16 1048576", "blkio.throttle.write_bps_device=8:16 1048576"]
        );
        assert_eq!(files(io, Version::Two), ["io.max=8:16 rbps=1048576 wbps=1048576"]);
        assert!(io.files(Version::Two, None).is_err());
        assert_eq!(files(limit(Controller::Pids, 9), Version::Two), ["pids.max=9"]);
        assert_eq!(cpu.text(), "1.50 processors");
        let memory = limit(Controller::Memory, 4096);
        assert_eq!(files(memory, Version::Two), ["memory.max=4096", "memory.swap.max=0"]);
        let one = ["memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=4096", "memory.memsw.limit_in_bytes=4096"];
        assert_eq!(files(memory, Version::One), one, "more is never less than what it includes");
    }

    #[test]
    fn swap_is_limited_where_the_kernel_counts_it() {
        let group = tempfile::tempdir().expect("a folder");
        let memory = Limit { controller: Controller::Memory, value: 4096, asked: true };
        let read = |name: &str| std::fs::read_to_string(group.path().join(name)).ok();
        let set = |version| tell(group.path(), memory.files(version, None).expect("files")).expect("writing");
        set(Version::Two);
        assert_eq!((read("memory.max").as_deref(), read("memory.swap.max")), (Some("4096"), None));
        std::fs::write(group.path().join("memory.swap.max"), "max").expect("writing");
        set(Version::Two);
        assert_eq!(read("memory.swap.max").as_deref(), Some("0"));
        set(Version::One);
        assert_eq!(read("memory.memsw.limit_in_bytes"), None);
        std::fs::write(group.path().join("memory.memsw.limit_in_bytes"), "max").expect("writing");
        set(Version::One);
        assert_eq!(read("memory.memsw.limit_in_bytes").as_deref(), Some("4096"));
    }
}
