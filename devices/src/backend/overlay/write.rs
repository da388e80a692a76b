//! Writes, discards and write-zeroes: whole blocks go straight to the top layer; a block of which only a part is written, and which
//! is not in the top layer yet, is put together in a buffer with what the layers below say.
//!
//! ```text
//!   asked ──> waits ──> under way: [fill ──> edge] for up to two such blocks, main for the rest ──> bits set, answered
//!               ^                                                                            │
//!               └──────────────────────── no room on the host's disk ───────────────────────┘
//! ```
//!
//! Bits are set when all of a request's data is in the file, so a read sees the old block or the new one.

use std::io;

use labyard_spec::overlay::BLOCK_BYTES;

use super::super::block::{Completion, Tag};
use super::super::engine::{Engine, Io, IoTag};
use super::room::is_full;
use super::slots::{Edge, Kind, Number};
use super::{Overlay, Owner};
use labyard_sys::iov::GuestSlices;

/// What a step does for its request; the lowest bits of its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Its whole blocks, or a part of a read.
    Main,
    /// Reads what is below one of its edges.
    Fill(usize),
    /// Writes one of its edges.
    Edge(usize),
}

impl Step {
    fn of(self, slot: Number) -> IoTag {
        let step = match self {
            Self::Main => 0,
            Self::Fill(edge) => 1 | edge << 4,
            Self::Edge(edge) => 2 | edge << 4,
        };
        (slot as IoTag) << 8 | step as IoTag
    }

    fn from(tag: IoTag) -> (Number, Self) {
        let edge = usize::from(tag & 0x10 != 0);
        let step = match tag & 0xf {
            0 => Self::Main,
            1 => Self::Fill(edge),
            _ => Self::Edge(edge),
        };
        (usize::try_from(tag >> 8).unwrap_or(usize::MAX), step)
    }
}

/// Where a block begins.
fn start_of(block: u64) -> u64 {
    block.saturating_mul(BLOCK_BYTES)
}

impl<E: Engine> Overlay<E> {
    /// Fills `into` from whichever layer has each part of it.
    pub(super) fn read(&mut self, tag: Tag, offset: u64, into: GuestSlices<'_>) {
        let len = into.len_bytes() as u64;
        let number = self.slots.put(tag, Kind::Read, offset, len);
        let (owner, run) = self.run(offset, len);
        if run == len {
            self.read_run(number, owner, offset, into);
        } else {
            let mut done = 0u64;
            while done < len {
                let at = offset.saturating_add(done);
                let (owner, run) = self.run(at, len.saturating_sub(done));
                let index = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
                self.read_run(number, owner, at, into.part(index(done), index(run)));
                // A run has at least one byte; were it otherwise, this must still end.
                done = done.saturating_add(run.max(1));
            }
        }
        if self.slots.get(number).is_some_and(|slot| slot.left == 0) {
            self.ended(number);
        }
    }

    fn read_run(&mut self, number: Number, owner: Owner, offset: u64, into: GuestSlices<'_>) {
        match self.file_of(owner) {
            Some(file) => self.step(number, Step::Main, Io::Read { file, offset, into }),
            None => into.zero(),
        }
    }

    /// Stores `from`.
    pub(super) fn write(&mut self, tag: Tag, offset: u64, from: &GuestSlices<'_>) {
        let number = self.slots.put(tag, Kind::Write, offset, from.len_bytes() as u64);
        if from.len_bytes() > 0 && self.slots.hold(number, from) {
            return self.enter(number);
        }
        // Nothing to do, or nothing that could be kept: the device attached the memory that it takes requests from.
        let result = if from.len_bytes() == 0 { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) };
        self.done.push_back(Completion { tag, result });
        self.slots.give_back(number);
    }

    /// Makes a range zeros, and gives back its space.
    pub(super) fn zero(&mut self, tag: Tag, offset: u64, len: u64) {
        let number = self.slots.put(tag, Kind::Zero, offset, len);
        let (owner, run) = self.run(offset, len);
        if owner == Owner::Nothing && run == len {
            return self.ended(number);
        }
        self.enter(number);
    }

    /// Starts a write, or lets it wait.
    fn enter(&mut self, number: Number) {
        let ahead = self.slots.waiting.len();
        if self.room.is_out() || !self.start(number, ahead) {
            self.slots.waiting.push_back(number);
        }
    }

    /// Starts those that waited and can go now.
    pub(super) fn start_waiting(&mut self) {
        let mut position = 0usize;
        while !self.room.is_out()
            && let Some(number) = self.slots.waiting.get(position).copied()
        {
            if self.start(number, position) {
                self.slots.waiting.remove(position);
            } else {
                position = position.saturating_add(1);
            }
        }
    }

    /// Blocks that the request covers in part, that are not in the top layer, and that are not zeros which stay zeros.
    fn edges(&self, kind: Kind, offset: u64, end: u64) -> [Option<u64>; 2] {
        let (first, last) = (offset / BLOCK_BYTES, end.saturating_sub(1) / BLOCK_BYTES);
        let partial = |block: u64| {
            let cut = offset > start_of(block) || end < self.end_of(block);
            let owner = self.run(start_of(block), 1).0;
            let top = self.layers.len().saturating_sub(1);
            cut && owner != Owner::Layer(top) && (kind == Kind::Write || owner != Owner::Nothing)
        };
        let tail = (last != first).then_some(last);
        [Some(first).filter(|block| partial(*block)), tail.filter(|block| partial(*block))]
    }

    /// Where a block ends; the drive's last one may be short.
    fn end_of(&self, block: u64) -> u64 {
        start_of(block.saturating_add(1)).min(self.capacity_bytes)
    }

    /// Starts a write unless it has to wait for one under way, for one of the first `ahead` that wait, or for a buffer.
    fn start(&mut self, number: Number, ahead: usize) -> bool {
        let Some(slot) = self.slots.get(number) else { return true };
        let (kind, offset, end) = (slot.kind, slot.offset, slot.end());
        let edges = self.edges(kind, offset, end);
        let needed = edges.iter().flatten().count();
        if let Some(slot) = self.slots.get(number) {
            slot.partial = needed > 0;
        }
        if self.staging.room() < needed || !self.slots.may_start(number, ahead) {
            return false;
        }
        self.slots.started(number);
        let (mut from, mut until) = (offset, end);
        for (index, block) in edges.into_iter().enumerate() {
            let Some(block) = block else { continue };
            let Some(buffer) = self.staging.take() else { continue };
            if index == 0 {
                from = self.end_of(block).min(end);
            } else {
                until = start_of(block);
            }
            if let Some(edge) = self.slots.get(number).and_then(|slot| slot.edges.get_mut(index)) {
                *edge = Some(Edge { block, buffer });
            }
            self.fill(number, index, Edge { block, buffer });
        }
        if from < until {
            let file = self.data_file(self.layers.len().saturating_sub(1));
            let (skip, len) = (from.saturating_sub(offset), until.saturating_sub(from));
            let Some(slot) = self.slots.get(number) else { return true };
            slot.left = slot.left.saturating_add(1);
            let io = match kind {
                Kind::Zero => Io::Punch { file, offset: from, len },
                Kind::Read | Kind::Write => Io::Write { file, offset: from, from: slot.part(skip, len) },
            };
            self.engine.submit(Step::Main.of(number), io);
        }
        true
    }

    /// Reads what is below an edge.
    fn fill(&mut self, number: Number, index: usize, edge: Edge) {
        let start = start_of(edge.block);
        let (owner, run) = self.run(start, self.end_of(edge.block).saturating_sub(start));
        self.staging.slices(edge.buffer, 0, BLOCK_BYTES as usize).zero();
        match self.file_of(owner) {
            Some(file) => {
                if let Some(slot) = self.slots.get(number) {
                    slot.left = slot.left.saturating_add(1);
                }
                let into = self.staging.slices(edge.buffer, 0, usize::try_from(run).unwrap_or(0));
                self.engine.submit(Step::Fill(index).of(number), Io::Read { file, offset: start, into });
            }
            None => self.write_edge(number, index),
        }
    }

    /// Writes a block that was read from below, with the request's part of it.
    fn write_edge(&mut self, number: Number, index: usize) {
        let top = self.data_file(self.layers.len().saturating_sub(1));
        let Some(slot) = self.slots.get(number) else { return };
        let Some(Edge { block, buffer }) = slot.edges.get(index).copied().flatten() else { return };
        let start = start_of(block);
        let block_end = start_of(block.saturating_add(1)).min(self.capacity_bytes);
        let (from, until) = (slot.offset.max(start), slot.end().min(block_end));
        let (at, len) = (from.saturating_sub(start), until.saturating_sub(from));
        let index_of = |bytes: u64| usize::try_from(bytes).unwrap_or(0);
        match slot.kind {
            Kind::Zero => self.staging.slices(buffer, index_of(at), index_of(len)).zero(),
            Kind::Read | Kind::Write => {
                let part = slot.part(from.saturating_sub(slot.offset), len);
                self.staging.copy(buffer, index_of(at), &part);
            }
        }
        slot.left = slot.left.saturating_add(1);
        let from = self.staging.slices(buffer, 0, index_of(block_end.saturating_sub(start)));
        self.engine.submit(Step::Edge(index).of(number), Io::Write { file: top, offset: start, from });
    }

    fn step(&mut self, number: Number, step: Step, io: Io<'_>) {
        if let Some(slot) = self.slots.get(number) {
            slot.left = slot.left.saturating_add(1);
            self.engine.submit(step.of(number), io);
        }
    }

    /// A step of a request has ended.
    pub(super) fn request_step(&mut self, tag: IoTag, result: io::Result<()>) {
        let (number, step) = Step::from(tag);
        let Some(slot) = self.slots.get(number) else { return };
        slot.left = slot.left.saturating_sub(1);
        if let Err(error) = result {
            // Any other error counts more than a lack of room, which passes.
            match &slot.failed {
                Some(known) if !is_full(known) => {}
                _ => slot.failed = Some(error),
            }
        }
        if slot.failed.is_none()
            && let Step::Fill(edge) = step
        {
            self.write_edge(number, edge);
        }
        if self.slots.get(number).is_some_and(|slot| slot.left == 0) {
            self.ended(number);
        }
    }

    /// All steps of a request have ended.
    fn ended(&mut self, number: Number) {
        let Some(slot) = self.slots.get(number) else { return };
        let (tag, kind, offset, len) = (slot.tag, slot.kind, slot.offset, slot.len);
        let failed = slot.failed.take();
        for edge in std::mem::take(&mut slot.edges).into_iter().flatten() {
            self.staging.give_back(edge.buffer);
        }
        let was_under_way = slot.under_way;
        self.slots.stopped(number);
        match failed {
            Some(error) if kind != Kind::Read && self.can_wait(&error) => {
                self.slots.waiting.push_front(number);
                return self.is_out_of_room(&error);
            }
            Some(error) => self.done.push_back(Completion { tag, result: Err(error) }),
            None => {
                match kind {
                    Kind::Read => {}
                    Kind::Write => self.allocate(offset, len),
                    Kind::Zero => self.allocate_zeros(offset, len),
                }
                self.done.push_back(Completion { tag, result: Ok(()) });
            }
        }
        self.slots.give_back(number);
        if was_under_way && !self.slots.waiting.is_empty() {
            self.start_waiting();
        }
        self.may_have_room();
    }

    /// Every block of the range is in the top layer now.
    fn allocate(&mut self, offset: u64, len: u64) {
        let first = offset / BLOCK_BYTES;
        let behind = offset.saturating_add(len).div_ceil(BLOCK_BYTES);
        if let Some(top) = self.layers.last_mut() {
            top.bits.set(first, behind.saturating_sub(first));
        }
    }

    /// The same, but for what would be zeros anyway.
    fn allocate_zeros(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let top = self.layers.len().saturating_sub(1);
        let mut at = offset;
        while at < end {
            let (owner, run) = self.run(at, end.saturating_sub(at));
            if owner != Owner::Nothing && owner != Owner::Layer(top) {
                self.allocate(at, run);
            }
            at = at.saturating_add(run.max(1));
        }
    }
}
