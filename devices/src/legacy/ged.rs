//! The events of a Generic Event Device (ACPI 6.4, §5.6.9): the power button, and a new generation of the machine.
//!
//! One register: reading it tells which events have happened since it was read before, and takes them. Its line is an edge,
//! upon which the guest's `_EVT` method reads the register and notifies the device of each event.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bus::BusDevice;
use crate::irq::Line;

/// Bytes of the window.
pub const WINDOW_BYTES: u64 = 1;

/// Something that the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// Somebody pressed the power button.
    PowerButton = 1 << 0,
    /// The machine is a copy of another, and its generation id has changed.
    Generation = 1 << 1,
}

#[derive(Default)]
struct State {
    happened: u8,
    line: Option<Arc<dyn Line>>,
}

/// Where events come from: the host's side of the device, for as long as the machine exists.
#[derive(Default)]
pub struct Events {
    /// Taken for a few instructions by a vCPU and by whoever raises an event.
    state: Mutex<State>,
}

impl Events {
    /// From now on events are signalled on `line`. The machine has started anew: what happened before is forgotten.
    pub fn connect(&self, line: Arc<dyn Line>) {
        *self.lock() = State { happened: 0, line: Some(line) };
    }

    /// There is no machine any more.
    pub fn disconnect(&self) {
        *self.lock() = State::default();
    }

    /// Tells the guest. `false` where there is no machine. A guest without a driver never hears of it, as on a PC.
    pub fn raise(&self, event: Event) -> bool {
        let mut state = self.lock();
        let State { happened, line: Some(line) } = &mut *state else { return false };
        *happened |= event as u8;
        line.raise();
        true
    }

    /// What a snapshot keeps: events that the guest has not read of.
    pub fn save(&self) -> u8 {
        self.lock().happened
    }

    /// Events that the guest of a saved machine had not read of. It is signalled with the next that is raised.
    pub fn restore(&self, happened: u8) {
        self.lock().happened |= happened & (Event::PowerButton as u8 | Event::Generation as u8);
    }

    fn take(&self) -> u8 {
        std::mem::take(&mut self.lock().happened)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The guest's side.
pub struct Ged(pub Arc<Events>);

impl BusDevice for Ged {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let [happened, ..] = data {
            *happened = self.0.take();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        log::debug!("event device: {data:x?} at {offset} means nothing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Recorder;

    fn read(ged: &mut Ged) -> u8 {
        let mut byte = [0xff];
        ged.read(0, &mut byte);
        byte[0]
    }

    #[test]
    fn what_happened_is_signalled_and_read_once() {
        let events = Arc::new(Events::default());
        let mut ged = Ged(Arc::clone(&events));
        assert!(!events.raise(Event::PowerButton), "no machine is there");
        let line = Arc::new(Recorder::default());
        events.connect(Arc::clone(&line) as _);
        assert!(events.raise(Event::PowerButton) && events.raise(Event::Generation));
        assert_eq!(line.edges(), 2);
        assert_eq!((read(&mut ged), read(&mut ged)), (3, 0));
    }

    #[test]
    fn a_new_machine_does_not_hear_of_the_old_ones_events() {
        let events = Arc::new(Events::default());
        let mut ged = Ged(Arc::clone(&events));
        events.connect(Arc::new(Recorder::default()));
        events.raise(Event::PowerButton);
        events.connect(Arc::new(Recorder::default()));
        assert_eq!(read(&mut ged), 0);
        events.disconnect();
        assert!(!events.raise(Event::PowerButton));
    }

    #[test]
    fn a_saved_event_is_read_with_the_one_that_tells_of_the_copy() {
        let before = Events::default();
        before.connect(Arc::new(Recorder::default()));
        before.raise(Event::PowerButton);
        let events = Arc::new(Events::default());
        let line = Arc::new(Recorder::default());
        events.connect(Arc::clone(&line) as _);
        events.restore(before.save() | 0x80);
        assert!(events.raise(Event::Generation));
        assert_eq!((read(&mut Ged(events)), line.edges()), (3, 1));
    }

    #[test]
    fn other_accesses_do_no_harm() {
        let mut ged = Ged(Arc::default());
        ged.write(0, &[]);
        ged.write(7, &[0xff; 8]);
        ged.read(0, &mut []);
        let mut long = [0xff; 8];
        ged.read(0, &mut long);
        assert_eq!(long, [0; 8]);
    }
}
