//! An L2 network between the NICs of one process.
//!
//! A switch knows its ports and their hardware addresses from the start, so forwarding reads a table that never changes.
//! Each port owns the receive queue of its NIC behind the only lock of the data path. A thread holds at most one port's
//! lock, and never its own port's while it delivers: a sender has no lock, then takes the receiver's.
//!
//! A frame goes straight from the sender's memory to the receiver's, unless frames are waiting there already.

pub mod frame;
pub mod port;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::fault::Faults;
use frame::{Frame, HEADER_BYTES};
use port::Port;

/// A network.
pub struct Switch {
    name: String,
    ports: Vec<Port>,
}

/// What a switch needs to know of a NIC.
#[derive(Debug, Clone, Copy)]
pub struct PortSpec {
    /// Its hardware address; frames with another source are dropped.
    pub mac: [u8; 6],
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u16,
}

/// The place of one NIC.
#[derive(Clone)]
pub struct Plug {
    switch: Arc<Switch>,
    index: usize,
}

/// Ports that were given frames since they were last signalled. Kept by the sender and reused.
#[derive(Default)]
pub struct Touched(Vec<usize>);

impl Switch {
    /// A network with one port for each NIC: their plugs, in order.
    pub fn with_ports(name: &str, ports: &[PortSpec]) -> Vec<Plug> {
        let switch = Arc::new(Self { name: name.into(), ports: ports.iter().map(|spec| Port::new(*spec)).collect() });
        (0..ports.len()).map(|index| Plug { switch: Arc::clone(&switch), index }).collect()
    }
}

impl Plug {
    /// The port behind this plug.
    pub fn port(&self) -> Option<&Port> {
        self.switch.ports.get(self.index)
    }

    /// Name of the network.
    pub fn network(&self) -> &str {
        &self.switch.name
    }

    /// Forwards a frame of this plug's guest. Who was given it is noted in `touched`, to be signalled by [`Plug::signal`].
    pub fn send(&self, frame: &Frame<'_>, touched: &mut Touched, faults: &Faults) {
        let Some(own) = self.port() else { return };
        let longest =
            u64::from(own.spec().mtu).saturating_add(HEADER_BYTES as u64).saturating_add(frame::VLAN_TAG_BYTES);
        if frame.len() > longest {
            return faults.note(format_args!("a frame of {} bytes, the longest is {longest}", frame.len()));
        }
        if frame.source() != own.spec().mac {
            return faults.note("a frame with a source address that is not the NIC's");
        }
        own.counters().sent(frame.len());
        let to = frame.destination();
        let group = frame::is_group(to);
        for (index, port) in self.switch.ports.iter().enumerate() {
            if index != self.index && (group || port.spec().mac == to) {
                if port.deliver(frame) && !touched.0.contains(&index) {
                    touched.0.push(index);
                }
                if !group {
                    break;
                }
            }
        }
    }

    /// Signals everyone in `touched`, once each.
    pub fn signal(&self, touched: &mut Touched) {
        for index in touched.0.drain(..) {
            if let Some(port) = self.switch.ports.get(index) {
                port.signal();
            }
        }
    }
}
