//! A disk as an object: which parts of it are not zero, and one digest over them.
//!
//! The digest is SHA-256 over the disk's length and, for each piece of [`PIECE`] bytes that is not all zeros, its place and its own
//! SHA-256. So it says nothing about where a file has holes, and pieces are read by several threads. It finds damage; who may write
//! to the store can write another digest, too.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::watch::{Interrupted, Watch};

/// Bytes of a piece.
pub const PIECE: u64 = 256 << 10;
/// After so many bytes the host begins to write them.
const SYNC: u64 = 32 << 20;
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

/// Reads a disk; holes cost nothing.
pub fn read(disk: &File, step: &str, watch: &Watch) -> Result<Contents, DiskError> {
    let len = disk.metadata()?.len();
    let mut pieces = sums(disk, len, &with_data(disk, len)?, step, watch)?;
    pieces.sort_unstable_by_key(|(number, _)| *number);
    Ok(Contents { len, pieces })
}

/// The sums of these pieces, as they come.
fn sums(disk: &File, len: u64, numbers: &[u64], step: &str, watch: &Watch) -> Result<Vec<Piece>, DiskError> {
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
                    && sender.send(sum(disk, len, *number, &mut bytes)).is_ok()
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

fn sum(disk: &File, len: u64, number: u64, bytes: &mut [u8]) -> io::Result<Option<Piece>> {
    let at = number * PIECE;
    let bytes = &mut bytes[..PIECE.min(len - at) as usize];
    disk.read_exact_at(bytes, at)?;
    Ok(bytes.iter().any(|byte| *byte != 0).then(|| (number, Sha256::digest(&*bytes).into())))
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

/// Takes the sums of a disk while somebody writes it, piece by piece as the writer leaves them, and sees them to the host's disk on the way.
///
/// A piece that is written to again counts for nothing and is read once more at the end, so what comes out is what [`read`] would find.
#[derive(Debug)]
pub(crate) struct Follower {
    disk: Arc<File>,
    len: u64,
    /// How often each piece was written to; the piece that is being written.
    touched: RefCell<HashMap<u64, u32>>,
    open: Cell<Option<u64>>,
    unsynced: Cell<u64>,
    stop: Arc<AtomicBool>,
    pieces: Option<mpsc::Sender<(u64, u32)>>,
    summer: Option<JoinHandle<io::Result<Vec<Followed>>>>,
    sync: Option<mpsc::SyncSender<()>>,
    syncer: Option<JoinHandle<()>>,
}

/// A piece, how often it had been written to, and what was in it.
type Followed = (u64, u32, Option<Piece>);

impl Follower {
    /// Of a disk that will have this length, and that nobody but the one who tells writes to.
    pub(crate) fn new(disk: &File, len: u64) -> io::Result<Self> {
        let disk = Arc::new(disk.try_clone()?);
        let stop = Arc::new(AtomicBool::new(false));
        let (pieces, left) = mpsc::channel::<(u64, u32)>();
        let summer = std::thread::spawn({
            let (disk, stop) = (Arc::clone(&disk), Arc::clone(&stop));
            move || {
                let (mut all, mut bytes) = (Vec::new(), vec![0; PIECE as usize]);
                for (number, times) in left {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    all.push((number, times, sum(&disk, len, number, &mut bytes)?));
                }
                Ok(all)
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
            len,
            touched: RefCell::default(),
            open: Cell::new(None),
            unsynced: Cell::new(0),
            stop,
            pieces: Some(pieces),
            summer: Some(summer),
            sync: Some(sync),
            syncer: Some(syncer),
        })
    }

    /// These bytes were written.
    pub(crate) fn wrote(&self, at: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (first, last) = (at / PIECE, (at + len - 1) / PIECE);
        if let Some(open) = self.open.get().filter(|open| *open != first) {
            self.leave(open);
        }
        for number in first..=last {
            *self.touched.borrow_mut().entry(number).or_default() += 1;
        }
        (first..last).for_each(|number| self.leave(number));
        self.open.set(Some(last));
        self.unsynced.set(self.unsynced.get() + len);
        if self.unsynced.get() >= SYNC
            && let Some(sync) = &self.sync
            && sync.try_send(()).is_ok()
        {
            self.unsynced.set(0);
        }
    }

    fn leave(&self, number: u64) {
        if let (Some(pieces), Some(times)) = (&self.pieces, self.touched.borrow().get(&number)) {
            // Nobody listens any more: it is read at the end.
            let _ = pieces.send((number, *times));
        }
    }

    /// All is written: what the disk has. It is synced, too.
    pub(crate) fn finish(mut self, step: &str, watch: &Watch) -> Result<Contents, DiskError> {
        drop((self.pieces.take(), self.sync.take()));
        let syncing = std::thread::spawn({
            let disk = Arc::clone(&self.disk);
            move || disk.sync_all()
        });
        let followed = self.summer.take().map_or(Ok(Vec::new()), joined)?;
        let touched = self.touched.borrow();
        let good = |(number, times, _): &Followed| touched.get(number) == Some(times);
        let good: HashMap<u64, Option<Piece>> =
            followed.into_iter().filter(good).map(|(number, _, piece)| (number, piece)).collect();
        let mut left = with_data(&self.disk, self.len)?;
        left.retain(|number| !good.contains_key(number));
        let mut pieces = sums(&self.disk, self.len, &left, step, watch)?;
        pieces.extend(good.into_values().flatten());
        pieces.sort_unstable_by_key(|(number, _)| *number);
        watch.at("syncing", 0, 0)?;
        joined(syncing)?;
        Ok(Contents { len: self.len, pieces })
    }
}

fn joined<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread has ended early")))
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop((self.pieces.take(), self.sync.take()));
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
    fn who_follows_a_writer_finds_what_is_read_afterwards() {
        let file = tempfile::tempfile().expect("a file");
        let len = 40 * PIECE + 1;
        file.set_len(len).expect("a length");
        let follower = Follower::new(&file, len).expect("a follower");
        // Forwards over many pieces, back into the first ones, zeros over what was there, and the end.
        for round in 0..40u64 {
            let (at, byte) = match round % 4 {
                3 => (round * PIECE / 8, if round < 20 { 0 } else { round as u8 }),
                _ => (round * PIECE - round.min(5) * 100, round as u8 + 1),
            };
            let bytes = vec![byte; (PIECE + 300 * round) as usize];
            let bytes = &bytes[..bytes.len().min((len - at) as usize)];
            file.write_all_at(bytes, at).expect("writing");
            follower.wrote(at, bytes.len() as u64);
        }
        file.write_all_at(b"!", len - 1).expect("writing");
        follower.wrote(len - 1, 1);
        let watch = Watch::unattended();
        let followed = follower.finish("reading", &watch).expect("finishing");
        assert_eq!(followed, read(&file, "reading", &watch).expect("reading"));
        assert!(followed.pieces.len() > 20);
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
