//! An I/O APIC whose lines become MSI routes (Intel 82093AA, the register model; more lines than that chip has).
//!
//! With a split interrupt controller the local APICs are in the kernel and this is here. A guest programs redirection
//! entries; each becomes a route of the same number, so that an irqfd on that number goes from eventfd to vCPU within the
//! kernel. All lines are edge-triggered: the tables say so, and no device needs a level.
//!
//! A chip has the lines that its machine uses: Linux reads and writes each redirection entry more than once while it boots, and each
//! access is an exit.

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;

/// Lines at most; the version register has eight bits for the last one, Linux takes at most 127 (MP_MAX_IOAPIC_PIN).
pub const MAX_LINES: u32 = 120;
/// Bytes of the register window.
pub const WINDOW_BYTES: u64 = 0x100;

/// IOREGSEL and IOWIN (82093AA, §3.1).
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Register numbers (§3.2).
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION: u8 = 0x10;
/// The version of chips without an EOI register.
const VERSION_VALUE: u32 = 0x11;
/// Redirection entry, low word (§3.2.4): vector, delivery mode, destination mode, trigger, mask.
const DELIVERY_AND_VECTOR: u32 = 0x7ff;
const LOGICAL: u32 = 1 << 11;
const MASKED: u32 = 1 << 16;
/// Delivery status and remote IRR are read-only and never set on an edge.
const READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// An MSI: what a message-signalled interrupt writes, and where (Intel SDM 3A, §11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// Address: 0xfee in the high bits, destination, mode.
    pub address: u32,
    /// Data: vector and delivery mode.
    pub data: u32,
}

/// Where routes go.
pub trait MsiRoutes: Send {
    /// Line `line` sends `msi` from now on; `None` while it is masked.
    fn set(&mut self, line: u32, msi: Option<Msi>);
}

/// What a snapshot keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    id: u32,
    select: u8,
    entries: Vec<u64>,
}

/// The chip.
pub struct IoApic {
    routes: Box<dyn MsiRoutes>,
    state: State,
}

impl IoApic {
    /// So many lines, [`MAX_LINES`] at most and one at least, all masked.
    pub fn new(lines: u32, routes: Box<dyn MsiRoutes>) -> Self {
        let entries = vec![u64::from(MASKED); lines.clamp(1, MAX_LINES) as usize];
        Self { routes, state: State { id: 0, select: 0, entries } }
    }

    /// What a snapshot keeps.
    pub fn save(&self) -> State {
        self.state.clone()
    }

    /// Takes back what `save` gave, and sets the routes. `false` for a state of a chip with other lines.
    #[must_use]
    pub fn restore(&mut self, state: &State) -> bool {
        if state.entries.len() != self.state.entries.len() {
            return false;
        }
        self.state = state.clone();
        for line in 0..self.lines() {
            self.route(line);
        }
        true
    }

    fn lines(&self) -> u32 {
        u32::try_from(self.state.entries.len()).unwrap_or(MAX_LINES)
    }

    fn route(&mut self, line: u32) {
        let Some(entry) = self.state.entries.get(line as usize).copied() else { return };
        let (low, high) = ((entry & 0xffff_ffff) as u32, (entry >> 32) as u32);
        let msi = (low & MASKED == 0).then(|| {
            // Destination to bits 19..12, destination mode to bit 2. Linux with KVM's extended ids puts bits 14..8 of the
            // destination into bits 55..49 of the entry, which belong to bits 11..5 here.
            let (id, extended) = (high >> 24, high >> 17 & 0x7f);
            let mode = if low & LOGICAL != 0 { 1 << 2 } else { 0 };
            Msi { address: 0xfee0_0000 | id << 12 | extended << 5 | mode, data: low & DELIVERY_AND_VECTOR }
        });
        self.routes.set(line, msi);
    }

    fn read_register(&self) -> u32 {
        match self.state.select {
            ID | ARBITRATION => self.state.id,
            VERSION => self.lines().saturating_sub(1) << 16 | VERSION_VALUE,
            other => {
                let Some((line, high)) = entry_of(other) else { return 0 };
                let entry = self.state.entries.get(line).copied().unwrap_or(0);
                (if high { entry >> 32 } else { entry & 0xffff_ffff }) as u32
            }
        }
    }

    fn write_register(&mut self, value: u32) {
        if self.state.select == ID {
            self.state.id = value & 0x0f00_0000;
            return;
        }
        let Some((line, high)) = entry_of(self.state.select) else { return };
        let Some(entry) = self.state.entries.get_mut(line) else { return };
        *entry = match high {
            true => *entry & 0xffff_ffff | u64::from(value) << 32,
            false => *entry & !0xffff_ffff | u64::from(value & !READ_ONLY),
        };
        self.route(u32::try_from(line).unwrap_or(MAX_LINES));
    }
}

/// Line and half of a redirection register.
fn entry_of(register: u8) -> Option<(usize, bool)> {
    let index = usize::from(register.checked_sub(REDIRECTION)?);
    Some((index >> 1, index & 1 != 0))
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => self.state.select.into(),
            WINDOW => self.read_register(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        match offset {
            SELECT => self.state.select = data.first().copied().unwrap_or(0),
            WINDOW => self.write_register(u32::from_le_bytes(bytes)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Route = (u32, Option<Msi>);

    #[derive(Clone, Default)]
    struct Routes(Arc<Mutex<Vec<Route>>>);

    impl MsiRoutes for Routes {
        fn set(&mut self, line: u32, msi: Option<Msi>) {
            self.0.lock().expect("lock").push((line, msi));
        }
    }

    fn write(ioapic: &mut IoApic, register: u8, value: u32) {
        ioapic.write(0, &u32::from(register).to_le_bytes());
        ioapic.write(0x10, &value.to_le_bytes());
    }

    fn read(ioapic: &mut IoApic, register: u8) -> u32 {
        ioapic.write(0, &[register]);
        let mut bytes = [0; 4];
        ioapic.read(0x10, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn it_tells_its_lines() {
        let mut ioapic = IoApic::new(MAX_LINES, Box::new(Routes::default()));
        assert_eq!(read(&mut ioapic, 1), 119 << 16 | 0x11);
        assert_eq!(read(&mut ioapic, 0x10), 0x1_0000, "masked at first");
        for (asked, last) in [(0, 0), (1, 0), (24, 23), (u32::MAX, 119)] {
            let mut ioapic = IoApic::new(asked, Box::new(Routes::default()));
            assert_eq!(read(&mut ioapic, 1), last << 16 | 0x11, "{asked} lines");
        }
    }

    #[test]
    fn an_entry_becomes_a_route_when_it_is_unmasked() {
        let routes = Routes::default();
        let mut ioapic = IoApic::new(MAX_LINES, Box::new(routes.clone()));
        write(&mut ioapic, 0x10 + 2 * 119 + 1, 3 << 24);
        write(&mut ioapic, 0x10 + 2 * 119, LOGICAL | 0x31);
        let msi = Msi { address: 0xfee0_3004, data: 0x31 };
        assert_eq!(*routes.0.lock().expect("lock"), [(119, None), (119, Some(msi))]);
        write(&mut ioapic, 0x10 + 2 * 119, MASKED | 0x31);
        assert_eq!(routes.0.lock().expect("lock").last(), Some(&(119, None)));
    }

    #[test]
    fn registers_that_are_not_there_read_zero_and_change_nothing() {
        let mut ioapic = IoApic::new(MAX_LINES, Box::new(Routes::default()));
        let before = ioapic.save();
        for register in [3, 0x0f] {
            write(&mut ioapic, register, u32::MAX);
            assert_eq!(read(&mut ioapic, register), 0);
        }
        ioapic.write(0x44, &[1; 8]);
        ioapic.write(0, &[]);
        assert_eq!(ioapic.save().entries, before.entries);
        let routes = Routes::default();
        let mut few = IoApic::new(24, Box::new(routes.clone()));
        write(&mut few, 0x10 + 2 * 24, 0x31);
        assert_eq!(read(&mut few, 0x10 + 2 * 24), 0, "the line after the last");
        assert_eq!(*routes.0.lock().expect("lock"), []);
    }

    #[test]
    fn a_saved_chip_sets_its_routes_again() {
        let mut ioapic = IoApic::new(MAX_LINES, Box::new(Routes::default()));
        write(&mut ioapic, 0x10 + 2 * 5, 0x41);
        let state = ioapic.save();
        let routes = Routes::default();
        let mut restored = IoApic::new(MAX_LINES, Box::new(routes.clone()));
        assert!(restored.restore(&state));
        assert_eq!(routes.0.lock().expect("lock")[5], (5, Some(Msi { address: 0xfee0_0000, data: 0x41 })));
        assert_eq!(restored.save(), state);
        assert!(!restored.restore(&State { entries: Vec::new(), ..state.clone() }));
        assert!(!IoApic::new(24, Box::new(Routes::default())).restore(&state), "a chip with other lines");
    }
}
