//! Flushes, in rounds: one round serves every flush that was asked for before it began.
//!
//! ```text
//!   idle ──> data: the top's data is synced; after a freeze also      ──> map: changed pages ──> map sync ──> answered
//!            data and maps of frozen layers, until they are settled        are written
//!                                                                    └──> answered, where nothing was allocated
//! ```
//!
//! Which bits a round writes is decided when it begins: those of writes that have completed by then. Their data is synced before a
//! bit of theirs is written, so a power cut at any point leaves only bits whose data is there. A sync that has failed cannot be
//! repeated (the kernel forgets what it could not write), so from then on every flush fails until the drive is opened again.

use std::io;

use labyard_spec::overlay::{PAGE_BYTES, SECTOR_BYTES, encode_page, page_offset};

use super::super::block::{Completion, Tag};
use super::super::engine::{Engine, Io, IoTag};
use super::Overlay;
use super::staging::Staging;

/// Pages that are being written at once; a round with more takes turns.
const PAGES_AT_ONCE: usize = 16;
/// Marks a flush's steps among all of them.
const OF_FLUSH: IoTag = 1 << 63;
/// A sync.
const SYNC: IoTag = OF_FLUSH | 1 << 32;
/// The write of the header; the write of page n is `OF_FLUSH | n`.
const HEADER: IoTag = OF_FLUSH | 2 << 32;

/// Where the round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Data,
    Map,
    MapSync,
}

/// Flushes of one drive.
pub(super) struct Flush {
    phase: Phase,
    /// Steps that have not ended.
    left: usize,
    failed: Option<io::Error>,
    /// Flushes that this round answers.
    served: Vec<Tag>,
    /// Flushes that the next one answers.
    asked: Vec<Tag>,
    /// Pages of this round, and how many of them were given to the engine.
    taken: Vec<u32>,
    begun: usize,
    /// Of those, what found no room on the host's disk.
    to_retry: Vec<IoTag>,
    /// This round says that the layers below are settled.
    settles: bool,
    /// Why no flush can be believed any more.
    broken: Option<io::ErrorKind>,
}

impl Flush {
    pub(super) fn new(pages: u64) -> Self {
        let pages = usize::try_from(pages).unwrap_or(0);
        Self {
            phase: Phase::Idle,
            left: 0,
            failed: None,
            served: Vec::with_capacity(8),
            asked: Vec::with_capacity(8),
            taken: Vec::with_capacity(pages),
            begun: 0,
            to_retry: Vec::with_capacity(PAGES_AT_ONCE),
            settles: false,
            broken: None,
        }
    }

    /// Room for more pages.
    pub(super) fn grow(&mut self, pages: u64) {
        self.taken.reserve(usize::try_from(pages).unwrap_or(0).saturating_sub(self.taken.len()));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Whether it writes what needs room, or waits to do so.
    pub(super) fn writes_pages(&self) -> bool {
        self.phase == Phase::Map
    }
}

/// Whether a step belongs to a flush.
pub(super) fn owns(tag: IoTag) -> bool {
    tag & OF_FLUSH != 0
}

impl<E: Engine> Overlay<E> {
    /// A flush is asked for.
    pub(super) fn flush(&mut self, tag: Tag) {
        self.flush.asked.push(tag);
        if self.flush.is_idle() {
            self.begin_round();
        }
    }

    fn begin_round(&mut self) {
        let flush = &mut self.flush;
        if flush.asked.is_empty() {
            return;
        }
        flush.served.append(&mut flush.asked);
        if let Some(kind) = flush.broken {
            let refused = flush.served.drain(..).map(|tag| Completion { tag, result: Err(kind.into()) });
            return self.done.extend(refused);
        }
        flush.taken.clear();
        flush.begun = 0;
        let top = self.layers.len().saturating_sub(1);
        if let Some(layer) = self.layers.get_mut(top) {
            let mut bytes = [0; PAGE_BYTES];
            while let Some((page, words)) = layer.bits.take_dirty() {
                encode_page(layer.header.layer, page.into(), words, &mut bytes);
                self.staging.put(Staging::page(page), &bytes);
                flush.taken.push(page);
            }
            flush.settles = top > 0 && !layer.header.settled;
        }
        self.flush.phase = Phase::Data;
        self.flush.left = 1;
        if self.flush.settles {
            for layer in 0..top {
                for file in [self.data_file(layer), self.map_file(layer)] {
                    self.engine.submit(SYNC, Io::Sync { file });
                    self.flush.left = self.flush.left.saturating_add(1);
                }
            }
        }
        self.engine.submit(SYNC, Io::Sync { file: self.data_file(top) });
    }

    /// A step of the round has ended.
    pub(super) fn flush_step(&mut self, tag: IoTag, result: io::Result<()>) {
        self.flush.left = self.flush.left.saturating_sub(1);
        match result {
            Ok(()) => {}
            Err(error) if tag != SYNC && self.can_wait(&error) => {
                self.flush.to_retry.push(tag);
                self.is_out_of_room(&error);
            }
            Err(error) => {
                if tag == SYNC {
                    self.flush.broken = Some(error.kind());
                    log::error!("a sync failed ({error}): flushes of this drive fail until it is opened again");
                }
                self.flush.failed.get_or_insert(error);
            }
        }
        if self.flush.phase == Phase::Map && self.flush.failed.is_none() {
            self.write_pages();
        }
        if self.flush.left == 0 && (self.flush.to_retry.is_empty() || self.flush.failed.is_some()) {
            self.next_phase();
        }
        self.may_have_room();
    }

    fn next_phase(&mut self) {
        if self.flush.failed.is_some() {
            return self.end_round();
        }
        match self.flush.phase {
            Phase::Data if !self.flush.taken.is_empty() || self.flush.settles => {
                self.flush.phase = Phase::Map;
                if self.flush.settles {
                    self.write_settled();
                }
                self.write_pages();
            }
            Phase::Map => {
                self.flush.phase = Phase::MapSync;
                self.flush.left = 1;
                let file = self.map_file(self.layers.len().saturating_sub(1));
                self.engine.submit(SYNC, Io::Sync { file });
            }
            Phase::MapSync => {
                if self.flush.settles
                    && let Some(top) = self.layers.last_mut()
                {
                    top.header.settled = true;
                }
                self.end_round();
            }
            Phase::Data | Phase::Idle => self.end_round(),
        }
    }

    /// Gives pages of the round to the engine, as many as may be written at once.
    fn write_pages(&mut self) {
        while self.flush.left < PAGES_AT_ONCE
            && let Some(page) = self.flush.taken.get(self.flush.begun).copied()
        {
            self.flush.begun = self.flush.begun.saturating_add(1);
            self.write_page(OF_FLUSH | IoTag::from(page));
        }
    }

    fn write_settled(&mut self) {
        if let Some(top) = self.layers.last() {
            let mut header = top.header.clone();
            header.settled = true;
            self.staging.put(Staging::HEADER, &header.encode());
        }
        self.write_page(HEADER);
    }

    fn write_page(&mut self, tag: IoTag) {
        let file = self.map_file(self.layers.len().saturating_sub(1));
        let (page, offset, len) = match u32::try_from(tag & !OF_FLUSH) {
            Ok(page) => (Staging::page(page), page_offset(page.into()), PAGE_BYTES),
            Err(_) => (Staging::HEADER, 0, SECTOR_BYTES),
        };
        let from = self.staging.slices(page, 0, len);
        self.engine.submit(tag, Io::Write { file, offset, from });
        self.flush.left = self.flush.left.saturating_add(1);
    }

    /// Writes again what found no room.
    pub(super) fn retry_pages(&mut self) {
        // One at a time: the list is the round's, and a step that fails again is put back.
        for _ in 0..self.flush.to_retry.len() {
            if let Some(tag) = self.flush.to_retry.pop() {
                self.write_page(tag);
            }
        }
    }

    /// Answers the round's flushes and begins the next.
    fn end_round(&mut self) {
        self.flush.phase = Phase::Idle;
        self.flush.to_retry.clear();
        let failed = self.flush.failed.take();
        if failed.is_some()
            && let Some(top) = self.layers.last_mut()
        {
            for page in self.flush.taken.drain(..) {
                top.bits.mark(page as usize);
            }
        }
        let result = || failed.as_ref().map_or(Ok(()), |error| Err(error.kind().into()));
        self.done.extend(self.flush.served.drain(..).map(|tag| Completion { tag, result: result() }));
        self.grow_if_asked();
        self.begin_round();
    }
}
