//! The files of an overlay after a bad night: maps whose bytes changed, that were cut, or that are of another drive; and a guest
//! that uses what opens nevertheless, on a host's disk that is full now and then.
//!
//! Rules: a drive opens or says what is wrong; one that opened reads, writes and flushes without an error, and keeps its size. What
//! waits for room is done once there is some.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use labyard_devices::backend::block::NoRoom;
use labyard_devices::backend::engine::{Engine, Io, IoTag, SyncEngine};
use labyard_devices::backend::overlay::{Base, Chain, LayerFiles, Overlay};
use labyard_devices::counters::Snapshot;
use labyard_devices::testing::{GuestDriver, readable, writable};
use labyard_devices::virtio::block::Block;
use labyard_devices::virtio::block::handle::Handle;
use labyard_devices::virtio::device::DeviceType;
use labyard_spec::overlay::{
    Header, LayerId, PAGE_BYTES, PAGE_WORDS, SECTOR_BYTES, Words, decode_page, encode_page, page_offset,
};
use labyard_sys::memfd;

use super::requests;
use crate::input::Input;

/// Bytes of the drive, and of what it lies on.
const DRIVE_BYTES: u64 = 1 << 20;
const BASE_BYTES: u64 = (64 << 10) + 512;
/// Requests of one input at most.
const STEPS: usize = 64;

/// Reads the bytes as what happened to a chain, and what its guest does then.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    forms(&mut input);
    let files: Vec<LayerFiles> = (0..3).map(|_| LayerFiles { data: memory(0), map: memory(0) }).collect();
    let base = memory(BASE_BYTES);
    let frozen = 1 + input.below(2);
    make(&files[..=frozen], &base, &mut input);
    for _ in 0..input.byte() % 4 {
        spoil(&files[input.below(frozen + 1)], &mut input);
    }
    let chain = Chain {
        base: (!input.one_in(32)).then(|| base_of(&base)),
        frozen: files[..frozen].iter().map(again).collect(),
        top: again(&files[frozen]),
        live: input.one_in(2),
        capacity_bytes: match input.byte() % 32 {
            29 => input.long(),
            30 => BASE_BYTES & !511,
            31 => 2 * DRIVE_BYTES,
            _ => DRIVE_BYTES,
        },
    };
    let full = Arc::new(AtomicBool::new(false));
    let make = |files| Ok(Filling { inner: SyncEngine::new(files), full: Arc::clone(&full), refused: Vec::new() });
    match Overlay::open(chain, make) {
        Ok(drive) => guest(drive, &full, &mut input),
        Err(error) => assert!(!error.to_string().is_empty(), "an error without a word"),
    }
}

/// Refuses what needs room while the host's disk is full.
struct Filling {
    inner: SyncEngine,
    full: Arc<AtomicBool>,
    refused: Vec<IoTag>,
}

impl Engine for Filling {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        match io {
            Io::Write { .. } if self.full.load(Ordering::SeqCst) => self.refused.push(tag),
            io => self.inner.submit(tag, io),
        }
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        let refused = self.refused.pop().map(|tag| (tag, Err(io::ErrorKind::QuotaExceeded.into())));
        refused.or_else(|| self.inner.collect())
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

fn memory(bytes: u64) -> File {
    memfd::create("a layer", bytes).expect("a memfd")
}

/// Another descriptor of the same files. A lease is the open file's, so this is not another machine.
fn again(files: &LayerFiles) -> LayerFiles {
    let [data, map] = [&files.data, &files.map].map(|file| file.try_clone().expect("a descriptor"));
    LayerFiles { data, map }
}

fn base_of(file: &File) -> Base {
    Base { file: file.try_clone().expect("a descriptor"), name: "image".into() }
}

/// A sound chain of these layers, the last of them the top, with a few blocks in each.
fn make(layers: &[LayerFiles], base: &File, input: &mut Input<'_>) {
    let Some((first, others)) = layers.split_first() else { return };
    let chain = Chain {
        base: Some(base_of(base)),
        frozen: Vec::new(),
        top: again(first),
        live: true,
        capacity_bytes: DRIVE_BYTES,
    };
    let mut drive = Overlay::new(chain).expect("a new chain");
    for next in others {
        drive = written(drive, input);
        drive.make_next(next).expect("room in memory");
        let engine = |files| Ok(SyncEngine::new(files));
        drive.freeze(again(next), engine).expect("nothing is under way");
    }
    written(drive, input);
}

/// The drive after a few writes of a guest without virtio.
fn written<E: Engine>(mut drive: Overlay<E>, input: &mut Input<'_>) -> Overlay<E> {
    use labyard_devices::Memory;
    use labyard_devices::backend::block::{BlockBackend, Operation};
    use labyard_sys::iov::GuestSlices;
    use vm_memory::{GuestAddress, GuestMemoryBackend};

    let memory = Memory::from_ranges(&[(GuestAddress(0), 0x4000)]).expect("memory");
    drive.attach(&memory);
    for _ in 0..input.byte() % 4 {
        let (sector, len) = (u64::from(input.short()) % 2000, 512 << (input.byte() % 5));
        let from = GuestSlices::one(memory.get_slice(GuestAddress(0), len).expect("in memory"));
        drive.submit(0, Operation::Write { offset: sector * 512, from });
        while drive.collect().is_some() {}
    }
    if input.one_in(2) {
        drive.submit(0, Operation::Flush);
        while drive.collect().is_some() {}
    }
    drive.detach();
    drive
}

/// What disks and people do to files.
fn spoil(files: &LayerFiles, input: &mut Input<'_>) {
    let file = if input.one_in(4) { &files.data } else { &files.map };
    let len = file.metadata().expect("its size").len();
    match input.byte() % 8 {
        0 => file.set_len(u64::from(input.word()) % (2 * len.max(1))).expect("resized"),
        1 => file.set_len(0).expect("resized"),
        2 => {
            // A header with a good checksum that says something else.
            let mut bytes = [0; SECTOR_BYTES];
            let read = files.map.read_exact_at(&mut bytes, 0).map_err(|error| error.to_string());
            if let Ok(header) = read.and_then(|()| Header::decode(&bytes).map_err(|error| error.to_string())) {
                let other = changed(header, input).encode();
                files.map.write_all_at(&other, 0).expect("written");
            }
        }
        3 => {
            let mut page = [0; PAGE_BYTES];
            encode_page(LayerId(input.array()), 0, &words(input), &mut page);
            files.map.write_all_at(&page, page_offset(u64::from(input.byte() % 4))).expect("written");
        }
        _ => {
            let at = if input.one_in(2) { u64::from(input.byte()) } else { u64::from(input.word()) % len.max(1) };
            file.write_all_at(&input.array::<2>(), at).expect("written");
        }
    }
}

fn changed(header: Header, input: &mut Input<'_>) -> Header {
    match input.byte() % 5 {
        0 => Header { capacity_bytes: input.long(), ..header },
        1 => Header { capacity_bytes: header.capacity_bytes + 512, ..header },
        2 => Header { base_bytes: input.long(), ..header },
        3 => Header { below: String::from_utf8_lossy(input.bytes(80)).into_owned(), ..header },
        _ => Header { settled: !header.settled, ..header },
    }
}

fn words(input: &mut Input<'_>) -> Words {
    let mut words = [0; PAGE_WORDS];
    for _ in 0..input.byte() % 8 {
        words[input.below(PAGE_WORDS)] = input.long();
    }
    words
}

/// Headers and pages by themselves: what was written is read, what was changed is noticed.
fn forms(input: &mut Input<'_>) {
    let header = Header {
        layer: LayerId(input.array()),
        capacity_bytes: u64::from(input.word()) * 512,
        base_bytes: 0,
        below: "image".into(),
        settled: input.one_in(2),
    };
    let mut bytes = header.encode();
    assert_eq!(Header::decode(&bytes).as_ref(), Ok(&header));
    let (words, page) = (words(input), u64::from(input.byte()));
    let mut coded = [0; PAGE_BYTES];
    encode_page(header.layer, page, &words, &mut coded);
    let mut read = [0; PAGE_WORDS];
    if decode_page(&header, page, 0, &coded, &mut read).is_ok() {
        assert_eq!(read, words);
    }
    let at = input.below(SECTOR_BYTES);
    bytes[at] ^= input.byte();
    assert!(Header::decode(&bytes).is_err() || bytes == header.encode(), "byte {at} has no checksum");
    let at = input.below(PAGE_BYTES);
    coded[at] ^= input.byte();
    let _ = decode_page(&header, page, 0, &coded, &mut read).map_err(|error| error.to_string());
}

/// The host wants the drive larger, mostly; the guest is at work meanwhile. Whether it got its way.
fn grow(guest: &mut GuestDriver, handle: &Handle, input: &mut Input<'_>) -> bool {
    let bytes = match input.byte() % 8 {
        0 => input.long(),
        1 => u64::from(input.word()) % (2 * DRIVE_BYTES),
        _ => (DRIVE_BYTES + u64::from(input.word()) % (1 << 30)) & !511,
    };
    let handle = handle.clone();
    let asked = std::thread::spawn(move || handle.resize(bytes));
    while !asked.is_finished() {
        guest.run();
        std::thread::yield_now();
    }
    match asked.join().expect("no panic") {
        Ok(()) => true,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "an error without a word");
            false
        }
    }
}

/// The host has what waits for room tried; the guest is at work meanwhile. One whose ring breaks then resets the drive, which there has to be
/// room for.
fn retry(guest: &mut GuestDriver, handle: &Handle, full: &AtomicBool) -> Result<(), NoRoom> {
    let handle = handle.clone();
    let asked = std::thread::spawn(move || handle.retry());
    while !asked.is_finished() {
        guest.run();
        if guest.needs_reset() {
            full.store(false, Ordering::SeqCst);
            guest.write(0x70, 0);
        }
        std::thread::yield_now();
    }
    asked.join().expect("no panic")
}

/// There is room again: whatever waited is done.
fn make_room(guest: &mut GuestDriver, handle: &Handle, full: &AtomicBool) {
    if let Err(error) = retry(guest, handle, full) {
        assert!(!error.to_string().is_empty(), "an error without a word");
    }
    full.store(false, Ordering::SeqCst);
    retry(guest, handle, full).expect("there is room");
}

/// A guest uses the drive, on a disk that may be full.
fn guest<E: Engine + 'static>(mut drive: Overlay<E>, full: &AtomicBool, input: &mut Input<'_>) {
    let mut told = Vec::new();
    drive.tell(Box::new(move |what| {
        assert_ne!(told.last(), Some(&what), "told twice");
        told.push(what);
    }));
    let block = Block::new("d00", Box::new(drive));
    let handle = block.handle();
    let mut guest = GuestDriver::attach(Box::new(block));
    let mut capacity = sectors(&mut guest);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        // One whose worker has given up answers nobody; a flush that waits for room keeps who wants it larger waiting.
        let (is_full, answers) = (full.load(Ordering::SeqCst), guest.is_at_work());
        if is_full && answers && input.one_in(4) {
            make_room(&mut guest, &handle, full);
        } else if !is_full && input.one_in(8) {
            full.store(true, Ordering::SeqCst);
        } else if !is_full && answers && input.one_in(8) && grow(&mut guest, &handle, input) {
            let before = std::mem::replace(&mut capacity, sectors(&mut guest));
            assert!(capacity >= before, "a drive that grew is not smaller: {before} and {capacity} sectors");
        }
        if !requests::offer(&mut guest, DeviceType::Block, 0, input) {
            guest.offer(0, &[readable(requests::HEADER, 16), writable(requests::LARGE, 4096)]);
        }
        if !input.one_in(4) {
            guest.kick(0);
            guest.used(0);
        }
    }
    if full.load(Ordering::SeqCst) && guest.is_at_work() {
        if input.one_in(4) {
            handle.give_up();
        } else {
            make_room(&mut guest, &handle, full);
        }
    }
    guest.kick(0);
    let errors = handle.counters().snapshot().into_iter().find(|(name, _)| *name == "errors");
    assert_eq!(errors, Some(("errors", 0)), "a drive that opened serves its guest");
    assert_eq!(sectors(&mut guest), capacity);
}

/// Its size as the guest sees it (VIRTIO 1.2, §5.2.4).
fn sectors(guest: &mut GuestDriver) -> u64 {
    guest.config(0, 8).iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
