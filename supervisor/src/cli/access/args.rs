//! What these verbs take on the command line.

use std::path::PathBuf;

use clap::Args;
use labyard_spec::manifest::size;
use labyard_supervisor::ports::{Forward, Mapping};

use super::super::args::Machine;

#[derive(Debug, Args)]
#[command(after_help = "\
Folders go with all that is in them; FOLDER/. is what is in it alone. What is there is replaced; no link is followed in
the place where files arrive. Holes of sparse files stay holes. `-` is a tar on standard input or output.
Without --archive files belong to root in the machine, and to you here; with it they keep their owners, here for root alone.

Examples:
  labyard cp ./app lab/web:/srv
  labyard cp lab/web:/etc/nginx ./nginx
  labyard cp -a lab/db:/var/lib/data ./data
  labyard cp lab/web:/var/log - | tar tv
  tar c . | labyard cp - lab/web:/srv")]
pub(crate) struct Copy {
    /// A file or folder here, or LAB/MACHINE:PATH
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// LAB/MACHINE:PATH, or a file or folder here
    #[arg(value_name = "TO")]
    pub(crate) to: String,
    /// The lab that MACHINE belongs to
    #[arg(short, long, value_name = "LAB")]
    pub(crate) playground: Option<String>,
    /// Keep owners, set-user-id bits and named pipes; in a machine also devices
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Where FROM is a link, copy what it leads to
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Most bytes that a machine may send
    #[arg(long, value_name = "SIZE", default_value = "64GiB", value_parser = size::parse)]
    pub(crate) max: u64,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
-L listens here and connects from the machine, -R listens in the machine and connects from here. HOST is a name or address as the
connecting side knows it; what listens, listens on loopback where BIND is not given. PORT alone is PORT:localhost:PORT.
Without -L and -R the forwards that the manifest saves (`portForwards`) are carried: of the machine, or of the whole lab. A manifest may be
somebody else's: those that let a machine connect from here, or that listen where other hosts reach them, are carried with --saved alone.
It runs until Ctrl-C.

Examples:
  labyard port-forward lab/web -L 8080:localhost:80
  labyard port-forward lab/bastion -L 5432:db:5432 -L 0.0.0.0:8080:web:80
  labyard port-forward lab/dns -L 5353:localhost:53/udp
  labyard port-forward lab/web -R 9000:localhost:9000
  labyard port-forward lab
  labyard port-forward lab --saved")]
pub(crate) struct PortForward {
    /// LAB/MACHINE, or LAB for the forwards that its manifest saves
    #[arg(value_name = "MACHINE")]
    pub(crate) target: String,
    /// The lab that MACHINE belongs to
    #[arg(short, long, value_name = "LAB")]
    pub(crate) playground: Option<String>,
    /// Listen here
    #[arg(short = 'L', long, value_name = "[BIND:]PORT:HOST:PORT[/udp]")]
    pub(crate) local: Vec<Forward>,
    /// Listen in the machine
    #[arg(short = 'R', long, value_name = "[BIND:]PORT:HOST:PORT[/udp]")]
    pub(crate) remote: Vec<Forward>,
    /// Carry all that the manifest saves, also what lets a machine connect from here or other hosts connect to it
    #[arg(long, conflicts_with_all = ["local", "remote"])]
    pub(crate) saved: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The lab's supervisor listens, also after a restart, until the lab is removed or the port is taken back with --off. Without BIND it is
reached from this host alone. Connections come to the machine's own loopback address. Without PORTS it lists what is published.

Examples:
  labyard publish lab/web 8080:80
  labyard publish lab/dns 0.0.0.0:5353:53/udp
  labyard publish lab --json
  labyard publish lab/web 8080:80 --off")]
pub(crate) struct Publish {
    /// LAB/MACHINE; LAB to list
    #[arg(value_name = "MACHINE")]
    pub(crate) target: Option<String>,
    /// The lab that MACHINE belongs to
    #[arg(short, long, value_name = "LAB")]
    pub(crate) playground: Option<String>,
    /// A port of this host and one of the machine
    #[arg(value_name = "[BIND:]PORT:PORT[/udp]")]
    pub(crate) ports: Vec<Mapping>,
    /// Take them back
    #[arg(long, requires = "ports")]
    pub(crate) off: bool,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
It goes over vsock to the machine's sshd: the one that listens, else one of its own for this connection. The image must have
openssh-server; nothing else is needed, not even a network. The lab has a key of its own, which is put into the user's
authorized_keys, and the machine's host keys are read by its agent, so that they are known before the first connection.

Examples:
  labyard ssh lab/web
  labyard ssh lab/web -l ann -- uptime
  labyard ssh lab/web -o='-A' -o='-L 8080:localhost:80'")]
pub(crate) struct Ssh {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Who to be; the manifest's first user of the machine where not given
    #[arg(short = 'l', long)]
    pub(crate) user: Option<String>,
    /// Another argument of ssh(1); may be given several times
    #[arg(short = 'o', long = "option", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// Program and arguments; a shell where not given
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Hosts are called MACHINE.LAB. The file is made anew by `labyard ssh` and by this command.

Examples:
  labyard ssh-config lab >> ~/.ssh/config
  labyard ssh-config lab --path
  scp -F $(labyard ssh-config lab --path) file web.lab:")]
pub(crate) struct SshConfig {
    /// The lab; the only one where not given
    pub(crate) name: Option<String>,
    /// Print where the file is instead of what is in it
    #[arg(long)]
    pub(crate) path: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SshProxy {
    /// The lab
    pub(crate) lab: String,
    /// The machine
    pub(crate) machine: String,
    /// Whose keys are to let in
    pub(crate) user: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The image must have systemd. What is behind `--` goes to journalctl(1) as it is.

Examples:
  labyard journal lab/web
  labyard journal -f lab/web -u nginx
  labyard journal lab/web -- --since=-1h -p err")]
pub(crate) struct Journal {
    #[command(flatten)]
    pub(crate) machine: Machine,
    /// Go on as more is logged
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Of this unit alone
    #[arg(short, long)]
    pub(crate) unit: Option<String>,
    /// The last so many lines
    #[arg(short = 'n', long)]
    pub(crate) lines: Option<u32>,
    /// Arguments of journalctl
    #[arg(last = true, value_name = "ARGUMENT")]
    pub(crate) arguments: Vec<String>,
}

/// One side of a copy.
pub(crate) enum Side {
    /// Here; `-` is a stream.
    Here(PathBuf),
    /// In a machine.
    There(Machine, String),
}

impl Side {
    /// `[LAB/]MACHINE:PATH`, or a path here. A path with a colon is written with a slash before it.
    pub(crate) fn of(text: &str, playground: Option<&String>) -> Self {
        match text.split_once(':') {
            Some((machine, path)) if !machine.is_empty() && !machine.starts_with(['.', '/']) => {
                Self::There(Machine { machine: machine.to_owned(), playground: playground.cloned() }, path.to_owned())
            }
            _ => Self::Here(text.into()),
        }
    }
}
