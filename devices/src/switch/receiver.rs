//! The receiving side of a NIC at work: frames into the buffers of its driver.

use std::sync::Arc;

use super::claim::Undone;
use super::frame::Frame;
use super::offload::{self, Shape};
use crate::Memory;
use crate::fault::Faults;
use crate::irq::Interrupt;
use crate::virtio::chain::{Merged, RingFault, Taken};
use crate::worker::ActiveQueue;

/// A receiver.
pub struct Receiver {
    /// Its receive queue.
    pub queue: ActiveQueue,
    /// Its guest's memory.
    pub mem: Memory,
    /// Its signals.
    pub irq: Arc<dyn Interrupt>,
    /// Its counter.
    pub faults: Faults,
    abilities: Abilities,
    merged: Merged,
}

/// What a receiver's driver has agreed to.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Those of [`offload::GUEST_OFFLOADS`] that are on.
    pub offloads: u64,
    /// A frame may take several buffers (VIRTIO_NET_F_MRG_RXBUF, VIRTIO 1.2, §5.1.6.4).
    pub merges: bool,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// All of it was given.
    Done,
    /// The guest has no buffer for the rest, and will kick when it has.
    NoBuffer,
}

impl Receiver {
    /// The receiving side of a NIC.
    pub fn new(queue: ActiveQueue, mem: Memory, irq: Arc<dyn Interrupt>, faults: Faults, abilities: Abilities) -> Self {
        let merged = Merged::with_capacity(queue.ring.size());
        Self { queue, mem, irq, faults, abilities, merged }
    }

    /// The driver has turned offloads on or off.
    pub(super) fn set_offloads(&mut self, offloads: u64) {
        self.abilities.offloads = offloads;
    }

    /// Gives the frame, or what of it comes from segment `next` on. `next` moves with what was given.
    pub(super) fn give(&mut self, frame: &Frame<'_>, next: &mut u32) -> Result<Delivery, RingFault> {
        let offloads = self.abilities.offloads;
        let cut = match frame.undone() {
            Undone::Segments(cut) if *next != 0 || !offload::takes_whole(frame, offloads) => cut,
            _ => {
                let given = self.put(frame, &mut Shape::whole(frame, offloads))?;
                if given == Delivery::Done {
                    *next = frame.segments();
                }
                return Ok(given);
            }
        };
        while *next < frame.segments() {
            if self.put(frame, &mut Shape::segment(frame, cut, *next, offloads))? == Delivery::NoBuffer {
                return Ok(Delivery::NoBuffer);
            }
            *next = next.saturating_add(1);
        }
        Ok(Delivery::Done)
    }

    /// Puts one frame into the next buffers of the guest. Buffers that it does not fit into go back empty.
    fn put(&mut self, frame: &Frame<'_>, shape: &mut Shape) -> Result<Delivery, RingFault> {
        let room = shape.room();
        loop {
            if !self.gather(room)? {
                return Ok(Delivery::NoBuffer);
            }
            let chain = self.merged.chain();
            let fits = chain.readable_len() == 0 && chain.writable_len() >= room;
            let filled = fits && shape.write(frame, self.merged.count(), chain, &self.mem);
            if !filled {
                self.faults.note(format_args!("receive buffers that {room} bytes do not fit into"));
            }
            let written = if filled { room } else { 0 };
            self.queue.ring.complete_all(&self.mem, &mut self.merged, written)?;
            if filled {
                return Ok(Delivery::Done);
            }
        }
    }

    /// Takes buffers until they have the room, or one that can be of no use. `false` where there are not enough: then they
    /// stay where they were, and the driver will kick when it has added one.
    fn gather(&mut self, room: u64) -> Result<bool, RingFault> {
        let Self { queue, mem, faults, abilities, merged, .. } = self;
        merged.clear();
        loop {
            match queue.ring.take(mem, merged, faults)? {
                Taken::Good => {
                    // A driver that spreads a frame over more descriptors than its queue has hides them in tables.
                    let too_many = merged.descriptors() > usize::from(queue.ring.size());
                    let chain = merged.chain();
                    let enough = chain.writable_len() >= room;
                    if enough || !abilities.merges || too_many || chain.readable_len() != 0 {
                        return Ok(true);
                    }
                }
                Taken::Broken if merged.count() == 0 => {}
                // What was taken before it cannot be put back, because it went back between them: too small as it is.
                Taken::Broken => return Ok(true),
                // Asked to be kicked, looked again, found nothing.
                Taken::Nothing if queue.ring.enable_kicks(mem)? => {}
                Taken::Nothing => {
                    queue.ring.put_back_all(merged);
                    return Ok(false);
                }
            }
        }
    }
}
