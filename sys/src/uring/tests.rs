use super::*;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress};

type Memory = GuestMemoryMmap<()>;

const DEPTH: u16 = 4;

fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 0x4000), (GuestAddress(0x10000), 0x4000)]).expect("memory")
}

fn slices<'a>(mem: &'a Memory, ranges: &[(u64, usize)]) -> GuestSlices<'a> {
    let mut list = GuestSlices::new();
    for (address, len) in ranges {
        assert!(list.push(GuestMemoryBackend::get_slice(mem, GuestAddress(*address), *len).expect("in memory")));
    }
    list
}

fn ring(files: &[&File], mem: &Memory) -> Ring {
    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let mut ring = Ring::new(&files, DEPTH).expect("a ring");
    ring.attach(mem.clone());
    ring
}

/// Waits for the next step that ends.
fn next(ring: &mut Ring) -> (u64, io::Result<()>) {
    loop {
        if let Some(ended) = ring.collect() {
            return ended;
        }
        // SAFETY: the descriptor is the ring's and open.
        let source = unsafe { BorrowedFd::borrow_raw(ring.source()) };
        crate::wait::readable(source, None).expect("waiting");
    }
}

#[test]
fn bytes_travel_between_registered_files_and_scattered_guest_memory() {
    let (mem, one, two) = (memory(), tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    let mut ring = ring(&[&one, &two], &mem);
    mem.write_slice(b"hello, ", GuestAddress(0x10)).expect("write");
    mem.write_slice(b"guest", GuestAddress(0x10000)).expect("write");
    ring.write(7, 1, 100, &slices(&mem, &[(0x10, 7), (0x10000, 5)])).expect("started");
    ring.kick();
    assert!(matches!(next(&mut ring), (7, Ok(()))));
    ring.task(8, 1, Task::Sync).expect("started");
    ring.read(9, 1, 102, &slices(&mem, &[(0x3000, 3), (0x2000, 7)])).expect("started");
    ring.kick();
    let mut ended = [next(&mut ring), next(&mut ring)].map(|(tag, result)| (tag, result.is_ok()));
    ended.sort_unstable();
    assert_eq!(ended, [(8, true), (9, true)]);
    let mut bytes = [0; 7];
    mem.read_slice(&mut bytes, GuestAddress(0x2000)).expect("read");
    assert_eq!(&bytes, b", guest");
    assert_eq!(one.metadata().expect("metadata").len(), 0);
    assert!(ring.collect().is_none());
}

#[test]
fn space_is_given_back_and_zeros_are_made() {
    let (mem, file) = (memory(), tempfile::tempfile().expect("a file"));
    file.write_all_at(&[7; 16 << 10], 0).expect("writing");
    let mut ring = ring(&[&file], &mem);
    ring.task(1, 0, Task::Punch { offset: 0, len: 4096 }).expect("started");
    ring.task(2, 0, Task::Zero { offset: 8192, len: 512 }).expect("started");
    ring.kick();
    assert!(next(&mut ring).1.is_ok() && next(&mut ring).1.is_ok());
    let mut bytes = vec![1; 16 << 10];
    file.read_exact_at(&mut bytes, 0).expect("reading");
    let zero = |at: usize| at < 4096 || (8192..8704).contains(&at);
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if zero(at) { 0 } else { 7 }));
}

#[test]
fn what_moves_in_pieces_goes_on_until_all_is_moved() {
    let mem = memory();
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let reader = File::from(std::os::fd::OwnedFd::from(reader));
    let mut ring = ring(&[&reader], &mem);
    ring.read(1, 0, 0, &slices(&mem, &[(0, 3), (0x100, 3), (0x200, 3)])).expect("started");
    ring.kick();
    for piece in [b"ab".as_slice(), b"cdef", b"g"] {
        writer.write_all(piece).expect("writing");
        // SAFETY: the descriptor is the ring's and open.
        let source = unsafe { BorrowedFd::borrow_raw(ring.source()) };
        crate::wait::readable(source, None).expect("waiting");
        assert!(ring.collect().is_none(), "not all of it yet");
    }
    writer.write_all(b"hi").expect("writing");
    assert!(matches!(next(&mut ring), (1, Ok(()))));
    let mut bytes = [0; 0x203];
    mem.read_slice(&mut bytes, GuestAddress(0)).expect("read");
    assert_eq!((&bytes[..3], &bytes[0x100..0x103], &bytes[0x200..]), (&b"abc"[..], &b"def"[..], &b"ghi"[..]));
}

#[test]
fn the_end_of_a_file_and_a_full_disk_are_errors() {
    let (mem, short) = (memory(), tempfile::tempfile().expect("a file"));
    short.write_all_at(&[7; 100], 0).expect("writing");
    let full = File::options().write(true).open("/dev/full").expect("/dev/full");
    let mut ring = ring(&[&short, &full], &mem);
    ring.read(1, 0, 0, &slices(&mem, &[(0, 101)])).expect("started");
    ring.kick();
    let (tag, result) = next(&mut ring);
    assert_eq!((tag, result.expect_err("too short").kind()), (1, io::ErrorKind::UnexpectedEof));
    ring.write(2, 1, 0, &slices(&mem, &[(0, 512)])).expect("started");
    ring.kick();
    let (tag, result) = next(&mut ring);
    assert_eq!((tag, result.expect_err("full").kind()), (2, io::ErrorKind::StorageFull));
    ring.write(3, 2, 0, &slices(&mem, &[(0, 512)])).expect("started");
    ring.kick();
    assert!(next(&mut ring).1.is_err(), "there is no third file");
}

#[test]
fn memory_that_is_not_the_rings_is_refused() {
    let (mem, other, file) = (memory(), memory(), tempfile::tempfile().expect("a file"));
    let mut ring = ring(&[&file], &mem);
    assert_eq!(ring.read(1, 0, 0, &slices(&other, &[(0, 16)])), Err(NotStarted));
    assert_eq!(ring.write(1, 0, 0, &slices(&mem, &[(0x3fff, 1)])), Ok(()));
    ring.detach();
    assert_eq!(ring.write(1, 0, 0, &slices(&mem, &[(0, 16)])), Err(NotStarted));
}

#[test]
fn a_full_ring_takes_no_more_until_something_has_ended() {
    let (mem, file) = (memory(), tempfile::tempfile().expect("a file"));
    let mut ring = ring(&[&file], &mem);
    let data = slices(&mem, &[(0, 16)]);
    for tag in 0..u64::from(DEPTH) {
        ring.write(tag, 0, tag * 16, &data).expect("started");
    }
    assert_eq!(ring.write(99, 0, 0, &data), Err(NotStarted));
    ring.kick();
    for _ in 0..DEPTH {
        assert!(next(&mut ring).1.is_ok());
    }
    ring.write(99, 0, 0, &data).expect("started");
    ring.kick();
    assert_eq!(next(&mut ring).0, 99);
}

#[test]
fn the_kernel_takes_nothing_but_the_five_steps_on_registered_files() {
    let (mem, file) = (memory(), tempfile::tempfile().expect("a file"));
    let mut ring = ring(&[&file], &mem);
    let unregistered = opcode::Fsync::new(io_uring::types::Fd(file.as_raw_fd())).build();
    for entry in [opcode::Nop::new().build(), unregistered] {
        // SAFETY: neither entry holds a pointer.
        let pushed = unsafe { ring.bare.ring.submission().push(&entry) };
        pushed.expect("room");
        ring.bare.ring.submit().expect("submitted");
        let result = ring.bare.ring.completion().next().expect("refused at once").result();
        assert_eq!(result, -libc::EACCES);
    }
    let again = ring.bare.ring.submitter().register_files(&[file.as_raw_fd()]).expect_err("restricted");
    assert_eq!(again.raw_os_error(), Some(libc::EACCES));
}

#[test]
fn a_ring_that_is_dropped_waits_for_what_is_in_flight() {
    let mem = memory();
    let (reader, mut writer) = io::pipe().expect("a pipe");
    let reader = File::from(std::os::fd::OwnedFd::from(reader));
    let mut ring = ring(&[&reader], &mem);
    ring.read(1, 0, 0, &slices(&mem, &[(0, 5)])).expect("started");
    ring.kick();
    let dropped = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&dropped);
    let dropper = std::thread::spawn(move || {
        drop(ring);
        seen.store(true, Ordering::SeqCst);
    });
    assert!(!dropped.load(Ordering::SeqCst), "the read cannot have ended");
    writer.write_all(b"there").expect("writing");
    dropper.join().expect("dropped");
    let mut bytes = [0; 5];
    mem.read_slice(&mut bytes, GuestAddress(0)).expect("read");
    assert_eq!(&bytes, b"there");
}

#[test]
fn rings_that_were_reserved_are_lent_and_come_back_without_their_files() {
    let pool = Arc::new(Pool::new(2, DEPTH));
    let (mem, files) = (memory(), [tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file")]);
    let lend = |files: &[&File]| {
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        Ring::out_of(Some(Arc::clone(&pool)), &files, 256)
    };
    for round in 0..3u8 {
        let (mut one, two) = (lend(&[&files[0], &files[1]]).expect("a ring"), lend(&[&files[0]]).expect("a ring"));
        let refused = lend(&[]).map(|_| ()).expect_err("no third");
        assert_eq!(refused.to_string(), "all 2 rings that were made at the start are taken");
        one.attach(mem.clone());
        mem.write_slice(&[round], GuestAddress(0)).expect("write");
        one.write(1, 1, 0, &slices(&mem, &[(0, 1)])).expect("started");
        one.kick();
        assert!(matches!(next(&mut one), (1, Ok(()))));
        let mut byte = [9];
        files[1].read_exact_at(&mut byte, 0).expect("reading");
        assert_eq!(byte, [round]);
        // Its second file is not there for who comes next.
        drop((one, two));
        let mut next_one = lend(&[&files[0]]).expect("a ring");
        next_one.task(2, 1, Task::Sync).expect("started");
        next_one.kick();
        let (tag, result) = next(&mut next_one);
        assert_eq!((tag, result.expect_err("no file").raw_os_error()), (2, Some(libc::EBADF)));
    }
    let many: Vec<_> = std::iter::repeat_n(&files[0], MAX_FILES + 1).collect();
    assert!(lend(&many).map(|_| ()).expect_err("too many").to_string().starts_with("65 files are too many"));
    assert_eq!(pool.lock().len(), 2);
}

#[test]
fn a_ring_lets_nothing_be_registered_but_files() {
    let ring = Bare::new(DEPTH).expect("a ring");
    let event = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let refused = ring.ring.submitter().register_eventfd(event.as_raw_fd()).expect_err("restricted");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    assert!(ring.ring.submitter().unregister_files().is_err());
}
