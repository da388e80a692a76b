//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use labyard_spec::manifest::size;
use labyard_spec::source::Source;
use labyard_supervisor::ports::Port;

use super::access::args as access;

/// Build, boot and join virtual labs on this host.
#[derive(Debug, Parser)]
#[command(
    name = "labyard",
    version,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  labyard up lab.yaml                 bring up what lab.yaml asks for
  labyard ps                          what runs, and how it is
  labyard exec lab/web -- uname -a    run a program in a machine
  labyard down lab                    end it and remove all of it

State lies in $LABYARD_HOME, else /var/lib/labyard for root, else ~/.local/share/labyard.
Exit codes: 0 done, 1 failed, 2 wrong input or state, 3 a deadline passed, 4 an init task failed, 125 labyard itself
(exec), 130 interrupted. exec passes on the program's own."
)]
pub(crate) struct Command {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Bring up the lab of a manifest
    #[command(after_help = "\
Examples:
  labyard up lab.yaml
  labyard up lab.yaml --name lab-2 --timeout 90s
  labyard up lab.yaml --publish 8080:web:80
  labyard up lab.yaml --json | jq -r '.machines[].addresses'")]
    Up(Up),
    /// Show labs and their machines
    #[command(after_help = "\
Examples:
  labyard ps
  labyard ps --json | jq -r '.labs[] | select(.standing == \"running\").name'")]
    Ps(Json),
    /// Run a program in a machine
    #[command(after_help = "\
Examples:
  labyard exec lab/web -- cat /etc/os-release
  labyard exec -it web -- bash
  tar c . | labyard exec -i lab/db -u postgres -w /srv -- tar x
  labyard exec -p lab web -e LANG=C -- date")]
    Exec(Exec),
    /// Copy files into a machine or out of it
    Cp(access::Copy),
    /// Carry connections between this host and a machine, until Ctrl-C
    PortForward(access::PortForward),
    /// Lead ports of this host to ports of machines, for as long as the lab is there
    Publish(access::Publish),
    /// Log into a machine with OpenSSH
    Ssh(access::Ssh),
    /// Print a lab's config for OpenSSH, scp and IDEs
    SshConfig(access::SshConfig),
    /// One connection on standard input and output, as ssh's ProxyCommand
    #[command(hide = true)]
    SshProxy(access::SshProxy),
    /// Print a machine's journal
    Journal(access::Journal),
    /// Attach to a machine's console; Ctrl-] detaches
    #[command(after_help = "\
Examples:
  labyard console lab/web
  labyard console -p lab web")]
    Console(Machine),
    /// Print what a machine printed on its console
    #[command(after_help = "\
Examples:
  labyard logs lab/web
  labyard logs -f web")]
    Logs(Logs),
    /// Print what happened to a lab
    #[command(after_help = "\
Examples:
  labyard events lab
  labyard events -f --json lab | jq -c .what")]
    Events(Events),
    /// Stop a lab or one machine; what they wrote stays
    #[command(after_help = "\
Guests are asked to power off, by their agent or by the power button; their power is cut when the grace is over.
Stopping what does not run is no error.

Examples:
  labyard stop lab/web
  labyard stop lab --grace 2m")]
    Stop(Stop),
    /// Let a lab or one machine stand still
    #[command(after_help = "\
All machines stand still at one instant; what they have open stays open. Pausing what is paused is no error.

Examples:
  labyard pause lab
  labyard pause lab/web")]
    Pause(Hold),
    /// Let a paused lab or machine go on
    #[command(after_help = "\
Examples:
  labyard resume lab
  labyard resume lab/web")]
    Resume(Hold),
    /// Write a running lab to files and end it
    #[command(after_help = "\
All machines stand still at one instant, memory and devices are written to the lab's folder, and the lab ends. Connections
into machines end. `restore` lets it go on; nothing else may use its drives in between.

Examples:
  labyard save lab
  labyard save lab --json | jq .disk_bytes")]
    Save(Saved),
    /// Let a saved lab go on
    #[command(after_help = "\
Machines go on where they stood, and learn that they are copies. What was saved is used up by it.

Examples:
  labyard restore lab
  labyard restore lab --json | jq -r '.machines[].name'")]
    Restore(Saved),
    /// End labs and remove all of them
    #[command(after_help = "\
Examples:
  labyard down lab
  labyard down --all --grace 5s")]
    Down(Down),
    /// Drives of machines: as files, and their sizes
    #[command(after_help = "\
Examples:
  labyard drive export lab/db:d01 data.qcow2 --format qcow2
  labyard drive resize lab/db:d01 20GiB")]
    Drive(Drive),
    /// Limit what drives and NICs move, while machines run
    #[command(after_help = "\
A request of a drive passes the limits of the drive, of its machine's drives and of the lab's drives; a frame that a guest sends passes
those of the NIC, of its machine's NICs and of the lab's. An operation is one request of a drive, or what a guest hands to a NIC at
once: a frame, or a segment of up to 64 KiB. In any span of time a limit lets through its rate, its burst and one operation.

What is not given is not limited any more. Limits hold at once, and until the lab ends.

Examples:
  labyard limit lab/db:d01 --bytes 20MiB --ops 500
  labyard limit lab/db:eth0 --bytes 1MiB --bytes-burst 256KiB
  labyard limit lab/db --drives --ops 1000
  labyard limit lab --nics --bytes 10MiB
  labyard limit lab/db:d01 --off")]
    Limit(Limit),
    /// Guest kernels in the store
    #[command(after_help = "\
Examples:
  labyard kernel ls
  labyard kernel build
  labyard kernel add --image /boot/vmlinuz-6.12.0 --modules /lib/modules/6.12.0")]
    Kernel(Kernel),
    /// Images in the store
    #[command(after_help = "\
Examples:
  labyard image ls
  labyard image pull oci://registry.example/team/app:1.2
  labyard image prune --dry-run")]
    Image(Image),
    /// Print the completion script of a shell
    #[command(after_help = "Example:\n  labyard completion bash > /etc/bash_completion.d/labyard")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// The supervisor of one playground; started by the other commands
    #[command(hide = true)]
    Supervise {
        /// Name of the playground
        name: String,
    },
}

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
    /// How long all machines may take until they can be used, such as 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Lead a port of this host to a port of a machine, as `labyard publish` does; may be given several times
    #[arg(long, value_name = "[BIND:]PORT:MACHINE:PORT[/udp]")]
    pub(crate) publish: Vec<Port>,
}

#[derive(Debug, Args)]
pub(crate) struct Json {
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which machine.
#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// LAB/MACHINE, or MACHINE where only one running lab has it
    pub(crate) machine: String,
    /// The lab that MACHINE belongs to
    #[arg(short, long, value_name = "LAB")]
    pub(crate) playground: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Run it on a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// User name or uid, root where not given
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Where it starts, the user's home where not given
    #[arg(short, long, value_name = "FOLDER")]
    pub(crate) workdir: Option<String>,
    /// Add to its environment
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    pub(crate) env: Vec<String>,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "ARGV")]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Go on as it prints more
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// The lab; the only one where not given
    pub(crate) name: Option<String>,
    /// Go on as more happens
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print one JSON document a line
    #[arg(long)]
    pub(crate) json: bool,
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
pub(crate) struct Hold {
    /// LAB or LAB/MACHINE; the only lab where not given
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Saved {
    /// The lab; the only one where not given
    pub(crate) name: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

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

#[derive(Debug, Args)]
pub(crate) struct Image {
    #[command(subcommand)]
    pub(crate) verb: ImageVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// List them
    #[command(after_help = "\
Examples:
  labyard image ls
  labyard image ls --json | jq -r '.images[] | select(.labs == []) | .key'")]
    Ls(Json),
    /// All that is known of one image, as JSON
    #[command(after_help = "Example:\n  labyard image inspect 3f2a9c")]
    Inspect {
        /// Beginning of its key, its source or its digest
        image: String,
    },
    /// Fetch and build an image ahead of the labs that want it
    #[command(after_help = "\
Examples:
  labyard image pull oci://registry.example/team/app:1.2
  labyard image pull oci-layout:./images/debian:latest --size 8GiB

A lab finds it when its drive has the same source and size. A registry is asked with the logins of docker, podman or skopeo.")]
    Pull(ImagePull),
    /// Remove images that no lab uses
    #[command(after_help = "Example:\n  labyard image rm 3f2a9c")]
    Rm(ImageRm),
    /// Remove every image that no lab uses, and what was fetched from registries
    #[command(after_help = "Example:\n  labyard image prune --dry-run")]
    Prune(ImagePrune),
}

#[derive(Debug, Args)]
pub(crate) struct ImagePull {
    /// As in a manifest: oci://…, oci-layout:…, docker-archive:… or rootfs-tar:…
    pub(crate) source: Source,
    /// Length of the disk; the file is sparse
    #[arg(long, default_value = "4GiB", value_parser = size::parse)]
    pub(crate) size: u64,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImageRm {
    /// Beginnings of keys as `labyard image ls` shows them, sources or digests
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImagePrune {
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kernel {
    #[command(subcommand)]
    pub(crate) verb: KernelVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KernelVerb {
    /// List them, best first
    #[command(after_help = "\
Examples:
  labyard kernel ls
  labyard kernel ls --json | jq -r .default

A manifest names a kernel by ID, by VERSION, or by SERIES: that is the newest tuned one, else the newest of a distribution.
SERIES-tuned and SERIES-stock take only one or the other.")]
    Ls(Json),
    /// Put a kernel and its modules into the store
    #[command(after_help = "\
Examples:
  labyard kernel add \"$(kernel/fetch --series 6.1)\"
  labyard kernel add --image /boot/vmlinuz-6.12.0 --modules /lib/modules/6.12.0")]
    Add(KernelAdd),
    /// Build a tuned kernel from Debian's kernel source and put it into the store; takes minutes, the second time none
    #[command(after_help = "\
Examples:
  labyard kernel build
  labyard kernel build --series 6.1 --json | jq -r .id")]
    Build(KernelBuild),
    /// Remove kernels that no lab uses from the store
    #[command(after_help = "Example:\n  labyard kernel rm 6.12.117-labyard-0123456789ab")]
    Rm(KernelRm),
}

#[derive(Debug, Args)]
pub(crate) struct KernelAdd {
    /// A folder as kernel/build and kernel/fetch print it: vmlinux or vmlinuz, and modules
    #[arg(conflicts_with_all = ["image", "modules"], required_unless_present_all = ["image", "modules"])]
    pub(crate) folder: Option<PathBuf>,
    /// The kernel: a bzImage (vmlinuz) or an ELF image (vmlinux)
    #[arg(long, value_name = "FILE", requires = "modules")]
    pub(crate) image: Option<PathBuf>,
    /// Its /lib/modules/VERSION, with modules.dep
    #[arg(long, value_name = "FOLDER", requires = "image")]
    pub(crate) modules: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KernelBuild {
    /// Which of Debian's kernels it is built from
    #[arg(long, default_value = "6.12", value_parser = ["6.12", "6.1"])]
    pub(crate) series: String,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KernelRm {
    /// Ids as `labyard kernel ls` shows them
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// `90s`, `10m`, `1h`, or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write it as 90s, 10m or 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write it as 90s, 10m or 1h".to_owned())?;
    number
        .checked_mul(factor)
        .filter(|seconds| *seconds <= 1 << 32)
        .map(Duration::from_secs)
        .ok_or("that is too long".to_owned())
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Command as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn times_are_read_with_and_without_a_unit() {
        let seconds = |text| duration(text).map(|time| time.as_secs());
        assert_eq!([seconds("90s"), seconds("10m"), seconds("7")], [Ok(90), Ok(600), Ok(7)]);
        assert!(seconds("10x").is_err() && seconds("").is_err() && seconds("99999999999h").is_err());
    }

    #[test]
    fn what_follows_the_dashes_belongs_to_the_program() {
        let command = Command::try_parse_from(["labyard", "exec", "-it", "lab/web", "-e", "A=b", "--", "ls", "-l"]);
        let Verb::Exec(exec) = command.expect("a command").verb else { panic!("not exec") };
        assert_eq!((exec.argv, exec.env), (vec!["ls".to_owned(), "-l".to_owned()], vec!["A=b".to_owned()]));
        assert!(exec.interactive && exec.tty);
    }
}
