//! What can change of drives and NICs while machines run: sizes of drives, and limits of what both move.
//!
//! A request of a drive passes the drive's limits, its machine's of drives and the playground's of drives; a frame that a guest sends
//! passes the same three of NICs. What a guest receives, others have sent.

use std::collections::HashMap;

use labyard_devices::backend::block::NoRoom;
use labyard_devices::limiter::{Bucket, Limiter, Limits, Rate};
use labyard_devices::virtio::block::Block;
use labyard_devices::virtio::block::handle::Handle;
use labyard_devices::virtio::net::Net;
use labyard_spec::control::{self, Change};

use crate::runtime;

/// Limits that devices share.
#[derive(Clone)]
pub struct Shares {
    /// Of drives.
    pub drives: Bucket,
    /// Of NICs.
    pub nics: Bucket,
}

impl Shares {
    /// No limits.
    pub fn unlimited() -> Self {
        let none = || Bucket::new(Limits::default());
        Self { drives: none(), nics: none() }
    }
}

/// One machine's drives, by serial, its NICs, and their limits.
pub struct Knobs {
    drives: HashMap<String, (Handle, Bucket)>,
    nics: Vec<Bucket>,
    machine: Shares,
    playground: Shares,
}

impl Knobs {
    /// A machine without devices, without limits of its own, that shares those of its playground.
    pub fn new(playground: &Shares) -> Self {
        let (machine, playground) = (Shares::unlimited(), playground.clone());
        Self { drives: HashMap::new(), nics: Vec::new(), machine, playground }
    }

    /// Puts a drive under the limits of itself, its machine and the playground.
    ///
    /// # Errors
    /// No timer was to be had.
    pub fn add(&mut self, serial: &str, block: Block) -> std::io::Result<Block> {
        let own = Bucket::new(Limits::default());
        let limiter = Limiter::new(vec![own.clone(), self.machine.drives.clone(), self.playground.drives.clone()])?;
        self.drives.insert(serial.to_owned(), (block.handle(), own));
        Ok(block.limited_by(limiter))
    }

    /// The same for the next NIC.
    ///
    /// # Errors
    /// No timer was to be had.
    pub fn add_nic(&mut self, net: Net) -> std::io::Result<Net> {
        let own = Bucket::new(Limits::default());
        let limiter = Limiter::new(vec![own.clone(), self.machine.nics.clone(), self.playground.nics.clone()])?;
        self.nics.push(own);
        Ok(net.limited_by(limiter))
    }

    /// Carries a change of the machine out.
    ///
    /// # Errors
    /// It names what is not there, or asks for what cannot be.
    pub fn change(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::DriveLimit { serial, limits } => self.drive(serial)?.1.change(checked(limits)?),
            Change::MachineLimit { limits } => self.machine.drives.change(checked(limits)?),
            Change::NicLimit { interface, limits } => {
                let nic = self.nics.get(*interface as usize);
                let missing = || format!("interface {interface}: there is none; it has {}", self.nics.len());
                nic.ok_or_else(missing)?.change(checked(limits)?);
            }
            Change::NicsLimit { limits } => self.machine.nics.change(checked(limits)?),
            Change::DriveResize { serial, bytes } => {
                let (drive, _) = self.drive(serial)?;
                drive.resize(*bytes).map_err(|error| format!("drive {serial}: {}", runtime::chain(&error)))?;
            }
            Change::PlaygroundLimit { .. } => {
                return Err("a limit of the whole playground names no machine: leave the machine out".into());
            }
            Change::Balloon { .. }
            | Change::ConsoleSize { .. }
            | Change::Link { .. }
            | Change::Disturb { .. }
            | Change::DisturbNetwork { .. } => {
                return Err(format!("{change:?} is nothing that a drive or a NIC does"));
            }
        }
        Ok(())
    }

    /// Has drives that wait for room on the host's disk try at once; those that find none, by serial.
    pub fn retry(&self) -> Vec<(&str, NoRoom)> {
        let mut failed = Vec::new();
        for (serial, (drive, _)) in &self.drives {
            let Err(error) = drive.retry() else { continue };
            let is_late = matches!(error, NoRoom::Late { .. });
            failed.push((serial.as_str(), error));
            // A disk that does not answer one of them is not waited for once for each.
            if is_late {
                break;
            }
        }
        failed.sort_unstable_by_key(|(serial, _)| *serial);
        failed
    }

    /// The machine's power is cut: its drives wait for no room.
    pub fn give_up(&self) {
        self.drives.values().for_each(|(drive, _)| drive.give_up());
    }

    fn drive(&self, serial: &str) -> Result<&(Handle, Bucket), String> {
        self.drives.get(serial).ok_or_else(|| {
            let mut serials: Vec<_> = self.drives.keys().map(String::as_str).collect();
            serials.sort_unstable();
            format!("drive {serial}: there is none of this serial; there are {}", serials.join(", "))
        })
    }
}

/// Limits as devices know them.
///
/// # Errors
/// A rate at which nothing would ever move.
pub fn checked(limits: &control::Limits) -> Result<Limits, String> {
    let rate = |what: &str, limit: Option<control::RateLimit>| match limit {
        Some(control::RateLimit { per_second: 0, .. }) => {
            Err(format!("a limit of 0 {what} in a second stops everything: 1 is the least, no limit is null"))
        }
        Some(control::RateLimit { per_second, burst }) => Ok(Some(Rate { per_second, burst })),
        None => Ok(None),
    };
    Ok(Limits { bytes: rate("bytes", limits.bytes)?, operations: rate("operations", limits.operations)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use labyard_devices::backend::raw::RawFile;
    use std::sync::Arc;

    #[test]
    fn changes_reach_the_drive_or_say_why_not() {
        let playground = Shares::unlimited();
        let mut knobs = Knobs::new(&playground);
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("size");
        let backend = RawFile::new(file.try_clone().expect("clone"), false).expect("whole sectors");
        let backend = backend.growing_with(Arc::new(file.try_clone().expect("clone")));
        let block = knobs.add("d00", Block::new("d00", Box::new(backend))).expect("a timer");
        let spec = labyard_devices::switch::PortSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
        let plug = labyard_devices::switch::Switch::with_ports("local", &[spec]).pop().expect("a plug");
        let net = knobs.add_nic(Net::new("eth0", plug)).expect("a timer");
        let limits =
            control::Limits { bytes: Some(control::RateLimit { per_second: 1 << 20, burst: 0 }), operations: None };
        let none = control::Limits { operations: Some(control::RateLimit { per_second: 0, burst: 9 }), ..limits };
        let serial = || "d00".to_owned();
        let cases = [
            (Change::DriveLimit { serial: serial(), limits }, None),
            (Change::MachineLimit { limits }, None),
            (
                Change::DriveLimit { serial: "d07".into(), limits },
                Some("drive d07: there is none of this serial; there are d00"),
            ),
            (Change::NicLimit { interface: 1, limits }, Some("interface 1: there is none; it has 1")),
            (Change::NicLimit { interface: 0, limits }, None),
            (Change::NicsLimit { limits }, None),
            (Change::NicsLimit { limits: none }, Some("0 operations")),
            (Change::MachineLimit { limits: none }, Some("0 operations in a second stops everything")),
            (Change::PlaygroundLimit { limits }, Some("leave the machine out")),
            (
                Change::DriveResize { serial: serial(), bytes: 512 },
                Some("drive d00: 512 bytes are less than its 1048576"),
            ),
            (Change::DriveResize { serial: serial(), bytes: 2 << 20 }, Some("grow the file first")),
            (Change::DriveResize { serial: serial(), bytes: 1 << 20 }, None),
        ];
        for (change, expected) in cases {
            match (knobs.change(&change), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(expected)) if error.contains(expected) => {}
                other => panic!("{change:?}: {other:?}"),
            }
        }
        drop((block, net));
    }
}
