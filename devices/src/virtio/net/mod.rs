//! virtio-net (VIRTIO 1.2, §5.1): a NIC that is plugged into a [`Switch`](crate::switch).
//!
//! Queue 0, receive, belongs to the switch port from activation to reset; queue 1, transmit, to the worker. No offloads are
//! offered: frames are complete, with finished checksums, of at most the MTU.

use std::sync::Arc;

use super::chain::{Chain, RingFault};
use super::config::ConfigSpace;
use super::device::{DeviceInfo, DeviceType, Refused, VirtioDevice, wrong_queues};
use crate::Memory;
use crate::fault::Faults;
use crate::irq::Interrupt;
use crate::switch::frame::Frame;
use crate::switch::port::Receiver;
use crate::switch::{Plug, Touched};
use crate::worker::{Activation, ActiveQueue, Rest, Source, Token, Worker, WorkerFault};

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// Bytes of struct virtio_net_hdr with VIRTIO_F_VERSION_1 (§5.1.6).
const NET_HEADER_BYTES: u64 = 12;

/// VIRTIO_NET_F_MTU, §5.1.3.
const F_MTU: u64 = 1 << 3;
/// VIRTIO_NET_F_MAC.
const F_MAC: u64 = 1 << 5;
/// VIRTIO_NET_F_STATUS.
const F_STATUS: u64 = 1 << 16;
/// VIRTIO_NET_S_LINK_UP, §5.1.4.
const S_LINK_UP: u16 = 1;

/// Tokens: the numbers of the queues.
const RECEIVE: Token = 0;

/// A NIC at rest.
pub struct Net {
    plug: Plug,
    mac: [u8; 6],
    mtu: u16,
    faults: Faults,
}

impl Net {
    /// The NIC of a plug. `name` is for messages.
    pub fn new(name: &str, plug: Plug) -> Self {
        let (mac, mtu) = plug.port().map_or(([0; 6], 0), |port| (port.spec().mac, port.spec().mtu));
        Self { plug, mac, mtu, faults: Faults::new(&format!("net {name}")) }
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> DeviceInfo {
        // struct virtio_net_config, §5.1.4: mac, status, max_virtqueue_pairs, mtu.
        let mut config = self.mac.to_vec();
        config.extend_from_slice(&S_LINK_UP.to_le_bytes());
        config.extend_from_slice(&1u16.to_le_bytes());
        config.extend_from_slice(&self.mtu.to_le_bytes());
        let features = F_MTU | F_MAC | F_STATUS;
        DeviceInfo {
            device_type: DeviceType::Net,
            features,
            queue_sizes: vec![QUEUE_SIZE; 2],
            config: ConfigSpace::new(config),
        }
    }

    fn activate(self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused> {
        let Some(([receive, transmit], mem, irq)) = with.queues() else { return Err(wrong_queues(self)) };
        let receive_kick = receive.source();
        if let Some(port) = self.plug.port() {
            port.plug(Receiver::new(receive, mem.clone(), Arc::clone(&irq), self.faults.clone()));
        }
        let chain = Chain::with_capacity(transmit.ring.size());
        Ok(Box::new(NetWorker { net: *self, receive_kick, transmit, mem, irq, chain, touched: Touched::default() }))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }
}

struct NetWorker {
    net: Net,
    receive_kick: Source,
    transmit: ActiveQueue,
    mem: Memory,
    irq: Arc<dyn Interrupt>,
    chain: Chain,
    touched: Touched,
}

impl NetWorker {
    fn serve_transmit(&mut self) -> Result<(), RingFault> {
        let ring = &mut self.transmit.ring;
        loop {
            ring.disable_kicks(&self.mem)?;
            while ring.pop(&self.mem, &mut self.chain, &self.net.faults)? {
                match Frame::in_chain(&self.mem, &self.chain, NET_HEADER_BYTES) {
                    Some(frame) if self.chain.writable_len() == 0 => {
                        self.net.plug.send(&frame, &mut self.touched, &self.net.faults);
                    }
                    _ => self.net.faults.note("a frame shorter than its headers, or with room for an answer"),
                }
                // Whatever became of it, the sender gets its buffer back.
                ring.complete(&self.mem, self.chain.head(), 0)?;
            }
            self.net.plug.signal(&mut self.touched);
            if !ring.enable_kicks(&self.mem)? {
                break;
            }
        }
        ring.signal_if_needed(&self.mem, &*self.irq)
    }
}

impl Worker for NetWorker {
    fn sources(&self) -> Vec<Source> {
        vec![self.receive_kick, self.transmit.source()]
    }

    fn on_event(&mut self, token: Token) -> Result<(), WorkerFault> {
        if token == RECEIVE {
            let port = self.net.plug.port();
            return port.map_or(Ok(()), |port| port.kicked().map_err(|source| WorkerFault::Ring { queue: 0, source }));
        }
        self.transmit.take_kick();
        self.serve_transmit().map_err(|source| WorkerFault::Ring { queue: 1, source })
    }

    fn deactivate(self: Box<Self>) -> Rest {
        let receive = self.net.plug.port().and_then(|port| port.unplug()).map(|receiver| receiver.queue);
        Rest { queues: receive.into_iter().chain([self.transmit]).collect(), device: Box::new(self.net) }
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
