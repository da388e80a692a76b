//! The I/O APIC's registers: routes exist for its own lines only, and what a snapshot keeps is all that there is.

use std::sync::{Arc, Mutex, PoisonError};

use labyard_devices::bus::BusDevice;
use labyard_devices::legacy::ioapic::{IoApic, MAX_LINES, Msi, MsiRoutes};

use crate::input::Input;

#[derive(Clone)]
struct Routes(Arc<Mutex<Vec<Option<Msi>>>>);

impl Routes {
    fn new(lines: u32) -> Self {
        Self(Arc::new(Mutex::new(vec![None; lines as usize])))
    }

    fn all(&self) -> Vec<Option<Msi>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl MsiRoutes for Routes {
    fn set(&mut self, line: u32, msi: Option<Msi>) {
        if let Some(msi) = msi {
            assert_eq!(msi.address >> 20, 0xfee, "an MSI goes to the local APICs");
        }
        let mut routes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *routes.get_mut(line as usize).unwrap_or_else(|| panic!("a route for line {line}")) = msi;
    }
}

/// Reads the bytes as accesses.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let lines = 1 + u32::from(input.byte()) % MAX_LINES;
    let routes = Routes::new(lines);
    let mut chip = IoApic::new(lines, Box::new(routes.clone()));
    while !input.is_empty() {
        let offset = match input.byte() % 8 {
            0 => input.long(),
            1..=3 => 0x00,
            _ => 0x10,
        };
        let width = input.pick(&[4usize, 4, 4, 4, 1, 2, 8, 0, 16]);
        let mut data = input.array::<16>();
        if input.one_in(4) {
            chip.read(offset, &mut data[..width]);
        } else {
            chip.write(offset, &data[..width]);
        }
    }
    let restored = Routes::new(lines);
    let mut other = IoApic::new(lines, Box::new(restored.clone()));
    assert!(other.restore(&chip.save()), "a chip takes what a chip has saved");
    assert_eq!(other.save(), chip.save());
    assert_eq!(restored.all(), routes.all(), "a restored chip has the same routes");
}
