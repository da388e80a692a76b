//! What can change of drives while machines run: their sizes, and limits of what they move.

use std::collections::HashMap;

use labyard_devices::limiter::{Bucket, Limiter, Limits, Rate};
use labyard_devices::virtio::block::Block;
use labyard_devices::virtio::block::handle::Handle;
use labyard_spec::control::{self, Change};

use crate::runtime;

/// One machine's drives, by serial, and its limits.
pub struct Knobs {
    drives: HashMap<String, (Handle, Bucket)>,
    machine: Bucket,
    playground: Bucket,
}

impl Knobs {
    /// A machine without drives, without limits of its own, that shares those of its playground.
    pub fn new(playground: &Bucket) -> Self {
        let machine = Bucket::new(Limits::default());
        Self { drives: HashMap::new(), machine, playground: playground.clone() }
    }

    /// Puts a drive under the limits of itself, its machine and the playground.
    ///
    /// # Errors
    /// No timer was to be had.
    pub fn add(&mut self, serial: &str, block: Block) -> std::io::Result<Block> {
        let own = Bucket::new(Limits::default());
        let limiter = Limiter::new(vec![own.clone(), self.machine.clone(), self.playground.clone()])?;
        self.drives.insert(serial.to_owned(), (block.handle(), own));
        Ok(block.limited_by(limiter))
    }

    /// Carries a change of the machine out.
    ///
    /// # Errors
    /// It names what is not there, or asks for what cannot be.
    pub fn change(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::DriveLimit { serial, limits } => self.drive(serial)?.1.change(checked(limits)?),
            Change::MachineLimit { limits } => self.machine.change(checked(limits)?),
            Change::DriveResize { serial, bytes } => {
                let (drive, _) = self.drive(serial)?;
                drive.resize(*bytes).map_err(|error| format!("drive {serial}: {}", runtime::chain(&error)))?;
            }
            Change::PlaygroundLimit { .. } => {
                return Err("a limit of the whole playground names no machine: leave the machine out".into());
            }
            Change::Balloon { .. } | Change::ConsoleSize { .. } | Change::Link { .. } => {
                return Err(format!("{change:?} is nothing that a drive does"));
            }
        }
        Ok(())
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
        let playground = Bucket::new(Limits::default());
        let mut knobs = Knobs::new(&playground);
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("size");
        let backend = RawFile::new(file.try_clone().expect("clone"), false).expect("whole sectors");
        let backend = backend.growing_with(Arc::new(file.try_clone().expect("clone")));
        let block = knobs.add("d00", Block::new("d00", Box::new(backend))).expect("a timer");
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
        drop(block);
    }
}
