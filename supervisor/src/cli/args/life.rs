//! What the verbs of a lab's life are given.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

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
    /// Return once the machines are starting
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Of a lab that runs with another manifest: stop it, and start it as this one asks, on its drives
    #[arg(long)]
    pub(crate) restart: bool,
    /// How long all machines may take until they can be used, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub(crate) timeout: Duration,
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
