//! A drive whose ring was made ahead lets go of its files' leases when it goes, though the ring lets go of the files later. A process of its
//! own, for whoever reserves rings has no others.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

use labyard_devices::Memory;
use labyard_devices::backend::block::{BlockBackend, Operation, Tag};
use labyard_devices::backend::engine::uring::{DEPTH, UringEngine};
use labyard_devices::backend::overlay::{Chain, LayerFiles, Overlay};
use labyard_sys::iov::GuestSlices;
use labyard_sys::lease::{self, Lease};
use labyard_sys::uring;
use vm_memory::{GuestAddress, GuestMemoryBackend};

const CAPACITY: u64 = 1 << 20;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("opening")
}

fn end(drive: &mut Overlay<UringEngine>, tag: Tag) {
    drive.kick();
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "request {tag} is still under way");
        match drive.collect() {
            Some(completion) => {
                completion.result.expect("it succeeds");
                return assert_eq!(completion.tag, tag);
            }
            None => std::thread::yield_now(),
        }
    }
}

#[test]
fn a_drive_can_be_taken_again_as_soon_as_it_is_gone_from_a_ring_that_stays() {
    assert_eq!(uring::reserve(1, DEPTH), 1, "this kernel has io_uring");
    let folder = tempfile::tempdir().expect("a folder");
    let (data, map) = (folder.path().join("data"), folder.path().join("map"));
    let memory = Memory::from_ranges(&[(GuestAddress(0), 64 << 10)]).expect("memory");
    for round in 0..50u64 {
        let top = LayerFiles { data: open(&data), map: open(&map) };
        let chain = Chain { base: None, frozen: Vec::new(), top, live: false, capacity_bytes: CAPACITY };
        let made = Overlay::open(chain, |files| UringEngine::new(files).map_err(|refused| refused.why));
        let mut drive = made.unwrap_or_else(|error| panic!("round {round}: {error}"));
        drive.attach(&memory);
        let mut from = GuestSlices::new();
        assert!(from.push(memory.get_slice(GuestAddress(0), 8192).expect("memory")));
        drive.submit(1, Operation::Write { offset: round * 8192, from });
        end(&mut drive, 1);
        drive.submit(2, Operation::Flush);
        end(&mut drive, 2);
        if round % 2 == 0 {
            drive.detach();
        }
        drop(drive);
        for path in [&data, &map] {
            assert!(lease::take(open(path), Lease::Writer).expect("flock"), "round {round}: {}", path.display());
        }
    }
}
