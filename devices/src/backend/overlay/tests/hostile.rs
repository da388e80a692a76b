//! Chains that are not what they should be: each is refused with one sentence, and none is misread.

use super::*;
use std::os::unix::fs::FileExt;

const CAPACITY: u64 = 1 << 20;

/// A chain of two layers with something in each, closed.
fn two_layers() -> Place {
    let mut place = Place::new(Some(vec![1; CAPACITY as usize / 2]), CAPACITY);
    let mut guest = place.guest();
    guest.write(0, &[2; 8192]);
    guest.flush();
    guest.drive.freeze(place.files(1), |files| Ok(SyncEngine::new(files))).expect("frozen");
    guest.write(4096, &[3; 8192]);
    guest.flush();
    place.layers = 2;
    place
}

#[test]
fn each_chain_that_is_none_is_refused_by_name() {
    type Damage = fn(&Place, &mut Chain);
    let cases: &[(&str, Damage)] = &[
        ("layer 0: its map: its header is damaged", |place, _| flip(place, 0, 40)),
        ("layer 1: its map: not the map of an overlay layer", |place, _| flip(place, 1, 0)),
        ("layer 1: its map: sector 0 of page 0 is damaged", |place, _| flip(place, 1, 4096)),
        ("layer 0: its map: sector 0 of page 0 is damaged", |place, _| flip(place, 0, 4096 + 511)),
        ("layer 0: its map: sector 5 of page 0 is damaged", |place, _| flip(place, 0, 4096 + 5 * 512 + 9)),
        ("layer 1: its map has 12287 bytes", |place, _| cut(place, 1, "map", 12287)),
        ("layer 1: its map has 100 bytes", |place, _| cut(place, 1, "map", 100)),
        ("layer 0: its map has 0 bytes", |place, _| cut(place, 0, "map", 0)),
        ("layer 0: its map has 16384 bytes", |place, _| cut(place, 0, "map", 16384)),
        ("layer 0: its data has 4096 bytes", |place, _| cut(place, 0, "data", 4096)),
        ("layer 1: its data has 0 bytes", |place, _| cut(place, 1, "data", 0)),
        ("layer 0: it lies on `image` and was given `other`", |_, chain| {
            chain.base.as_mut().expect("a base").name = "other".into();
        }),
        ("layer 0: it lies on `image` and was given `` (nothing is ``)", |_, chain| chain.base = None),
        ("layer 0: it was made on a base of 524288 bytes, which has 4096 now", |place, _| {
            open(&place.folder.path().join("base")).set_len(4096).expect("cut");
        }),
        ("layer 1: it lies on `", |_, chain| chain.frozen.reverse()),
        ("layer 0: it lies on `", |_, chain| chain.frozen.clear()),
        ("layer 0: its data has 1052672 bytes", |place, _| cut(place, 0, "data", CAPACITY + 4096)),
        ("layer 0: it belongs to a drive of 1048576 bytes, asked is one of 524288", |_, chain| {
            chain.capacity_bytes = 512 << 10;
        }),
        ("the base has 524288 bytes, the drive only 4096", |_, chain| chain.capacity_bytes = 4096),
        ("1000 bytes: not whole sectors", |_, chain| chain.capacity_bytes = 1000),
        ("bytes: not whole sectors, or more", |_, chain| chain.capacity_bytes = u64::MAX << 9),
        ("layer 1: opened for reading only", |place, chain| {
            chain.top.map = File::open(place.path(1, "map")).expect("opening");
        }),
        ("layer 1: opened for reading only", |place, chain| {
            chain.top.data = File::open(place.path(1, "data")).expect("opening");
        }),
    ];
    for (expected, damage) in cases {
        let place = two_layers();
        let mut chain = if expected.contains("it lies on `") && expected.starts_with("layer 1") {
            swapped(&place)
        } else {
            place.chain()
        };
        damage(&place, &mut chain);
        let error = Overlay::new(chain).err().unwrap_or_else(|| panic!("accepted: {expected}"));
        assert!(error.to_string().contains(expected), "{error}, expected {expected}");
    }
}

/// A chain whose top lies on another layer than its own.
fn swapped(place: &Place) -> Chain {
    let mut other = place.chain();
    other.frozen.clear();
    other.top = place.files(7);
    let mut guest = Guest::new(Overlay::new(other).expect("a drive"));
    guest.drive.freeze(place.files(8), |files| Ok(SyncEngine::new(files))).expect("frozen");
    drop(guest);
    Chain { top: place.files(8), ..place.chain() }
}

fn flip(place: &Place, layer: usize, at: u64) {
    let map = place.files(layer).map;
    let mut byte = [0];
    map.read_exact_at(&mut byte, at).expect("reading");
    map.write_all_at(&[byte[0] ^ 0x10], at).expect("writing");
}

fn cut(place: &Place, layer: usize, what: &str, len: u64) {
    open(&place.path(layer, what)).set_len(len).expect("cut");
}

#[test]
fn a_second_writer_and_a_writer_of_what_is_frozen_are_kept_out() {
    let place = two_layers();
    let first = place.guest();
    let refused = |chain: Chain| Overlay::new(chain).err().expect("refused").to_string();
    assert_eq!(refused(place.chain()), "layer 1: another machine writes it; end that one first");
    let mut lower = place.chain();
    (lower.frozen, lower.top) = (Vec::new(), place.files(0));
    assert_eq!(refused(lower), "layer 0: another machine writes it; end that one first");
    drop(first);
    place.guest();
}

#[test]
fn arbitrary_maps_are_refused_or_read_and_never_more() {
    let place = two_layers();
    drop(place.guest());
    let good = std::fs::read(place.path(1, "map")).expect("reading");
    let mut random = Random(7);
    for _ in 0..rounds(300, 20_000) {
        let mut bytes = good.clone();
        for _ in 0..random.below(4) + 1 {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        std::fs::write(place.path(1, "map"), &bytes).expect("writing");
        if let Ok(drive) = Overlay::new(place.chain()) {
            let mut guest = Guest::new(drive);
            let read = guest.read(0, 16384);
            // A header that still has its checksum, and sectors that have theirs, are what was written.
            assert_eq!(read[..4096], [2; 4096]);
            assert_eq!(read[4096..12288], [3; 8192]);
        }
    }
}
