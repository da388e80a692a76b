//! The supervisor's conversation with the vmm over `control.sock`.
//!
//! A stream socket. Each message is a little-endian `u32` length and that many bytes of JSON. A request is answered by
//! exactly one reply, in order. Descriptors travel beside the first byte of the message that speaks of them
//! (`SCM_RIGHTS`, at most 253 in one message, which is the kernel's SCM_MAX_FD).
//!
//! A new vmm knows nothing. The supervisor sends [`Request::Descriptors`] until the table is filled, then one
//! [`Request::Create`]. Any number of connections may come later: a supervisor that took over sends [`Request::Status`].

use serde::{Deserialize, Serialize};

use crate::link::{Direction, LinkChange, LinkStatus};
use crate::playground::{MachineSpec, NetworkSpec, PlaygroundSpec, Slot};

/// Descriptors that fit in one message (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;
/// Bytes of one message; 64 machines with 24 drives need about a quarter.
pub const MAX_MESSAGE_BYTES: u32 = 4 << 20;
/// Raised with every change of meaning; the two sides must agree.
pub const PROTOCOL: u32 = 1;

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Beside this message travel descriptors for the slots `first`, `first + 1`, … Each slot is filled once; the next `Create`, `Restore`,
    /// `Save`, `Start`, `Add` or `AddNetwork` on the same connection takes all that are there, and what nobody took goes with the connection.
    Descriptors {
        /// Slot of the first descriptor.
        first: Slot,
        /// How many follow.
        count: u32,
    },
    /// Builds and starts all machines. Once.
    Create(Box<PlaygroundSpec>),
    /// What is the state of everything? Allowed at any time.
    Status,
    /// Turns this connection into a stream of [`Event`]s, starting with all kept events numbered `after + 1` or later.
    Events {
        /// The last event already known; 0 for all.
        after: u64,
    },
    /// Connects to a vsock port of a guest. The reply carries one end of a Unix stream once the guest has accepted.
    Connect {
        /// Machine name.
        machine: String,
        /// Port in the guest.
        port: u32,
    },
    /// Attaches to a machine's console. The reply carries one end of a Unix stream: what the guest prints, what the person types.
    Console {
        /// Machine name.
        machine: String,
    },
    /// What is the state of all links? Allowed once machines are there.
    Links,
    /// Listens to a network, or to one NIC of a machine. The reply carries one end of a Unix stream, in which frames come as a pcap file.
    Capture {
        /// Name of the network.
        network: String,
        /// The machine whose NIC is listened to; everything that is sent on the network where missing.
        machine: Option<String>,
    },
    /// Changes a machine, or the playground where `machine` is missing, while it runs.
    Change {
        /// Machine name.
        machine: Option<String>,
        /// What is to be another way.
        change: Change,
    },
    /// Presses the power button of one machine: its guest is told through ACPI, and may power off.
    PowerButton {
        /// Machine name.
        machine: String,
    },
    /// Lets one machine, or all where `machine` is missing, stand still at one instant. One that is paused stays so; one that has
    /// ended is left alone where all are meant.
    Pause {
        /// Machine name.
        machine: Option<String>,
    },
    /// Lets one machine, or all, go on. One that runs runs on. What waits for room on the host's disk is tried at once; where there is none
    /// the machine stays paused, goes on by itself once there is, and the reply is a failure that says so.
    Resume {
        /// Machine name.
        machine: Option<String>,
    },
    /// Pauses all machines, writes them to files, and leaves them paused: what is written belongs to their drives as they are now.
    Save(SavedFiles),
    /// In place of `Create`: builds all machines as they were saved, and leaves them paused.
    Restore(Box<RestoreSpec>),
    /// Starts a machine that has ended, anew, while the others run. Its files were passed by `Descriptors` before; what it has may be
    /// different now, but for its name and interfaces.
    Start(Box<MachineSpec>),
    /// Builds and starts a machine that is not there yet, while the others run. Its files were passed by `Descriptors` before; its
    /// interfaces are on networks that are there.
    Add(Box<MachineSpec>),
    /// Forgets a machine that has ended: its places in networks and its name are free.
    Remove {
        /// Machine name.
        machine: String,
    },
    /// One more network, with nobody on it. Where it has a tap, passed by `Descriptors` before, that is its way out from now on, also of a
    /// network that is there.
    AddNetwork(NetworkSpec),
    /// Forgets a network that no machine is on; its tap is closed.
    RemoveNetwork {
        /// Its name.
        network: String,
    },
    /// Cuts the power of one machine, or of all and ends the process where `machine` is missing.
    Kill {
        /// Machine name.
        machine: Option<String>,
    },
}

/// Files of saved machines, by slot (`docs/formats.md`, "Saved machines"). Those that are written to are empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SavedFiles {
    /// The state of all.
    pub state: Slot,
    /// Memory of each machine, in the order of the spec.
    pub memory: Vec<Slot>,
}

/// Machines that go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RestoreSpec {
    /// What they were created from; drives lie on the same files.
    pub playground: PlaygroundSpec,
    /// What was saved.
    pub saved: SavedFiles,
}

/// What can change while a machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// The size that the guest is asked to fill its balloon to, or empty it to: memory that the guest lends to the host.
    Balloon {
        /// MiB in the balloon, less than the machine's memory.
        target_mib: u64,
    },
    /// The size of the terminal that the console is looked at with.
    ConsoleSize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// Pulls the cable of a NIC, or plugs it in again; the guest sees its carrier go and come.
    Link {
        /// Position of the interface in the manifest: 0 is eth0.
        interface: u32,
        /// Whether the cable is in.
        up: bool,
    },
    /// What the link of a NIC does to frames; the guest sees nothing of it.
    Disturb {
        /// Position of the interface in the manifest: 0 is eth0.
        interface: u32,
        /// Which frames.
        direction: Direction,
        /// From now on.
        change: LinkChange,
    },
    /// The same for all NICs of a network; no machine is named. What it does to a frame, it does on its way to its receiver; healing heals
    /// both directions.
    DisturbNetwork {
        /// Its name.
        network: String,
        /// From now on.
        change: LinkChange,
    },
    /// Limits of one drive of the machine.
    DriveLimit {
        /// Its serial.
        serial: String,
        /// From now on.
        limits: Limits,
    },
    /// Limits of all drives of the machine together.
    MachineLimit {
        /// From now on.
        limits: Limits,
    },
    /// Limits of all drives of the playground together; no machine is named.
    PlaygroundLimit {
        /// From now on.
        limits: Limits,
    },
    /// Limits of what the guest sends on one NIC of the machine.
    NicLimit {
        /// Position of the interface in the manifest: 0 is eth0.
        interface: u32,
        /// From now on.
        limits: Limits,
    },
    /// Limits of what guests send on all NICs of the machine together, or of the playground where no machine is named.
    NicsLimit {
        /// From now on.
        limits: Limits,
    },
    /// A drive of the machine becomes larger, one in a plain file as large as that was made before. It cannot shrink.
    DriveResize {
        /// Its serial.
        serial: String,
        /// Bytes of the drive, whole sectors.
        bytes: u64,
    },
}

/// Limits of what moves; what is missing is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Limits {
    /// Of bytes.
    #[serde(default)]
    pub bytes: Option<RateLimit>,
    /// Of operations.
    #[serde(default)]
    pub operations: Option<RateLimit>,
}

/// A rate with a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RateLimit {
    /// Units in a second, at least 1.
    pub per_second: u64,
    /// Units that may go at once after a rest.
    #[serde(default)]
    pub burst: u64,
}

/// From the vmm: one for each request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// Done, with nothing to tell. For `Connect`, `Console` and `Capture` a descriptor travels beside it.
    Done,
    /// To `Status`.
    Status(Status),
    /// To `Links`: of all NICs, by machine and interface.
    Links(Vec<LinkStatus>),
    /// Refused or failed; the text names what, the value and the way out.
    Failed(String),
}

/// State of the whole process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// [`PROTOCOL`] of the vmm.
    pub protocol: u32,
    /// Machines in manifest order; empty before `Create`.
    pub machines: Vec<MachineStatus>,
    /// Number of the newest event.
    pub last_event: u64,
}

/// State of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: MachineState,
    /// It runs, and stands still until it is resumed, or until the host's disk has room.
    #[serde(default)]
    pub paused: bool,
    /// Drives whose writes wait for room on the host's disk.
    #[serde(default)]
    pub full_drives: Vec<FullDrive>,
    /// Milestones of its boot in microseconds since the start of the vmm process, in order of time.
    pub boot_us: Vec<(Milestone, u64)>,
    /// Faults noted per device since the start (guest's mistakes, contained).
    pub faults: Vec<(String, u64)>,
    /// Counters since the start, by owner: each device by its name, each vCPU (`cpu0`) with its exits by reason.
    #[serde(default)]
    pub counters: Vec<(String, Vec<(String, u64)>)>,
    /// Bytes of the pages that its memory got; 0 while it is not known.
    #[serde(default)]
    pub page_size: u64,
    /// Memory that went back to the host, and what the guest says of its own.
    #[serde(default)]
    pub balloon: Option<BalloonStatus>,
}

/// A drive whose writes wait for room on the host's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullDrive {
    /// Its serial.
    pub drive: String,
    /// What the host's disk says: no space left on device, or disk quota exceeded.
    pub errno: i32,
}

/// State of a machine's balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatus {
    /// The size that was asked for.
    pub target_mib: u64,
    /// The size that the guest claims.
    pub actual_mib: u64,
    /// Bytes that went back to the host so far, reported free or put into the balloon; each time that a page did counts.
    pub given_back_bytes: u64,
    /// What the guest last said, by name; asking brings newer ones for the next time. Claims.
    pub statistics: Vec<(String, u64)>,
}

/// A machine runs, or has ended in one of four ways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineState {
    /// vCPUs run.
    Running,
    /// The guest powered itself off.
    PoweredOff,
    /// The guest's kernel panicked or reset before its init said hello; the reason and the last console lines.
    Crashed(String),
    /// A fault of the monitor that was contained to this machine.
    Failed(String),
    /// `Kill` asked for it.
    Killed,
}

/// Points of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Milestone {
    /// Kernel, initrd and tables are in guest memory.
    Loaded,
    /// A vCPU entered the guest for the first time.
    FirstRun,
    /// The guest printed its first byte.
    FirstConsoleByte,
    /// The guest's init connected to the readiness port.
    InitHello,
}

/// Something that happened. Also written, one JSON line each, to the vmm's last-words descriptor when the machine ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// 1, 2, 3, … in this process.
    pub number: u64,
    /// Microseconds since the start of the vmm process.
    pub at_us: u64,
    /// Machine name.
    pub machine: String,
    /// What happened.
    pub what: Happening,
}

/// What happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happening {
    /// Guest memory was mapped in pages of another size than before; also the first time.
    Mapped {
        /// Bytes of one page.
        page_size: u64,
    },
    /// It is about to boot.
    Booting {
        /// Bytes in its console's log: what it prints from here on is behind them.
        log_bytes: u64,
    },
    /// vCPUs were started.
    Started,
    /// The guest rebooted in place.
    Rebooted,
    /// It stands still.
    Paused,
    /// It goes on.
    Resumed,
    /// The machine ended; the state says how.
    Ended(MachineState),
    /// The disk of the host has no room for what the guest writes to a drive: its writes wait, and the machine is paused. Or it has
    /// room again, and the machine goes on, unless another drive of it waits or somebody has paused it.
    HostDisk {
        /// Serial of the drive.
        drive: String,
        /// Whether they wait.
        full: bool,
        /// What the host's disk says, where it has no room.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        errno: Option<i32>,
    },
    /// The guest opened a stream to `port` of the host; one end travels beside this event.
    GuestConnected {
        /// Port on the host's side.
        port: u32,
    },
}
