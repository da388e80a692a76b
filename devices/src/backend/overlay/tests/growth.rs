//! Drives that become larger: while a guest uses them, while nobody does, and cut short in between.

use super::*;
use crate::backend::block::GrowError;
use labyard_spec::overlay::{
    Header, LayerId, PAGE_BLOCKS, PAGE_BYTES, PAGE_WORDS, encode_page, map_bytes, page_offset,
};
use std::os::unix::fs::FileExt;

/// A whole page of the map and a little more; then three pages, and half a block.
const SMALL: u64 = PAGE_BLOCKS * BLOCK_BYTES + (1 << 20);
const LARGE: u64 = 3 * PAGE_BLOCKS * BLOCK_BYTES + 2048;

/// Asks on another thread, as it is in life, while `at_work` goes on.
fn grown<E: Engine>(guest: &mut Guest<E>, bytes: u64, mut at_work: impl FnMut(&mut Guest<E>)) -> Result<(), GrowError> {
    let handle = guest.drive.remote().expect("an overlay grows");
    let asked = std::thread::spawn(move || handle.grow(bytes));
    while !asked.is_finished() {
        at_work(guest);
    }
    asked.join().expect("no panic")
}

fn pump<E: Engine>(guest: &mut Guest<E>) {
    assert!(guest.drive.collect().is_none());
}

#[test]
fn a_drive_that_grows_keeps_what_it_has_and_its_new_part_is_zeros_that_can_be_written() {
    let mut place = Place::new(Some(vec![1; 8192]), SMALL - 512);
    let mut guest = place.guest();
    guest.write(4096, &[2; 512]);
    guest.write(SMALL - 1024, &[3; 512]);
    guest.flush();
    grown(&mut guest, LARGE, pump).expect("larger");
    assert_eq!(guest.drive.capacity_bytes(), LARGE);
    assert_eq!(guest.read(SMALL - 1024, 1024), [[3; 512], [0; 512]].concat());
    guest.write(LARGE - 512, &[4; 512]);
    guest.write(SMALL - 512, &[5; 512]);
    guest.flush();
    assert!(matches!(grown(&mut guest, SMALL, pump), Err(GrowError::Smaller { .. })));
    grown(&mut guest, LARGE, pump).expect("it has that already");
    drop(guest);
    place.capacity_bytes = LARGE;
    let mut guest = place.guest();
    let mut first = [[1; 4096], [1; 4096]].concat();
    first[4096..4608].fill(2);
    assert_eq!(guest.read(0, 8192), first);
    assert_eq!(guest.read(SMALL - 1024, 1024), [[3; 512], [5; 512]].concat());
    assert_eq!(guest.read(LARGE - 1024, 1024), [[0; 512], [4; 512]].concat());
}

#[test]
fn a_drive_grows_while_flushes_and_writes_never_stop() {
    let place = Place::new(None, SMALL);
    let make = |files| Ok(Shuffled::new(SyncEngine::new(files), 5));
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    let mut ended = [true; 3];
    let mut turn = 0u64;
    let work = |guest: &mut Guest<Shuffled<SyncEngine>>| {
        turn += 1;
        for tag in (0..3).filter(|tag| std::mem::take(&mut ended[usize::from(*tag)])) {
            match tag {
                0 => guest.drive.submit(0, Operation::Flush),
                _ => guest.start_write(tag, turn % 200 * 4096 + u64::from(tag) * 512, &[9; 512]),
            }
        }
        if let Some(completion) = guest.drive.collect() {
            completion.result.expect("no error");
            ended[usize::from(completion.tag)] = true;
        }
    };
    grown(&mut guest, LARGE, work).expect("larger");
    assert_eq!(guest.drive.capacity_bytes(), LARGE);
}

#[test]
fn a_drive_whose_flush_waits_for_room_grows_once_there_is_some() {
    use super::full::Filling;
    use std::sync::atomic::{AtomicBool, Ordering};
    let full = Arc::new(AtomicBool::new(false));
    let place = Place::new(None, SMALL);
    let make = |files| Ok(Filling { inner: SyncEngine::new(files), full: full.clone(), refused: Vec::new() });
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    guest.write(0, &[1; 4096]);
    full.store(true, Ordering::SeqCst);
    guest.drive.submit(1, Operation::Flush);
    assert!(guest.drive.collect().is_none(), "its page of the map finds no room");
    let mut flushed = false;
    let work = |guest: &mut Guest<_>| {
        if guest.drive.mail.is_asked() {
            full.store(false, Ordering::SeqCst);
        }
        flushed |= guest.drive.collect().is_some_and(|completion| completion.result.is_ok());
    };
    grown(&mut guest, LARGE, work).expect("larger");
    assert!(flushed);
}

#[test]
fn a_growth_that_is_cut_short_leaves_the_old_size_or_the_new_one() {
    let lengthened: fn(&Place) = |place| open(&place.path(0, "data")).set_len(LARGE).expect("longer");
    let both: fn(&Place) = |place| {
        open(&place.path(0, "data")).set_len(LARGE).expect("longer");
        open(&place.path(0, "map")).set_len(map_bytes(LARGE)).expect("longer");
    };
    for cut in [lengthened, both] {
        for bytes in [SMALL, LARGE] {
            let mut place = Place::new(None, SMALL);
            let mut guest = place.guest();
            guest.write(SMALL - 512, &[7; 512]);
            guest.flush();
            drop(guest);
            cut(&place);
            place.capacity_bytes = bytes;
            let mut guest = place.guest();
            assert_eq!(guest.read(SMALL - 1024, 1024), [[0; 512], [7; 512]].concat());
            let LayerFiles { data, map } = place.files(0);
            let lengths = [data, map].map(|file| file.metadata().expect("metadata").len());
            assert_eq!(lengths, [bytes, map_bytes(bytes)]);
            guest.write(bytes - 512, &[8; 512]);
            guest.flush();
        }
    }
}

#[test]
fn final_pages_of_a_freeze_that_failed_are_not_taken_for_flushed_ones() {
    let mut place = Place::new(Some(vec![1; 1 << 20]), SMALL);
    let mut guest = place.guest();
    guest.write(0, &[2; 512]);
    guest.flush();
    drop(guest);
    // As a freeze writes them that could not be finished: final pages, which count on from the two flushed ones.
    let map = place.files(0).map;
    let mut bytes = [0; 512];
    map.read_exact_at(&mut bytes, 0).expect("reading");
    let LayerId(id) = Header::decode(&bytes).expect("a header").layer;
    let mut page = [0; PAGE_BYTES];
    for number in [2, 3] {
        encode_page(LayerId(id), number, &[1; PAGE_WORDS], &mut page);
        map.write_all_at(&page, page_offset(number)).expect("writing");
    }
    place.capacity_bytes = LARGE;
    let guest = place.guest();
    assert_eq!(
        guest.drive.layers[0].bits.run(1, 4 * PAGE_BLOCKS),
        (false, 4 * PAGE_BLOCKS),
        "only the first block is there"
    );
}

#[test]
fn a_frozen_layer_is_as_large_as_it_was_and_its_clone_grows() {
    let mut place = Place::new(None, SMALL);
    let mut guest = place.guest();
    guest.write(SMALL - 512, &[6; 512]);
    guest.drive.freeze(place.files(1), |files| Ok(SyncEngine::new(files))).expect("frozen");
    grown(&mut guest, LARGE, pump).expect("larger");
    guest.write(LARGE - 512, &[7; 512]);
    guest.flush();
    drop(guest);
    (place.layers, place.capacity_bytes) = (2, LARGE);
    let mut guest = place.guest();
    assert_eq!(guest.read(SMALL - 512, 512), [6; 512]);
    assert_eq!(guest.read(LARGE - 512, 512), [7; 512]);
    assert_eq!(place.files(0).data.metadata().expect("metadata").len(), SMALL);
}

#[test]
fn what_cannot_grow_now_says_why_and_nothing_stays_open_for_it() {
    let place = Place::new(None, SMALL);
    let mut guest = place.guest();
    for (bytes, why) in [
        (4096, "cannot shrink"),
        (SMALL + 100, "whole number of sectors"),
        (1 << 50, "more than the 70368744177664 that a drive can have"),
    ] {
        let error = grown(&mut guest, bytes, pump).expect_err(why).to_string();
        assert!(error.contains(why) && error.contains(&bytes.to_string()), "{error}");
    }
    let handle = guest.drive.remote().expect("an overlay grows");
    guest.drive.detach();
    assert!(matches!(handle.grow(LARGE), Err(GrowError::AtRest)));
    assert_eq!(place.files(0).data.metadata().expect("metadata").len(), SMALL);
    drop(guest);
    place.guest();
    assert!(matches!(handle.grow(LARGE), Err(GrowError::Ended)));
}
