//! Drives in layers from the device's side: requests with tags over guest memory, completions whenever they come.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::backend::engine::{Io, IoTag};
use labyard_sys::iov::GuestSlices;

mod cut;
mod full;
mod growth;
mod hostile;
mod model;
mod unit;

/// Guest memory that each tag has for itself.
const PER_TAG: u64 = 64 << 10;
const TAGS: u64 = 64;

/// A drive, and the memory of its guest.
pub(super) struct Guest<E> {
    pub(super) drive: Overlay<E>,
    pub(super) memory: Memory,
}

impl<E: Engine> Guest<E> {
    pub(super) fn new(mut drive: Overlay<E>) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), (PER_TAG * TAGS) as usize)]).expect("memory");
        drive.attach(&memory);
        Self { drive, memory }
    }

    pub(super) fn start_read(&mut self, tag: Tag, offset: u64, len: u64) {
        self.memory.write_slice(&vec![0xee; len as usize], GuestAddress(u64::from(tag) * PER_TAG)).expect("memory");
        let memory = self.memory.clone();
        let list = Guest::<E>::list(&memory, tag, len);
        self.drive.submit(tag, Operation::Read { offset, into: list });
    }

    pub(super) fn start_write(&mut self, tag: Tag, offset: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(u64::from(tag) * PER_TAG)).expect("memory");
        let memory = self.memory.clone();
        let list = Guest::<E>::list(&memory, tag, bytes.len() as u64);
        self.drive.submit(tag, Operation::Write { offset, from: list });
    }

    /// In two pieces where it can be, so that lists are lists.
    fn list(memory: &Memory, tag: Tag, len: u64) -> GuestSlices<'_> {
        let start = u64::from(tag) * PER_TAG;
        let cut = if len > 512 { len / 1024 * 512 } else { 0 };
        let mut list = GuestSlices::new();
        for (at, len) in [(start, cut), (start + cut, len - cut)] {
            if len > 0 {
                assert!(list.push(memory.get_slice(GuestAddress(at), len as usize).expect("memory")));
            }
        }
        list
    }

    /// What a read has brought.
    pub(super) fn bytes(&self, tag: Tag, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(u64::from(tag) * PER_TAG)).expect("memory");
        bytes
    }

    /// The completion of a request that is alone.
    pub(super) fn end(&mut self, tag: Tag) -> io::Result<()> {
        let completion = self.drive.collect().expect("it has ended");
        assert_eq!(completion.tag, tag);
        assert!(self.drive.collect().is_none());
        completion.result
    }

    pub(super) fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        self.start_read(0, offset, len);
        self.end(0).expect("reading");
        self.bytes(0, len)
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.start_write(0, offset, bytes);
        self.end(0).expect("writing");
    }

    pub(super) fn discard(&mut self, offset: u64, len: u64) {
        self.drive.submit(0, Operation::Discard { offset, len });
        self.end(0).expect("discarding");
    }

    pub(super) fn flush(&mut self) {
        self.drive.submit(0, Operation::Flush);
        self.end(0).expect("flushing");
    }
}

/// Files of a chain in a folder.
pub(super) struct Place {
    folder: tempfile::TempDir,
    pub(super) base: Option<Vec<u8>>,
    pub(super) capacity_bytes: u64,
    pub(super) layers: usize,
}

impl Place {
    pub(super) fn new(base: Option<Vec<u8>>, capacity_bytes: u64) -> Self {
        // In memory: tests sync thousands of times, and what a sync does to a disk is not what they are about.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a folder");
        if let Some(base) = &base {
            std::fs::write(folder.path().join("base"), base).expect("writing");
        }
        Self { folder, base, capacity_bytes, layers: 1 }
    }

    pub(super) fn path(&self, layer: usize, what: &str) -> PathBuf {
        self.folder.path().join(format!("{layer}.{what}"))
    }

    pub(super) fn files(&self, layer: usize) -> LayerFiles {
        LayerFiles { data: open(&self.path(layer, "data")), map: open(&self.path(layer, "map")) }
    }

    pub(super) fn chain(&self) -> Chain {
        let base = self.base.as_ref().map(|_| Base {
            file: File::open(self.folder.path().join("base")).expect("the base"),
            name: "image".to_owned(),
        });
        let top = self.layers - 1;
        Chain {
            base,
            frozen: (0..top).map(|layer| self.files(layer)).collect(),
            top: self.files(top),
            live: false,
            capacity_bytes: self.capacity_bytes,
        }
    }

    pub(super) fn guest(&self) -> Guest<SyncEngine> {
        Guest::new(Overlay::new(self.chain()).expect("a drive"))
    }
}

pub(super) fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("opening")
}

/// Completes steps at once and tells of them in an order of its own.
pub(super) struct Shuffled<E> {
    pub(super) inner: E,
    ended: Vec<(IoTag, io::Result<()>)>,
    random: Random,
    /// How many calls of `collect` in a row say that nothing has ended.
    slow: u64,
}

impl<E> Shuffled<E> {
    pub(super) fn new(inner: E, seed: u64) -> Self {
        Self { inner, ended: Vec::new(), random: Random(seed), slow: 0 }
    }
}

impl<E: Engine> Engine for Shuffled<E> {
    fn submit(&mut self, tag: IoTag, io: Io<'_>) {
        self.inner.submit(tag, io);
        self.ended.extend(std::iter::from_fn(|| self.inner.collect()));
    }

    fn collect(&mut self) -> Option<(IoTag, io::Result<()>)> {
        if self.ended.is_empty() {
            return None;
        }
        if self.slow == 0 && self.random.below(3) == 0 {
            self.slow = 1;
            return None;
        }
        self.slow = 0;
        let index = self.random.below(self.ended.len() as u64) as usize;
        Some(self.ended.swap_remove(index))
    }

    fn source(&self) -> Option<RawFd> {
        None
    }
}

/// Numbers that are the same each time (xorshift64*).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 33) % end
    }
}

/// How many rounds where a soak runs, else so many.
pub(super) fn rounds(in_ci: u64, soaking: u64) -> u64 {
    if std::env::var_os("LABYARD_SOAK").is_some() { soaking } else { in_ci }
}

/// Counts by name, for messages.
pub(super) type Counts = BTreeMap<&'static str, u64>;
