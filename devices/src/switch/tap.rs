//! A tap device of the host's on a port, in place of a guest: the gateway of a network that has a way out.
//!
//! Frames for it are written by the thread of whoever sends them, one copy through a buffer that is kept; a device that is full drops them.
//! Frames from it are read by a thread of its own ([`Gateway`]), burst by burst, and go on as a guest's do.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use labyard_sys::tap;

use super::claim::{F_CSUM, F_HOST_TSO4, F_HOST_TSO6, NET_HEADER_BYTES, Undone};
use super::frame::Frame;
use super::offload::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, Shape, takes_whole};
use super::{Plug, Touched};
use crate::fault::Faults;
use crate::worker::{Source, Token};

/// What Linux takes from whoever writes to a tap: no large datagrams, which it learned late (6.2).
const TAKES: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;
/// What it leaves to whoever reads.
const LEAVES: u64 = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6;
/// Bytes of the largest frame: a segment of 64 KiB with tags and a virtio header.
const MAX_FRAME_BYTES: usize = (64 << 10) + 64;
/// Frames that are read before receivers are signalled.
const BURST: usize = 64;
const READABLE: Token = 0;
const DUE: Token = 1;

/// The writing side.
pub struct Tap {
    device: Arc<File>,
    buffer: Vec<u8>,
}

impl Tap {
    /// Writes a frame, cut where the kernel does not take it whole; how many of its segments the device took.
    pub(super) fn send(&mut self, frame: &Frame<'_>) -> u32 {
        let Self { device, buffer } = self;
        let mut put = |mut shape: Shape| shape.write_to(frame, buffer) && tap::send(&**device, buffer).is_ok();
        match frame.undone() {
            Undone::Segments(cut) if !takes_whole(frame, TAKES) => {
                let count = frame.segments();
                (0..count).take_while(|number| put(Shape::segment(frame, cut, *number, TAKES))).count() as u32
            }
            _ => {
                if put(Shape::whole(frame, TAKES)) {
                    frame.segments()
                } else {
                    0
                }
            }
        }
    }
}

/// The reading side, for a thread that waits for its sources. Dropped, it leaves the network and lets go of the device, which is closed where
/// nobody else has it.
pub struct Gateway {
    plug: Plug,
    device: Arc<File>,
    buffer: Vec<u8>,
    touched: Touched,
    faults: Faults,
}

impl Gateway {
    /// Plugs a tap device in. It has a virtio header of 12 bytes in front of each frame, and never blocks.
    pub fn new(plug: Plug, device: File) -> Self {
        let device = Arc::new(device);
        if let Some(port) = plug.port() {
            port.plug_tap(Tap { device: Arc::clone(&device), buffer: Vec::with_capacity(MAX_FRAME_BYTES) });
        }
        let (touched, faults) = (plug.touched(), Faults::new(&format!("gateway of {}", plug.network())));
        Self { plug, device, buffer: vec![0; MAX_FRAME_BYTES], touched, faults }
    }

    /// Its plug.
    pub fn plug(&self) -> &Plug {
        &self.plug
    }

    /// The network that it is the gateway of.
    pub fn network(&self) -> &str {
        self.plug.network()
    }

    /// What to wait on.
    pub fn sources(&self) -> Vec<Source> {
        let timer = self.plug.port().and_then(|port| port.timer());
        let due = timer.map(|timer| Source { fd: timer.as_raw_fd(), token: DUE });
        std::iter::once(Source { fd: self.device.as_raw_fd(), token: READABLE }).chain(due).collect()
    }

    /// A source is ready.
    ///
    /// # Errors
    /// The device is gone.
    pub fn on_event(&mut self, token: Token) -> io::Result<()> {
        if token == DUE {
            self.plug.come_due(Instant::now());
            return Ok(());
        }
        let outcome = self.read_burst();
        self.plug.signal(&mut self.touched);
        outcome
    }

    fn read_burst(&mut self) -> io::Result<()> {
        for _ in 0..BURST {
            let Some(len) = tap::receive(&*self.device, &mut self.buffer)? else { return Ok(()) };
            let bytes = self.buffer.get_mut(..len).filter(|bytes| bytes.len() > NET_HEADER_BYTES);
            match bytes.map(|bytes| Frame::in_bytes(bytes, LEAVES)) {
                Some(Ok(frame)) => self.plug.send(&frame, &mut self.touched, &self.faults),
                Some(Err(bad)) => {
                    self.plug.refused();
                    self.faults.note(bad);
                }
                None => self.plug.refused(),
            }
        }
        Ok(())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.plug.leave();
        self.plug.port.unplug_tap();
    }
}
