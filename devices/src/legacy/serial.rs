//! The serial port, `ttyS0`: a thin shell over vm-superio's 16550A.
//!
//! It carries the kernel's first words; nobody types into it. Its interrupt is an edge.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use crate::bus::BusDevice;
use crate::irq::Line;
use crate::virtio::console::ConsoleOutput;

/// Ports of the window.
pub const WINDOW_BYTES: u64 = 8;

/// What a snapshot keeps: the chip's registers, in the order of the data sheet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

/// A state that the chip does not take.
#[derive(Debug, thiserror::Error)]
#[error("state of the serial port holds more input than the chip")]
pub struct FullFifo;

struct Edge(Arc<dyn Line>);

impl Trigger for Edge {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.raise();
        Ok(())
    }
}

struct Out(Box<dyn ConsoleOutput>);

impl io::Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port.
pub struct SerialPort {
    chip: Serial<Edge, NoEvents, Out>,
}

impl SerialPort {
    /// A port that prints to `output` and signals on `line`.
    pub fn new(line: Arc<dyn Line>, output: Box<dyn ConsoleOutput>) -> Self {
        Self { chip: Serial::new(Edge(line), Out(output)) }
    }

    /// What a snapshot keeps.
    pub fn save(&self) -> State {
        let state = self.chip.state();
        State {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }

    /// A port that goes on where `save` was called.
    pub fn restore(state: &State, line: Arc<dyn Line>, output: Box<dyn ConsoleOutput>) -> Result<Self, FullFifo> {
        let state = SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.clone(),
        };
        let chip = Serial::from_state(&state, Edge(line), NoEvents, Out(output)).map_err(|_| FullFifo)?;
        Ok(Self { chip })
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.chip.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // The output takes everything; a full input while looped back is the guest's own loss.
            if let Err(error) = self.chip.write(offset, *byte) {
                log::debug!("serial: {error:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Recorder;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl ConsoleOutput for Paper {
        fn write(&mut self, bytes: &[u8]) {
            self.0.lock().expect("lock").extend_from_slice(bytes);
        }
    }

    fn port() -> (SerialPort, Paper, Recorder) {
        let (paper, line) = (Paper::default(), Recorder::default());
        (SerialPort::new(Arc::new(line.clone()), Box::new(paper.clone())), paper, line)
    }

    #[test]
    fn written_bytes_are_printed() {
        let (mut port, paper, _) = port();
        for byte in b"Linux" {
            port.write(0, &[*byte]);
        }
        port.write(0, b"no word accesses");
        port.write(900, &[1]);
        assert_eq!(*paper.0.lock().expect("lock"), b"Linux");
        let mut status = [0];
        port.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60, "the transmitter is empty");
    }

    #[test]
    fn an_enabled_interrupt_is_one_edge() {
        let (mut port, _, line) = port();
        port.write(1, &[2]);
        port.read(2, &mut [0]); // takes what enabling has raised
        let before = line.edges();
        port.write(0, b"x");
        assert_eq!(line.edges(), before + 1);
    }

    #[test]
    fn a_saved_port_keeps_its_registers() {
        let (mut port, _, line) = port();
        for (register, value) in [(7, 0x5a), (3, 0x83), (0, 12), (1, 0), (3, 3), (1, 2)] {
            port.write(register, &[value]);
        }
        let state: State = serde_json::from_str(&serde_json::to_string(&port.save()).expect("data")).expect("data");
        let paper = Paper::default();
        let mut restored = SerialPort::restore(&state, Arc::new(line), Box::new(paper.clone())).expect("its own state");
        let mut scratch = [0];
        restored.read(7, &mut scratch);
        assert_eq!((scratch, restored.save()), ([0x5a], state));
        restored.write(0, b"y");
        assert_eq!(*paper.0.lock().expect("lock"), b"y");
    }
}
