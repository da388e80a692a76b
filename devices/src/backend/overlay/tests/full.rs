//! A host disk without room.

use super::*;
use crate::backend::block::NoRoom;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Refuses whatever needs room while the disk is full.
pub(super) struct Filling {
    pub(super) inner: SyncEngine,
    pub(super) full: Arc<AtomicBool>,
    pub(super) refused: Vec<IoTag>,
}

impl Engine for Filling {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        match io {
            Io::Write { .. } | Io::Punch { .. } | Io::Zero { .. } if self.full.load(Ordering::SeqCst) => {
                self.refused.push(tag);
            }
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

/// Waits for the alarm, as a worker does.
fn collect<E: Engine>(guest: &mut Guest<E>) -> Completion {
    loop {
        if let Some(completion) = guest.drive.collect() {
            return completion;
        }
        crate::worker::wait_readable(guest.drive.source().expect("a source"));
    }
}

/// The next ones, by tag, and that there are no more.
fn collect_all<E: Engine>(guest: &mut Guest<E>, count: usize) -> Vec<(Tag, io::Result<()>)> {
    let mut ended: Vec<_> = (0..count).map(|_| collect(guest)).map(|end| (end.tag, end.result)).collect();
    ended.sort_by_key(|(tag, _)| *tag);
    assert!(guest.drive.collect().is_none(), "nothing ends twice");
    ended
}

/// What is told from now on.
fn heard<E: Engine>(guest: &mut Guest<E>) -> impl Fn() -> Vec<HostDisk> + use<E> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    guest.drive.tell(Box::new(move |what| hears.lock().expect("heard").push(what)));
    move || heard.lock().expect("heard").clone()
}

/// Asks for a try on another thread, as it is in life, while the drive works.
fn retry<E: Engine>(guest: &mut Guest<E>, mut ended: impl FnMut(Completion)) -> Result<(), NoRoom> {
    let remote = guest.drive.remote().expect("a remote");
    let asked = std::thread::spawn(move || remote.retry());
    while !asked.is_finished() {
        if let Some(completion) = guest.drive.collect() {
            ended(completion);
        }
    }
    asked.join().expect("no panic")
}

/// No space left on device.
const FULL: HostDisk = HostDisk::Full { errno: 28 };

#[test]
fn a_full_host_disk_delays_writes_and_fails_none() {
    let full = Arc::new(AtomicBool::new(false));
    let place = Place::new(Some(vec![1; 1 << 20]), 1 << 20);
    let make = |files| Ok(Filling { inner: SyncEngine::new(files), full: full.clone(), refused: Vec::new() });
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    let heard = heard(&mut guest);
    guest.write(0, &[2; 4096]);

    full.store(true, Ordering::SeqCst);
    guest.start_write(1, 4096, &[3; 4096]);
    guest.start_write(2, 8192 + 512, &[4; 512]);
    guest.drive.submit(3, Operation::Discard { offset: 16384, len: 8192 });
    guest.drive.submit(4, Operation::Flush);
    assert!(guest.drive.collect().is_none() && guest.drive.collect().is_none());
    assert_eq!(heard(), [FULL], "told once");
    guest.start_read(5, 0, 4096);
    assert_eq!(collect(&mut guest).tag, 5, "reads go on");
    assert_eq!(guest.bytes(5, 4096), [2; 4096]);

    full.store(false, Ordering::SeqCst);
    // Nobody asks: the drive tries by itself.
    for ((tag, result), expected) in collect_all(&mut guest, 4).into_iter().zip([1, 2, 3, 4]) {
        assert_eq!(tag, expected);
        result.expect("no error to the guest");
    }
    assert_eq!(heard(), [FULL, HostDisk::HasRoom]);
    guest.flush();
    drop(guest);
    let mut guest = place.guest();
    assert_eq!(guest.read(0, 8192), [[2; 4096], [3; 4096]].concat());
    assert_eq!(guest.read(8192, 2048), [&[1; 512][..], &[4; 512], &[1; 1024]].concat());
    assert_eq!(guest.read(16384, 12288), [&[0; 8192][..], &[1; 4096]].concat());
}

#[test]
fn who_asks_for_a_try_hears_what_has_become_of_it() {
    let full = Arc::new(AtomicBool::new(true));
    let place = Place::new(None, 1 << 20);
    let make = |files| Ok(Filling { inner: SyncEngine::new(files), full: full.clone(), refused: Vec::new() });
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    let heard = heard(&mut guest);
    retry(&mut guest, |_| panic!("nothing ends")).expect("nothing waits yet");
    guest.start_write(1, 0, &[1; 4096]);
    assert!(guest.drive.collect().is_none());
    for _ in 0..2 {
        match retry(&mut guest, |_| panic!("nothing ends")) {
            Err(NoRoom::Full(error)) => assert_eq!(error.raw_os_error(), Some(28)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard(), [FULL], "told once, however often it was tried");
    full.store(false, Ordering::SeqCst);
    let mut ended = Vec::new();
    retry(&mut guest, |end| ended.push(end.tag)).expect("there is room");
    ended.extend(std::iter::from_fn(|| guest.drive.collect()).map(|end| end.tag));
    assert_eq!((ended, heard()), (vec![1], vec![FULL, HostDisk::HasRoom]));

    // A question whose try is under way is answered by a later one: what was under way may have met a disk that was full before.
    full.store(true, Ordering::SeqCst);
    guest.start_write(2, 4096, &[2; 4096]);
    assert!(guest.drive.collect().is_none());
    crate::worker::wait_readable(guest.drive.source().expect("a source"));
    guest.drive.awakened();
    full.store(false, Ordering::SeqCst);
    retry(&mut guest, |end| assert_eq!(end.tag, 2)).expect("the refusal was of before");
}

#[test]
fn what_waits_for_room_fails_once_nobody_waits() {
    let full = Arc::new(AtomicBool::new(false));
    let place = Place::new(None, 1 << 20);
    let make = |files| Ok(Filling { inner: SyncEngine::new(files), full: full.clone(), refused: Vec::new() });
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    let heard = heard(&mut guest);
    // So that a flush has something to write.
    guest.write(0, &[1; 4096]);
    full.store(true, Ordering::SeqCst);
    guest.start_write(2, 4096, &[2; 4096]);
    guest.start_write(3, 8192 + 512, &[3; 512]);
    guest.drive.submit(4, Operation::Flush);
    assert!(guest.drive.collect().is_none());
    guest.drive.remote().expect("a remote").give_up();
    for ((tag, result), expected) in collect_all(&mut guest, 3).into_iter().zip([2, 3, 4]) {
        assert_eq!(tag, expected);
        assert_eq!(result.expect_err("nobody waits for room").kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(heard(), [FULL], "there is no more room than before");
    retry(&mut guest, |_| panic!("nothing ends")).expect("nothing waits any more");
    drop(guest);
    assert_eq!(place.guest().read(0, 8192), [0; 8192], "nothing was flushed");
}

/// A disk with room for so many bytes, which a hole gives back. What is refused says that a quota is used up.
struct Small {
    inner: SyncEngine,
    room: Arc<AtomicU64>,
    refused: Vec<IoTag>,
}

impl Engine for Small {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        match &io {
            Io::Write { from, .. } => {
                let (len, room) = (from.len_bytes() as u64, self.room.load(Ordering::SeqCst));
                match room.checked_sub(len) {
                    Some(left) => self.room.store(left, Ordering::SeqCst),
                    None => return self.refused.push(tag),
                }
            }
            Io::Punch { len, .. } => drop(self.room.fetch_add(*len, Ordering::SeqCst)),
            _ => {}
        }
        self.inner.submit(tag, io);
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        let refused = self.refused.pop().map(|tag| (tag, Err(io::Error::from_raw_os_error(122))));
        refused.or_else(|| self.inner.collect())
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

fn small(place: &Place, room: &Arc<AtomicU64>) -> Guest<Small> {
    let make = |files| Ok(Small { inner: SyncEngine::new(files), room: Arc::clone(room), refused: Vec::new() });
    Guest::new(Overlay::open(place.chain(), make).expect("a drive"))
}

/// Disk quota exceeded.
const QUOTA: HostDisk = HostDisk::Full { errno: 122 };

#[test]
fn there_is_room_when_there_is_enough_for_all_that_waits() {
    let place = Place::new(None, 1 << 20);
    let room = Arc::new(AtomicU64::new(0));
    let mut guest = small(&place, &room);
    let heard = heard(&mut guest);
    guest.start_write(1, 0, &[1; 8192]);
    guest.start_write(2, 16384, &[2; 4096]);
    guest.start_write(3, 32768, &[3; 4096]);
    assert!(guest.drive.collect().is_none());
    room.store(4096, Ordering::SeqCst);
    let mut ended = Vec::new();
    retry(&mut guest, |end| ended.push(end.tag)).expect_err("for one of three");
    assert_eq!((ended.len(), heard()), (1, vec![QUOTA]), "the others wait on");
    room.store(1 << 20, Ordering::SeqCst);
    retry(&mut guest, |end| ended.push(end.tag)).expect("there is enough");
    ended.extend(std::iter::from_fn(|| guest.drive.collect()).map(|end| end.tag));
    ended.sort_unstable();
    assert_eq!((ended, heard()), (vec![1, 2, 3], vec![QUOTA, HostDisk::HasRoom]));
}

#[test]
fn a_discard_that_waits_makes_the_room_that_others_wait_for() {
    let place = Place::new(None, 1 << 20);
    let room = Arc::new(AtomicU64::new(8192));
    let mut guest = small(&place, &room);
    let heard = heard(&mut guest);
    guest.write(0, &[1; 8192]);
    guest.start_write(1, 16384, &[2; 4096]);
    assert!(guest.drive.collect().is_none());
    guest.drive.submit(2, Operation::Discard { offset: 0, len: 8192 });
    for (_, result) in collect_all(&mut guest, 2) {
        result.expect("the guest has made room itself");
    }
    assert_eq!(heard(), [QUOTA, HostDisk::HasRoom]);
    assert_eq!(guest.read(0, 8192), [0; 8192]);
    assert_eq!(guest.read(16384, 4096), [2; 4096]);
}

#[test]
fn a_flush_whose_map_finds_no_room_waits_and_so_does_the_next() {
    let place = Place::new(None, 1 << 20);
    let room = Arc::new(AtomicU64::new(4096));
    let mut guest = small(&place, &room);
    let heard = heard(&mut guest);
    guest.write(0, &[1; 4096]);
    guest.drive.submit(1, Operation::Flush);
    guest.drive.submit(2, Operation::Flush);
    assert!(guest.drive.collect().is_none());
    guest.start_write(3, 4096, &[2; 4096]);
    assert!(guest.drive.collect().is_none(), "behind the map");
    room.store(1 << 20, Ordering::SeqCst);
    for (_, result) in collect_all(&mut guest, 3) {
        result.expect("no error to the guest");
    }
    assert_eq!(heard(), [QUOTA, HostDisk::HasRoom]);
    drop(guest);
    assert_eq!(place.guest().read(0, 4096), [1; 4096], "what was flushed is there");
}

/// Fails every sync.
struct Broken(SyncEngine, Vec<IoTag>);

impl Engine for Broken {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        match io {
            Io::Sync { .. } => self.1.push(tag),
            io => self.0.submit(tag, io),
        }
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        self.1.pop().map(|tag| (tag, Err(io::Error::other("bad disk")))).or_else(|| self.0.collect())
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

#[test]
fn after_a_failed_sync_no_flush_is_believed() {
    let place = Place::new(None, 1 << 20);
    let mut guest = Guest::new(
        Overlay::open(place.chain(), |files| Ok(Broken(SyncEngine::new(files), Vec::new()))).expect("a drive"),
    );
    guest.write(0, &[1; 4096]);
    for _ in 0..2 {
        guest.drive.submit(0, Operation::Flush);
        guest.end(0).expect_err("it failed");
    }
    assert_eq!(guest.read(0, 4096), [1; 4096], "the drive still reads and writes");
    drop(guest);
    assert_eq!(place.guest().read(0, 4096), [0; 4096], "no bit was written without its data");
}
