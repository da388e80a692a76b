//! A host disk without room, from the driver's side: whatever the driver does, it hears of no error.

use super::*;
use crate::backend::engine::{Io, IoTag, SyncEngine};
use crate::backend::overlay::HostDisk;
use crate::counters::Snapshot;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// A disk that is full, or is not.
struct Disk {
    inner: SyncEngine,
    full: Arc<AtomicBool>,
    refused: Vec<IoTag>,
}

impl Engine for Disk {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        match io {
            Io::Write { .. } if self.full.load(Ordering::SeqCst) => self.refused.push(tag),
            io => self.inner.submit(tag, io),
        }
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        let refused = self.refused.pop().map(|tag| (tag, Err(io::ErrorKind::StorageFull.into())));
        refused.or_else(|| self.inner.collect())
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

struct Fixture {
    guest: GuestDriver,
    handle: Handle,
    full: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<HostDisk>>>,
    files: [File; 2],
}

fn chain(files: &[File; 2]) -> Chain {
    let [data, map] = [0, 1].map(|file| files[file].try_clone().expect("a copy"));
    Chain { base: None, frozen: Vec::new(), top: LayerFiles { data, map }, live: false, capacity_bytes: DRIVE_BYTES }
}

/// A drive on a disk that is full.
fn full_drive() -> Fixture {
    let files = [(); 2].map(|()| tempfile::tempfile().expect("file"));
    let (full, heard) = (Arc::new(AtomicBool::new(true)), Arc::new(Mutex::new(Vec::new())));
    let make = |files| Ok(Disk { inner: SyncEngine::new(files), full: Arc::clone(&full), refused: Vec::new() });
    let mut overlay = Overlay::open(chain(&files), make).expect("a new layer");
    let hears = Arc::clone(&heard);
    overlay.tell(Box::new(move |what| hears.lock().expect("heard").push(what)));
    let block = Block::new("d00", Box::new(overlay));
    let handle = block.handle();
    Fixture { guest: GuestDriver::attach(Box::new(block)), handle, full, heard, files }
}

impl Fixture {
    /// Offers a write of a block, and of which bytes.
    fn write(&mut self, sector: u64, byte: u8) -> u16 {
        header(&self.guest, 1, sector);
        self.guest.put(DATA, &[byte; 4096]);
        let head = self.guest.offer(0, &[readable(HEADER, 16), readable(DATA, 4096), writable(STATUS, 1)]);
        self.guest.kick(0);
        head
    }

    /// What lies there for whoever opens the drive next.
    fn stored(self) -> Vec<u8> {
        let Self { guest, files, .. } = self;
        drop(guest);
        let mut guest =
            GuestDriver::attach(Box::new(Block::new("d00", Box::new(Overlay::new(chain(&files)).expect("the layer")))));
        header(&guest, 0, 0);
        guest.offer(0, &[readable(HEADER, 16), writable(DATA, 4096), writable(STATUS, 1)]);
        guest.kick(0);
        assert_eq!(status(&guest), 0);
        guest.bytes(DATA, 4096)
    }
}

/// Has the drive try, while its worker works.
fn retry(fixture: &mut Fixture) -> Result<(), String> {
    let handle = fixture.handle.clone();
    let asked = std::thread::spawn(move || handle.retry());
    while !asked.is_finished() {
        fixture.guest.run();
    }
    asked.join().expect("no panic").map_err(|error| error.to_string())
}

#[test]
fn a_write_waits_for_room_unanswered_while_others_are_answered() {
    let mut fixture = full_drive();
    let head = fixture.write(0, 7);
    assert_eq!((fixture.guest.used(0), status(&fixture.guest)), (vec![], 0xee));
    assert_eq!(*fixture.heard.lock().expect("heard"), [HostDisk::Full { errno: 28 }]);
    let error = retry(&mut fixture).expect_err("no room");
    assert_eq!(error, "no room on the host's disk for what it writes");
    // A read, and a serial.
    for (kind, len) in [(0, 512), (8, 20)] {
        header(&fixture.guest, kind, 8);
        let head = fixture.guest.offer(0, &[readable(HEADER, 16), writable(0x6000, len), writable(0x7000, 1)]);
        fixture.guest.kick(0);
        assert_eq!((fixture.guest.used(0), fixture.guest.bytes(0x7000, 1)), (vec![(head, len + 1)], vec![0]));
    }
    fixture.full.store(false, Ordering::SeqCst);
    retry(&mut fixture).expect("there is room");
    fixture.guest.run();
    assert_eq!((fixture.guest.used(0), status(&fixture.guest)), (vec![(head, 1)], 0), "answered once");
    assert_eq!(fixture.handle.counters().snapshot()[6], ("errors", 0));
    assert_eq!(fixture.heard.lock().expect("heard").last(), Some(&HostDisk::HasRoom));
}

#[test]
fn a_flush_waits_for_room_and_is_then_answered() {
    let mut fixture = full_drive();
    fixture.full.store(false, Ordering::SeqCst);
    let head = fixture.write(0, 7);
    assert_eq!(fixture.guest.used(0), [(head, 1)]);
    fixture.full.store(true, Ordering::SeqCst);
    header(&fixture.guest, 4, 0);
    let head = fixture.guest.offer(0, &[readable(HEADER, 16), writable(STATUS, 1)]);
    fixture.guest.kick(0);
    assert_eq!((fixture.guest.used(0), status(&fixture.guest)), (vec![], 0xee));
    fixture.full.store(false, Ordering::SeqCst);
    retry(&mut fixture).expect("there is room");
    fixture.guest.run();
    assert_eq!((fixture.guest.used(0), status(&fixture.guest)), (vec![(head, 1)], 0));
    assert_eq!(fixture.stored(), [7; 4096]);
}

#[test]
fn a_reset_waits_for_what_waits_for_room() {
    let mut fixture = full_drive();
    let head = fixture.write(0, 7);
    let (handle, full) = (fixture.handle.clone(), Arc::clone(&fixture.full));
    let resetting = std::thread::spawn(move || {
        fixture.guest.write(0x70, 0);
        fixture
    });
    // The try that this waits for is made by the drive that is being reset.
    handle.retry().expect_err("no room");
    assert!(!resetting.is_finished());
    full.store(false, Ordering::SeqCst);
    handle.retry().expect("there is room");
    let mut fixture = resetting.join().expect("no panic");
    assert_eq!((fixture.guest.used(0), status(&fixture.guest)), (vec![(head, 1)], 0));
    // It works again, and nothing of before comes again.
    fixture.guest.set_up(u64::MAX);
    assert_eq!((fixture.guest.used(0), fixture.guest.needs_reset()), (vec![], false));
    let head = fixture.write(0, 8);
    assert_eq!(fixture.guest.used(0), [(head, 1)]);
    assert_eq!(*fixture.heard.lock().expect("heard"), [HostDisk::Full { errno: 28 }, HostDisk::HasRoom]);
}

#[test]
fn a_drive_whose_power_is_cut_gives_up_and_its_driver_never_hears_of_it() {
    for by_reset in [false, true] {
        let mut fixture = full_drive();
        fixture.full.store(false, Ordering::SeqCst);
        fixture.write(0, 7);
        header(&fixture.guest, 4, 0);
        fixture.guest.offer(0, &[readable(HEADER, 16), writable(STATUS, 1)]);
        fixture.guest.kick(0);
        assert_eq!(fixture.guest.used(0).len(), 2, "flushed");
        // So that the next flush has something to write.
        fixture.write(16, 8);
        assert_eq!(fixture.guest.used(0).len(), 1);
        fixture.full.store(true, Ordering::SeqCst);
        fixture.write(8, 9);
        header(&fixture.guest, 4, 0);
        fixture.guest.offer(0, &[readable(HEADER, 16), writable(0x7000, 1)]);
        fixture.guest.put(0x7000, &[0xee]);
        fixture.guest.kick(0);
        let edges = fixture.guest.interrupts();
        fixture.handle.give_up();
        if by_reset {
            fixture.guest.write(0x70, 0);
        } else {
            fixture.guest.run();
        }
        let heard = (fixture.guest.used(0), status(&fixture.guest), fixture.guest.bytes(0x7000, 1)[0]);
        assert_eq!(heard, (vec![], 0xee, 0xee), "by a reset: {by_reset}");
        assert_eq!(fixture.guest.interrupts(), edges);
        assert_eq!(fixture.stored(), [7; 4096], "what was flushed is there");
    }
}
