//! An L2 network between the NICs of one process.
//!
//! Forwarding reads a table that never changes (`table.rs`); who comes or goes while machines run makes another one. Each port owns the receive queue of its NIC behind the only lock of the data path. A thread holds at most one port's
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
mod table;
pub mod tap;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use labyard_spec::link::{Direction, LinkChange};

use crate::fault::Faults;
use capture::{Capture, MAX_CAPTURES, Of};
use counters::Count;
use frame::Frame;
use port::Port;
use table::Table;

/// A network.
pub struct Switch {
    name: String,
    /// The table as it is now. Taken before `captures`.
    table: Mutex<Arc<Table>>,
    /// That table's version, for senders to see that theirs is old. Changes under the lock of the table.
    version: AtomicU64,
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
    port: Arc<Port>,
}

/// What a sender knows of its switch, and the ports that it gave frames since it last signalled them. Kept by the sender and reused.
pub struct Touched {
    table: Arc<Table>,
    marks: Marks,
}

#[derive(Default)]
struct Marks {
    /// By number of the port.
    marked: Vec<bool>,
    order: Vec<usize>,
}

impl Switch {
    /// A network that nobody is plugged into.
    pub fn new(name: &str) -> Arc<Self> {
        Self::of(name, Table::default())
    }

    /// A network with one port for each NIC: their plugs, in order.
    pub fn with_ports(name: &str, ports: &[PortSpec]) -> Vec<Plug> {
        let switch = Self::of(name, Table::of(ports));
        let table = switch.table();
        let plug =
            |(index, port): (usize, &Arc<Port>)| Plug { switch: Arc::clone(&switch), index, port: Arc::clone(port) };
        table.arcs().map(plug).collect()
    }

    fn of(name: &str, table: Table) -> Arc<Self> {
        let version = AtomicU64::new(table.version);
        Arc::new(Self { name: name.into(), table: Mutex::new(Arc::new(table)), version, captures: Mutex::default() })
    }

    /// Plugs another NIC in, while others send and receive; `None` where one of this hardware address is there.
    pub fn add(self: &Arc<Self>, spec: PortSpec) -> Option<Plug> {
        let port = Arc::new(Port::new(spec));
        let index = self.change(|table| table.with(&port))?;
        Some(Plug { switch: Arc::clone(self), index, port })
    }

    /// Name of the network.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether anybody is plugged in.
    pub fn is_empty(&self) -> bool {
        self.table().ports().next().is_none()
    }

    /// Puts another table in place of the one that is there.
    fn change<T>(&self, change: impl FnOnce(&Table) -> Option<(Table, T)>) -> Option<T> {
        let mut now = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (table, result) = change(&now)?;
        *now = Arc::new(table);
        let mut captures = self.captures();
        // Its number may be another's next.
        let is_there = |of| !matches!(of, Of::Port(number) if now.port(number).is_none());
        captures.extract_if(.., |capture| !is_there(capture.of)).for_each(|capture| capture.end());
        self.tap(&now, &captures);
        drop(captures);
        self.version.store(now.version, Ordering::Release);
        Some(result)
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn captures(&self) -> MutexGuard<'_, Vec<Arc<Capture>>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes who listens; all ports are told.
    fn listen<T>(&self, change: impl FnOnce(&mut Vec<Arc<Capture>>) -> T) -> T {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut captures = self.captures();
        let result = change(&mut captures);
        self.tap(&table, &captures);
        result
    }

    /// Tells all ports who listens.
    fn tap(&self, table: &Table, captures: &[Arc<Capture>]) {
        for (index, port) in table.ports() {
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
}

impl Plug {
    /// The port behind this plug.
    pub fn port(&self) -> Option<&Port> {
        Some(&self.port)
    }

    /// Name of the network.
    pub fn network(&self) -> &str {
        &self.switch.name
    }

    /// What a sender begins with.
    pub fn touched(&self) -> Touched {
        let table = self.switch.table();
        let marks = Marks { marked: vec![false; table.len()], order: Vec::with_capacity(table.len()) };
        Touched { table, marks }
    }

    /// Leaves the network for good, while others send and receive. Who listens to this port alone hears no more.
    pub fn leave(&self) {
        let gone =
            self.switch.change(|table| table.has(self.index, &self.port).then(|| (table.without(self.index), ())));
        if gone.is_some() {
            self.port.forget();
            // Whoever comes in its place has its number.
            self.switch.table().ports().for_each(|(_, port)| port.forget_sender(self.index));
        }
    }

    /// Forwards a frame of this plug's guest. Who was given it is noted in `touched`, to be signalled by [`Plug::signal`].
    pub fn send(&self, frame: &Frame<'_>, touched: &mut Touched, faults: &Faults) {
        let own = &*self.port;
        if touched.table.version != self.switch.version.load(Ordering::Acquire) {
            touched.look_again(&self.switch);
        }
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
        let (own, segments) = (&*self.port, u64::from(frame.segments()));
        own.counters().add(Count::SentFrames, segments);
        own.counters().add(Count::SentBytes, frame.wire_bytes(0, frame.segments()));
        let (to, Touched { table, marks }) = (frame.destination(), touched);
        if frame::is_group(to) {
            for (index, port) in table.ports().filter(|(index, _)| *index != self.index) {
                self.hand(frame, (index, port), out, marks);
            }
            return;
        }
        match table.port_of(to).filter(|(index, _)| *index != self.index) {
            Some(port) => self.hand(frame, port, out, marks),
            None => own.counters().add(Count::SentToNobody, segments),
        }
    }

    fn hand(&self, frame: &Frame<'_>, (index, port): (usize, &Port), out: Option<Instant>, marks: &mut Marks) {
        if out.is_some() || port.receives_with_faults() {
            return port.put_on_line(frame, out, self.index);
        }
        if port.has(port::TAPPED_RECEIVED) {
            self.switch.record(frame, |of| of == Of::Port(index));
        }
        if port.deliver(frame) {
            marks.mark(index);
        }
    }

    /// The timer of this plug's port has fired: what is due is delivered. Called by the receiver's own thread.
    pub fn come_due(&self, now: Instant) {
        let port = &*self.port;
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
        self.port.change_link(direction, change)?;
        if change == LinkChange::Heal && direction.has_sent() {
            for (_, port) in self.switch.table().ports() {
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
        self.switch.listen(|captures| {
            if captures.len() >= MAX_CAPTURES {
                return Err(format!("{MAX_CAPTURES} captures of network {} are open: end one first", self.switch.name));
            }
            let capture = Arc::new(Capture::new(if network { Of::Network } else { Of::Port(self.index) }));
            captures.push(Arc::clone(&capture));
            Ok(capture)
        })
    }

    /// Nobody listens there any more.
    pub fn forget_capture(&self, capture: &Arc<Capture>) {
        self.switch.listen(|captures| captures.retain(|other| !Arc::ptr_eq(other, capture)));
    }

    /// Counts a frame that could not be read.
    pub fn refused(&self) {
        self.port.counters().add(Count::RefusedHeaders, 1);
    }

    /// Signals everyone in `touched`, once each.
    pub fn signal(&self, touched: &mut Touched) {
        let Touched { table, marks } = touched;
        for index in marks.order.drain(..) {
            if let Some(marked) = marks.marked.get_mut(index) {
                *marked = false;
            }
            if let Some(port) = table.port(index) {
                port.signal();
            }
        }
    }
}

impl crate::counters::Snapshot for Plug {
    fn snapshot(&self) -> Vec<(&'static str, u64)> {
        self.port.snapshot().list()
    }
}

impl Touched {
    /// Somebody has come or gone. Who has not been signalled yet is, first: numbers may be others' from here on.
    fn look_again(&mut self, switch: &Switch) {
        let Self { table, marks } = self;
        for port in marks.order.drain(..).filter_map(|index| table.port(index)) {
            port.signal();
        }
        *table = switch.table();
        marks.marked.clear();
        marks.marked.resize(table.len(), false);
    }
}

impl Marks {
    fn mark(&mut self, index: usize) {
        if let Some(marked) = self.marked.get_mut(index)
            && !std::mem::replace(marked, true)
        {
            self.order.push(index);
        }
    }
}
