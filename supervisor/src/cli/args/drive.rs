//! What the verbs about drives and limits are given.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use labyard_spec::manifest::size;

#[derive(Debug, Args)]
pub(crate) struct Drive {
    #[command(subcommand)]
    pub(crate) verb: DriveVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DriveVerb {
    /// Write a drive of a machine that does not run to a file: what it wrote, over what it started with
    #[command(after_help = "\
The file has what the guest had flushed, and appears once it is complete. raw is sparse; qcow2 is version 3, without a backing file.

Examples:
  labyard drive export lab/web web.raw
  labyard drive export lab/db:d01 data.qcow2 --format qcow2 --force
  labyard drive export lab/web web.raw --json | jq .data_bytes")]
    Export(DriveExport),
    /// Make a drive larger while its machine runs; the guest is told, and grows its file system itself. Drives do not shrink
    #[command(after_help = "\
Examples:
  labyard drive resize lab/db:d01 20GiB
  labyard exec lab/db -- resize2fs /dev/vdb")]
    Resize(DriveResize),
}

/// Which drive.
#[derive(Debug, Args)]
pub(crate) struct DriveName {
    /// LAB/MACHINE:DRIVE; DRIVE is d00, d01, ... in the manifest's order, and can be left out where there is one
    #[arg(value_name = "MACHINE[:DRIVE]")]
    pub(crate) drive: String,
    /// The lab that MACHINE belongs to
    #[arg(short, long, value_name = "LAB")]
    pub(crate) playground: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DriveExport {
    #[command(flatten)]
    pub(crate) drive: DriveName,
    /// The file to make
    pub(crate) file: PathBuf,
    /// What the file is to be
    #[arg(long, value_enum, default_value = "raw")]
    pub(crate) format: ExportFormat,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) force: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum ExportFormat {
    /// Byte n of the drive is byte n of the file
    Raw,
    /// QEMU's format
    Qcow2,
}

#[derive(Debug, Args)]
pub(crate) struct DriveResize {
    #[command(flatten)]
    pub(crate) drive: DriveName,
    /// Its new size, such as 20GiB
    #[arg(value_parser = size::parse)]
    pub(crate) size: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Limit {
    /// LAB, LAB/MACHINE or LAB/MACHINE:DEVICE; DEVICE is a drive (d00, ...) or a NIC (eth0, ...)
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    /// The lab that MACHINE belongs to
    #[arg(short, long, value_name = "LAB")]
    pub(crate) playground: Option<String>,
    /// Of a lab or machine: all its drives together
    #[arg(long, conflicts_with = "nics")]
    pub(crate) drives: bool,
    /// Of a lab or machine: what is sent on all its NICs together
    #[arg(long)]
    pub(crate) nics: bool,
    /// Bytes in a second, such as 10MiB
    #[arg(long, value_name = "SIZE", value_parser = size::parse, required_unless_present_any = ["ops", "off"])]
    pub(crate) bytes: Option<u64>,
    /// Bytes beyond that at once, after a rest; none where not given
    #[arg(long, value_name = "SIZE", value_parser = size::parse, requires = "bytes")]
    pub(crate) bytes_burst: Option<u64>,
    /// Operations in a second
    #[arg(long, value_name = "N")]
    pub(crate) ops: Option<u64>,
    /// Operations beyond that at once, after a rest; none where not given
    #[arg(long, value_name = "N", requires = "ops")]
    pub(crate) ops_burst: Option<u64>,
    /// No limit any more
    #[arg(long, conflicts_with_all = ["bytes", "ops"])]
    pub(crate) off: bool,
}
