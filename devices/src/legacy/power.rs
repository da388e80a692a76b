//! The sleep and reset registers of a hardware-reduced ACPI machine (ACPI 6.4, §4.8.3.7, §4.8.3.6).
//!
//! Three bytes: sleep control, sleep status, reset. The FADT says where they are.

use crate::bus::BusDevice;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// Bytes of the window.
pub const WINDOW_BYTES: u64 = 3;
/// What the guest writes to the reset register; the FADT's RESET_VALUE.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of the soft-off state; the first value of `\_S5`.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// SLP_EN (§4.8.3.7, bit 5).
const SLEEP_ENABLE: u8 = 1 << 5;

/// What a guest wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// No more power.
    Off,
    /// From the start.
    Reset,
}

/// The registers.
pub struct Power {
    wish: Box<dyn Fn(PowerEvent) + Send>,
}

impl Power {
    /// Registers that tell `wish` what the guest wants. It must not wait for the vCPU that called.
    pub fn new(wish: Box<dyn Fn(PowerEvent) + Send>) -> Self {
        Self { wish }
    }
}

impl BusDevice for Power {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        // No wake-up has happened; nothing is under way.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, [value, ..]) if value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == SLEEP_TYPE_OFF => {
                (self.wish)(PowerEvent::Off);
            }
            (RESET, [RESET_VALUE, ..]) => (self.wish)(PowerEvent::Reset),
            _ => log::debug!("power: {data:x?} at {offset} means nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn only_the_values_of_the_tables_mean_something() {
        let (sender, wishes) = mpsc::channel();
        let mut power = Power::new(Box::new(move |event| sender.send(event).expect("the test listens")));
        for (offset, data) in
            [(0, &[0u8][..]), (0, &[SLEEP_ENABLE]), (0, &[5 << 2]), (1, &[0x80]), (2, &[6]), (9, &[1]), (0, &[])]
        {
            power.write(offset, data);
        }
        assert!(wishes.try_recv().is_err());
        power.write(SLEEP_CONTROL, &[5 << 2 | SLEEP_ENABLE]);
        power.write(RESET, &[RESET_VALUE]);
        assert_eq!(wishes.try_iter().collect::<Vec<_>>(), [PowerEvent::Off, PowerEvent::Reset]);
    }
}
