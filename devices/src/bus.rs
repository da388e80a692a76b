//! Which device answers at an address.
//!
//! A bus is filled while a machine is built and read-only afterwards, so vCPU threads look up without a lock; each device
//! has its own. Nobody answering is not an error: reads give all ones, writes vanish, as on a PC.

use std::sync::{Arc, Mutex, PoisonError};

/// A device on a bus. It is told offsets from its own base, never addresses.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

struct Range {
    base: u64,
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Ports or memory-mapped registers of one machine.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base; ranges do not overlap.
    ranges: Vec<Range>,
}

/// Two devices claim one address.
#[derive(Debug, thiserror::Error)]
#[error("range of {len:#x} bytes at {base:#x} is empty, too long or overlaps another device")]
pub struct Overlap {
    /// First address asked for.
    pub base: u64,
    /// Length asked for.
    pub len: u64,
}

impl Bus {
    /// Puts a device at `base`.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), Overlap> {
        let refused = Overlap { base, len };
        let Some(end) = base.checked_add(len).filter(|end| *end > base) else { return Err(refused) };
        let clash = |other: &Range| base < other.base.saturating_add(other.len) && other.base < end;
        if self.ranges.iter().any(clash) {
            return Err(refused);
        }
        let place = self.ranges.partition_point(|other| other.base < base);
        self.ranges.insert(place, Range { base, len, device });
        Ok(())
    }

    /// Reads; all ones where nobody answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; `false` where nobody answers.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address, data.len()) else { return false };
        device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        true
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Mutex<dyn BusDevice>, u64)> {
        let place = self.ranges.partition_point(|range| range.base <= address).checked_sub(1)?;
        let range = self.ranges.get(place)?;
        let offset = address.checked_sub(range.base)?;
        let end = offset.checked_add(len as u64)?;
        (end <= range.len).then_some((&*range.device, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8, Vec<(u64, Vec<u8>)>);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0.wrapping_add(offset as u8));
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.1.push((offset, data.to_vec()));
        }
    }

    fn device(value: u8) -> Arc<Mutex<Echo>> {
        Arc::new(Mutex::new(Echo(value, Vec::new())))
    }

    #[test]
    fn each_device_answers_within_its_range_only() {
        let (low, high) = (device(1), device(100));
        let mut bus = Bus::default();
        bus.insert(0x2000, 0x10, high.clone()).expect("free");
        bus.insert(0x1000, 0x10, low.clone()).expect("free");
        let mut data = [0];
        bus.read(0x1002, &mut data);
        assert_eq!(data, [3]);
        bus.read(0x200f, &mut data);
        assert_eq!(data, [115]);
        for address in [0, 0xfff, 0x1010, 0x2010, u64::MAX] {
            bus.read(address, &mut data);
            assert_eq!(data, [0xff], "{address:#x}");
            assert!(!bus.write(address, &[1]));
        }
        assert!(!bus.write(0x100e, &[0; 4]), "an access over the end is nobody's");
        assert!(bus.write(0x1004, &[7, 8]));
        assert_eq!(low.lock().expect("lock").1, [(4, vec![7, 8])]);
    }

    #[test]
    fn overlapping_empty_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, device(0)).expect("free");
        for (base, len) in [(0x1000, 1), (0xfff, 2), (0x100f, 1), (0x800, 0x1000), (0x3000, 0), (u64::MAX, 2)] {
            assert!(bus.insert(base, len, device(0)).is_err(), "{base:#x}+{len:#x}");
        }
    }
}
