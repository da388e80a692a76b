//! A guest's driver, as small as one can be, that may also lie.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::host::{InlineHost, Recorder};
use crate::Memory;
use crate::bus::BusDevice;
use crate::virtio::chain::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use crate::virtio::device::VirtioDevice;
use crate::virtio::feature;
use crate::virtio::transport::mmio::{MmioTransport, QUEUE_NOTIFY, status};

/// Bytes of the guest's memory. Buffers of tests lie below [`RINGS`].
const MEMORY: usize = 4 << 20;
/// Rings of queue `n` start at `RINGS + n * RING`.
const RINGS: u64 = 0x30_0000;
const RING: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;

/// One buffer of a request.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    address: u64,
    len: u32,
    flags: u16,
    next: Option<u16>,
}

/// A buffer that the device reads.
pub fn readable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, flags: 0, next: None }
}

/// A buffer that the device writes.
pub fn writable(address: u64, len: u32) -> Buffer {
    Buffer { address, len, flags: DESC_F_WRITE, next: None }
}

impl Buffer {
    /// Lies about what follows: descriptor `next`, whatever that is.
    pub fn then(self, next: u16) -> Self {
        Self { next: Some(next), ..self }
    }

    /// Says that the buffer is a table of descriptors.
    pub fn indirect(self) -> Self {
        Self { flags: self.flags | DESC_F_INDIRECT, ..self }
    }

    /// What it lets the device fill: address and length.
    pub fn room(&self) -> Option<(u64, u32)> {
        (self.flags & DESC_F_WRITE != 0).then_some((self.address, self.len))
    }

    /// The descriptor, as it lies in memory.
    pub fn encode(self, following: Option<u16>) -> [u8; 16] {
        let next = self.next.or(following);
        let flags = self.flags | if next.is_some() { DESC_F_NEXT } else { 0 };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
        bytes
    }
}

struct Queue {
    size: u16,
    next_descriptor: u16,
    avail: u16,
    seen: u16,
}

/// A guest with one device.
pub struct GuestDriver {
    mem: Memory,
    transport: MmioTransport,
    host: InlineHost,
    line: Recorder,
    queues: Vec<Queue>,
}

impl GuestDriver {
    /// Sets the device up with every feature but VIRTIO_F_EVENT_IDX, so that each kick and each signal is seen.
    pub fn attach(device: Box<dyn VirtioDevice>) -> Self {
        let mut guest = Self::power_on(device);
        guest.set_up(!feature::EVENT_IDX);
        guest
    }

    /// A device that no driver has touched.
    pub fn power_on(device: Box<dyn VirtioDevice>) -> Self {
        Self::power_on_at(device, InlineHost::default())
    }

    /// The same, with workers run by `host`, so that several guests can share one.
    pub fn power_on_at(device: Box<dyn VirtioDevice>, host: InlineHost) -> Self {
        let mem = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory");
        let line = Recorder::default();
        let transport =
            MmioTransport::new(device, mem.clone(), Box::new(line.clone()), Arc::new(host.clone())).expect("eventfds");
        let size = |size: &u16| Queue { size: *size, next_descriptor: 0, avail: 0, seen: 0 };
        let queues = transport.info().queue_sizes.iter().map(size).collect();
        Self { mem, transport, host, line, queues }
    }

    /// Walks through the status bits with the features of the device in `mask`.
    pub fn set_up(&mut self, mask: u64) {
        self.negotiate(mask);
        for queue in 0..self.queues.len() {
            self.set_up_queue(queue);
        }
        let had = self.read(0x70);
        self.write(0x70, had | status::DRIVER_OK);
        self.run();
    }

    /// Up to FEATURES_OK.
    pub fn negotiate(&mut self, mask: u64) {
        self.write(0x70, status::ACKNOWLEDGE);
        self.write(0x70, status::ACKNOWLEDGE | status::DRIVER);
        for word in 0..2 {
            self.write(0x14, word);
            let offered = self.read(0x10);
            self.write(0x24, word);
            self.write(0x20, offered & (mask >> (32 * word)) as u32);
        }
        self.write(0x70, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    }

    /// Gives one queue its rings, empty.
    pub fn set_up_queue(&mut self, queue: usize) {
        let base = RINGS + queue as u64 * RING;
        self.put(base, &[0; RING as usize]);
        let size = self.queues[queue].size;
        self.queues[queue] = Queue { size, next_descriptor: 0, avail: 0, seen: 0 };
        self.write(0x30, queue as u32);
        self.write(0x38, size.into());
        for (register, address) in [(0x80, base), (0x90, base + AVAIL), (0xa0, base + USED)] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    /// From the next set-up on the queue has `size` entries, where that is less than it may have.
    pub fn shorten_queue(&mut self, queue: usize, size: u16) {
        let most = self.transport.info().queue_sizes[queue];
        self.queues[queue].size = size.clamp(1, most);
    }

    /// Offers one request without a kick; the index of its first descriptor.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let base = RINGS + queue as u64 * RING;
        let first = self.queues[queue].next_descriptor;
        for (position, buffer) in (first..).zip(buffers) {
            let size = self.queues[queue].size;
            let last = usize::from(position - first) + 1 == buffers.len();
            let bytes = buffer.encode((!last).then_some((position + 1) % size));
            self.put(base + u64::from(position % size) * 16, &bytes);
        }
        let size = self.queues[queue].size;
        self.queues[queue].next_descriptor = (first + buffers.len() as u16) % size;
        self.offer_head(queue, first);
        first
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn offer_head(&mut self, queue: usize, head: u16) {
        let base = RINGS + queue as u64 * RING + AVAIL;
        let Queue { size, avail, .. } = &mut self.queues[queue];
        let place = base + 4 + u64::from(*avail % *size) * 2;
        *avail = avail.wrapping_add(1);
        let avail = *avail;
        self.put(place, &head.to_le_bytes());
        self.set_avail(queue, avail);
    }

    /// Writes the index of the available ring, whatever it is.
    pub fn set_avail(&mut self, queue: usize, index: u16) {
        self.put(RINGS + queue as u64 * RING + AVAIL + 2, &index.to_le_bytes());
    }

    /// Index of the available ring, as it was written last.
    pub fn avail_index(&self, queue: usize) -> u16 {
        self.queues[queue].avail
    }

    /// After which index of the available ring the device wants to be kicked (avail_event, VIRTIO 1.2, §2.7.8).
    pub fn avail_event(&self, queue: usize) -> u16 {
        let at = RINGS + queue as u64 * RING + USED + 4 + u64::from(self.queues[queue].size) * 8;
        u16::from_le_bytes(self.bytes(at, 2).try_into().expect("two bytes"))
    }

    /// Says after which index of the used ring to signal (used_event, VIRTIO 1.2, §2.7.6).
    pub fn set_used_event(&mut self, queue: usize, index: u16) {
        let at = RINGS + queue as u64 * RING + AVAIL + 4 + u64::from(self.queues[queue].size) * 2;
        self.put(at, &index.to_le_bytes());
    }

    /// Asks not to be signalled (VIRTQ_AVAIL_F_NO_INTERRUPT), or to be.
    pub fn set_avail_flags(&mut self, queue: usize, flags: u16) {
        self.put(RINGS + queue as u64 * RING + AVAIL, &flags.to_le_bytes());
    }

    /// Notifies the device, and lets it work until it has nothing left to do.
    pub fn kick(&mut self, queue: usize) {
        self.write(QUEUE_NOTIFY as u32, queue as u32);
        self.run();
    }

    /// Lets every worker of the host work until none has anything left to do.
    pub fn run(&mut self) {
        self.host.run();
    }

    /// Requests that came back since the last call: first descriptor, bytes written.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let base = RINGS + queue as u64 * RING + USED;
        let index = u16::from_le_bytes(self.bytes(base + 2, 2).try_into().expect("two bytes"));
        let mut used = Vec::new();
        while self.queues[queue].seen != index {
            let place = base + 4 + u64::from(self.queues[queue].seen % self.queues[queue].size) * 8;
            let word = |at| u32::from_le_bytes(self.bytes(at, 4).try_into().expect("four bytes"));
            used.push((word(place) as u16, word(place + 4)));
            self.queues[queue].seen = self.queues[queue].seen.wrapping_add(1);
        }
        used
    }

    /// Bytes of the guest's memory.
    pub fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(address)).expect("within the guest's memory");
        bytes
    }

    /// Changes the guest's memory.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(address)).expect("within the guest's memory");
    }

    /// Edges on the device's line so far.
    pub fn interrupts(&self) -> u64 {
        self.line.edges()
    }

    /// Mistakes that the device has counted.
    pub fn faults(&self) -> u64 {
        self.transport.faults().count()
    }

    /// Reads a register.
    pub fn read(&mut self, register: u32) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes a register.
    pub fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// Reads the configuration space.
    pub fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.transport.read(0x100 + offset, &mut bytes);
        bytes
    }

    /// Writes the configuration space.
    pub fn write_config(&mut self, offset: u64, bytes: &[u8]) {
        self.transport.write(0x100 + offset, bytes);
        self.run();
    }

    /// Whether the device has given up and waits for a reset.
    pub fn needs_reset(&mut self) -> bool {
        self.read(0x70) & status::NEEDS_RESET != 0
    }

    /// Whether the driver has said DRIVER_OK and the device has not given up.
    pub fn is_at_work(&mut self) -> bool {
        self.read(0x70) & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// The power goes: the device, where it was not lost.
    pub fn power_off(self) -> Option<Box<dyn VirtioDevice>> {
        self.transport.into_device()
    }

    /// The device behind its registers.
    pub fn transport(&mut self) -> &mut MmioTransport {
        &mut self.transport
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Memory {
        &self.mem
    }
}
