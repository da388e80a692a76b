//! What a machine that was booted to be baked answers: the files of a drive, as an image keeps them, or that it powers off.
//!
//! The drives are somebody's: they are mounted for reading, no link on them is followed and no program on them runs.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use labyard_archive::{Choice, Packing};
use labyard_spec::agent::{Exit, Kind, Request};

use super::call::{CallError, Talk};
use super::copy;

/// Folders whose contents belong to a machine that runs (Filesystem Hierarchy Standard 3.0), by their names in the archive.
const RUNNING: [&[u8]; 5] = [b"./proc", b"./sys", b"./dev", b"./run", b"./tmp"];
/// What every machine has of its own, or is written at every boot.
const OWN: [&[u8]; 7] = [
    b"./lost+found",
    b"./etc/hostname",
    b"./etc/hosts",
    b"./etc/network/interfaces",
    b"./etc/NetworkManager/conf.d/00-labyard.conf",
    b"./var/lib/systemd/random-seed",
    b"./var/lib/systemd/credential.secret",
];
/// The same, by how their names begin: configuration of networkd, and keys that would be every machine's.
const OWN_FAMILIES: [&[u8]; 2] = [b"./etc/systemd/network/00-labyard-", b"./etc/ssh/ssh_host_"];
const RESOLVERS: &[u8] = b"./etc/resolv.conf";
/// An empty one is filled at the first boot (machine-id(5)).
const MACHINE_ID: &[u8] = b"./etc/machine-id";

/// A drive that can be asked for.
pub(crate) struct Mounted {
    pub(crate) serial: String,
    pub(crate) at: PathBuf,
    /// It is the machine's root.
    pub(crate) is_root: bool,
}

/// Carries out one call; whether the machine is to power off.
pub(crate) fn serve(stream: BorrowedFd<'_>, drives: &[Mounted], own_resolvers: bool) -> Result<bool, String> {
    answer(stream, drives, own_resolvers).map_err(|error| crate::console::chain(&error))
}

fn answer(stream: BorrowedFd<'_>, drives: &[Mounted], own_resolvers: bool) -> Result<bool, CallError> {
    let mut talk = Talk::on(stream)?;
    match talk.request()? {
        None => {}
        Some(Err(why)) => talk.end(Kind::Error, why.as_bytes())?,
        Some(Ok(Request::PowerOff)) => {
            talk.exit(Exit::Code(0))?;
            return Ok(true);
        }
        Some(Ok(Request::Bake { serial })) => match drives.iter().find(|drive| drive.serial == serial) {
            Some(drive) => {
                let choose = match (drive.is_root, own_resolvers) {
                    (true, true) => of_root,
                    (true, false) => of_root_without_resolvers,
                    (false, _) => of_drive,
                };
                let how = Packing { follow: false, specials: true, attributes: true, choose: Some(choose) };
                copy::send_packed(talk, &drive.at.join("."), &how)?;
            }
            None => talk.end(Kind::Error, format!("no drive `{serial}` with files in this machine").as_bytes())?,
        },
        Some(Ok(_)) => talk.end(Kind::Error, b"this machine was booted to be baked, and does nothing else")?,
    }
    Ok(false)
}

fn of_drive(name: &[u8]) -> Choice {
    if name == b"./lost+found" { Choice::Nothing } else { Choice::Whole }
}

fn of_root_without_resolvers(name: &[u8]) -> Choice {
    if name == RESOLVERS { Choice::Nothing } else { of_root(name) }
}

fn of_root(name: &[u8]) -> Choice {
    if OWN.contains(&name) || OWN_FAMILIES.iter().any(|family| name.starts_with(family)) {
        Choice::Nothing
    } else if RUNNING.contains(&name) || name == MACHINE_ID {
        Choice::Empty
    } else {
        Choice::Whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_one_machine_is_left_out_and_all_else_is_kept() {
        for (name, choice) in [
            ("./etc/passwd", Choice::Whole),
            ("./etc/hostname", Choice::Nothing),
            ("./etc/ssh/ssh_host_ed25519_key", Choice::Nothing),
            ("./etc/ssh/sshd_config", Choice::Whole),
            ("./etc/machine-id", Choice::Empty),
            ("./tmp", Choice::Empty),
            ("./var/tmp", Choice::Whole),
            ("./srv/proc", Choice::Whole),
            ("./etc/resolv.conf", Choice::Whole),
        ] {
            assert_eq!(of_root(name.as_bytes()), choice, "{name}");
        }
        assert_eq!(of_root_without_resolvers(RESOLVERS), Choice::Nothing);
        assert_eq!(of_drive(b"./etc/hostname"), Choice::Whole, "on a drive for data it is somebody's file");
    }
}
