//! An L2 network between the NICs of one process.
//!
//! A switch knows its ports and their hardware addresses from the start, so forwarding reads a table that never changes.
//! Each port owns the receive queue of its NIC behind the only lock of the data path. A thread holds at most one port's
//! lock, and never its own port's while it delivers: a sender has no lock, then takes the receiver's.
//!
//! A frame goes straight from the sender's memory to the receiver's, unless frames are waiting there already. Its headers are
//! copied out and checked once ([`claim`]); what a sender left undone is done for those receivers that need it ([`offload`]).

pub mod checksum;
pub mod claim;
pub mod counters;
pub mod frame;
pub mod offload;
pub mod port;
pub mod receiver;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::fault::Faults;
use counters::Count;
use frame::Frame;
use port::Port;

/// A network.
pub struct Switch {
    name: String,
    ports: Vec<Port>,
    /// Ports by hardware address, sorted.
    addresses: Vec<([u8; 6], usize)>,
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
pub struct Touched {
    /// By port; never longer than the switch.
    marked: Vec<bool>,
    order: Vec<usize>,
}

impl Switch {
    /// A network with one port for each NIC: their plugs, in order.
    pub fn with_ports(name: &str, ports: &[PortSpec]) -> Vec<Plug> {
        let mut addresses: Vec<_> = ports.iter().map(|spec| spec.mac).zip(0..).collect();
        addresses.sort_unstable();
        let ports: Vec<_> = ports.iter().map(|spec| Port::new(*spec)).collect();
        let count = ports.len();
        let switch = Arc::new(Self { name: name.into(), ports, addresses });
        (0..count).map(|index| Plug { switch: Arc::clone(&switch), index }).collect()
    }

    fn port_of(&self, mac: [u8; 6]) -> Option<usize> {
        let place = self.addresses.binary_search_by_key(&mac, |(address, _)| *address).ok()?;
        self.addresses.get(place).map(|(_, index)| *index)
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

    /// An empty list, long enough for every port.
    pub fn touched(&self) -> Touched {
        let count = self.switch.ports.len();
        Touched { marked: vec![false; count], order: Vec::with_capacity(count) }
    }

    /// Forwards a frame of this plug's guest. Who was given it is noted in `touched`, to be signalled by [`Plug::signal`].
    pub fn send(&self, frame: &Frame<'_>, touched: &mut Touched, faults: &Faults) {
        let Some(own) = self.port() else { return };
        let segments = u64::from(frame.segments());
        let refuse = |count| own.counters().add(count, segments);
        let (len, mtu) = (frame.longest_packet(), own.spec().mtu);
        if len > mtu.into() {
            refuse(Count::RefusedLength);
            return faults.note(format_args!("a packet of {len} bytes, the MTU is {mtu}"));
        }
        if frame.source() != own.spec().mac {
            refuse(Count::RefusedSource);
            return faults.note("a frame with a source address that is not the NIC's");
        }
        if !own.is_link_up() {
            return refuse(Count::RefusedLink);
        }
        own.counters().add(Count::SentFrames, segments);
        own.counters().add(Count::SentBytes, frame.wire_bytes(0, frame.segments()));
        let to = frame.destination();
        if frame::is_group(to) {
            for (index, port) in self.switch.ports.iter().enumerate().filter(|(index, _)| *index != self.index) {
                if port.deliver(frame) {
                    touched.mark(index);
                }
            }
            return;
        }
        match self.switch.port_of(to).filter(|index| *index != self.index) {
            Some(index) => {
                if self.switch.ports.get(index).is_some_and(|port| port.deliver(frame)) {
                    touched.mark(index);
                }
            }
            None => own.counters().add(Count::SentToNobody, segments),
        }
    }

    /// Counts a frame that could not be read.
    pub fn refused(&self) {
        if let Some(own) = self.port() {
            own.counters().add(Count::RefusedHeaders, 1);
        }
    }

    /// Signals everyone in `touched`, once each.
    pub fn signal(&self, touched: &mut Touched) {
        for index in touched.order.drain(..) {
            if let Some(marked) = touched.marked.get_mut(index) {
                *marked = false;
            }
            if let Some(port) = self.switch.ports.get(index) {
                port.signal();
            }
        }
    }
}

impl crate::counters::Snapshot for Plug {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        self.port().map(|port| port.snapshot().list()).unwrap_or_default()
    }
}

impl Touched {
    fn mark(&mut self, index: usize) {
        if let Some(marked) = self.marked.get_mut(index)
            && !std::mem::replace(marked, true)
        {
            self.order.push(index);
        }
    }
}
