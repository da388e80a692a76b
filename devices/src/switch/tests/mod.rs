//! Guests on a switch, from their drivers' side.

mod coming;
mod counted;
mod forwarding;
mod gateway;
mod hostile;
mod links;
mod offloads;
mod packets;
mod threads;

use std::collections::HashMap;

use super::*;
use crate::switch::counters::Count;
use crate::testing::{Buffer, GuestDriver, InlineHost, readable, writable};
use crate::virtio::feature;
use crate::virtio::net::Net;

const RX: usize = 0;
const TX: usize = 1;
const BROADCAST: [u8; 6] = [0xff; 6];
/// The virtio header of a complete frame.
const COMPLETE: [u8; 12] = [0; 12];
/// Where frames are sent from; receive buffers lie behind.
const SENT: u64 = 0x2000;
const BUFFERS: u64 = 0x4_0000;

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

/// A guest and the buffers that it has offered.
struct Nic {
    driver: GuestDriver,
    plug: Plug,
    posted: HashMap<u16, u64>,
    next: u64,
    /// Receive buffers that the device has.
    offered: usize,
}

/// What a guest received: the virtio header in front and the frame.
type Received = (Vec<u8>, Vec<u8>);

/// One guest for each mask of features that its driver accepts.
fn network(masks: &[u64]) -> Vec<Nic> {
    let specs: Vec<_> = (1..).zip(masks).map(|(n, _)| PortSpec { mac: mac(n), mtu: 1500 }).collect();
    let host = InlineHost::default();
    let plugs = Switch::with_ports("local", &specs);
    plugs
        .into_iter()
        .zip(masks)
        .map(|(plug, mask)| {
            let mut driver = GuestDriver::power_on_at(Box::new(Net::new("eth0", plug.clone())), host.clone());
            driver.set_up(*mask);
            assert_eq!(driver.read(0x70), 0xf, "{mask:#x} was refused");
            Nic { driver, plug, posted: HashMap::new(), next: BUFFERS, offered: 0 }
        })
        .collect()
}

impl Nic {
    /// Sends a frame behind a virtio header, in pieces of these sizes and a last one with the rest.
    fn send_pieces(&mut self, header: [u8; 12], frame: &[u8], pieces: &[u32]) {
        self.driver.put(SENT, &header);
        self.driver.put(SENT + 12, frame);
        let (mut buffers, mut at, end) = (Vec::new(), SENT, SENT + 12 + frame.len() as u64);
        for piece in pieces {
            let piece = (*piece).min((end - at) as u32);
            if piece != 0 {
                buffers.push(readable(at, piece));
                at += u64::from(piece);
            }
        }
        if end > at {
            buffers.push(readable(at, (end - at) as u32));
        }
        let head = self.driver.offer(TX, &buffers);
        self.driver.kick(TX);
        assert_eq!(self.driver.used(TX), [(head, 0)], "the sender's buffers always come back");
    }

    fn send(&mut self, header: [u8; 12], frame: &[u8]) {
        self.send_pieces(header, frame, &[12, frame.len() as u32 / 2]);
    }

    /// Offers `count` receive buffers of `len` bytes.
    fn post(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            if self.next + u64::from(len) > 0x30_0000 {
                self.next = BUFFERS;
            }
            let head = self.driver.offer(RX, &[writable(self.next, len)]);
            self.posted.insert(head, self.next);
            self.next += u64::from(len);
        }
        self.offered += count;
        self.driver.kick(RX);
    }

    /// Takes what was received.
    fn received(&mut self) -> Vec<Received> {
        let used = self.driver.used(RX);
        self.offered -= used.len();
        let mut used = used.into_iter();
        let mut frames = Vec::new();
        while let Some((head, len)) = used.next() {
            let mut bytes = self.driver.bytes(self.posted[&head], len as usize);
            assert!(bytes.len() > 12, "a buffer without a header");
            let header = bytes[..12].to_vec();
            for _ in 1..u16::from_le_bytes([header[10], header[11]]) {
                let (head, len) = used.next().expect("all buffers of a frame come back at once");
                bytes.extend(self.driver.bytes(self.posted[&head], len as usize));
            }
            frames.push((header, bytes.split_off(12)));
        }
        frames
    }

    fn count(&self, count: Count) -> u64 {
        self.plug.port().expect("a port").snapshot().get(count)
    }
}

fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[0x08, 0x00], payload].concat()
}

/// A pair of buffers at an address, for tests that look at buffers themselves.
fn two_buffers(at: u64) -> [Buffer; 2] {
    [writable(at, 100), writable(at + 0x800, 1500)]
}
