//! What can be changed of a running machine, from any thread: one handle for each thing that listens.

use std::sync::Arc;

use labyard_devices::legacy::ged;
use labyard_devices::virtio::balloon::{BalloonControl, PAGE_BYTES};
use labyard_devices::virtio::net::Link;
use labyard_devices::virtio::vsock::Hub;
use labyard_spec::control::{BalloonStatus, Change};

use crate::change::Knobs;
use crate::console::ConsoleHub;

/// The handles of one machine. They outlive its resets.
#[derive(Clone)]
pub struct Levers {
    /// Connections to the guest.
    pub hub: Arc<Hub>,
    /// Its console.
    pub console: Arc<ConsoleHub>,
    /// Its balloon.
    pub balloon: Arc<BalloonControl>,
    /// Its memory, which a balloon is always smaller than.
    pub memory_mib: u64,
    /// Its memory is in huge pages that were set aside, and stays there.
    pub huge_pages: bool,
    /// Cables of its interfaces, in order.
    pub links: Vec<Link>,
    /// Its drives and their limits.
    pub knobs: Arc<Knobs>,
    /// Its power button, and what else ACPI tells its guest.
    pub events: Arc<ged::Events>,
}

impl Levers {
    /// Carries out a change; the text says what is wrong with it, without the machine's name.
    pub fn change(&self, change: Change) -> Result<(), String> {
        match change {
            Change::Balloon { .. } if self.huge_pages => {
                return Err("a balloon: its memory is in huge pages that were set aside, none of which goes back to the host while it runs".into());
            }
            Change::Balloon { target_mib } => {
                let pages = target_mib.checked_mul((1 << 20) / PAGE_BYTES).and_then(|pages| u32::try_from(pages).ok());
                let most = self.memory_mib;
                let pages = pages.filter(|_| target_mib < most).ok_or_else(|| {
                    format!("a balloon of {target_mib} MiB, less than its {most} MiB of memory is allowed")
                })?;
                self.balloon.set_target_pages(pages);
            }
            Change::ConsoleSize { cols, rows } => self.console.input().set_size(cols, rows),
            Change::DriveLimit { .. }
            | Change::MachineLimit { .. }
            | Change::PlaygroundLimit { .. }
            | Change::NicLimit { .. }
            | Change::NicsLimit { .. }
            | Change::DriveResize { .. } => self.knobs.change(&change)?,
            Change::Disturb { interface, direction, change } => {
                let failed = |why: String| format!("interface {interface}: {why}");
                let link = self.links.get(interface as usize);
                let link = link.ok_or_else(|| failed(format!("there is none; it has {}", self.links.len())))?;
                link.plug().change_link(direction, change).map_err(failed)?;
            }
            Change::DisturbNetwork { .. } => {
                return Err("what a whole network does names no machine: leave the machine out".into());
            }
            Change::Link { interface, up } => {
                let link = self.links.get(interface as usize);
                link.ok_or_else(|| format!("interface {interface}: there is none"))?.set(up);
            }
        }
        Ok(())
    }

    /// State of the balloon.
    pub fn balloon_status(&self) -> BalloonStatus {
        let mib = |pages: u32| (u64::from(pages) * PAGE_BYTES) >> 20;
        let statistics = self.balloon.statistics();
        BalloonStatus {
            target_mib: mib(self.balloon.target_pages()),
            actual_mib: mib(self.balloon.actual_pages()),
            given_back_bytes: self.balloon.given_back_bytes(),
            statistics: statistics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }
}
