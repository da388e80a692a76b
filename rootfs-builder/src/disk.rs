//! A disk as an object: which parts of it are not zero, and one digest over them.
//!
//! The digest is SHA-256 over the disk's length and, for each piece of [`PIECE`] bytes that is not all zeros, its place and its own
//! SHA-256. So it says nothing about where a file has holes, and pieces are read by several threads. It finds damage; who may write
//! to the store can write another digest, too.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::output::{Aligned, is_zero};
use crate::watch::{Interrupted, Watch};

/// Bytes of a piece.
pub const PIECE: u64 = 256 << 10;
/// After so many bytes the host begins to write them.
const SYNC: u64 = 32 << 20;
/// Writes at least so long go past the page cache, where one is let: shorter ones wait for the disk longer than they save.
const DIRECT: usize = 64 << 10;
/// Buffers that wait for their sums, at most.
const BUFFERS: usize = 4;
const ENDED_EARLY: &str = "a thread has ended early";
/// More threads are no faster: the disk gives no more, or memory does not.
const MAX_THREADS: usize = 4;

/// Why a disk has no digest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum DiskError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// What a disk has in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Length of the disk.
    pub len: u64,
    /// Numbers of the pieces that are not all zeros, and their sums, in order.
    pieces: Vec<Piece>,
}

/// Its number and its sum.
type Piece = (u64, [u8; 32]);

impl Contents {
    /// The digest of the disk.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(format!("labyard disk {} {PIECE}\n", self.len));
        for (number, sum) in &self.pieces {
            hash.update(number.to_le_bytes());
            hash.update(sum);
        }
        hash.into()
    }

    /// Where they lie: offset and length, neighbours joined.
    pub fn extents(&self) -> Vec<(u64, u64)> {
        let mut extents: Vec<(u64, u64)> = Vec::new();
        for (number, _) in &self.pieces {
            let at = number * PIECE;
            let len = PIECE.min(self.len - at);
            match extents.last_mut() {
                Some((start, length)) if *start + *length == at => *length += len,
                _ => extents.push((at, len)),
            }
        }
        extents
    }
}

/// The same file for writes past the page cache; `None` where its file system has no such thing.
pub(crate) fn past_page_cache(path: &Path) -> Option<File> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).ok()?;
    File::options().write(true).custom_flags(direct).open(path).ok()
}

/// Reads a disk; holes cost nothing.
pub fn read(disk: &File, step: &str, watch: &Watch) -> Result<Contents, DiskError> {
    let len = disk.metadata()?.len();
    let mut pieces = sums_of(disk, len, &with_data(disk, len)?, step, watch)?;
    pieces.sort_unstable_by_key(|(number, _)| *number);
    Ok(Contents { len, pieces })
}

/// The sums of these pieces, as they come.
fn sums_of(disk: &File, len: u64, numbers: &[u64], step: &str, watch: &Watch) -> Result<Vec<Piece>, DiskError> {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let mut pieces = Vec::with_capacity(numbers.len());
    std::thread::scope(|scope| {
        let (sender, sums) = mpsc::sync_channel(64);
        for _ in 0..threads {
            let sender = sender.clone();
            let (next, stop) = (&next, &stop);
            scope.spawn(move || {
                let mut bytes = vec![0; PIECE as usize];
                while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed))
                    && !stop.load(Ordering::Relaxed)
                    && sender.send(read_sum(disk, len, *number, &mut bytes)).is_ok()
                {}
            });
        }
        drop(sender);
        let mut done = 0;
        let result = sums.iter().try_for_each(|piece| {
            pieces.extend(piece?);
            done += PIECE;
            Ok(watch.at(step, done.min(len), len)?)
        });
        stop.store(true, Ordering::Relaxed);
        result.map_err(|error: DiskError| error)
    })?;
    Ok(pieces)
}

fn read_sum(disk: &File, len: u64, number: u64, bytes: &mut [u8]) -> io::Result<Option<Piece>> {
    let at = number * PIECE;
    let bytes = &mut bytes[..PIECE.min(len - at) as usize];
    disk.read_exact_at(bytes, at)?;
    Ok(sum(bytes).map(|sum| (number, sum)))
}

/// `None` for zeros.
fn sum(bytes: &[u8]) -> Option<[u8; 32]> {
    if is_zero(bytes) { None } else { Some(Sha256::digest(bytes).into()) }
}

/// Numbers of the pieces that are not wholly in a hole.
fn with_data(disk: &File, len: u64) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut at = 0;
    while at < len {
        let from = match rustix::fs::seek(disk, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let to = rustix::fs::seek(disk, SeekFrom::Hole(from))?.min(len);
        let first = (from / PIECE).max(numbers.last().map_or(0, |last| last + 1));
        numbers.extend(first..to.div_ceil(PIECE));
        at = to;
    }
    Ok(numbers)
}

/// Writes a disk, and takes its sums from the bytes in passing; the host's disk has them soon after.
///
/// A piece that is come back to is read once more at the end, so what comes out is what [`read`] would find.
#[derive(Debug)]
pub(crate) struct Follower {
    disk: Arc<File>,
    /// The same file past the page cache.
    direct: RefCell<Option<File>>,
    len: u64,
    unsynced: Cell<u64>,
    stop: Arc<AtomicBool>,
    written: Option<mpsc::SyncSender<(u64, Aligned)>>,
    spare: mpsc::Receiver<Aligned>,
    summer: Option<JoinHandle<Summer>>,
    sync: Option<mpsc::SyncSender<()>>,
    syncer: Option<JoinHandle<()>>,
}

impl Follower {
    /// Of a disk that will have this length, and that nobody else writes to. Long writes go through `direct`, where it is given.
    pub(crate) fn new(disk: &File, direct: Option<File>, len: u64) -> io::Result<Self> {
        let disk = Arc::new(disk.try_clone()?);
        let stop = Arc::new(AtomicBool::new(false));
        let (written, bytes) = mpsc::sync_channel::<(u64, Aligned)>(BUFFERS);
        let (used, spare) = mpsc::channel();
        let summer = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut summer = Summer::new(len);
                for (at, mut buffer) in bytes {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    summer.take(at, buffer.bytes());
                    buffer.clear();
                    let _ = used.send(buffer); // who writes no more needs none
                }
                summer.close();
                summer
            }
        });
        let (sync, wanted) = mpsc::sync_channel(1);
        let syncer = std::thread::spawn({
            let disk = Arc::clone(&disk);
            // An error comes back when all of it is synced.
            move || wanted.iter().for_each(|()| drop(disk.sync_data()))
        });
        Ok(Self {
            disk,
            direct: RefCell::new(direct),
            len,
            unsynced: Cell::new(0),
            stop,
            written: Some(written),
            spare,
            summer: Some(summer),
            sync: Some(sync),
            syncer: Some(syncer),
        })
    }

    /// Writes these bytes; what is in `bytes` afterwards is to be thrown away.
    pub(crate) fn write(&self, at: u64, bytes: &mut Aligned) -> io::Result<()> {
        if !self.write_past_cache(at, bytes.bytes())? {
            self.disk.write_all_at(bytes.bytes(), at)?;
            self.unsynced.set(self.unsynced.get() + bytes.bytes().len() as u64);
        }
        if let Some(written) = &self.written {
            let spare = self.spare.try_recv().unwrap_or_default();
            let _ = written.send((at, std::mem::replace(bytes, spare))); // it listens for as long as there is a sender
        }
        if self.unsynced.get() >= SYNC
            && let Some(sync) = &self.sync
            && sync.try_send(()).is_ok()
        {
            self.unsynced.set(0);
        }
        Ok(())
    }

    /// `false` where these bytes are too few, or the file system does not do it.
    fn write_past_cache(&self, at: u64, bytes: &[u8]) -> io::Result<bool> {
        let written = match &*self.direct.borrow() {
            Some(direct) if bytes.len() >= DIRECT => direct.write_all_at(bytes, at),
            _ => return Ok(false),
        };
        match written {
            // Blocks of the disk below are larger than ours (open(2), O_DIRECT).
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.direct.replace(None);
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// All is written: what the disk has. It is synced, too.
    pub(crate) fn finish(mut self, step: &str, watch: &Watch) -> Result<Contents, DiskError> {
        drop((self.written.take(), self.sync.take()));
        let syncing = std::thread::spawn({
            let disk = Arc::clone(&self.disk);
            move || disk.sync_all()
        });
        let summer = self.summer.take().map(JoinHandle::join);
        let Summer { mut sums, .. } =
            summer.transpose().map_err(|_| io::Error::other(ENDED_EARLY))?.unwrap_or_default();
        let mut left = with_data(&self.disk, self.len)?;
        left.retain(|number| sums.get(number).is_none_or(|visited| visited.times != 1));
        sums.retain(|_, visited| visited.times == 1);
        let mut pieces = sums_of(&self.disk, self.len, &left, step, watch)?;
        pieces.extend(sums.into_iter().filter_map(|(number, visited)| Some((number, visited.sum?))));
        pieces.sort_unstable_by_key(|(number, _)| *number);
        watch.at("syncing", 0, 0)?;
        joined(syncing)?;
        Ok(Contents { len: self.len, pieces })
    }
}

/// Sums of pieces, from bytes that come mostly from front to back.
#[derive(Debug, Default)]
struct Summer {
    len: u64,
    sums: HashMap<u64, Visited>,
    /// The piece that bytes come for, and what is known of it; the rest is zeros.
    open: Option<u64>,
    bytes: Vec<u8>,
}

/// A piece that was written to.
#[derive(Debug, Default)]
struct Visited {
    /// In how many goes.
    times: u32,
    /// Of the last one; `None` for zeros.
    sum: Option<[u8; 32]>,
}

impl Summer {
    fn new(len: u64) -> Self {
        Self { len, bytes: vec![0; PIECE as usize], ..Self::default() }
    }

    /// These bytes were written there.
    fn take(&mut self, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (number, within) = (at / PIECE, (at % PIECE) as usize);
            let (part, rest) = bytes.split_at(bytes.len().min(PIECE as usize - within));
            if self.open != Some(number) {
                self.close();
                self.sums.entry(number).or_default().times += 1;
                self.open = Some(number);
            }
            self.bytes[within..within + part.len()].copy_from_slice(part);
            (at, bytes) = (at + part.len() as u64, rest);
        }
    }

    /// No more bytes come for the open piece.
    fn close(&mut self) {
        let Some(number) = self.open.take() else { return };
        let bytes = &mut self.bytes[..PIECE.min(self.len - number * PIECE) as usize];
        self.sums.entry(number).or_default().sum = sum(bytes);
        bytes.fill(0);
    }
}

fn joined<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other(ENDED_EARLY)))
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop((self.written.take(), self.sync.take()));
        // Nobody reads or syncs the disk when it is removed.
        if let Some(summer) = self.summer.take() {
            let _ = summer.join();
        }
        if let Some(syncer) = self.syncer.take() {
            let _ = syncer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{BLOCK, Output};

    fn contents(len: u64, parts: &[(u64, &[u8])]) -> Contents {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(len).expect("a length");
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).expect("writing");
        }
        read(&file, "reading", &Watch::unattended()).expect("reading")
    }

    #[test]
    fn a_disk_is_what_it_reads_as_wherever_it_has_holes() {
        let len = 5 * PIECE + 100;
        let holes = contents(len, &[(PIECE + 7, b"x"), (2 * PIECE, b"y"), (5 * PIECE + 99, b"z")]);
        let mut whole = vec![0; len as usize];
        for (at, byte) in [(PIECE + 7, b'x'), (2 * PIECE, b'y'), (5 * PIECE + 99, b'z')] {
            whole[at as usize] = byte;
        }
        assert_eq!(contents(len, &[(0, &whole)]), holes);
        assert_eq!(holes.extents(), [(PIECE, 2 * PIECE), (5 * PIECE, 100)]);
    }

    #[test]
    fn who_writes_through_a_follower_finds_what_is_read_afterwards() {
        let folder = tempfile::tempdir().expect("a folder");
        for past_cache in [false, true] {
            let path = folder.path().join("disk");
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
            let len = 40 * PIECE + BLOCK as u64;
            let direct = past_cache.then(|| past_page_cache(&path)).flatten();
            let follower = Follower::new(&file, direct, len).expect("a follower");
            let mut output = Output::new(&file, len, Some(&follower)).expect("an output");
            // Forwards over many pieces, back into the first ones, blocks of zeros between, and the end.
            for round in 0..40u64 {
                let (at, byte) = match round % 4 {
                    3 => (round * PIECE / 8, if round < 20 { 0 } else { round as u8 }),
                    _ => (round * PIECE - round.min(5) * 2 * BLOCK as u64, round as u8 + 1),
                };
                let blocks = (at / BLOCK as u64, PIECE as usize / BLOCK + round as usize);
                let mut bytes = vec![byte; blocks.1 * BLOCK];
                bytes[3 * BLOCK..5 * BLOCK].fill(0);
                let room = (len / BLOCK as u64 - blocks.0) as usize * BLOCK;
                output.put(blocks.0, &bytes[..bytes.len().min(room)]).expect("writing");
            }
            output.put(len / BLOCK as u64 - 1, &[b'!'; BLOCK]).expect("writing");
            output.flush().expect("writing");
            let watch = Watch::unattended();
            let followed = follower.finish("reading", &watch).expect("finishing");
            assert_eq!(followed, read(&file, "reading", &watch).expect("reading"));
            assert!(followed.pieces.len() > 20);
        }
    }

    #[test]
    fn every_byte_its_place_and_the_length_count() {
        let one = contents(3 * PIECE, &[(5, b"x")]).digest();
        for (len, at, bytes) in
            [(3 * PIECE, 6, b"x"), (3 * PIECE, 5, b"y"), (4 * PIECE, 5, b"x"), (3 * PIECE, PIECE + 5, b"x")]
        {
            assert_ne!(contents(len, &[(at, bytes)]).digest(), one);
        }
        assert_eq!(contents(0, &[]).extents(), []);
    }
}
