//! pvpanic: the port through which a kernel says that it panics (QEMU, docs/specs/pvpanic.rst).
//!
//! One byte. Read, it tells which events this side understands; written, an event has happened.

use crate::bus::BusDevice;

/// Bytes of the window.
pub const WINDOW_BYTES: u64 = 1;
/// The kernel has panicked (pvpanic.rst, bit 0).
pub const PANICKED: u8 = 1 << 0;

/// The port.
pub struct PvPanic {
    panicked: Box<dyn Fn() + Send>,
}

impl PvPanic {
    /// A port that calls `panicked`, which must not wait for the vCPU that called. A guest may say it as often as it likes.
    pub fn new(panicked: Box<dyn Fn() + Send>) -> Self {
        Self { panicked }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let [events, ..] = data {
            // Not bit 1, a crash kernel that has been loaded: with it, the panic is the guest's own affair.
            *events = PANICKED;
        }
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        match data {
            [event, ..] if event & PANICKED != 0 => (self.panicked)(),
            _ => log::debug!("pvpanic: {data:x?} means nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn only_a_panic_is_told() {
        let (sender, told) = mpsc::channel();
        let mut port = PvPanic::new(Box::new(move || sender.send(()).expect("the test listens")));
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, [PANICKED]);
        for data in [&[0u8][..], &[2], &[0xfe, 1], &[]] {
            port.write(0, data);
        }
        assert!(told.try_recv().is_err());
        port.write(0, &[PANICKED]);
        assert_eq!(told.try_iter().count(), 1);
    }
}
