use super::*;
use crate::backend::raw::RawFile;
use crate::testing::{GuestDriver, readable, writable};
use std::fs::File;
use std::os::unix::fs::FileExt;

const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x9000;
const DRIVE_BYTES: u64 = 1 << 20;

fn drive(read_only: bool) -> (GuestDriver, File) {
    let file = tempfile::tempfile().expect("file");
    file.set_len(DRIVE_BYTES).expect("size");
    let backend = RawFile::new(file.try_clone().expect("clone"), read_only).expect("whole sectors");
    (GuestDriver::attach(Box::new(Block::new("d07", Box::new(backend)))), file)
}

fn header(guest: &GuestDriver, kind: u32, sector: u64) {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    guest.put(HEADER, &bytes);
    guest.put(STATUS, &[0xee]);
}

fn status(guest: &GuestDriver) -> u8 {
    guest.bytes(STATUS, 1)[0]
}

#[test]
fn the_configuration_tells_capacity_and_segments() {
    let (mut guest, _) = drive(false);
    assert_eq!(guest.config(0, 8), (DRIVE_BYTES / 512).to_le_bytes());
    assert_eq!(guest.config(12, 4), MAX_SEGMENTS.to_le_bytes());
    assert_eq!(guest.config(24, 8), [0; 8], "behind the space");
}

#[test]
fn written_sectors_are_in_the_file_and_read_back() {
    let (mut guest, file) = drive(false);
    let data: Vec<u8> = (0..1024u32).map(|n| n as u8 ^ 0x5a).collect();
    header(&guest, 1, 3);
    guest.put(DATA, &data);
    let head =
        guest.offer(0, &[readable(HEADER, 16), readable(DATA, 700), readable(DATA + 700, 324), writable(STATUS, 1)]);
    guest.kick(0);
    assert_eq!((guest.used(0), status(&guest)), (vec![(head, 1)], 0));
    let mut stored = vec![0; 1024];
    file.read_exact_at(&mut stored, 3 * 512).expect("read");
    assert_eq!(stored, data);

    header(&guest, 0, 3);
    let head =
        guest.offer(0, &[readable(HEADER, 16), writable(0x4000, 512), writable(0x5000, 512), writable(STATUS, 1)]);
    guest.kick(0);
    assert_eq!((guest.used(0), status(&guest)), (vec![(head, 1025)], 0));
    assert_eq!([guest.bytes(0x4000, 512), guest.bytes(0x5000, 512)].concat(), data);
}

#[test]
fn the_serial_has_twenty_bytes() {
    let (mut guest, _) = drive(false);
    header(&guest, 8, 0);
    let head = guest.offer(0, &[readable(HEADER, 16), writable(DATA, 20), writable(STATUS, 1)]);
    guest.kick(0);
    assert_eq!((guest.used(0), status(&guest)), (vec![(head, 21)], 0));
    assert_eq!(guest.bytes(DATA, 20), *b"d07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_flush_is_answered_and_a_read_only_drive_takes_no_write() {
    let (mut guest, file) = drive(true);
    header(&guest, 4, 0);
    guest.offer(0, &[readable(HEADER, 16), writable(STATUS, 1)]);
    guest.kick(0);
    assert_eq!(status(&guest), 0);
    header(&guest, 1, 0);
    guest.put(DATA, &[1; 512]);
    guest.offer(0, &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)]);
    guest.kick(0);
    assert_eq!(status(&guest), 1);
    let mut stored = [9; 512];
    file.read_exact_at(&mut stored, 0).expect("read");
    assert_eq!(stored, [0; 512]);
}

#[test]
fn hostile_requests_are_errors_to_the_guest_and_nothing_else() {
    let last = DRIVE_BYTES / 512;
    let (io_error, unsupported) = (1, 2);
    let cases: &[(&str, u32, u64, &[crate::testing::Buffer], u8)] = &[
        ("behind the end", 0, last, &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)], io_error),
        ("over the end", 0, last - 1, &[readable(HEADER, 16), writable(DATA, 1024), writable(STATUS, 1)], io_error),
        (
            "a sector that wraps",
            1,
            u64::MAX,
            &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)],
            io_error,
        ),
        (
            "offset plus length wraps",
            1,
            u64::MAX / 512,
            &[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)],
            io_error,
        ),
        ("half a sector", 1, 0, &[readable(HEADER, 16), readable(DATA, 100), writable(STATUS, 1)], io_error),
        ("half a sector read", 0, 0, &[readable(HEADER, 16), writable(DATA, 100), writable(STATUS, 1)], io_error),
        ("an unknown type", 77, 0, &[readable(HEADER, 16), writable(STATUS, 1)], unsupported),
        ("discard, not offered", 11, 0, &[readable(HEADER, 16), readable(DATA, 16), writable(STATUS, 1)], unsupported),
        ("a short header", 0, 0, &[readable(HEADER, 15), writable(STATUS, 1)], io_error),
        ("no header", 0, 0, &[writable(STATUS, 1)], io_error),
    ];
    for (name, kind, sector, buffers, expected) in cases {
        let (mut guest, _) = drive(false);
        header(&guest, *kind, *sector);
        let head = guest.offer(0, buffers);
        guest.kick(0);
        assert_eq!((guest.used(0), status(&guest)), (vec![(head, 1)], *expected), "{name}");
        assert_eq!(guest.faults(), 1, "{name}");
        header(&guest, 4, 0);
        guest.offer(0, &[readable(HEADER, 16), writable(STATUS, 1)]);
        guest.kick(0);
        assert_eq!(status(&guest), 0, "{name}: the drive still works");
    }
}

#[test]
fn a_request_without_room_for_a_status_comes_back_empty() {
    let (mut guest, _) = drive(false);
    header(&guest, 4, 0);
    let head = guest.offer(0, &[readable(HEADER, 16)]);
    guest.kick(0);
    assert_eq!((guest.used(0), guest.faults()), (vec![(head, 0)], 1));
}

#[test]
fn more_segments_than_fit_are_an_error_and_not_a_panic() {
    let (mut guest, _) = drive(false);
    header(&guest, 0, 0);
    for index in 0..u64::from(QUEUE_SIZE) * 2 {
        guest.put(0x10000 + index * 16, &writable(DATA, 512).encode(Some(index as u16 + 1)));
    }
    // A table as long as the queue allows: header, 254 segments, status.
    guest.put(0x10000, &readable(HEADER, 16).encode(Some(1)));
    guest.put(0x10000 + 255 * 16, &writable(STATUS, 1).encode(None));
    let head = guest.offer(0, &[readable(0x10000, 256 * 16).indirect()]);
    guest.kick(0);
    let used = guest.used(0);
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].0, head);
}

#[test]
fn a_file_of_half_a_sector_is_no_drive() {
    let file = tempfile::tempfile().expect("file");
    file.set_len(700).expect("size");
    assert!(RawFile::new(file, false).is_err());
}
