//! `state.json`: what `ps` needs to know about a playground, and whether it is still true.
//!
//! One writer at a time: the command that holds the lock, until it has let a supervisor go; then that supervisor until it is
//! dead. Whoever reads it asks the kernel whether the processes named in it still are who they were.

use labyard_spec::control;
use labyard_sys::pidfd::Identity;
use serde::{Deserialize, Serialize};

use crate::home::{Folder, HomeError, names};

/// Raised with every change of meaning.
pub const VERSION: u32 = 1;

/// State of one playground.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// The playground's name.
    pub name: String,
    /// The manifest that it was made from.
    pub manifest: String,
    /// When it was asked for, in milliseconds since 1970.
    pub created_ms: u64,
    /// The command that prepares it.
    pub starter: Option<Who>,
    /// Its supervisor.
    pub supervisor: Option<Who>,
    /// Its vmm.
    pub vmm: Option<Who>,
    /// What was reached by the playground as a whole, in order.
    pub conditions: Vec<Condition>,
    /// Machines in manifest order.
    pub machines: Vec<Machine>,
    /// When it ends by itself.
    #[serde(default)]
    pub expiry: Expiry,
    /// Its init tasks, in the order of their names.
    #[serde(default)]
    pub tasks: Vec<TaskState>,
    /// Machines that have left since the vmm was started, where any came or left: those that are here began with other names in
    /// `/etc/hosts`.
    #[serde(default)]
    pub left: Option<Vec<String>>,
    /// Uplinks whose taps the vmm has.
    #[serde(default)]
    pub uplinks: Vec<Uplink>,
    /// How it ended.
    pub end: Option<End>,
}

/// The way out of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Its name.
    pub network: String,
    /// Which way it is, in words.
    pub way: String,
    /// Who keeps it.
    pub process: Who,
}

/// A process that nobody else can be mistaken for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Process id.
    pub pid: i32,
    /// Clock ticks from the host's boot to its start.
    pub start_time: u64,
    /// Which boot of the host.
    pub boot: String,
}

impl Who {
    /// The process with this id.
    ///
    /// # Errors
    /// Where there is none.
    pub fn of(pid: u32) -> std::io::Result<Self> {
        let identity = Identity::of(i32::try_from(pid).map_err(std::io::Error::other)?)?;
        Ok(Self { pid: identity.pid, start_time: identity.start_time, boot: boot_id() })
    }

    /// The process, if it is of this boot.
    pub fn identity(&self) -> Option<Identity> {
        (self.boot == boot_id()).then_some(Identity { pid: self.pid, start_time: self.start_time })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        self.identity().is_some_and(Identity::is_alive)
    }
}

/// Which boot of the host this is; nothing where the kernel does not tell.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Something that was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Which.
    pub name: ConditionName,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// How, for people.
    pub message: String,
}

/// Conditions in the order in which they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConditionName {
    /// All images are in the store.
    ImagesReady,
    /// All disks are there.
    DisksReady,
    /// The vmm runs in its jail and answers.
    Jailed,
    /// A machine's vCPUs run.
    KernelStarted,
    /// A machine's init has mounted the root.
    InitDone,
    /// A machine's agent listens.
    AgentReachable,
    /// Every init task has completed; only where there are any.
    TasksDone,
    /// All of it.
    Ready,
    /// A machine stands still, because the host's disk has no room for what it writes. The only one that is over again, once there is room.
    HostDiskFull,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Number of vCPUs.
    pub cpu_count: u32,
    /// Memory.
    pub memory_mib: u64,
    /// Bytes of the pages that its memory got; 0 until the vmm has said so.
    #[serde(default)]
    pub page_size: u64,
    /// Network and address of each interface.
    pub addresses: Vec<(String, std::net::Ipv4Addr)>,
    /// The same of each that has IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses6: Vec<(String, std::net::Ipv6Addr)>,
    /// What it reached, in order.
    pub conditions: Vec<Condition>,
    /// It runs, and stands still until it is resumed, or until the host's disk has room.
    #[serde(default)]
    pub paused: bool,
    /// Drives whose writes wait for room on the host's disk.
    #[serde(default)]
    pub full_drives: Vec<FullDrive>,
    /// How it ended, once it has.
    pub ended: Option<control::MachineState>,
}

/// A drive whose writes wait for room on the host's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullDrive {
    /// Its serial.
    pub drive: String,
    /// What the host's disk says.
    pub errno: i32,
    /// Since when, in milliseconds since 1970.
    pub at_ms: u64,
}

impl ConditionName {
    /// Whether what was reached is so for good.
    pub fn outlives_vmm(self) -> bool {
        matches!(self, Self::ImagesReady | Self::DisksReady | Self::TasksDone)
    }
}

impl Machine {
    /// It is off, and about to start.
    pub fn begin_again(&mut self) {
        self.conditions.clear();
        self.full_drives.clear();
        (self.ended, self.paused, self.page_size) = (None, false, 0);
    }

    /// Nothing of it waits for room on the host's disk.
    pub fn has_room(&mut self) {
        self.full_drives.clear();
        self.conditions.retain(|condition| condition.name != ConditionName::HostDiskFull);
    }

    /// Why it stands still where nobody has paused it, and the way out.
    pub fn waits_for(&self) -> Option<&str> {
        let full = self.conditions.iter().find(|condition| condition.name == ConditionName::HostDiskFull);
        full.map(|condition| condition.message.as_str())
    }

    /// Whether it has reached this.
    pub fn has(&self, name: ConditionName) -> bool {
        self.conditions.iter().any(|condition| condition.name == name)
    }
}

/// How a machine ended, in words.
pub fn ended_text(state: &control::MachineState) -> String {
    match state {
        control::MachineState::Running => "running".to_owned(),
        control::MachineState::PoweredOff => "powered off".to_owned(),
        control::MachineState::Crashed(why) => format!("crashed: {why}"),
        control::MachineState::Failed(why) => format!("failed: {why}"),
        control::MachineState::Killed => "killed".to_owned(),
    }
}

/// The end of a playground's vmm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Why, with its last words.
    pub reason: String,
}

/// When a playground ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expiry {
    /// How long it lives after each start, in milliseconds.
    pub lifetime_ms: Option<u64>,
    /// When that is over, in milliseconds since 1970.
    pub at_ms: Option<u64>,
    /// How long nobody may have used it, in milliseconds.
    pub idle_ms: Option<u64>,
    /// What happens then.
    pub then: Then,
}

/// What becomes of a playground that has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// It is stopped; its drives stay.
    #[default]
    Stop,
    /// It is removed with all that it has.
    Remove,
}

impl Then {
    /// What happens.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stop => "stops",
            Self::Remove => "is removed",
        }
    }

    /// What is being done to it.
    pub fn past(self) -> &'static str {
        match self {
            Self::Stop => "stopped",
            Self::Remove => "removed",
        }
    }
}

/// How far an init task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskState {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub machine: String,
    /// How far it is.
    pub status: TaskStatus,
    /// How often it was started.
    pub attempts: u32,
    /// When it was last started, in milliseconds since 1970.
    pub started_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Why it failed.
    pub why: Option<String>,
    /// What it leaves to those that need it, as `KEY=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
}

impl TaskState {
    /// Whether it failed, so that the playground will not be ready.
    pub fn has_failed(&self) -> bool {
        self.status == TaskStatus::Failed
    }
}

/// How far an init task is; a completed one never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskStatus {
    /// It waits for its machine.
    Created,
    /// It waits for a task that it needs.
    Blocked,
    /// It runs.
    Running,
    /// It failed.
    Failed,
    /// It is done.
    Completed,
}

impl TaskStatus {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Blocked => "blocked",
            Self::Running => "running",
            Self::Failed => "failed",
            Self::Completed => "completed",
        }
    }
}

/// What is true about a playground now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// A command builds images or disks.
    Preparing,
    /// The supervisor runs, the vmm does not yet.
    Starting,
    /// The vmm runs under its supervisor.
    Running,
    /// The vmm runs, its supervisor has died; the next command starts another.
    Unattended,
    /// The vmm has ended: nothing runs.
    #[serde(rename = "stopped")]
    Ended,
    /// What was preparing or starting it has died.
    Interrupted,
}

impl Standing {
    /// Each of them.
    pub const ALL: [Self; 6] =
        [Self::Preparing, Self::Starting, Self::Running, Self::Unattended, Self::Ended, Self::Interrupted];

    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Unattended => "unattended",
            Self::Ended => "stopped",
            Self::Interrupted => "interrupted",
        }
    }
}

impl State {
    /// Asks the kernel.
    pub fn standing(&self) -> Standing {
        let alive = |who: &Option<Who>| who.as_ref().is_some_and(Who::is_alive);
        let supervised = alive(&self.supervisor);
        match &self.vmm {
            _ if self.end.is_some() => Standing::Ended,
            Some(vmm) if vmm.is_alive() => match supervised {
                true => Standing::Running,
                false => Standing::Unattended,
            },
            Some(_) => Standing::Ended,
            None if supervised => Standing::Starting,
            None if alive(&self.starter) => Standing::Preparing,
            None => Standing::Interrupted,
        }
    }

    /// Why it ended, where that is known.
    pub fn end_reason(&self) -> &str {
        match &self.end {
            Some(end) => end.reason.as_str(),
            None if self.vmm.as_ref().is_some_and(|vmm| vmm.boot != boot_id()) => "the host was started anew",
            None => "its vmm is gone, and no supervisor saw it go",
        }
    }

    /// What is left of it when it starts again under this process: images and disks, and nothing that ran.
    ///
    /// # Errors
    /// Where this process cannot be told from others.
    pub fn begin_again(&mut self) -> std::io::Result<()> {
        self.starter = Some(Who::of(std::process::id())?);
        (self.supervisor, self.vmm, self.end, self.left) = (None, None, None, None);
        self.conditions.retain(|condition| condition.name.outlives_vmm());
        self.uplinks.clear();
        for machine in &mut self.machines {
            machine.begin_again();
        }
        self.expiry.at_ms = self.expiry.lifetime_ms.map(|lifetime| now_ms().saturating_add(lifetime));
        Ok(())
    }

    /// Writes it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, folder: &Folder) -> Result<(), HomeError> {
        let text = serde_json::to_vec_pretty(self).expect("plain data has a JSON form");
        folder.write(names::STATE, &text)
    }

    /// Reads it; `None` where there is none yet.
    ///
    /// # Errors
    /// What the file system says; text that is not a state.
    pub fn read(folder: &Folder) -> Result<Option<Self>, HomeError> {
        let Some(bytes) = folder.read(names::STATE)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| HomeError::File {
            path: folder.file(names::STATE),
            doing: "understanding it",
            source: error.into(),
        })
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a lab of which nothing is there.
    pub(crate) fn state() -> State {
        State {
            version: VERSION,
            name: "lab".into(),
            manifest: "lab.yaml".into(),
            created_ms: 1,
            starter: None,
            supervisor: None,
            vmm: None,
            conditions: vec![],
            machines: vec![],
            expiry: Expiry::default(),
            tasks: vec![],
            left: None,
            uplinks: vec![],
            end: None,
        }
    }

    #[test]
    fn a_playground_stands_as_its_processes_do() {
        let own = Some(Who::of(std::process::id()).expect("this process"));
        let dead = own.clone().map(|who| Who { start_time: who.start_time + 1, ..who });
        let other_boot = own.clone().map(|who| Who { boot: "another".into(), ..who });
        let standing = |starter: &Option<Who>, supervisor: &Option<Who>, vmm: &Option<Who>| {
            State { starter: starter.clone(), supervisor: supervisor.clone(), vmm: vmm.clone(), ..state() }.standing()
        };
        assert_eq!(standing(&own, &None, &None), Standing::Preparing);
        assert_eq!(standing(&dead, &None, &None), Standing::Interrupted);
        assert_eq!(standing(&dead, &own, &None), Standing::Starting);
        assert_eq!(standing(&dead, &own, &own), Standing::Running);
        assert_eq!(standing(&dead, &dead, &own), Standing::Unattended);
        assert_eq!(standing(&dead, &own, &dead), Standing::Ended);
        assert_eq!(standing(&other_boot, &other_boot, &other_boot), Standing::Ended, "the host was started anew");
    }
}
