//! The way of a block request from the driver's ring to the files and back allocates nothing, whatever the engine, limited or not.

#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::atomic::Ordering;

use labyard_devices::backend::block::BlockBackend;
use labyard_devices::backend::engine::{self, Choice};
use labyard_devices::backend::overlay::{Base, Chain, LayerFiles, Overlay};
use labyard_devices::backend::raw::RawFile;
use labyard_devices::limiter::{Bucket, Limiter, Limits, Rate};
use labyard_devices::testing::{GuestDriver, Watched, readable, writable};
use labyard_devices::virtio::block::Block;
use labyard_devices::virtio::feature;
use labyard_sys::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

const DRIVE_BYTES: u64 = 16 << 20;
/// Headers, data and status bytes of requests in the guest's memory; 64 KiB for each.
const PLACES: u64 = 0x10_0000;
const PLACE: u64 = 0x1_0000;
/// Requests for each kick.
const BURST: u64 = 16;
const ROUNDS: u64 = 60;
/// Rounds of one kind of request each, after which lists of what is in flight are as long as they get. They are not made so from the
/// start: a drive that nobody uses costs little.
const WARM: u64 = 24;

fn file(bytes: u64) -> File {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(bytes).expect("size");
    file
}

fn raw(choice: Choice) -> Box<dyn BlockBackend> {
    let (engine, _) = engine::choose(choice, vec![file(DRIVE_BYTES)]).expect("an engine");
    Box::new(RawFile::over(engine, DRIVE_BYTES, false))
}

fn overlay(choice: Choice) -> Box<dyn BlockBackend> {
    let chain = Chain {
        base: Some(Base { file: file(DRIVE_BYTES / 2), name: "image".into() }),
        frozen: Vec::new(),
        top: LayerFiles { data: file(0), map: file(0) },
        live: false,
        capacity_bytes: DRIVE_BYTES,
    };
    let make = |files| engine::choose(choice, files).map(|(engine, _)| engine);
    Box::new(Overlay::open(chain, make).expect("a drive"))
}

/// Writes of parts of blocks and of many, reads over what was written and what was not, discards and flushes.
fn request(round: u64, place: u64) -> (u32, u64, u32) {
    let number = round * BURST + place;
    let sector = number * 1237 % (DRIVE_BYTES / 512 - 128);
    match if round < WARM { round % 8 } else { number % 8 } {
        0 => (1, sector, 512),
        1 => (1, sector / 8 * 8, 4096),
        2 => (1, sector, 32 << 10),
        3 | 4 => (0, sector, 4096),
        5 => (0, sector, 32 << 10),
        6 => (11, sector, 16),
        _ => (4, 0, 0),
    }
}

#[test]
fn requests_of_every_kind_are_served_without_an_allocation() {
    let before = ALLOCATOR.calls();
    drop(std::hint::black_box(Box::new(1)));
    assert_ne!(ALLOCATOR.calls(), before, "the allocator counts");
    let plenty = Rate { per_second: 1 << 40, burst: 1 << 40 };
    let limits = Limits { bytes: Some(plenty), operations: Some(plenty) };
    for choice in [Choice::Sync, Choice::Auto] {
        for (what, backend) in [("raw", raw(choice)), ("overlay", overlay(choice))] {
            let limiter = Limiter::new(vec![Bucket::new(limits), Bucket::new(Limits::default())]).expect("a timer");
            let block = Box::new(Block::new("d00", backend).limited_by(limiter));
            let (watched, allocations) = Watched::new(block, || ALLOCATOR.calls());
            let mut guest = GuestDriver::power_on(watched);
            guest.set_up(1 << 13 | 1 << 9 | feature::COMMON);
            for round in 0..ROUNDS {
                if round == WARM {
                    allocations.store(0, Ordering::SeqCst);
                }
                for place in 0..BURST {
                    let at = PLACES + place * PLACE;
                    let (kind, sector, len) = request(round, place);
                    let mut header = [0; 16];
                    header[..4].copy_from_slice(&kind.to_le_bytes());
                    header[8..].copy_from_slice(&sector.to_le_bytes());
                    guest.put(at, &header);
                    guest.put(at + 16, &[0xee]);
                    let (head, data, status) = (readable(at, 16), at + 64, writable(at + 16, 1));
                    match kind {
                        0 => guest.offer(0, &[head, writable(data, len), status]),
                        4 => guest.offer(0, &[head, status]),
                        11 => {
                            let mut segment = [0; 16];
                            segment[..8].copy_from_slice(&sector.to_le_bytes());
                            segment[8..12].copy_from_slice(&8u32.to_le_bytes());
                            guest.put(data, &segment);
                            guest.offer(0, &[head, readable(data, len), status])
                        }
                        _ => guest.offer(0, &[head, readable(data, len), status]),
                    };
                }
                guest.kick(0);
                let mut ended = guest.used(0).len();
                while ended < BURST as usize {
                    guest.run();
                    ended += guest.used(0).len();
                }
                for place in 0..BURST {
                    assert_eq!(guest.bytes(PLACES + place * PLACE + 16, 1), [0], "{what}, {choice:?}, request {place}");
                }
            }
            assert_eq!(
                allocations.load(Ordering::SeqCst),
                0,
                "{what}, {choice:?}: allocations while events were handled"
            );
        }
    }
}
