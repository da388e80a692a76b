//! Requests that are under way or wait, each in a slot that is used again, so that a drive at work allocates nothing.

use std::collections::VecDeque;
use std::io;

use labyard_spec::overlay::BLOCK_BYTES;
use labyard_sys::iov::{GuestSlices, HeldSlices};

use super::super::block::Tag;
use crate::Memory;

/// A slot's number.
pub(super) type Number = usize;

/// What a request does to its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    /// Discard and write-zeroes.
    Zero,
}

/// A block that the request covers in part and that is not in the top layer yet: it is put together in a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Edge {
    pub(super) block: u64,
    pub(super) buffer: usize,
}

/// One request.
pub(super) struct Slot {
    pub(super) tag: Tag,
    pub(super) kind: Kind,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) under_way: bool,
    /// Steps that have not ended.
    pub(super) left: u32,
    pub(super) failed: Option<io::Error>,
    /// It writes a block of which it has only a part: nobody else may write that block.
    pub(super) partial: bool,
    pub(super) edges: [Option<Edge>; 2],
    /// What a write stores.
    held: Option<Box<HeldSlices>>,
}

impl Slot {
    /// First byte behind its range.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// What a write stores, `len` bytes from `skip` on.
    pub(super) fn part(&self, skip: u64, len: u64) -> GuestSlices<'_> {
        let index = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        match &self.held {
            Some(held) if skip == 0 && len == self.len => held.lend(),
            Some(held) => held.lend().part(index(skip), index(len)),
            None => GuestSlices::new(),
        }
    }

    /// Whether the two may not be under way at once: one of them must have a block that both write for itself.
    fn excludes(&self, other: &Self) -> bool {
        let blocks = |slot: &Self| (slot.offset / BLOCK_BYTES, slot.end().saturating_sub(1) / BLOCK_BYTES);
        let ((first, last), (other_first, other_last)) = (blocks(self), blocks(other));
        (self.partial || other.partial) && first <= other_last && other_first <= last
    }
}

/// All of them.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<Number>,
    /// Writes that wait for others, for a buffer or for room on the host's disk, the oldest first.
    pub(super) waiting: VecDeque<Number>,
    /// Writes under way, and those of them that have a block for themselves.
    writes: usize,
    partial_writes: usize,
    memory: Option<Memory>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            writes: 0,
            partial_writes: 0,
            memory: None,
        }
    }

    /// Requests come from here from now on.
    pub(super) fn attach(&mut self, memory: &Memory) {
        self.memory = Some(memory.clone());
        for slot in &mut self.slots {
            slot.held = None;
        }
    }

    /// No requests come from there any more.
    pub(super) fn detach(&mut self) {
        self.memory = None;
        for slot in &mut self.slots {
            slot.held = None;
        }
    }

    /// Where requests come from.
    pub(super) fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// Whether no request is there.
    pub(super) fn are_free(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Whether no write is under way and none waits.
    pub(super) fn no_write_is_there(&self) -> bool {
        self.writes == 0 && self.waiting.is_empty()
    }

    pub(super) fn get(&mut self, number: Number) -> Option<&mut Slot> {
        self.slots.get_mut(number)
    }

    /// A slot for a request; the list grows only when more requests are there than ever before.
    pub(super) fn put(&mut self, tag: Tag, kind: Kind, offset: u64, len: u64) -> Number {
        let number = self.free.pop().unwrap_or(self.slots.len());
        if number == self.slots.len() {
            let edges = [None; 2];
            let (under_way, left, failed, partial, held) = (false, 0, None, false, None);
            self.slots.push(Slot { tag, kind, offset, len, under_way, left, failed, partial, edges, held });
            // So that giving it back never allocates.
            self.free.reserve(self.slots.len());
            self.waiting.reserve(self.slots.len());
        } else if let Some(slot) = self.slots.get_mut(number) {
            (slot.tag, slot.kind, slot.offset, slot.len) = (tag, kind, offset, len);
            (slot.under_way, slot.left, slot.failed, slot.partial) = (false, 0, None, false);
        }
        number
    }

    /// Keeps what a write stores until the request ends; `false` where that is not the guest's memory.
    pub(super) fn hold(&mut self, number: Number, from: &GuestSlices<'_>) -> bool {
        let (Some(slot), Some(memory)) = (self.slots.get_mut(number), &self.memory) else { return false };
        slot.held.get_or_insert_with(|| Box::new(HeldSlices::new(memory.clone()))).hold(from)
    }

    /// Whether a write may go ahead of those under way and of the first `ahead` that wait.
    pub(super) fn may_start(&self, number: Number, ahead: usize) -> bool {
        let Some(slot) = self.slots.get(number) else { return false };
        if ahead == 0 && (self.writes == 0 || !slot.partial && self.partial_writes == 0) {
            return true;
        }
        let clashes = |other: &Slot| other.kind != Kind::Read && slot.excludes(other);
        let waits = self.waiting.iter().take(ahead).filter_map(|other| self.slots.get(*other));
        !waits.chain(self.slots.iter().filter(|other| other.under_way)).any(clashes)
    }

    /// A write begins.
    pub(super) fn started(&mut self, number: Number) {
        if let Some(slot) = self.slots.get_mut(number) {
            slot.under_way = true;
            self.writes = self.writes.saturating_add(1);
            self.partial_writes = self.partial_writes.saturating_add(usize::from(slot.partial));
        }
    }

    /// A write ends, or has to begin anew.
    pub(super) fn stopped(&mut self, number: Number) {
        if let Some(slot) = self.slots.get_mut(number)
            && std::mem::take(&mut slot.under_way)
        {
            self.writes = self.writes.saturating_sub(1);
            self.partial_writes = self.partial_writes.saturating_sub(usize::from(slot.partial));
        }
    }

    /// The request is over.
    pub(super) fn give_back(&mut self, number: Number) {
        self.free.push(number);
    }
}
