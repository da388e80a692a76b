//! virtio-net (VIRTIO 1.2, §5.1): a NIC that is plugged into a [`Switch`](crate::switch).
//!
//! Queue 0, receive, belongs to the switch port from activation to reset; queue 1, transmit, and queue 2, control, to the
//! worker. The NIC itself knows nothing of frames: what a sender may leave undone is checked and done by the switch.
//!
//! Not offered: a hardware address that changes and filters of addresses, because the switch knows where each address is and
//! gives a NIC only what is for it.

mod control;
mod state;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;

use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceState, DeviceType, Refused, StateError, VirtioDevice, wrong_queues};
use crate::counters::Counters;
use crate::fault::Faults;
use crate::limiter::Limiter;
use crate::switch::Plug;
use crate::switch::claim::{F_CSUM, F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO};
use crate::switch::offload::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, GUEST_OFFLOADS};
use crate::switch::port::SavedCable;
use crate::switch::receiver::{Abilities, Receiver};
use crate::worker::{Activation, Worker};
use state::SavedNic;
use worker::NetWorker;

/// Entries of the receive and transmit queues.
pub const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
pub const CONTROL_QUEUE_SIZE: u16 = 16;

/// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, §5.1.3.
pub const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// VIRTIO_NET_F_MTU.
pub const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC.
pub const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_NET_F_STATUS.
pub const F_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_F_CTRL_VQ.
pub const F_CTRL_VQ: u64 = 1 << 17;
/// VIRTIO_NET_F_GUEST_ANNOUNCE: the driver tells its network where it is when it is asked to.
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// What is offered.
pub const FEATURES: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_CTRL_GUEST_OFFLOADS
    | F_MTU
    | F_MAC
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_MRG_RXBUF
    | F_STATUS
    | F_CTRL_VQ
    | F_GUEST_ANNOUNCE
    | F_GUEST_USO4
    | F_GUEST_USO6
    | F_HOST_USO;
/// Features that make no sense without another (§5.1.3.1).
const NEEDS: &[(u64, u64, &str)] = &[
    (F_GUEST_TSO4, F_GUEST_CSUM, "VIRTIO_NET_F_GUEST_TSO4 without GUEST_CSUM"),
    (F_GUEST_TSO6, F_GUEST_CSUM, "VIRTIO_NET_F_GUEST_TSO6 without GUEST_CSUM"),
    (F_GUEST_USO4, F_GUEST_CSUM, "VIRTIO_NET_F_GUEST_USO4 without GUEST_CSUM"),
    (F_GUEST_USO6, F_GUEST_CSUM, "VIRTIO_NET_F_GUEST_USO6 without GUEST_CSUM"),
    (F_HOST_TSO4, F_CSUM, "VIRTIO_NET_F_HOST_TSO4 without CSUM"),
    (F_HOST_TSO6, F_CSUM, "VIRTIO_NET_F_HOST_TSO6 without CSUM"),
    (F_HOST_USO, F_CSUM, "VIRTIO_NET_F_HOST_USO without CSUM"),
    (F_GUEST_ANNOUNCE, F_CTRL_VQ, "VIRTIO_NET_F_GUEST_ANNOUNCE without CTRL_VQ"),
    (F_CTRL_GUEST_OFFLOADS, F_CTRL_VQ, "VIRTIO_NET_F_CTRL_GUEST_OFFLOADS without CTRL_VQ"),
];

/// Offset of status in struct virtio_net_config (§5.1.4).
const STATUS: usize = 6;
/// VIRTIO_NET_S_LINK_UP.
const S_LINK_UP: u16 = 1;
/// VIRTIO_NET_S_ANNOUNCE: the driver is asked to tell where it is.
const S_ANNOUNCE: u16 = 2;
/// A NIC at rest.
pub struct Net {
    plug: Plug,
    config: ConfigSpace,
    /// What the driver has left on of the offloads that it accepted; `None` until it has said so.
    offloads: Option<u64>,
    /// What its guest sends passes this.
    limiter: Option<Limiter>,
    /// Its driver goes on elsewhere, which its network has yet to hear.
    moved: bool,
    faults: Faults,
}

/// The link of a NIC, for whoever plugs cables.
#[derive(Clone)]
pub struct Link {
    plug: Plug,
    config: ConfigSpace,
}

impl Net {
    /// The NIC of a plug. `name` is for messages.
    pub fn new(name: &str, plug: Plug) -> Self {
        let (mac, mtu, up) =
            plug.port().map_or(([0; 6], 0, false), |port| (port.spec().mac, port.spec().mtu, port.is_link_up()));
        // struct virtio_net_config, §5.1.4: mac, status, max_virtqueue_pairs, mtu.
        let mut config = mac.to_vec();
        config.extend_from_slice(&(if up { S_LINK_UP } else { 0 }).to_le_bytes());
        config.extend_from_slice(&1u16.to_le_bytes());
        config.extend_from_slice(&mtu.to_le_bytes());
        let faults = Faults::new(&format!("net {name}"));
        Self { plug, config: ConfigSpace::new(config), offloads: None, limiter: None, moved: false, faults }
    }

    /// The same NIC, where what its guest sends passes these limits: an operation is what the guest hands over at once, a frame or a
    /// segment of many.
    #[must_use]
    pub fn limited_by(self, limiter: Limiter) -> Self {
        Self { limiter: Some(limiter), ..self }
    }

    /// The link as the configuration space has it.
    fn status(&self) -> u16 {
        if self.plug.port().is_some_and(|port| port.is_link_up()) { S_LINK_UP } else { 0 }
    }

    /// Asks the driver to tell its network where it is, or no longer.
    fn ask_to_announce(&self, asked: bool) {
        let status = self.status() | if asked { S_ANNOUNCE } else { 0 };
        self.config.update(STATUS, &status.to_le_bytes());
    }

    /// Its link.
    pub fn link(&self) -> Link {
        Link { plug: self.plug.clone(), config: self.config.clone() }
    }
}

impl Link {
    /// The network that it leads to, and the port there.
    pub fn plug(&self) -> &Plug {
        &self.plug
    }

    /// Plugs the cable or pulls it; the guest is told.
    pub fn set(&self, up: bool) {
        if let Some(port) = self.plug.port() {
            let status = if up { S_LINK_UP } else { 0 };
            port.set_link(up, || self.config.update(STATUS, &status.to_le_bytes()));
        }
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_type: DeviceType::Net,
            features: FEATURES,
            queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE, CONTROL_QUEUE_SIZE],
            config: self.config.clone(),
        }
    }

    fn accepts(&self, features: u64) -> Result<(), &'static str> {
        match NEEDS.iter().find(|(feature, needed, _)| features & feature != 0 && features & needed == 0) {
            Some((_, _, why)) => Err(why),
            None => Ok(()),
        }
    }

    fn activate(mut self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let features = with.features;
        let Some(([receive, transmit, control], mem, irq)) = with.queues() else { return Err(wrong_queues(self)) };
        if !receive.ring.is_ready() || !transmit.ring.is_ready() {
            return Err(Refused { device: self, why: "its receive or its transmit queue was left out".into() });
        }
        let receive_kick = receive.source();
        if std::mem::take(&mut self.moved) && features & F_GUEST_ANNOUNCE != 0 {
            self.ask_to_announce(true);
            irq.signal_config();
        }
        let accepted = features & GUEST_OFFLOADS;
        let abilities =
            Abilities { offloads: self.offloads.unwrap_or(accepted) & accepted, merges: features & F_MRG_RXBUF != 0 };
        if let Some(port) = self.plug.port() {
            port.plug(Receiver::new(receive, mem.clone(), Arc::clone(&irq), self.faults.clone(), abilities));
        }
        Ok(Box::new(NetWorker::new(*self, receive_kick, transmit, control, mem, irq, features)))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn counters(&self) -> Counters {
        Counters::of_faults(&self.faults).and(Arc::new(self.plug.clone()))
    }

    fn reset(&mut self) {
        (self.offloads, self.moved) = (None, false);
        self.ask_to_announce(false);
        if let Some(port) = self.plug.port() {
            port.forget();
        }
    }

    fn save(&self) -> DeviceState {
        let (waiting, mut cable) = match self.plug.port() {
            Some(port) => (port.save(), port.save_cable()),
            None => (None, SavedCable::default()),
        };
        if waiting.is_none() {
            // It would arrive at a NIC whose driver has yet to begin anew, and be dropped there.
            cable.under_way.clear();
        }
        let link_up = self.plug.port().is_some_and(|port| port.is_link_up());
        let state = SavedNic { offloads: self.offloads, link_up, waiting, cable };
        DeviceState { device_type: DeviceType::Net, version: state::VERSION, bytes: state.encode() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let DeviceState { device_type, version, bytes } = state;
        if *device_type != DeviceType::Net || *version != state::VERSION {
            return Err(StateError::Foreign { expected: DeviceType::Net, found: *device_type, version: *version });
        }
        let damaged = |what| StateError::Damaged(DeviceType::Net, what);
        let SavedNic { offloads, link_up, waiting, cable } = SavedNic::decode(bytes).map_err(damaged)?;
        if let Some(port) = self.plug.port() {
            let taken = waiting.as_ref().map_or(Ok(()), |frames| port.restore(frames));
            let taken = taken.and_then(|()| port.restore_cable(&cable));
            taken.map_err(|_| damaged("a frame that nobody can have sent"))?;
        }
        self.offloads = offloads.or(Some(u64::MAX));
        self.moved = waiting.is_some();
        self.link().set(link_up);
        Ok(())
    }
}

/// A NIC alone on its network, for tests and fuzzing.
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(not(test), expect(clippy::expect_used, reason = "for tests and fuzzing"))]
pub(super) fn sample() -> Net {
    let spec = crate::switch::PortSpec { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 };
    let plug = crate::switch::Switch::with_ports("sample", &[spec]).pop().expect("one port");
    Net::new("eth0", plug)
}
