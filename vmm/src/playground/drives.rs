//! What stores the bytes of drives; and a host disk without room: the machine stands still until it has some, and its guest never
//! hears of it.
//!
//! ```text
//!   a drive finds no room ──▶ HostDisk event, signal to the machine's thread ──▶ vCPUs halt, Paused event
//!   each second, or on `resume`: the drive tries ──▶ still none: nothing changes
//!                                     └─▶ HostDisk event, signal ──▶ vCPUs run, Resumed event
//! ```
//!
//! A drive tells from whichever thread it is at work on, one of the machine's own, so what it tells is written down and sent on, and
//! nothing is waited for. Only writes wait: devices work on, and what the guest has under way elsewhere ends.

use std::fs::File;
use std::sync::Arc;

use labyard_devices::backend::block::BlockBackend;
use labyard_devices::backend::engine::{self, Choice};
use labyard_devices::backend::overlay::{Base, Chain, HostDisk, LayerFiles, Overlay};
use labyard_devices::backend::raw::{self, RawFile};
use labyard_spec::control::{FullDrive, Happening};
use labyard_spec::playground::{DriveSpec, Engine as DriveEngine, LayerSlots, OverlaySpec, Slot};

use super::{Playground, lock};
use crate::runtime;
use crate::vcpu::Signal;

impl Playground {
    /// What stores the bytes of a drive.
    pub(super) fn drive(
        self: &Arc<Self>,
        machine: &str,
        spec: &DriveSpec,
        own: &impl Fn(Slot) -> Result<File, String>,
    ) -> Result<Box<dyn BlockBackend>, String> {
        let choice = match spec.engine {
            DriveEngine::Auto => Choice::Auto,
            DriveEngine::Sync => Choice::Sync,
            DriveEngine::Uring => Choice::Uring,
        };
        let make = |files| {
            let (engine, told) = engine::choose(choice, files)?;
            log::info!("machine {machine}: drive {}: {told}", spec.serial);
            Ok::<_, std::io::Error>(engine)
        };
        let Some(OverlaySpec { frozen, top, capacity_bytes }) = &spec.overlay else {
            let base = spec.base.as_ref().ok_or("nothing is behind it")?;
            let file = own(base.file)?;
            let capacity_bytes = raw::capacity(&file, spec.read_only).map_err(|error| runtime::chain(&error))?;
            let engine = make(vec![own(base.file)?]).map_err(|error| error.to_string())?;
            let raw = RawFile::over(engine, capacity_bytes, spec.read_only).growing_with(Arc::new(file));
            return Ok(Box::new(raw));
        };
        let layer = |layer: &LayerSlots| Ok::<_, String>(LayerFiles { data: own(layer.data)?, map: own(layer.map)? });
        let base =
            spec.base.as_ref().map(|base| Ok::<_, String>(Base { file: own(base.file)?, name: base.name.clone() }));
        let chain = Chain {
            base: base.transpose()?,
            frozen: frozen.iter().map(layer).collect::<Result<_, _>>()?,
            top: layer(top)?,
            live: false,
            capacity_bytes: *capacity_bytes,
        };
        let mut overlay = Overlay::open(chain, make).map_err(|error| runtime::chain(&error))?;
        let (this, machine, drive) = (Arc::clone(self), machine.to_owned(), spec.serial.clone());
        overlay.tell(Box::new(move |disk| this.host_disk(&machine, &drive, disk)));
        Ok(Box::new(overlay))
    }

    /// A drive finds no room on the host's disk, or does again.
    fn host_disk(&self, machine: &str, drive: &str, disk: HostDisk) {
        let errno = match disk {
            HostDisk::Full { errno } => Some(errno),
            HostDisk::HasRoom => None,
        };
        let what = Happening::HostDisk { drive: drive.to_owned(), full: errno.is_some(), errno };
        let mut record = lock(&self.record);
        if let Some(known) = record.machines.iter_mut().find(|known| known.name == machine) {
            known.full_drives.retain(|full| full.drive != drive);
            known.full_drives.extend(errno.map(|errno| FullDrive { drive: drive.to_owned(), errno }));
            let (full, signals) = (!known.full_drives.is_empty(), known.signals.clone());
            self.event_in(&mut record, machine, what, None);
            // Under the lock, so that what was written down last is heard last. One that has ended stands still anyway.
            let _ = signals.map(|signals| signals.send(Signal::HostDisk { full }));
        }
        drop(record);
        self.changed.notify_all();
    }

    /// A machine stands still for lack of room, or need not any more.
    pub(super) fn stands_for_room(&self, machine: &str, is_out: bool) {
        self.note_pause(machine, |known| known.out_of_room = is_out);
    }

    /// Has the drives of one machine, or of all, try what waits for room. What is still without, in words.
    pub(super) fn retry_drives(&self, machine: Option<&str>) -> Result<(), String> {
        let of_machines: Vec<_> = {
            let handles = lock(&self.handles);
            let chosen = handles.iter().filter(|(name, _)| machine.is_none_or(|machine| machine == *name));
            chosen.map(|(name, handle)| (name.clone(), handle.levers.clone())).collect()
        };
        let mut without = Vec::new();
        for (name, levers) in of_machines {
            for (drive, error) in levers.knobs.retry() {
                let error = runtime::chain(&error);
                without.push(format!("machine {name}: it stays paused, drive {drive}: {error}"));
            }
        }
        without.sort_unstable();
        match without.is_empty() {
            true => Ok(()),
            false => Err(format!("{}; it goes on by itself once there is room", without.join("; "))),
        }
    }
}
