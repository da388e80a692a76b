//! The small devices of a PC behind one bus: accesses of any width anywhere, while the host presses buttons.
//!
//! Rules: nobody answers where nothing is; what a chip has saved, another goes on from.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use labyard_devices::bus::Bus;
use labyard_devices::legacy::ged::{self, Event, Events, Ged};
use labyard_devices::legacy::power::{self, Power};
use labyard_devices::legacy::pvpanic::{self, PvPanic};
use labyard_devices::legacy::serial::{self, SerialPort};
use labyard_devices::testing::Recorder;
use labyard_devices::virtio::console::ConsoleOutput;

use crate::input::Input;

/// Ports, as a machine has them.
const SERIAL: u64 = 0x3f8;
const POWER: u64 = 0x600;
const PANIC: u64 = 0x505;
const EVENTS: u64 = 0x608;

#[derive(Clone, Default)]
struct Printed(Arc<AtomicU64>);

impl ConsoleOutput for Printed {
    fn write(&mut self, bytes: &[u8]) {
        self.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Reads the bytes as accesses to ports.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (line, printed, wishes) = (Arc::new(Recorder::default()), Printed::default(), Arc::new(AtomicU64::new(0)));
    let events = Arc::<Events>::default();
    let chip = Arc::new(Mutex::new(SerialPort::new(line.clone(), Box::new(printed.clone()))));
    let mut bus = Bus::default();
    let (off, panics) = (wishes.clone(), wishes.clone());
    let count = |wishes: &AtomicU64| {
        wishes.fetch_add(1, Ordering::Relaxed);
    };
    bus.insert(SERIAL, serial::WINDOW_BYTES, chip.clone()).expect("free");
    let power = Power::new(Box::new(move |_| count(&off)));
    bus.insert(POWER, power::WINDOW_BYTES, Arc::new(Mutex::new(power))).expect("free");
    let port = PvPanic::new(Box::new(move || count(&panics)));
    bus.insert(PANIC, pvpanic::WINDOW_BYTES, Arc::new(Mutex::new(port))).expect("free");
    bus.insert(EVENTS, ged::WINDOW_BYTES, Arc::new(Mutex::new(Ged(events.clone())))).expect("free");
    let mut writes = 0u64;
    while !input.is_empty() {
        let base = input.pick(&[SERIAL, SERIAL, POWER, PANIC, EVENTS]);
        let address = if input.one_in(8) { input.long() } else { base + u64::from(input.byte() % 9) };
        let width = input.pick(&[1usize, 1, 1, 2, 4, 0, 8]);
        let mut data = input.array::<8>();
        match input.byte() % 8 {
            0 => drop(events.raise(input.pick(&[Event::PowerButton, Event::Generation]))),
            1 => events.connect(line.clone()),
            2 => events.disconnect(),
            3 | 4 => bus.read(address, &mut data[..width]),
            5 => {
                let taken = [0, 1].map(|_| Arc::new(Mutex::new(Ged(events.clone()))));
                let [one, other] = taken;
                let mut crowded = Bus::default();
                let (base, len) = (input.long(), input.long());
                if crowded.insert(base, len, one).is_ok() {
                    assert!(crowded.insert(base, 1, other).is_err(), "two devices at {base:#x}");
                }
            }
            _ => writes += u64::from(bus.write(address, &data[..width])),
        }
    }
    let wished = wishes.load(Ordering::Relaxed) + printed.0.load(Ordering::Relaxed);
    assert!(wished <= writes, "{wished} things happened in {writes} writes");
    let chip = chip.lock().expect("no panic");
    let restored =
        SerialPort::restore(&chip.save(), line, Box::new(printed)).expect("a chip takes what a chip has saved");
    assert_eq!(restored.save(), chip.save());
}
