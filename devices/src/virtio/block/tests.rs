use super::*;
use crate::backend::block::{Completion, Operation, Tag};
use crate::backend::engine::{self, Choice, Engine};
use crate::backend::overlay::{Chain, LayerFiles, Overlay};
use crate::backend::raw::RawFile;
use crate::limiter::{Bucket, Limits, Rate};
use crate::testing::{Buffer, GuestDriver, readable, writable};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Mutex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

mod full;

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
    let word = |guest: &mut GuestDriver, at| u32::from_le_bytes(guest.config(at, 4).try_into().expect("four bytes"));
    // Discard: sectors, segments, alignment; write-zeroes: sectors, segments.
    let words = [36, 40, 44, 48, 52].map(|at| word(&mut guest, at));
    assert_eq!(words, [request::MAX_DISCARD_SECTORS, 1, 8, request::MAX_ZEROES_SECTORS, 1]);
    assert_eq!(guest.config(24, 4), [3, 0, 8, 0], "blocks of 4 KiB");
    assert_eq!(guest.config(56, 4), [1, 0, 0, 0], "zeroes may unmap");
    assert_eq!(guest.config(60, 8), [0; 8], "behind the space");
}

#[test]
fn what_cannot_be_done_is_not_offered() {
    let config_wce = 1 << 11;
    let (mut guest, _) = drive(false);
    let features = guest.transport().info().features;
    assert_eq!(features & (F_RO | F_DISCARD | F_WRITE_ZEROES | config_wce), F_DISCARD | F_WRITE_ZEROES);
    let (mut guest, _) = drive(true);
    let features = guest.transport().info().features;
    assert_eq!(features & (F_RO | F_DISCARD | F_WRITE_ZEROES | config_wce), F_RO);
}

/// A segment of a discard or write-zeroes.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn a_discarded_range_is_zeros_and_gives_its_space_back() {
    let (mut guest, file) = drive(false);
    file.write_all_at(&[7; DRIVE_BYTES as usize], 0).expect("writing");
    let before = file.metadata().expect("metadata").blocks();
    header(&guest, 11, 0);
    guest.put(DATA, &segment(8, 1024, 0));
    let head = guest.offer(0, &[readable(HEADER, 16), readable(DATA, 16), writable(STATUS, 1)]);
    guest.kick(0);
    assert_eq!((guest.used(0), status(&guest)), (vec![(head, 1)], 0));
    let mut stored = vec![9; DRIVE_BYTES as usize];
    file.read_exact_at(&mut stored, 0).expect("read");
    let gone = 8 * 512..(8 + 1024) * 512;
    assert!(stored.iter().enumerate().all(|(at, byte)| *byte == if gone.contains(&at) { 0 } else { 7 }));
    assert!(file.metadata().expect("metadata").blocks() < before);
}

#[test]
fn zeroes_are_written_with_and_without_unmap_also_where_the_file_system_cannot() {
    let memory = labyard_sys::memfd::create("a drive", DRIVE_BYTES).expect("a memfd");
    let (_, disk) = drive(false);
    for file in [disk, memory] {
        file.write_all_at(&[7; DRIVE_BYTES as usize], 0).expect("writing");
        let backend = RawFile::new(file.try_clone().expect("clone"), false).expect("whole sectors");
        let mut guest = GuestDriver::attach(Box::new(Block::new("d00", Box::new(backend))));
        for (sector, unmap) in [(1, 0), (16, 1)] {
            header(&guest, 13, 0);
            guest.put(DATA, &segment(sector, 8, unmap));
            guest.offer(0, &[readable(HEADER, 16), readable(DATA, 16), writable(STATUS, 1)]);
            guest.kick(0);
            assert_eq!(status(&guest), 0);
        }
        let mut stored = vec![9; 32 * 512];
        file.read_exact_at(&mut stored, 0).expect("read");
        let zero = |sector: usize| (1..9).contains(&sector) || (16..24).contains(&sector);
        assert!(stored.iter().enumerate().all(|(at, byte)| *byte == if zero(at / 512) { 0 } else { 7 }));
    }
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
fn a_batch_is_served_by_every_engine() {
    for choice in [Choice::Sync, Choice::Uring] {
        let file = tempfile::tempfile().expect("file");
        file.set_len(DRIVE_BYTES).expect("size");
        let (engine, _) = engine::choose(choice, vec![file.try_clone().expect("clone")]).expect("an engine");
        let source = engine.source();
        let backend = RawFile::over(engine, DRIVE_BYTES, false);
        let mut guest = GuestDriver::attach(Box::new(Block::new("d00", Box::new(backend))));
        // 64 writes of a sector each from one kick, then a reset, then 64 reads.
        for (kind, data) in [(1u32, readable as fn(u64, u32) -> Buffer), (0, writable)] {
            let mut heads = Vec::new();
            for n in 0..64u64 {
                let at = 0x10000 + n * 0x1000;
                let mut bytes = [0; 16];
                bytes[0] = kind as u8;
                bytes[8] = n as u8;
                guest.put(at, &bytes);
                guest.put(at + 0x400, &[if kind == 1 { n as u8 } else { 0xee }; 513]);
                heads.push(guest.offer(0, &[readable(at, 16), data(at + 0x400, 512), writable(at + 0x600, 1)]));
            }
            guest.kick(0);
            let mut used = Vec::new();
            while used.len() < 64 {
                used.extend(guest.used(0).into_iter().map(|(head, _)| head));
                if used.len() < 64 {
                    wait_readable(source.expect("what is not done at once has a source"));
                    guest.run();
                }
            }
            used.sort_unstable();
            heads.sort_unstable();
            assert_eq!(used, heads);
            for n in 0..64u64 {
                let at = 0x10000 + n * 0x1000;
                assert_eq!(guest.bytes(at + 0x400, 513), [vec![n as u8; 512], vec![0]].concat(), "{choice:?} {n}");
            }
            guest.write(0x70, 0);
            guest.set_up(!crate::virtio::feature::EVENT_IDX);
        }
    }
}

#[test]
fn the_serial_has_twenty_bytes() {
    let (mut guest, _) = drive(false);
    header(&guest, 8, 0);
    let head = guest.offer(0, &[readable(HEADER, 16), writable(DATA, 20), writable(STATUS, 1)]);
    guest.kick(0);
    assert_eq!((guest.used(0), status(&guest)), (vec![(head, 21)], 0));
    assert_eq!(guest.bytes(DATA, 20), *b"d07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    // With room for two bytes before the status.
    header(&guest, 8, 0);
    guest.put(DATA, &[0xee; 4]);
    let head = guest.offer(0, &[readable(HEADER, 16), writable(DATA, 3)]);
    guest.kick(0);
    assert_eq!((guest.used(0), guest.bytes(DATA, 4)), (vec![(head, 3)], b"d0\0\xee".to_vec()));
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
    for kind in [11, 13] {
        header(&guest, kind, 0);
        guest.put(DATA, &segment(0, 1, 0));
        guest.offer(0, &[readable(HEADER, 16), readable(DATA, 16), writable(STATUS, 1)]);
        guest.kick(0);
        assert_eq!(status(&guest), 1, "type {kind}");
    }
    assert_eq!(guest.faults(), 3);
    let mut stored = [9; 512];
    file.read_exact_at(&mut stored, 0).expect("read");
    assert_eq!(stored, [0; 512]);
}

#[test]
fn a_header_in_pieces_and_a_status_behind_data_are_as_good() {
    let (mut guest, file) = drive(false);
    file.write_all_at(&[7; 1024], 0).expect("writing");
    header(&guest, 0, 1);
    // Three pieces of header; the status is the last byte of the buffer that data goes to.
    let pieces = [readable(HEADER, 3), readable(HEADER + 3, 0), readable(HEADER + 3, 13)];
    let head = guest.offer(0, &[pieces[0], pieces[1], pieces[2], writable(DATA, 100), writable(STATUS - 412, 413)]);
    guest.kick(0);
    assert_eq!((guest.used(0), status(&guest)), (vec![(head, 513)], 0));
    assert_eq!([guest.bytes(DATA, 100), guest.bytes(STATUS - 412, 412)].concat(), [7; 512]);
    // Header and data in one buffer, the status split from nothing.
    header(&guest, 1, 0);
    guest.put(HEADER + 16, &[8; 512]);
    let head = guest.offer(0, &[readable(HEADER, 16 + 512), writable(STATUS, 0), writable(STATUS, 1)]);
    guest.kick(0);
    assert_eq!((guest.used(0), status(&guest)), (vec![(head, 1)], 0));
    let mut stored = [0; 512];
    file.read_exact_at(&mut stored, 0).expect("read");
    assert_eq!(stored, [8; 512]);
}

/// A backend that ends requests when the test says so, the last one first.
#[derive(Clone)]
struct Slow(Arc<(Mutex<Vec<Tag>>, EventFd)>);

impl BlockBackend for Slow {
    fn capacity_bytes(&self) -> u64 {
        DRIVE_BYTES
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&mut self, tag: Tag, _: Operation<'_>) {
        self.0.0.lock().expect("the list").push(tag);
    }

    fn collect(&mut self) -> Option<Completion> {
        self.0.1.read().ok()?;
        let tag = self.0.0.lock().expect("the list").pop()?;
        Some(Completion { tag, result: Ok(()) })
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.0.1.as_raw_fd())
    }
}

#[test]
fn requests_are_in_flight_together_and_end_in_any_order() {
    // A semaphore: one request ends for each count.
    let ends = EventFd::new(EFD_NONBLOCK | 1).expect("an eventfd");
    let slow = Slow(Arc::new((Mutex::default(), ends)));
    let block = Block::new("d00", Box::new(slow.clone()));
    let counters = VirtioDevice::counters(&block);
    let mut guest = GuestDriver::attach(Box::new(block));
    let mut heads = Vec::new();
    for n in 0..3 {
        header(&guest, 0, 0);
        heads.push(guest.offer(0, &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS + n, 1)]));
    }
    guest.put(STATUS, &[0xee; 3]);
    guest.kick(0);
    assert_eq!((guest.used(0), guest.bytes(STATUS, 3)), (vec![], vec![0xee; 3]));
    // What the header says by now is of no matter.
    header(&guest, 77, u64::MAX);
    slow.0.1.write(1).expect("one ends");
    guest.run();
    assert_eq!((guest.used(0), guest.bytes(STATUS, 3)), (vec![(heads[2], 513)], vec![0xee, 0xee, 0]));
    slow.0.1.write(2).expect("two end");
    guest.run();
    assert_eq!((guest.used(0), guest.bytes(STATUS, 3)), (vec![(heads[1], 513), (heads[0], 513)], vec![0; 3]));
    assert_eq!(guest.faults(), 0);
    assert_eq!(counters.read()[..3], [("faults", 0), ("reads", 3), ("read_bytes", 3 * 512)]);
}

#[test]
fn a_limited_drive_holds_requests_back_until_the_limit_lets_them_through() {
    let file = tempfile::tempfile().expect("file");
    file.set_len(DRIVE_BYTES).expect("size");
    let bucket = Bucket::new(Limits { bytes: Some(Rate { per_second: 1, burst: 512 }), ..Limits::default() });
    let block = Block::new("d00", Box::new(RawFile::new(file, false).expect("whole sectors")));
    let counters = VirtioDevice::counters(&block);
    let mut guest =
        GuestDriver::attach(Box::new(block.limited_by(Limiter::new(vec![bucket.clone()]).expect("a timer"))));
    header(&guest, 0, 0);
    let heads = [0; 4].map(|_| guest.offer(0, &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]));
    guest.kick(0);
    assert_eq!(guest.used(0).len(), 2, "the burst, and one over it");
    // While the third waits, what its header says by now is of no matter.
    guest.put(HEADER, &[77; 16]);
    guest.kick(0);
    assert_eq!(guest.used(0), []);
    // A reset gives the request that waits back to the ring.
    let state = guest.transport().save().expect("the device is there");
    let text = serde_json::to_string(&state).expect("state");
    assert!(text.contains(r#""next_avail":2"#), "{text}");
    header(&guest, 0, 0);
    guest.run();
    assert_eq!(guest.used(0), []);
    bucket.change(Limits::default());
    guest.run();
    assert_eq!(guest.used(0), [(heads[2], 513), (heads[3], 513)]);
    let throttled = counters.read().into_iter().find(|(name, _)| *name == "throttled");
    assert!(throttled.is_some_and(|(_, count)| count >= 1), "{throttled:?}");
    assert_eq!(guest.faults(), 0);
}

#[test]
fn a_drive_grows_with_its_file_and_its_driver_hears_of_it() {
    let file = tempfile::tempfile().expect("file");
    file.set_len(DRIVE_BYTES).expect("size");
    let backend = RawFile::new(file.try_clone().expect("clone"), false).expect("whole sectors");
    let block = Block::new("d00", Box::new(backend.growing_with(Arc::new(file.try_clone().expect("clone")))));
    let handle = block.handle();
    let mut guest = GuestDriver::attach(Box::new(block));
    let (generation, edges) = (guest.read(0xfc), guest.interrupts());
    for (bytes, why) in [
        (DRIVE_BYTES / 2, "cannot shrink while its machine runs"),
        (DRIVE_BYTES + 100, "not a whole number of sectors"),
        (DRIVE_BYTES * 2, "grow the file first"),
    ] {
        let error = handle.resize(bytes).expect_err(why).to_string();
        assert!(error.contains(why) && error.contains(&bytes.to_string()), "{error}");
    }
    assert_eq!((guest.read(0xfc), guest.interrupts()), (generation, edges), "nothing has changed");

    file.set_len(DRIVE_BYTES * 2).expect("size");
    header(&guest, 0, DRIVE_BYTES / 512);
    let read = [readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)];
    guest.offer(0, &read);
    guest.kick(0);
    assert_eq!(status(&guest), 1, "the file alone changes nothing");
    let edges = guest.interrupts();
    handle.resize(DRIVE_BYTES * 2).expect("there is room");
    assert_eq!(guest.config(0, 8), (DRIVE_BYTES * 2 / 512).to_le_bytes());
    assert_ne!(guest.read(0xfc), generation);
    assert_eq!((guest.interrupts(), guest.read(0x60) & 2), (edges + 1, 2), "a configuration change");
    guest.offer(0, &read);
    guest.kick(0);
    assert_eq!(status(&guest), 0);

    // At rest nobody is there to be told.
    guest.write(0x70, 0);
    file.set_len(DRIVE_BYTES * 3).expect("size");
    let edges = guest.interrupts();
    handle.resize(DRIVE_BYTES * 3).expect("there is room");
    assert_eq!((guest.interrupts(), guest.config(0, 8)), (edges, (DRIVE_BYTES * 3 / 512).to_le_bytes().to_vec()));
    let fixed = RawFile::new(file, false).expect("whole sectors");
    assert!(Block::new("d01", Box::new(fixed)).handle().resize(DRIVE_BYTES * 3).is_err(), "a drive of fixed size");
}

#[test]
fn a_request_is_handed_on_in_a_few_words_however_many_segments_it_has() {
    assert!(size_of::<Operation<'_>>() <= 112, "{} bytes", size_of::<Operation<'_>>());
    assert!(size_of::<engine::Io<'_>>() <= 112, "{} bytes", size_of::<engine::Io<'_>>());
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let ends = EventFd::new(EFD_NONBLOCK | 1).expect("an eventfd");
    let slow = Slow(Arc::new((Mutex::default(), ends)));
    let mut guest = GuestDriver::attach(Box::new(Block::new("d00", Box::new(slow.clone()))));
    header(&guest, 4, 0);
    let head = guest.offer(0, &[readable(HEADER, 16), writable(STATUS, 1)]);
    guest.kick(0);
    slow.0.1.write(1).expect("it ends");
    guest.write(0x70, 0);
    assert_eq!((guest.used(0), status(&guest)), (vec![(head, 1)], 0));
}

/// A drive in layers, whose steps end at once but which has a descriptor to wait on, too.
fn layered() -> Box<dyn BlockBackend> {
    let [data, map] = [(); 2].map(|()| tempfile::tempfile().expect("file"));
    let top = LayerFiles { data, map };
    let chain = Chain { base: None, frozen: Vec::new(), top, live: false, capacity_bytes: DRIVE_BYTES };
    Box::new(Overlay::new(chain).expect("a new layer"))
}

#[test]
fn a_ring_that_breaks_behind_good_requests_does_not_hold_up_the_reset() {
    let raw = |choice| -> Box<dyn BlockBackend> {
        let file = tempfile::tempfile().expect("file");
        file.set_len(DRIVE_BYTES).expect("size");
        let (engine, _) = engine::choose(choice, vec![file]).expect("an engine");
        Box::new(RawFile::over(engine, DRIVE_BYTES, false))
    };
    for backend in [raw(Choice::Sync), raw(Choice::Uring), layered()] {
        let mut guest = GuestDriver::attach(Box::new(Block::new("d00", backend)));
        header(&guest, 0, 0);
        let head = guest.offer(0, &[readable(HEADER, 16), writable(DATA, 512), writable(STATUS, 1)]);
        guest.offer_head(0, QUEUE_SIZE);
        guest.kick(0);
        assert!(guest.needs_reset(), "a head outside of the table");
        // On a thread of its own: a reset that hangs fails the test, and does not hang it.
        let (sender, done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            guest.write(0x70, 0);
            sender.send((guest.used(0), status(&guest)))
        });
        let answered = done.recv_timeout(std::time::Duration::from_secs(5));
        assert_eq!(answered, Ok((vec![(head, 513)], 0)), "what was taken before is answered");
    }
}

#[test]
fn hostile_requests_are_errors_to_the_guest_and_nothing_else() {
    let last = DRIVE_BYTES / 512;
    let (io_error, unsupported) = (1, 2);
    let cases: &[(&str, u32, u64, &[Buffer], u8)] = &[
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
        (
            "secure erase, not offered",
            14,
            0,
            &[readable(HEADER, 16), readable(DATA, 16), writable(STATUS, 1)],
            unsupported,
        ),
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
fn hostile_segments_are_refused_and_change_nothing() {
    let sectors = DRIVE_BYTES / 512;
    let (io_error, unsupported) = (1, 2);
    let two = [segment(0, 1, 0), segment(8, 1, 0)].concat();
    let cases: &[(&str, u32, Vec<u8>, u8)] = &[
        ("no segment", 11, vec![], io_error),
        ("a part of a segment", 11, segment(0, 1, 0)[..15].to_vec(), io_error),
        ("a segment and a part", 13, [segment(0, 1, 0), vec![0; 7]].concat(), io_error),
        ("two segments where one is taken", 11, two, io_error),
        ("a list as long as a page", 13, segment(0, 1, 0).repeat(256), io_error),
        ("no sector", 11, segment(0, 0, 0), io_error),
        ("no sector of zeroes", 13, segment(0, 0, 1), io_error),
        ("behind the end", 11, segment(sectors, 1, 0), io_error),
        ("over the end", 13, segment(sectors - 1, 2, 0), io_error),
        ("a sector that wraps", 11, segment(u64::MAX, 1, 0), io_error),
        ("an offset that wraps with its length", 13, segment(u64::MAX / 512, 2, 0), io_error),
        ("more than a discard takes", 11, segment(0, u32::MAX, 0), io_error),
        ("more zeroes than are taken", 13, segment(0, request::MAX_ZEROES_SECTORS + 1, 0), io_error),
        ("unmap in a discard", 11, segment(0, 1, 1), unsupported),
        ("a reserved flag in a discard", 11, segment(0, 1, 2), unsupported),
        ("a reserved flag in zeroes", 13, segment(0, 1, 1 << 31), unsupported),
    ];
    for (name, kind, segments, expected) in cases {
        let (mut guest, file) = drive(false);
        file.write_all_at(&[7; DRIVE_BYTES as usize], 0).expect("writing");
        // The header's own sector is reserved here (§5.2.6) and means nothing.
        header(&guest, *kind, u64::MAX);
        guest.put(DATA, segments);
        let head = guest.offer(0, &[readable(HEADER, 16), readable(DATA, segments.len() as u32), writable(STATUS, 1)]);
        guest.kick(0);
        assert_eq!((guest.used(0), status(&guest)), (vec![(head, 1)], *expected), "{name}");
        assert_eq!(guest.faults(), 1, "{name}");
        let mut stored = vec![0; DRIVE_BYTES as usize];
        file.read_exact_at(&mut stored, 0).expect("read");
        assert!(stored.iter().all(|byte| *byte == 7), "{name}");
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

#[test]
fn a_file_that_was_opened_for_reading_is_no_drive_to_write() {
    let file = tempfile::NamedTempFile::new().expect("file");
    let open = || File::open(file.path()).expect("opening");
    let error = RawFile::new(open(), false).err().expect("refused").to_string();
    assert!(error.contains("opened for reading only"), "{error}");
    assert!(RawFile::new(open(), true).is_ok());
}
