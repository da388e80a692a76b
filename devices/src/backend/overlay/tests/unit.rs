//! What a drive in layers does, one sentence each.

use super::*;
use std::os::unix::fs::{FileExt, MetadataExt};

use labyard_sys::lease::{self, Lease};

const MIB: u64 = 1 << 20;

fn image() -> Vec<u8> {
    (0..MIB / 2).map(|n| (n / 512 + n % 251 + 1) as u8 | 1).collect()
}

#[test]
fn what_was_not_written_comes_from_the_image_and_behind_it_are_zeros() {
    let place = Place::new(Some(image()[..MIB as usize / 2 - 512].to_vec()), MIB);
    let mut guest = place.guest();
    let half = MIB / 2 - 512;
    let expected = [&image()[half as usize - 1024..half as usize], &[0; 2048]].concat();
    assert_eq!(guest.read(half - 1024, 3072), expected, "over the image's end, in the middle of a block");
    guest.write(half, &[9; 512]);
    assert_eq!(guest.read(half - 1024, 3072), [&expected[..1024], &[9; 512], &[0; 1536]].concat());
    assert_eq!(std::fs::read(place.folder.path().join("base")).expect("the base").len() as u64, half);
}

#[test]
fn a_part_of_a_block_is_filled_from_below_once() {
    let place = Place::new(Some(image()), MIB);
    let mut guest = place.guest();
    guest.write(4096 + 512, &[7; 1024]);
    let mut expected = image()[..12288].to_vec();
    expected[4096 + 512..4096 + 1536].fill(7);
    assert_eq!(guest.read(0, 12288), expected);
    let mut stored = vec![0; 4096];
    place.files(0).data.read_exact_at(&mut stored, 4096).expect("reading");
    assert_eq!(stored, expected[4096..8192], "the whole block is in the layer");
    guest.write(8192 - 512, &[8; 6144]);
    expected[8192 - 512..].fill(8);
    assert_eq!(guest.read(0, 12288), expected, "one block in the layer, one whole, one from below");
}

#[test]
fn a_discard_gives_space_back_and_hides_what_is_below() {
    let place = Place::new(Some(image()), MIB);
    let mut guest = place.guest();
    guest.write(0, &[5; 64 << 10]);
    guest.flush();
    let blocks = || place.files(0).data.metadata().expect("metadata").blocks();
    let before = blocks();
    guest.discard(0, 64 << 10);
    assert!(blocks() + 64 < before, "{before} then {}", blocks());
    guest.discard((128 << 10) + 512, 8192);
    let mut expected = image()[..256 << 10].to_vec();
    expected[..64 << 10].fill(0);
    expected[(128 << 10) + 512..(136 << 10) + 512].fill(0);
    let read = |guest: &mut Guest<SyncEngine>| [guest.read(0, 64 << 10), guest.read(128 << 10, 64 << 10)].concat();
    assert_eq!(read(&mut guest), [&expected[..64 << 10], &expected[128 << 10..192 << 10]].concat());
    guest.flush();
    drop(guest);
    assert_eq!(read(&mut place.guest()), [&expected[..64 << 10], &expected[128 << 10..192 << 10]].concat());
}

#[test]
fn a_discard_of_what_is_zeros_anyway_takes_no_bit() {
    let place = Place::new(None, 1 << 30);
    let mut guest = place.guest();
    guest.discard(0, 1 << 30);
    guest.drive.submit(0, Operation::WriteZeroes { offset: 512, len: 1 << 20, unmap: false });
    guest.end(0).expect("zeros");
    assert_eq!(guest.drive.layers[0].bits.run(0, 1 << 18), (false, 1 << 18));
    assert!(guest.drive.layers[0].bits.take_dirty().is_none());
}

#[test]
fn two_parts_of_one_block_at_once_both_stay() {
    for seed in 1..50 {
        let place = Place::new(Some(image()), MIB);
        let make = |files| Ok(Shuffled::new(SyncEngine::new(files), seed));
        let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
        for tag in 0..8 {
            guest.start_write(tag, u64::from(tag) * 512, &[tag as u8 + 1; 512]);
        }
        guest.start_write(8, 4096 - 512, &[99; 1024 + 4096]);
        let mut ended = 0;
        while ended < 9 {
            ended += u32::from(guest.drive.collect().is_some());
        }
        guest.start_read(0, 0, 12288);
        while guest.drive.collect().is_none() {}
        let bytes = guest.bytes(0, 12288);
        for sector in 0..7u8 {
            assert_eq!(bytes[usize::from(sector) * 512..][..512], [sector + 1; 512], "sector {sector}, seed {seed}");
        }
        assert!(bytes[7 * 512] == 8 || bytes[7 * 512] == 99, "two wrote it at once: one of them");
        assert_eq!(bytes[4096..4096 * 2 + 512], [99; 4096 + 512]);
        assert_eq!(bytes[4096 * 2 + 512..], image()[4096 * 2 + 512..4096 * 3], "from below");
    }
}

/// Counts what reaches the files.
struct Counting {
    inner: SyncEngine,
    counts: Arc<std::sync::Mutex<Counts>>,
}

impl Engine for Counting {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        let name = match io {
            Io::Read { .. } => "read",
            Io::Write { .. } => "write",
            Io::Sync { .. } => "sync",
            Io::Punch { .. } => "punch",
            Io::Zero { .. } => "zero",
        };
        *self.counts.lock().expect("counts").entry(name).or_default() += 1;
        self.inner.submit(tag, io);
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        self.inner.collect()
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

#[test]
fn a_flush_syncs_once_unless_something_was_allocated_or_frozen() {
    let counts = Arc::new(std::sync::Mutex::new(Counts::new()));
    let place = Place::new(Some(image()), MIB);
    let make = |files| Ok(Counting { inner: SyncEngine::new(files), counts: counts.clone() });
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    let flushed = |guest: &mut Guest<Counting>| {
        counts.lock().expect("counts").clear();
        guest.flush();
        let counts = counts.lock().expect("counts");
        (counts.get("sync").copied().unwrap_or(0), counts.get("write").copied().unwrap_or(0))
    };
    assert_eq!(flushed(&mut guest), (1, 0), "nothing at all");
    guest.write(0, &[1; 8192]);
    assert_eq!(flushed(&mut guest), (2, 1), "data, a page, the map");
    guest.write(0, &[2; 8192]);
    assert_eq!(flushed(&mut guest), (1, 0), "the blocks were there");
    guest.write(65536, &[3; 512]);
    guest.drive.make_next(&place.files(1)).expect("a layer");
    guest.drive.freeze(place.files(1), make).expect("frozen");
    assert_eq!(flushed(&mut guest), (4, 1), "what was frozen: data and map; its own: data, the header, the map");
    assert_eq!(flushed(&mut guest), (1, 0));
    assert_eq!(guest.read(65536, 512), [3; 512]);
}

#[test]
fn flushes_that_wait_are_answered_by_one_round() {
    let place = Place::new(None, MIB);
    let make = |files| Ok(Shuffled::new(SyncEngine::new(files), 3));
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    for tag in 0..6 {
        guest.drive.submit(tag, Operation::Flush);
    }
    let mut ended: Vec<Tag> = Vec::new();
    while ended.len() < 6 {
        ended.extend(guest.drive.collect().map(|completion| completion.tag));
    }
    assert_eq!(ended, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_clone_goes_on_from_the_freeze_and_both_go_their_own_ways() {
    let mut place = Place::new(Some(image()), MIB);
    let mut parent = place.guest();
    parent.write(0, &[1; 512]);
    parent.flush();
    parent.write(4096, &[2; 512]);
    parent.drive.freeze(place.files(1), |files| Ok(SyncEngine::new(files))).expect("frozen");
    let mut chain = place.chain();
    chain.frozen = vec![place.files(0)];
    chain.top = place.files(9);
    chain.live = true;
    let mut clone = Guest::new(Overlay::new(chain).expect("a clone"));
    assert_eq!((clone.read(0, 512), clone.read(4096, 512)), (vec![1; 512], vec![2; 512]), "not flushed, and there");
    parent.write(0, &[3; 512]);
    clone.write(0, &[4; 512]);
    assert_eq!((parent.read(0, 512), clone.read(0, 512)), (vec![3; 512], vec![4; 512]));
    clone.flush();
    drop(parent);
    // As after a power cut: the parent did not flush since, the clone did.
    place.layers = 2;
    let mut parent = place.guest();
    assert_eq!((parent.read(0, 512), parent.read(4096, 512)), (vec![1; 512], image()[4096..4608].to_vec()));
    drop(parent);
    drop(clone);
    let mut chain = place.chain();
    chain.top = place.files(9);
    let mut clone = Guest::new(Overlay::new(chain).expect("the clone again"));
    assert_eq!((clone.read(0, 512), clone.read(4096, 512)), (vec![4; 512], vec![2; 512]));
}

#[test]
fn nothing_is_frozen_while_requests_are_under_way() {
    let place = Place::new(None, MIB);
    let mut guest = place.guest();
    guest.start_write(1, 0, &[1; 512]);
    let make = |files| Ok(SyncEngine::new(files));
    assert!(matches!(guest.drive.freeze(place.files(1), make), Err(OverlayError::Busy)));
    guest.end(1).expect("writing");
    guest.drive.freeze(place.files(1), make).expect("frozen");
}

#[test]
fn a_drive_of_half_a_block_keeps_its_end() {
    let place = Place::new(None, MIB + 1536);
    let mut guest = place.guest();
    guest.write(MIB + 1024, &[6; 512]);
    guest.discard(MIB, 512);
    guest.write(MIB - 512, &[5; 512]);
    guest.flush();
    drop(guest);
    let mut guest = place.guest();
    assert_eq!(guest.read(MIB - 512, 2048), [&[5; 512][..], &[0; 1024], &[6; 512]].concat());
    guest.discard(0, MIB + 1536);
    assert_eq!(guest.read(MIB - 512, 2048), [0; 2048]);
}

#[test]
fn the_lease_of_the_top_ends_with_the_drive_and_no_other_does() {
    let mut place = Place::new(None, MIB);
    let others = |place: &Place, layer| {
        let files = place.files(layer);
        [files.data, files.map].map(|file| lease::take(&file, Lease::Writer).expect("flock"))
    };
    let chain = place.chain();
    // As a ring does that has not let go of its files yet.
    let copies = [&chain.top.data, &chain.top.map].map(|file| file.try_clone().expect("a copy"));
    let mut guest = Guest::new(Overlay::new(chain).expect("a drive"));
    assert_eq!(others(&place, 0), [false, false]);
    drop(guest);
    assert_eq!(others(&place, 0), [true, true]);
    drop(copies);

    // What was the top and is frozen now may be somebody else's, too, by the same descriptors.
    let chain = place.chain();
    let shared = |chain: &Chain| LayerFiles {
        data: chain.top.data.try_clone().expect("a copy"),
        map: chain.top.map.try_clone().expect("a copy"),
    };
    let frozen = [shared(&chain), shared(&chain)];
    guest = Guest::new(Overlay::new(chain).expect("a drive"));
    guest.drive.freeze(place.files(1), |files| Ok(SyncEngine::new(files))).expect("frozen");
    let clones = frozen.into_iter().zip([8, 9]).map(|(frozen, top)| {
        let chain = Chain { base: None, frozen: vec![frozen], top: place.files(top), live: true, capacity_bytes: MIB };
        Overlay::new(chain).expect("a clone")
    });
    let [one, two] = clones.collect::<Vec<_>>().try_into().ok().expect("two clones");
    drop(guest);
    drop(one);
    assert_eq!((others(&place, 0), others(&place, 1), others(&place, 8)), ([false; 2], [true; 2], [true; 2]));
    assert_eq!(others(&place, 9), [false; 2]);
    drop(two);
    assert_eq!(others(&place, 0), [true; 2]);
    place.layers = 2;
    drop(place.guest());
}
