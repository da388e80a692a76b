//! An L2 network between the NICs of one process.
//!
//! A switch knows its ports and their hardware addresses from the start, so forwarding reads a table that never changes.
//! Each port owns the receive queue of its NIC behind the only lock of the data path. A thread holds at most one port's
//! lock, and never its own port's while it delivers: a sender has no lock, then takes the receiver's.
//!
//! A frame goes straight from the sender's memory to the receiver's, unless frames are waiting there already. Its headers are
//! copied out and checked once ([`claim`]); what a sender left undone is done for those receivers that need it ([`offload`]).
//!
//! Links lose, delay, limit or cut when they are asked to ([`link`]). Only then, frames are copied and wait in the receiver's
//! [`mod@line`], whose timer wakes the receiver's own thread; a frame looks at one number of each port to know that it need not. Whoever
//! captures ([`capture`]) gets copies in the same way.

pub mod capture;
pub mod checksum;
pub mod claim;
pub mod counters;
pub mod frame;
pub mod line;
pub mod link;
pub mod offload;
pub mod port;
pub mod receiver;
pub mod tap;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use labyard_spec::link::{Direction, LinkChange};

use crate::fault::Faults;
use capture::{Capture, MAX_CAPTURES, Of};
use counters::Count;
use frame::Frame;
use port::Port;

/// A network.
pub struct Switch {
    name: String,
    ports: Vec<Port>,
    /// Ports by hardware address, sorted.
    addresses: Vec<([u8; 6], usize)>,
    /// Who listens. No lock of a port is taken under it.
    captures: Mutex<Vec<Arc<Capture>>>,
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
        let switch = Arc::new(Self { name: name.into(), ports, addresses, captures: Mutex::default() });
        (0..count).map(|index| Plug { switch: Arc::clone(&switch), index }).collect()
    }

    fn captures(&self) -> MutexGuard<'_, Vec<Arc<Capture>>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all ports who listens.
    fn tap(&self, captures: &[Arc<Capture>]) {
        for (port, index) in self.ports.iter().zip(0..) {
            let listens = |of| captures.iter().any(|capture| capture.of == of);
            port.set(port::TAPPED_RECEIVED, listens(Of::Port(index)));
            port.set(port::TAPPED_SENT, listens(Of::Port(index)) || listens(Of::Network));
        }
    }

    fn record(&self, frame: &Frame<'_>, to: impl Fn(Of) -> bool) {
        for capture in self.captures().iter().filter(|capture| to(capture.of)) {
            capture.record(frame);
        }
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
        if own.is_calm() {
            self.forward(frame, None, touched);
        } else {
            self.send_over_cable(own, frame, touched);
        }
    }

    /// A frame that its own cable may lose or delay, or somebody looks at.
    fn send_over_cable(&self, own: &Port, frame: &Frame<'_>, touched: &mut Touched) {
        if own.has(port::TAPPED_SENT) {
            self.switch.record(frame, |of| of == Of::Network || of == Of::Port(self.index));
        }
        if !own.sends_with_faults() {
            return self.forward(frame, None, touched);
        }
        for number in 0..frame.segments() {
            let Some(kept) = frame.on_wire(number) else { continue };
            let frame = kept.frame();
            match own.pass_sent(frame.len(), Instant::now()) {
                Ok(out) => self.forward(&frame, Some(out), touched),
                Err(count) => own.counters().add(count, 1),
            }
        }
    }

    /// To all that it is for, now or when it comes out of the sender's cable.
    fn forward(&self, frame: &Frame<'_>, out: Option<Instant>, touched: &mut Touched) {
        let Some(own) = self.port() else { return };
        let segments = u64::from(frame.segments());
        own.counters().add(Count::SentFrames, segments);
        own.counters().add(Count::SentBytes, frame.wire_bytes(0, frame.segments()));
        let to = frame.destination();
        if frame::is_group(to) {
            for index in (0..self.switch.ports.len()).filter(|index| *index != self.index) {
                self.hand(frame, index, out, touched);
            }
            return;
        }
        match self.switch.port_of(to).filter(|index| *index != self.index) {
            Some(index) => self.hand(frame, index, out, touched),
            None => own.counters().add(Count::SentToNobody, segments),
        }
    }

    fn hand(&self, frame: &Frame<'_>, index: usize, out: Option<Instant>, touched: &mut Touched) {
        let Some(port) = self.switch.ports.get(index) else { return };
        if out.is_some() || port.receives_with_faults() {
            return port.put_on_line(frame, out, self.index);
        }
        if port.has(port::TAPPED_RECEIVED) {
            self.switch.record(frame, |of| of == Of::Port(index));
        }
        if port.deliver(frame) {
            touched.mark(index);
        }
    }

    /// The timer of this plug's port has fired: what is due is delivered. Called by the receiver's own thread.
    pub fn come_due(&self, now: Instant) {
        let Some(port) = self.port() else { return };
        port.come_due(now, |frame| {
            if port.has(port::TAPPED_RECEIVED) {
                self.switch.record(frame, |of| of == Of::Port(self.index));
            }
        });
    }

    /// Changes what this plug's link does to frames.
    ///
    /// # Errors
    /// What is asked for cannot be; nothing has changed then.
    pub fn change_link(&self, direction: Direction, change: LinkChange) -> Result<(), String> {
        let Some(own) = self.port() else { return Ok(()) };
        own.change_link(direction, change)?;
        if change == LinkChange::Heal && direction.has_sent() {
            for port in &self.switch.ports {
                port.hurry_from(self.index);
            }
        }
        Ok(())
    }

    /// Listens to the network, or to this plug's port alone; until [`Plug::forget_capture`].
    ///
    /// # Errors
    /// As many listen as may.
    pub fn capture(&self, network: bool) -> Result<Arc<Capture>, String> {
        let mut captures = self.switch.captures();
        if captures.len() >= MAX_CAPTURES {
            return Err(format!("{MAX_CAPTURES} captures of network {} are open: end one first", self.switch.name));
        }
        let capture = Arc::new(Capture::new(if network { Of::Network } else { Of::Port(self.index) }));
        captures.push(Arc::clone(&capture));
        self.switch.tap(&captures);
        Ok(capture)
    }

    /// Nobody listens there any more.
    pub fn forget_capture(&self, capture: &Arc<Capture>) {
        let mut captures = self.switch.captures();
        captures.retain(|other| !Arc::ptr_eq(other, capture));
        self.switch.tap(&captures);
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
