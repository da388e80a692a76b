//! Who is plugged into a switch at one time. It never changes: who comes or goes makes another one, and senders take that when they see
//! that theirs is old ([`super::Touched`]). So a frame is forwarded without a lock.

use std::sync::Arc;

use super::PortSpec;
use super::port::Port;

/// Ports and their hardware addresses.
#[derive(Default)]
pub(super) struct Table {
    /// One more with each change.
    pub(super) version: u64,
    /// By number. Who has left leaves a gap for the next who comes.
    ports: Vec<Option<Arc<Port>>>,
    /// Numbers of ports by hardware address, sorted.
    addresses: Vec<([u8; 6], usize)>,
}

impl Table {
    /// One with a port for each of these, numbered in their order.
    pub(super) fn of(ports: &[PortSpec]) -> Self {
        let mut addresses: Vec<_> = ports.iter().map(|spec| spec.mac).zip(0..).collect();
        addresses.sort_unstable();
        let ports = ports.iter().map(|spec| Some(Arc::new(Port::new(*spec)))).collect();
        Self { version: 0, ports, addresses }
    }

    /// This one with another port, and its number; `None` where somebody has its address.
    pub(super) fn with(&self, port: &Arc<Port>) -> Option<(Self, usize)> {
        let mac = port.spec().mac;
        let place = self.addresses.binary_search_by_key(&mac, |(address, _)| *address).err()?;
        let (mut ports, mut addresses) = (self.ports.clone(), self.addresses.clone());
        let number = ports.iter().position(Option::is_none).unwrap_or(ports.len());
        match ports.get_mut(number) {
            Some(gap) => *gap = Some(Arc::clone(port)),
            None => ports.push(Some(Arc::clone(port))),
        }
        addresses.insert(place, (mac, number));
        Some((Self { version: self.version.wrapping_add(1), ports, addresses }, number))
    }

    /// This one without the port of this number.
    pub(super) fn without(&self, number: usize) -> Self {
        let mut ports = self.ports.clone();
        if let Some(port) = ports.get_mut(number) {
            *port = None;
        }
        let addresses = self.addresses.iter().filter(|(_, other)| *other != number).copied().collect();
        Self { version: self.version.wrapping_add(1), ports, addresses }
    }

    /// Numbers that are in use, and gaps.
    pub(super) fn len(&self) -> usize {
        self.ports.len()
    }

    pub(super) fn port(&self, number: usize) -> Option<&Port> {
        self.ports.get(number)?.as_deref()
    }

    /// All ports, with their numbers.
    pub(super) fn ports(&self) -> impl Iterator<Item = (usize, &Port)> {
        self.ports.iter().enumerate().filter_map(|(number, port)| Some((number, port.as_deref()?)))
    }

    pub(super) fn port_of(&self, mac: [u8; 6]) -> Option<(usize, &Port)> {
        let place = self.addresses.binary_search_by_key(&mac, |(address, _)| *address).ok()?;
        let (_, number) = self.addresses.get(place)?;
        Some((*number, self.port(*number)?))
    }

    /// Whether this port is there, under this number.
    pub(super) fn has(&self, number: usize, port: &Arc<Port>) -> bool {
        self.ports.get(number).and_then(Option::as_ref).is_some_and(|other| Arc::ptr_eq(other, port))
    }

    pub(super) fn arcs(&self) -> impl Iterator<Item = (usize, &Arc<Port>)> {
        self.ports.iter().enumerate().filter_map(|(number, port)| Some((number, port.as_ref()?)))
    }
}
