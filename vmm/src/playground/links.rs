//! Links of all networks: what they do to frames, and who listens.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use labyard_devices::counters::Snapshot;
use labyard_devices::switch::Plug;
use labyard_devices::switch::capture::{self, Capture};
use labyard_devices::switch::tap::Gateway;
use labyard_devices::worker::Source;
use labyard_spec::link::{Direction, LinkChange, LinkStatus};
use labyard_sys::wait;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Playground, lock};
use crate::runtime;
use crate::seccomp::Role;

/// How often a capture looks whether somebody still reads.
const LOOK: Duration = Duration::from_millis(500);

impl Playground {
    /// All links, by machine and interface.
    pub fn links(&self) -> Vec<LinkStatus> {
        let record = lock(&self.record);
        let mut links = Vec::new();
        for machine in &record.machines {
            for (link, interface) in machine.levers.links.iter().zip(0..) {
                let plug = link.plug();
                let Some(port) = plug.port() else { continue };
                let (sent, received) = port.link_faults();
                let counters = plug.snapshot().into_iter().map(|(name, value)| (name.to_owned(), value));
                links.push(LinkStatus {
                    machine: machine.name.clone(),
                    interface,
                    network: plug.network().to_owned(),
                    carrier: port.is_link_up(),
                    sent,
                    received,
                    counters: counters.collect(),
                });
            }
        }
        links
    }

    /// Changes what all links of a network do to frames on their way to their receivers.
    pub(super) fn disturb_network(&self, network: &str, change: LinkChange) -> Result<(), String> {
        let plugs = self.plugs(|_, plug| plug.network() == network);
        if plugs.is_empty() {
            return Err(format!("network {network}: no machine is plugged into one of this name"));
        }
        let direction = if change == LinkChange::Heal { Direction::Both } else { Direction::Received };
        plugs.iter().try_for_each(|plug| plug.change_link(direction, change))
    }

    /// Listens to a network, or to the NIC of a machine there.
    ///
    /// # Errors
    /// There is no such network or NIC, or too many listen.
    pub fn capture(&self, network: &str, machine: Option<&str>) -> Result<UnixStream, String> {
        let is_meant =
            |name: &str, plug: &Plug| plug.network() == network && machine.is_none_or(|machine| machine == name);
        let plug = self.plugs(is_meant).into_iter().next();
        let plug = plug.ok_or_else(|| match machine {
            Some(machine) => format!("machine {machine}: it is not plugged into a network {network}"),
            None => format!("network {network}: no machine is plugged into one of this name"),
        })?;
        let failed = |error: std::io::Error| format!("network {network}: a capture: {error}");
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let capture = plug.capture(machine.is_none())?;
        let listener = Listener { plug, capture };
        runtime::spawn(Role::Control, "capture", move || listener.tell(&ours)).map_err(failed)?;
        Ok(theirs)
    }

    /// Plugs of NICs, by machine and interface.
    fn plugs(&self, is_meant: impl Fn(&str, &Plug) -> bool) -> Vec<Plug> {
        let record = lock(&self.record);
        let all =
            record.machines.iter().flat_map(|machine| machine.levers.links.iter().map(|link| (&machine.name, link)));
        all.map(|(name, link)| (name, link.plug()))
            .filter(|(name, plug)| is_meant(name, plug))
            .map(|(_, plug)| plug.clone())
            .collect()
    }
}

/// The gateway of a network that has a way out: a thread that carries what comes from a tap device.
pub(super) struct WayOut {
    /// Written to when it is to end.
    end: Arc<EventFd>,
    thread: JoinHandle<()>,
}

/// Token of `end` beside those of a gateway's sources.
const END: u32 = u32::MAX;

impl WayOut {
    /// Starts the thread, on a plug of the network.
    pub(super) fn open(plug: Plug, device: File) -> Result<Self, String> {
        let network = plug.network().to_owned();
        let failed = |error: std::io::Error| format!("network {network}: its gateway: {error}");
        let (epoll, end) = (Epoll::new().map_err(failed)?, EventFd::new(EFD_NONBLOCK).map_err(failed)?);
        let end = Arc::new(end);
        let ending = Arc::clone(&end);
        let mut gateway = Gateway::new(plug, device);
        let ends = Source { fd: ending.as_raw_fd(), token: END };
        for Source { fd, token } in gateway.sources().into_iter().chain([ends]) {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token.into())).map_err(failed)?;
        }
        let name = format!("{network} way out");
        let carry = move || {
            let _ending = ending; // what it waits for stays open
            if let Err(error) = carry(&epoll, &mut gateway) {
                log::error!("network {}: its gateway: {error}", gateway.network());
            }
        };
        let thread = runtime::spawn(Role::Io, &name, carry).map_err(failed)?;
        Ok(Self { end, thread })
    }

    /// Nothing passes any more, and the device is let go of.
    pub(super) fn close(self) {
        // A counter that is full has been written to before.
        let _ = self.end.write(1);
        let _ = self.thread.join(); // a panic of it was printed when it happened
    }
}

/// Until somebody ends it.
fn carry(epoll: &Epoll, gateway: &mut Gateway) -> std::io::Result<()> {
    let mut events = [EpollEvent::default(); 3];
    loop {
        let ready = match epoll.wait(-1, &mut events) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        for event in events.iter().take(ready) {
            match u32::try_from(event.data()).unwrap_or(END) {
                END => return Ok(()),
                token => gateway.on_event(token)?,
            }
        }
    }
}

/// A capture that ends with whoever reads it.
struct Listener {
    plug: Plug,
    capture: Arc<Capture>,
}

impl Listener {
    fn tell(&self, mut to: &UnixStream) {
        let told = (|| {
            to.write_all(&capture::head())?;
            loop {
                for record in self.capture.take(LOOK) {
                    to.write_all(&record)?;
                }
                // Nobody sends anything: what can be read is the end.
                if self.capture.is_over() || wait::readable(to.as_fd(), Some(Duration::ZERO))? {
                    return Ok::<_, std::io::Error>(());
                }
            }
        })();
        let missed = self.capture.missed();
        if missed != 0 {
            log::warn!("a capture of network {} missed {missed} frames: it was read too slowly", self.plug.network());
        }
        if let Err(error) = told
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            log::warn!("a capture of network {}: {error}", self.plug.network());
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.plug.forget_capture(&self.capture);
    }
}
