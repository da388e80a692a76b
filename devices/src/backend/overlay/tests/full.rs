//! A host disk without room.

use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

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
fn collect(guest: &mut Guest<Filling>) -> Completion {
    loop {
        if let Some(completion) = guest.drive.collect() {
            return completion;
        }
        crate::worker::wait_readable(guest.drive.source().expect("a source"));
    }
}

#[test]
fn a_full_host_disk_delays_writes_and_fails_none() {
    let full = Arc::new(AtomicBool::new(false));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let place = Place::new(Some(vec![1; 1 << 20]), 1 << 20);
    let make = |files| Ok(Filling { inner: SyncEngine::new(files), full: full.clone(), refused: Vec::new() });
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    let hears = heard.clone();
    guest.drive.tell(Box::new(move |what| hears.lock().expect("heard").push(what)));
    guest.write(0, &[2; 4096]);

    full.store(true, Ordering::SeqCst);
    guest.start_write(1, 4096, &[3; 4096]);
    guest.start_write(2, 8192 + 512, &[4; 512]);
    guest.drive.submit(3, Operation::Discard { offset: 16384, len: 8192 });
    guest.drive.submit(4, Operation::Flush);
    assert!(guest.drive.collect().is_none() && guest.drive.collect().is_none());
    assert_eq!(*heard.lock().expect("heard"), [HostDisk::Full], "told once");
    guest.start_read(5, 0, 4096);
    assert_eq!(collect(&mut guest).tag, 5, "reads go on");
    assert_eq!(guest.bytes(5, 4096), [2; 4096]);

    full.store(false, Ordering::SeqCst);
    let mut ended: Vec<_> = (0..4).map(|_| collect(&mut guest)).collect();
    ended.sort_by_key(|completion| completion.tag);
    for (completion, tag) in ended.iter().zip([1, 2, 3, 4]) {
        assert_eq!(completion.tag, tag);
        completion.result.as_ref().expect("no error to the guest");
    }
    assert_eq!(*heard.lock().expect("heard"), [HostDisk::Full, HostDisk::HasRoom]);
    guest.flush();
    drop(guest);
    let mut guest = place.guest();
    assert_eq!(guest.read(0, 8192), [[2; 4096], [3; 4096]].concat());
    assert_eq!(guest.read(8192, 2048), [&[1; 512][..], &[4; 512], &[1; 1024]].concat());
    assert_eq!(guest.read(16384, 12288), [&[0; 8192][..], &[1; 4096]].concat());
}

#[test]
fn what_waits_for_room_is_tried_when_somebody_says_so_and_fails_once_nobody_waits() {
    let full = Arc::new(AtomicBool::new(true));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let place = Place::new(None, 1 << 20);
    let make = |files| Ok(Filling { inner: SyncEngine::new(files), full: full.clone(), refused: Vec::new() });
    let mut guest = Guest::new(Overlay::open(place.chain(), make).expect("a drive"));
    let hears = heard.clone();
    guest.drive.tell(Box::new(move |what| hears.lock().expect("heard").push(what)));
    let remote = guest.drive.remote().expect("a remote");
    // Nothing waits yet: the drive is woken once, for nothing.
    remote.retry();
    crate::worker::wait_readable(guest.drive.source().expect("a source"));
    assert!(guest.drive.collect().is_none());

    guest.start_write(1, 0, &[1; 4096]);
    assert!(guest.drive.collect().is_none());
    full.store(false, Ordering::SeqCst);
    remote.retry();
    let written = collect(&mut guest);
    assert_eq!(written.tag, 1);
    written.result.expect("there was room");
    assert_eq!(*heard.lock().expect("heard"), [HostDisk::Full, HostDisk::HasRoom]);

    full.store(true, Ordering::SeqCst);
    guest.start_write(2, 4096, &[2; 4096]);
    guest.start_write(3, 8192 + 512, &[3; 512]);
    guest.drive.submit(4, Operation::Flush);
    assert!(guest.drive.collect().is_none());
    remote.give_up();
    let mut ended: Vec<_> = (0..3).map(|_| collect(&mut guest)).collect();
    ended.sort_by_key(|completion| completion.tag);
    for (completion, tag) in ended.iter().zip([2, 3, 4]) {
        assert_eq!(completion.tag, tag);
        let error = completion.result.as_ref().expect_err("nobody waits for room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    drop(guest);
    assert_eq!(place.guest().read(0, 8192), [0; 8192], "nothing was flushed");
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
