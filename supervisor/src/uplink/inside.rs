//! The child that keeps the namespace: makes it, its taps and sockets, and runs programs in it until nobody asks any more.

use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use labyard_sys::confine::{self, Kept};
use labyard_sys::exec::inherited;
use labyard_sys::filter::{self, Leave};
use labyard_sys::landlock::{self, Access, Beside};
use labyard_sys::{message, tap};
use serde::{Deserialize, Serialize};

use super::{netlink, rules};

/// What this program is called with to be the child.
pub(crate) const ARGUMENT: &str = "inside";
/// Where it finds the socket to its parent.
pub(crate) const SOCKET: i32 = 3;
/// Bytes of one message.
pub(crate) const MAX_BYTES: u32 = 1 << 20;
/// The domain service's port (RFC 1035).
const DNS_PORT: u16 = 53;

/// What the parent asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Tap devices of these names, whose descriptors come beside the answer.
    Taps(Vec<String>),
    /// Sockets at these addresses, where questions about names arrive; their descriptors come beside the answer.
    Resolvers(Vec<Ipv4Addr>),
    /// A file below `/proc/sys/net` gets this text.
    Set(String, String),
    /// A program runs, with this on its standard input.
    Run(Vec<String>, String),
    /// What comes beside this is kept open as long as this process is there.
    Hold,
    /// A socket that can be read when a network device comes or goes, beside the answer.
    Devices,
    /// All is built: from now on only what follows is heard.
    Seal,
    /// The host has these addresses now.
    Addresses(rules::Host),
    /// The lab's other networks have these now.
    Others(rules::Others),
}

/// Done, with what the program printed, or why not.
pub(crate) type Told = Result<String, String>;

pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: uplink, inside: {error}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<(), String> {
    let socket = UnixStream::from(inherited(SOCKET).map_err(|error| format!("its socket: {error}"))?);
    let entered = confine::enter_network_namespace().map_err(|error| format!("a network namespace: {error}"));
    tell(&socket, &entered.map(|()| String::new()), &[])?;
    let heard = hear(&socket);
    // Whoever spoke to it is gone, and looks after nothing any more: what it led out by goes, before what it holds.
    match run_program(&["ip", "link", "delete", rules::UP].map(str::to_owned), "") {
        // It was never there, or has gone with who led it out.
        Err(why) if ["Cannot find device", "No such device"].iter().any(|gone| why.contains(gone)) => heard,
        other => heard.and(other.map(|_| ())),
    }
}

/// Until nobody asks any more.
fn hear(socket: &UnixStream) -> Result<(), String> {
    let (mut sealed, mut held) = (false, Vec::new());
    while let Some((body, beside)) = message::recv(socket, MAX_BYTES).map_err(|error| error.to_string())? {
        let ask: Ask = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        let done = match ask {
            Ask::Addresses(host) => run_program(&["nft", "-f", "-"].map(str::to_owned), &rules::addresses(&host))
                .map(|said| (said, Vec::new())),
            Ask::Others(others) => run_program(&["nft", "-f", "-"].map(str::to_owned), &rules::others(&others))
                .map(|said| (said, Vec::new())),
            _ if sealed => Err("it is sealed".to_owned()),
            Ask::Hold => {
                held.extend(beside);
                Ok((String::new(), Vec::new()))
            }
            Ask::Seal => seal().map(|()| {
                sealed = true;
                (String::new(), Vec::new())
            }),
            ask => carry_out(ask),
        };
        let (told, beside) = match done {
            Ok((said, beside)) => (Ok(said), beside),
            Err(why) => (Err(why), Vec::new()),
        };
        let beside: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
        tell(socket, &told, &beside)?;
    }
    Ok(())
}

/// Gives up all but what changing the rules takes: nft, and CAP_NET_ADMIN in the namespace.
fn seal() -> Result<(), String> {
    let failed = |step: &'static str| move |error: std::io::Error| format!("sealing, {step}: {error}");
    confine::drop_bounding_set_but_network().map_err(failed("bounding set"))?;
    confine::drop_capabilities_but(&[Kept::Network]).map_err(failed("capabilities"))?;
    confine::no_new_privileges().map_err(failed("no_new_privs"))?;
    let folders = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/nftables"];
    let mut paths: Vec<_> = folders.iter().map(|folder| (Path::new(folder), Access::Execute)).collect();
    paths.push((Path::new("/dev/null"), Access::Change));
    landlock::allow_only(&paths, Beside::default()).map_err(failed("Landlock"))?;
    filter::forbid(Leave::Programs).map_err(failed("filter"))
}

fn tell(socket: &UnixStream, told: &Told, beside: &[BorrowedFd<'_>]) -> Result<(), String> {
    let body = serde_json::to_vec(told).map_err(|error| error.to_string())?;
    message::send(socket, &body, beside).map_err(|error| error.to_string())
}

fn carry_out(ask: Ask) -> Result<(String, Vec<OwnedFd>), String> {
    match ask {
        Ask::Taps(names) => {
            let taps = names.iter().map(|name| {
                let made = tap::create(name).map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => "/dev/net/tun is not there: load the module tun".to_owned(),
                    std::io::ErrorKind::PermissionDenied => {
                        "/dev/net/tun may not be opened: chmod 0666 it, as most hosts have it".to_owned()
                    }
                    _ => format!("a tap device: {error}"),
                });
                made.map(OwnedFd::from)
            });
            Ok((String::new(), taps.collect::<Result<_, _>>()?))
        }
        Ask::Resolvers(addresses) => {
            let sockets = addresses.iter().map(|address| {
                let bound = UdpSocket::bind((*address, DNS_PORT)).map(OwnedFd::from);
                bound.map_err(|error| format!("a socket at {address}, port {DNS_PORT}: {error}"))
            });
            Ok((String::new(), sockets.collect::<Result<_, _>>()?))
        }
        Ask::Set(name, value) => {
            std::fs::write(format!("/proc/sys/net/{name}"), value)
                .map_err(|error| format!("/proc/sys/net/{name}: {error}"))?;
            Ok((String::new(), Vec::new()))
        }
        Ask::Devices => {
            let socket = netlink::follow(netlink::DEVICES).map_err(|error| format!("following devices: {error}"))?;
            Ok((String::new(), vec![socket]))
        }
        Ask::Hold | Ask::Seal | Ask::Addresses(_) | Ask::Others(_) => unreachable!("it is carried out by the loop"),
        Ask::Run(argv, input) => run_program(&argv, &input).map(|said| (said, Vec::new())),
    }
}

/// Runs a program to its end; what it printed.
pub(crate) fn run_program(argv: &[String], input: &str) -> Result<String, String> {
    let (program, arguments) = argv.split_first().ok_or("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", PATH).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("the program `{program}` is not there: install it ({})", package(program))
        }
        _ => format!("{program}: {error}"),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ended early says why below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{}: {}", argv.join(" "), text(&output.stderr))),
    }
}

/// Where programs of the system are, whatever the caller's path is.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Debian's package of a program.
pub(crate) fn package(program: &str) -> &'static str {
    match program {
        "nft" => "nftables",
        "pasta" => "passt",
        _ => "iproute2",
    }
}
