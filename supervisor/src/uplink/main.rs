//! `labyard-uplink`: the way out of one lab's networks. Owns a network namespace with one tap for each network, which has the gateway's
//! address, and what leads from there to the outside; ends when the vmm does.
//!
//! ```text
//!   vmm ── tap ──▶ namespace: forwards, masquerades, drops by default ──▶ up0 ── pasta (anybody) or veth (root) ──▶ the host's networks
//!                  └ the gateway's resolver: a socket in there, answered out here
//! ```
//!
//! Two processes: this one stays where it was started; its child ([`inside`]) keeps the namespace. Everything dies with this one: the
//! child and pasta by the kernel's hand, the host's rules because they belong to a process of ours, veth and taps with their namespace.

#![forbid(unsafe_code)]

mod inside;
mod names;
mod netlink;
mod outside;
mod rules;
mod six;
mod tables;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

use labyard_spec::uplink::{Answer, UplinkSpec, fd};
use labyard_sys::exec::{inherited, inherited_alone};
use labyard_sys::message;

/// Bytes of a spec: 32 networks of 64 machines.
const MAX_SPEC_BYTES: u64 = 1 << 20;
const USAGE: &str =
    "labyard-uplink is the way out of one lab's networks. It is started by the supervisor; use `labyard up` instead.";

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(inside::ARGUMENT) => return inside::main(),
        Some("--version" | "-V") => {
            println!("labyard-uplink {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--help" | "-h") => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(_) => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
        None => {}
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: uplink: {error}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<(), String> {
    let take = |number: i32, what: &str| {
        inherited(number).map_err(|error| format!("descriptor {number}, {what}: {error}\n{USAGE}"))
    };
    let spec = File::from(take(fd::SPEC, "the spec")?);
    let vmm: OwnedFd = take(fd::VMM, "the vmm")?;
    let answer = UnixStream::from(take(fd::ANSWER, "where to answer")?);
    let tables = inherited_alone(fd::TABLES).map(UnixListener::from);
    let tables = tables.map_err(|error| format!("descriptor {}, where tables come: {error}\n{USAGE}", fd::TABLES))?;
    let mut text = Vec::new();
    spec.take(MAX_SPEC_BYTES).read_to_end(&mut text).map_err(|error| format!("reading the spec: {error}"))?;
    let spec: UplinkSpec = serde_json::from_slice(&text).map_err(|error| format!("the spec: {error}"))?;
    let (uplink, said, taps) = match outside::Uplink::build(&spec, tables) {
        Ok((uplink, taps)) => {
            let said = Answer::Up(uplink.way.clone());
            (Some(uplink), said, taps)
        }
        Err(why) => (None, Answer::Failed(why), Vec::new()),
    };
    let body = serde_json::to_vec(&said).map_err(|error| error.to_string())?;
    let beside: Vec<_> = taps.iter().map(AsFd::as_fd).collect();
    message::send(&answer, &body, &beside).map_err(|error| format!("answering: {error}"))?;
    // The taps are the vmm's alone now: they go with it.
    drop((taps, answer));
    match (uplink, said) {
        (Some(uplink), _) => uplink.stay(&vmm),
        (None, Answer::Failed(why)) => Err(why),
        (None, Answer::Up(_)) => Ok(()),
    }
}
