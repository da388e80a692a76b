//! What the verbs of a lab's life are given.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use labyard_spec::manifest::size;
use labyard_supervisor::cgroup::Limits;
use labyard_supervisor::ports::Port;
use labyard_supervisor::record::{ConditionName, Then};

use super::duration;

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// The manifest
    pub(crate) file: PathBuf,
    /// Call the lab so instead of what the manifest says
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Print the lab's state as one JSON document at the end; progress goes to standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// Choose a parameter of the manifest (initConditions) for its init tasks
    #[arg(short = 'i', long = "input", value_name = "KEY=VALUE", value_parser = input)]
    pub(crate) inputs: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) lifetime: Lifetime,
    /// Return once the machines are starting
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Of a lab that runs with another manifest: stop it, and start it as this one asks, on its drives
    #[arg(long)]
    pub(crate) restart: bool,
    /// How long all machines may take until they can be used, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Lead a port of this host to a port of a machine, as `labyard publish` does; may be given several times
    #[arg(long, value_name = "[BIND:]PORT:MACHINE:PORT[/udp]")]
    pub(crate) publish: Vec<Port>,
    /// Build images that the manifest wants built from a Dockerfile: its steps run here, with your rights
    #[arg(long)]
    pub(crate) allow_build: bool,
    #[command(flatten)]
    pub(crate) limits: HostLimits,
}

/// What the lab's process may take of the host, whatever its machines do. Where nothing is said, memory and threads are limited to what
/// the machines need, if the host's control groups let us.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits (control groups)")]
pub(crate) struct HostLimits {
    /// Processors that the lab may keep busy, such as 1.5
    #[arg(long, value_name = "N", value_parser = processors)]
    pub(crate) limit_cpus: Option<u64>,
    /// Memory of the lab, that of its machines included
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) limit_memory: Option<u64>,
    /// Bytes that it may read, and write, in a second on the disk where labs lie
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(crate) limit_io: Option<u64>,
    /// Start without a limit that cannot be set
    #[arg(long)]
    pub(crate) allow_unlimited: bool,
}

impl HostLimits {
    /// What was said; nothing where nothing was.
    pub(crate) fn said(&self) -> Option<Limits> {
        let limits = Limits {
            cpu_percent: self.limit_cpus,
            memory_bytes: self.limit_memory,
            io_bytes: self.limit_io,
            allow_unlimited: self.allow_unlimited,
        };
        (limits != Limits::default()).then_some(limits)
    }
}

/// A number of processors, in hundredths.
fn processors(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no number of processors from 0.01 to 10000, such as 2 or 1.5");
    let number: f64 = text.parse().map_err(|_| wrong())?;
    let hundredths = (number * 100.0).round();
    // Of NaN nothing holds.
    if (1.0..=1_000_000.0).contains(&hundredths) { Ok(hundredths as u64) } else { Err(wrong()) }
}

#[derive(Debug, Args)]
pub(crate) struct Bake {
    /// The manifest
    pub(crate) file: PathBuf,
    /// The folder to make
    #[arg(long, value_name = "DIR", default_value = "baked")]
    pub(crate) out: PathBuf,
    /// Keep the disks of this machine alone; may be given several times. The others keep their images and their tasks
    #[arg(long = "machine", value_name = "NAME")]
    pub(crate) machines: Vec<String>,
    /// Choose a parameter of the manifest (initConditions) for its init tasks
    #[arg(short = 'i', long = "input", value_name = "KEY=VALUE", value_parser = input)]
    pub(crate) inputs: Vec<(String, String)>,
    /// Build images that the manifest wants built from a Dockerfile: its steps run here, with your rights
    #[arg(long)]
    pub(crate) allow_build: bool,
    /// Where it fails, leave the lab that it made, for a look at it
    #[arg(long)]
    pub(crate) keep: bool,
    /// Print what was made as one JSON document at the end; progress goes to standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// How long all machines may take until they can be used and their tasks are done, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// How long guests may take to power off; one that does not is not kept
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub(crate) grace: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    /// The lab; the only one where not given
    #[arg(conflicts_with = "all")]
    pub(crate) name: Option<String>,
    /// All of them
    #[arg(long)]
    pub(crate) all: bool,
    /// How long guests may take to power off before their power is cut
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) grace: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// LAB or LAB/MACHINE; the only lab where not given
    pub(crate) name: Option<String>,
    /// How long guests may take to power off before their power is cut
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) grace: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Start {
    /// LAB or LAB/MACHINE; the only lab where not given
    pub(crate) name: Option<String>,
    /// Return once it is starting
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Print the lab's state as one JSON document at the end; progress goes to standard error
    #[arg(long)]
    pub(crate) json: bool,
    /// How long it may take until it can be used, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) start: Start,
    /// How long guests may take to power off before their power is cut
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) grace: Duration,
}

/// When a lab ends by itself.
#[derive(Debug, Args)]
pub(crate) struct Lifetime {
    /// End the lab so long after it has started, such as 90m or 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) lifetime: Option<Duration>,
    /// End the lab when nobody has used it for so long
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) idle: Option<Duration>,
    /// What happens then
    #[arg(long, value_name = "WHAT", default_value = "stop", value_parser = then)]
    pub(crate) on_expiry: Then,
}

#[derive(Debug, Args)]
pub(crate) struct Expire {
    /// The lab
    pub(crate) name: String,
    /// So long from now, and after each start, such as 90m or 2h
    #[arg(value_name = "TIME", value_parser = duration, conflicts_with = "never")]
    pub(crate) after: Option<Duration>,
    /// When nobody has used it for so long
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "never")]
    pub(crate) idle: Option<Duration>,
    /// Not by itself
    #[arg(long)]
    pub(crate) never: bool,
    /// What happens then
    #[arg(long, value_name = "WHAT", default_value = "stop", value_parser = then)]
    pub(crate) on_expiry: Then,
}

fn then(text: &str) -> Result<Then, String> {
    match text {
        "stop" => Ok(Then::Stop),
        "remove" => Ok(Then::Remove),
        _ => Err("write stop or remove".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// The lab
    pub(crate) name: String,
    /// Its new name
    pub(crate) to: String,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// LAB or LAB/MACHINE; the only lab where not given
    pub(crate) name: Option<String>,
    /// What it is to be
    #[arg(long = "for", value_enum, ignore_case = true, default_value = "ready", value_name = "WHAT")]
    pub(crate) goal: Goal,
    /// How long it may take; for ever where not given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Goal {
    /// It can be used, and its init tasks are done
    Ready,
    /// It does not run any more
    Stopped,
    /// Its vCPUs run
    KernelStarted,
    /// Its init has mounted the root
    InitDone,
    /// Its agent answers
    AgentReachable,
    /// Every init task has completed
    TasksDone,
}

impl Goal {
    /// The condition that it is, if it is one.
    pub(crate) fn condition(self) -> Option<ConditionName> {
        Some(match self {
            Self::Ready => ConditionName::Ready,
            Self::Stopped => return None,
            Self::KernelStarted => ConditionName::KernelStarted,
            Self::InitDone => ConditionName::InitDone,
            Self::AgentReachable => ConditionName::AgentReachable,
            Self::TasksDone => ConditionName::TasksDone,
        })
    }

    /// Whether each machine reaches it for itself.
    pub(crate) fn is_of_machines(self) -> bool {
        matches!(self, Self::KernelStarted | Self::InitDone | Self::AgentReachable)
    }

    /// As it is asked for.
    pub(crate) fn words(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

fn input(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct TasksArgs {
    /// The lab; the only one where not given
    pub(crate) name: Option<String>,
    /// One task: its output
    pub(crate) task: Option<String>,
    /// Run a task that failed again, and wait for it
    #[arg(long, requires = "task")]
    pub(crate) retry: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Metrics over TCP, too, on a loopback address; everybody on this host can read them
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    pub(crate) metrics: Option<std::net::SocketAddr>,
    /// Print where it listens as one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

fn loopback(text: &str) -> Result<std::net::SocketAddr, String> {
    let address: std::net::SocketAddr =
        text.parse().map_err(|_| "no address and port, such as 127.0.0.1:9470".to_owned())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err("not a loopback address: names of labs are not for the network; let a proxy with a password do that".to_owned())
}
