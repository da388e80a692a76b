//! A NIC as a snapshot keeps it. Numbers are little-endian.
//!
//! ```text
//!   u64 offloads that the driver has left on (all ones for all) │ u8 the link is up │ u8 the driver goes on
//!   2 x faults of the link, of what is sent and received: u64 delay, u64 jitter, u64 rate (0 is none), u32 loss, u8 cut
//!   frames: u8 kind │ u32 first segment, or 0 │ u64 microseconds left, or 0 │ u32 length │ virtio header and frame
//!           kind 0 waits for buffers, 1 is on its sender's cable, 2 on its own
//! ```

use labyard_spec::link::LinkFaults;

use crate::switch::line::SavedFrame;
use crate::switch::port::SavedCable;

/// [`crate::virtio::device::DeviceState::version`].
pub(super) const VERSION: u32 = 4;
/// Bytes of one frame, at most: a segment of 64 KiB with tags and a virtio header.
const MAX_FRAME_BYTES: usize = 128 << 10;
const WAITS: u8 = 0;
const SENT: u8 = 1;
const ARRIVING: u8 = 2;

pub(super) struct SavedNic {
    pub(super) offloads: Option<u64>,
    pub(super) link_up: bool,
    /// Frames that wait for buffers; `None` where no driver goes on.
    pub(super) waiting: Option<Vec<(u32, Vec<u8>)>>,
    pub(super) cable: SavedCable,
}

impl SavedNic {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.offloads.unwrap_or(u64::MAX).to_le_bytes().to_vec();
        bytes.push(self.link_up.into());
        bytes.push(self.waiting.is_some().into());
        for LinkFaults { delay_us, jitter_us, loss_ppm, bits_per_second, cut } in [self.cable.sent, self.cable.received]
        {
            for number in [delay_us, jitter_us, bits_per_second.unwrap_or(0)] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend(loss_ppm.to_le_bytes());
            bytes.push(cut.into());
        }
        let waiting = self.waiting.iter().flatten().map(|(next, frame)| (WAITS, *next, 0, frame));
        let under_way = self.cable.under_way.iter().map(|SavedFrame { arriving, left_us, bytes }| {
            (if *arriving { ARRIVING } else { SENT }, 0, *left_us, bytes)
        });
        for (kind, next, left_us, frame) in waiting.chain(under_way) {
            bytes.push(kind);
            bytes.extend(next.to_le_bytes());
            bytes.extend(left_us.to_le_bytes());
            bytes.extend(u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(frame);
        }
        bytes
    }

    /// The other way; the text says what it is not.
    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let head = (|| {
            let bytes = &mut bytes;
            Some((u64::from_le_bytes(take(bytes)?), flag(bytes)?, flag(bytes)?, faults(bytes)?, faults(bytes)?))
        })();
        let (offloads, link_up, goes_on, sent, received) = head.ok_or("not offloads, a link and a driver")?;
        let (mut waiting, mut under_way) = (Vec::new(), Vec::new());
        while !bytes.is_empty() {
            let (kind, next, left_us, frame) = frame(&mut bytes).ok_or("not frames")?;
            match kind {
                WAITS => waiting.push((next, frame)),
                SENT | ARRIVING => under_way.push(SavedFrame { arriving: kind == ARRIVING, left_us, bytes: frame }),
                _ => return Err("not frames"),
            }
        }
        let frames = waiting.len().saturating_add(under_way.len());
        if !goes_on && frames != 0 {
            return Err("frames for a driver that does not go on");
        }
        let cable = SavedCable { sent, received, under_way };
        Ok(Self { offloads: Some(offloads), link_up, waiting: goes_on.then_some(waiting), cable })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

fn flag(bytes: &mut &[u8]) -> Option<bool> {
    match take(bytes)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

fn faults(bytes: &mut &[u8]) -> Option<LinkFaults> {
    let [delay_us, jitter_us, rate] = [take(bytes)?, take(bytes)?, take(bytes)?].map(u64::from_le_bytes);
    let (loss_ppm, cut) = (u32::from_le_bytes(take(bytes)?), flag(bytes)?);
    Some(LinkFaults { delay_us, jitter_us, loss_ppm, bits_per_second: Some(rate).filter(|rate| *rate != 0), cut })
}

fn frame(bytes: &mut &[u8]) -> Option<(u8, u32, u64, Vec<u8>)> {
    let ([kind], next) = (take(bytes)?, u32::from_le_bytes(take(bytes)?));
    let left_us = u64::from_le_bytes(take(bytes)?);
    let len = usize::try_from(u32::from_le_bytes(take(bytes)?)).ok().filter(|len| *len <= MAX_FRAME_BYTES)?;
    let (frame, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some((kind, next, left_us, frame.to_vec()))
}
