//! Maps of overlay layers: files of a vmm that a guest may have taken over, read by the vmm's successor and by `drive export`.

use labyard_spec::overlay::fit::{Misfit, Place};
use labyard_spec::overlay::runs::runs;
use labyard_spec::overlay::{
    Header, LayerId, PAGE_BLOCKS, PAGE_BYTES, PAGE_WORDS, SECTOR_BYTES, decode_page, encode_page,
};

/// Takes the bytes for a header and a page, as they are and with checksums that hold.
pub(super) fn run(bytes: &[u8]) {
    let (mut head, mut page) = ([0; SECTOR_BYTES], [0; PAGE_BYTES]);
    let (first, rest) = bytes.split_at(bytes.len().min(SECTOR_BYTES));
    head.iter_mut().zip(first).for_each(|(to, from)| *to = *from);
    page.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    for sealed in [false, true] {
        if sealed && let Some((body, sum)) = head.split_last_chunk_mut::<4>() {
            *sum = crc32c::crc32c(body).to_le_bytes();
        }
        let Ok(header) = Header::decode(&head) else { continue };
        assert_eq!(Header::decode(&header.encode()).as_ref(), Ok(&header), "a header comes back");
        check(&header, &page, rest);
    }
    let usual = Header {
        layer: LayerId([7; 16]),
        capacity_bytes: 300 << 20,
        base_bytes: 1 << 20,
        below: "image".into(),
        settled: false,
    };
    check(&usual, &page, rest);
}

/// One thing is wrong, and that is what is said.
fn misplaced(header: &Header, place: Place<'_>) {
    let (map_bytes, data_bytes) = (place.map_bytes + 512, place.data_bytes + 512);
    let is = |wrong: Place<'_>| header.fits(&wrong).expect_err("it does not belong there");
    assert!(matches!(is(Place { map_bytes, ..place }), Misfit::MapSize { .. }));
    assert!(matches!(is(Place { data_bytes, ..place }), Misfit::DataSize { .. }));
    if header.below != "another" {
        assert!(matches!(is(Place { below: "another", ..place }), Misfit::OtherBase { .. }));
    }
    assert!(matches!(is(Place { base_bytes: !place.base_bytes, ..place }), Misfit::BaseSize { .. }));
    if let Some(drive_bytes) = place.drive_bytes.checked_sub(512) {
        assert!(matches!(is(Place { drive_bytes, ..place }), Misfit::OtherCapacity { .. }));
    }
    // A growth that was cut short leaves the files of the top too long, and no others.
    assert_eq!(header.fits(&Place { map_bytes, data_bytes, is_top: true, ..place }), Ok(()));
}

fn check(header: &Header, page: &[u8; PAGE_BYTES], rest: &[u8]) {
    let place = Place {
        map_bytes: header.map_bytes(),
        data_bytes: header.capacity_bytes,
        below: &header.below,
        base_bytes: header.base_bytes,
        drive_bytes: header.capacity_bytes,
        is_top: false,
    };
    assert_eq!(header.fits(&place), Ok(()), "it belongs where it says");
    misplaced(header, place);
    let mut words = [0; PAGE_WORDS];
    let _ = decode_page(header, 0, 0, page, &mut words); // most are damaged
    let (mut other, mut sealed) = ([0; PAGE_WORDS], [0; PAGE_BYTES]);
    for (to, from) in other.iter_mut().zip(rest.chunks(8)) {
        *to = from.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    encode_page(header.layer, 1, &other, &mut sealed);
    if decode_page(header, 1, 0, &sealed, &mut words).is_ok() {
        assert_eq!(words, other, "a page comes back");
        let pieces: Vec<_> = runs(&[words, other], PAGE_BLOCKS).collect();
        assert!(pieces.iter().all(|run| run.count > 0), "runs go on");
        assert_eq!(pieces.iter().map(|run| run.count).sum::<u64>(), PAGE_BLOCKS, "runs are the whole page");
    }
}
