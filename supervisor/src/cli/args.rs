//! The command line.

mod image;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::access::args as access;

pub(crate) use image::{
    Image, ImageExport, ImageImport, ImagePrune, ImagePull, ImagePush, ImageRm, ImageVerb, ImageVerify,
};

mod drive;
mod life;
mod manifest;

pub(crate) use drive::*;
pub(crate) use life::*;
pub(crate) use manifest::*;

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
A lab that is there already is brought to what the manifest asks for: a stopped one starts, with what has changed, on its drives; in one that
runs, machines that are new come and those that are gone leave, with their drives; what else has changed needs --restart. What the drive of
a machine that stays holds is never thrown away.

Ctrl-C asks once, on a terminal; then it removes what was made.

Examples:
  labyard up lab.yaml
  labyard up lab.yaml --name lab-2 --timeout 90s
  labyard up lab.yaml --publish 8080:web:80
  labyard up lab.yaml --json | jq -r '.machines[].addresses'")]
    Up(Up),
    /// Run a manifest's init tasks once, and keep the disks as images for a manifest that needs none
    #[command(after_help = "\
The lab comes up under a name of its own, its tasks run, its machines power off, and their drives are read by our own init: nothing of
them runs, and this host never reads their file systems. DIR gets an OCI layout for each drive, which `labyard image push` gives to a
registry, and lab.yaml, which starts from them. Host names, keys of ssh servers, machine ids and what is in /tmp and /run stay behind.

A task that fails ends it with 4, as with `labyard up`; Ctrl-C too removes all that was made.

Examples:
  labyard bake lab.yaml && labyard up baked/lab.yaml
  labyard bake lab.yaml --out nightly --machine web -i dataset=large
  labyard bake lab.yaml --json | jq -r '.images[].digest'
  labyard image push oci-layout:baked/web:baked oci://registry.example/team/web:1")]
    Bake(Bake),
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
  labyard logs -f web
  labyard logs lab/web --boots
  labyard logs lab/web --boot -1")]
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
    /// Start a stopped lab, or a machine that has ended; drives are as they were left
    #[command(after_help = "\
Starting what runs is no error. A lab that was saved goes on with `labyard restore`.

Examples:
  labyard start lab
  labyard start lab/web --detach
  labyard start lab --json | jq -r '.machines[].name'")]
    Start(Start),
    /// Show one lab in detail: machines, conditions, drives, networks, what devices did
    #[command(after_help = "\
Examples:
  labyard status lab
  labyard status lab --json | jq '.counters.web'")]
    Status(Saved),
    /// Init tasks of a lab: how far they are, and what they printed
    #[command(after_help = "\
Init tasks run once, when a lab is made. One that failed keeps the lab from being ready; --retry runs it again, and those that need it.

Examples:
  labyard tasks lab
  labyard tasks lab init_cluster
  labyard tasks lab init_cluster --retry
  labyard tasks lab --json | jq -r '.tasks[] | select(.status == \"failed\").why'")]
    Tasks(TasksArgs),
    /// What labs may take of this host (config.toml in the state directory), and what they take
    #[command(after_help = "\
config.toml, every line of which may be missing:
  [host]
  reserve_memory = \"2GiB\"   # kept from machines
  reserve_disk = \"10GiB\"    # free space below which nothing is made
  [user]                     # all labs of this state directory together; also cpus, disk, machines
  memory = \"16GiB\"
  [lab]                      # each lab; the same fields
  cpus = 8

Examples:
  labyard quota
  labyard quota --json | jq .used.memory_mib")]
    Quota(Json),
    /// Wait until a lab or a machine is ready, or has stopped
    #[command(after_help = "\
Ends with 3 when the time is over, with 4 when an init task has failed, with 1 when it cannot come to it any more.

Examples:
  labyard wait lab --timeout 5m
  labyard wait lab/web --for agent-reachable
  labyard wait lab --for stopped")]
    Wait(Wait),
    /// Give a lab that does not run another name
    #[command(after_help = "Example:\n  labyard rename lab lab-of-may")]
    Rename(Rename),
    /// Say when a lab ends by itself
    #[command(after_help = "\
Its supervisor does it; while none runs (it was killed, and no command came since) nothing expires. A lab is used by who has a program,
a console or another stream open in one of its machines.

Examples:
  labyard expire lab 2h
  labyard expire lab --idle 30m --on-expiry remove
  labyard expire lab --never")]
    Expire(Expire),
    /// Stop a lab or one machine, and start it again
    #[command(after_help = "\
Examples:
  labyard restart lab/web
  labyard restart lab --grace 5s")]
    Restart(Restart),
    /// Let a lab or one machine stand still
    #[command(after_help = "\
All machines stand still at one instant; what they have open stays open. Pausing what is paused is no error.

Examples:
  labyard pause lab
  labyard pause lab/web")]
    Pause(Hold),
    /// Let a paused lab or machine go on
    #[command(after_help = "\
A machine for whose writes the host's disk has no room is paused, and goes on by itself within a second or so once there
is some. Resuming it tries at once, and says where there is none.

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
    /// Links of a running lab's networks: slow, lossy, cut, and captured
    #[command(after_help = super::net::HELP)]
    Net(super::net::Net),
    /// Manifests by themselves: check, show, compare
    #[command(after_help = "\
Examples:
  labyard manifest validate lab.yaml
  labyard manifest show lab.yaml
  labyard manifest diff lab lab.yaml
  labyard manifest schema > playground.schema.json")]
    Manifest(ManifestArgs),
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
  labyard image export 3f2a9c debian.labyard
  labyard image verify
  labyard image prune --dry-run")]
    Image(Image),
    /// Offer all labs at one socket, with metrics, until Ctrl-C
    #[command(after_help = "\
HTTP/1.1 on serve.sock in the state directory, for its owner alone: /v1/labs is what `labyard ps --json` prints, /v1/labs/LAB/… is the API of each
lab, /v1/openapi.json describes both, /metrics is for Prometheus in OpenMetrics. No lab needs it: they run on when it ends.

Examples:
  labyard serve
  labyard serve --metrics 127.0.0.1:9470
  curl --unix-socket ~/.local/share/labyard/serve.sock http://labyard/v1/labs")]
    Serve(Serve),
    /// Print the completion script of a shell
    #[command(after_help = "Example:\n  labyard completion bash > /etc/bash_completion.d/labyard")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command into a folder
    #[command(after_help = "Example:\n  labyard man /usr/local/share/man/man1")]
    Man {
        /// The folder; made where it is missing
        folder: PathBuf,
    },
    /// The supervisor of one playground; started by the other commands
    #[command(hide = true)]
    Supervise {
        /// Name of the playground
        name: String,
    },
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
    #[arg(short, long, conflicts_with = "boots")]
    pub(crate) follow: bool,
    /// Print one boot only: its number, or -1 for the last, -2 for the one before
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, conflicts_with = "boots")]
    pub(crate) boot: Option<i64>,
    /// List the boots that are known, and how much of each is kept
    #[arg(long)]
    pub(crate) boots: bool,
    /// Print the list as one JSON document
    #[arg(long, requires = "boots")]
    pub(crate) json: bool,
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
