//! What a drive in layers takes from the allocator: little at rest, nothing at work.

use std::fs::File;

use labyard_devices::Memory;
use labyard_devices::backend::block::{BlockBackend, Operation};
use labyard_devices::backend::overlay::{Chain, LayerFiles, Overlay};
use labyard_sys::counting::Counting;
use labyard_sys::iov::GuestSlices;
use labyard_sys::memfd;
use vm_memory::{GuestAddress, GuestMemoryBackend};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

fn file() -> File {
    memfd::create("layer", 0).expect("a file")
}

#[test]
fn an_untouched_drive_of_thirty_gib_is_below_sixteen_kib_and_one_at_work_allocates_nothing() {
    let chain = Chain {
        base: None,
        frozen: Vec::new(),
        top: LayerFiles { data: file(), map: file() },
        live: false,
        capacity_bytes: 30 << 30,
    };
    let before = ALLOCATOR.bytes();
    let mut drive = Overlay::new(chain).expect("a drive");
    let taken = ALLOCATOR.bytes() - before;
    assert!(taken < 16 << 10, "{taken} bytes");

    let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
    drive.attach(&memory);
    let slices = |len: usize| GuestSlices::one(memory.get_slice(GuestAddress(0), len).expect("memory"));
    let mut round = |at: u64| {
        let offset = at * 65536 % (100 << 20);
        for tag in 0..8u16 {
            let offset = offset + u64::from(tag) * 8192;
            match tag {
                0..3 => drive.submit(tag, Operation::Write { offset, from: slices(4096) }),
                3 => drive.submit(tag, Operation::Write { offset: offset + 512, from: slices(1024) }),
                4 | 5 => drive.submit(tag, Operation::Read { offset, into: slices(8192) }),
                6 => drive.submit(tag, Operation::Discard { offset, len: 4096 }),
                _ => drive.submit(tag, Operation::Flush),
            }
        }
        let mut ended = 0;
        while let Some(completion) = drive.collect() {
            completion.result.expect("no error");
            ended += 1;
        }
        assert_eq!(ended, 8);
    };
    round(0);
    let before = ALLOCATOR.calls();
    (1..500).for_each(&mut round);
    assert_eq!(ALLOCATOR.calls() - before, 0, "allocations of 4,000 requests");
}
