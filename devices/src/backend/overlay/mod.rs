//! A drive in layers: what the guest writes goes to the top layer, what it never wrote comes from those below.
//!
//! ```text
//!   top      written       data file + map (`docs/formats.md`, "Overlay layer")
//!   frozen   never again   the same, any number of them
//!   base     an image      a plain file, or nothing, which is zeros
//! ```
//!
//! Files arrive open and are never mapped. An [`Engine`] moves the bytes and may complete steps in any order, so all order is made
//! here: which step follows which in [`write`](self) and in rounds of [`flush`](self). Trusted are the supervisor, who says which
//! files make a chain, and nobody else: maps are checked when opened, requests by the device.
//!
//! A host disk without room is no error to the guest: what found no room waits and is tried again each second, everything that
//! would need room waits behind it, reads go on ([`room`](self)). Who wants to know is told by [`Overlay::tell`]. Only a machine
//! whose power is cut does not wait ([`Remote::give_up`]).

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use labyard_spec::overlay::{BLOCK_BYTES, blocks, pages};
use labyard_sys::timer::Alarm;

use super::block::{BlockBackend, Completion, Operation, Remote, Tag};
use super::engine::{Engine, FileIndex, SyncEngine};
use crate::Memory;
use flush::Flush;
use growth::{Mail, OverlayRemote};
use layer::Layer;
use room::Room;
use slots::Slots;
use staging::Staging;

mod bitmap;
mod flush;
mod growth;
mod layer;
mod room;
mod slots;
mod staging;
#[cfg(test)]
mod tests;
mod write;

pub use layer::{Base, Chain, LayerFiles, OverlayError};
pub use room::{HostDisk, Told};

/// A drive in layers.
pub struct Overlay<E> {
    /// First, so that it is done with the staging memory before that goes.
    engine: E,
    alarm: Arc<Alarm>,
    staging: Staging,
    slots: Slots,
    flush: Flush,
    done: VecDeque<Completion>,
    room: Room,
    base: Option<File>,
    base_bytes: u64,
    capacity_bytes: u64,
    mail: Arc<Mail>,
    /// Lowest first; the last is the top.
    layers: Vec<Layer>,
}

/// Whose block it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Layer(usize),
    Base,
    /// Zeros.
    Nothing,
}

impl Overlay<SyncEngine> {
    /// The drive of a chain, with system calls of the calling thread.
    ///
    /// # Errors
    /// What is wrong with the chain.
    pub fn new(chain: Chain) -> Result<Self, OverlayError> {
        Self::open(chain, |files| Ok(SyncEngine::new(files)))
    }
}

impl<E: Engine> Overlay<E> {
    /// The drive of a chain, its bytes moved by what `make` makes for its files.
    ///
    /// # Errors
    /// What is wrong with the chain.
    pub fn open(chain: Chain, make: impl FnOnce(Vec<File>) -> io::Result<E>) -> Result<Self, OverlayError> {
        let capacity_bytes = chain.capacity_bytes;
        let layer::Opened { base, base_bytes, layers, .. } = layer::open(chain)?;
        let (engine, alarm) = engine(base.as_ref(), &layers, make).map_err(OverlayError::Engine)?;
        let pages = pages(capacity_bytes);
        Ok(Self {
            engine,
            alarm,
            staging: Staging::new(pages).ok_or(OverlayError::Memory)?,
            slots: Slots::new(),
            flush: Flush::new(pages),
            done: VecDeque::with_capacity(8),
            room: Room::default(),
            base,
            base_bytes,
            capacity_bytes,
            mail: Mail::new(capacity_bytes),
            layers,
        })
    }

    /// Who is told when the host's disk has no room, and when it has again.
    pub fn tell(&mut self, told: Told) {
        self.room.told = Some(told);
    }

    /// Makes a layer that can be put on the top one, in empty files, and syncs it: what would take time in [`Overlay::freeze`].
    ///
    /// # Errors
    /// What the file system says.
    pub fn make_next(&self, files: &LayerFiles) -> io::Result<()> {
        let below = self.layers.last().map(|top| top.header.layer.to_string()).unwrap_or_default();
        layer::make(files, &below, self.base_bytes, self.capacity_bytes)
    }

    /// Freezes the top layer and puts a new one on it, from [`Overlay::make_next`]. Nothing is synced: the next flush does that. Done
    /// while no request is under way; `source` may be another descriptor afterwards.
    ///
    /// # Errors
    /// [`OverlayError::Busy`], and what is wrong with the files; the old layer is still the top then.
    pub fn freeze(
        &mut self,
        top: LayerFiles,
        make: impl FnOnce(Vec<File>) -> io::Result<E>,
    ) -> Result<(), OverlayError> {
        if !self.flush.is_idle() || !self.slots.are_free() || !self.done.is_empty() {
            return Err(OverlayError::Busy);
        }
        let mut opened = layer::Opened {
            base: None,
            base_bytes: self.base_bytes,
            base_name: String::new(),
            layers: std::mem::take(&mut self.layers),
        };
        let was = opened.layers.len();
        let made = opened.add_top(top, self.capacity_bytes).and_then(|()| {
            let made = engine(self.base.as_ref(), &opened.layers, make).map_err(OverlayError::Engine)?;
            let layer = was.saturating_sub(1);
            let frozen = opened.layers.get_mut(layer).map_or(Ok(()), Layer::freeze);
            frozen.map_err(|source| OverlayError::File { layer, doing: "writing its last bits", source })?;
            Ok(made)
        });
        if made.is_err() {
            opened.layers.truncate(was);
        }
        self.layers = opened.layers;
        (self.engine, self.alarm) = made?;
        if let Some(memory) = self.slots.memory() {
            self.engine.attach(memory);
            self.mail.begins(self.layers.last(), &self.alarm);
        }
        Ok(())
    }

    /// Whose the byte at `offset` is, and how many of the next `len` bytes are the same one's.
    fn run(&self, offset: u64, len: u64) -> (Owner, u64) {
        let end = offset.saturating_add(len);
        let block = offset / BLOCK_BYTES;
        let mut most = blocks(end).saturating_sub(block);
        let bytes =
            |blocks: u64| end.min(block.saturating_add(blocks).saturating_mul(BLOCK_BYTES)).saturating_sub(offset);
        for (number, layer) in self.layers.iter().enumerate().rev() {
            let (is_here, run) = layer.bits.run(block, most);
            if is_here {
                return (Owner::Layer(number), bytes(run));
            }
            most = run;
        }
        match self.base_bytes.saturating_sub(offset) {
            0 => (Owner::Nothing, bytes(most)),
            left => (Owner::Base, bytes(most).min(left)),
        }
    }

    fn file_of(&self, owner: Owner) -> Option<FileIndex> {
        match owner {
            Owner::Layer(number) => Some(self.data_file(number)),
            Owner::Base => Some(0),
            Owner::Nothing => None,
        }
    }

    /// The engine's files: the base where there is one, then data and map of each layer.
    fn data_file(&self, layer: usize) -> FileIndex {
        layer.saturating_mul(2).saturating_add(usize::from(self.base.is_some()))
    }

    fn map_file(&self, layer: usize) -> FileIndex {
        self.data_file(layer).saturating_add(1)
    }

    /// Handles what the engine has ended, until there is nothing more.
    fn pump(&mut self) {
        if self.room.is_out() || self.mail.is_asked() {
            self.awakened();
        }
        while let Some((tag, result)) = self.engine.collect() {
            if flush::owns(tag) { self.flush_step(tag, result) } else { self.request_step(tag, result) }
        }
        // What these ends have begun.
        self.engine.kick();
    }
}

/// An engine for the files of a chain, and what to wait on.
fn engine<E: Engine>(
    base: Option<&File>,
    layers: &[Layer],
    make: impl FnOnce(Vec<File>) -> io::Result<E>,
) -> io::Result<(E, Arc<Alarm>)> {
    let files = base.into_iter().chain(layers.iter().flat_map(|layer| [&layer.files.data, &layer.files.map]));
    let engine = make(files.map(File::try_clone).collect::<io::Result<_>>()?)?;
    let alarm = Alarm::new(engine.source())?;
    Ok((engine, Arc::new(alarm)))
}

impl<E: Engine> BlockBackend for Overlay<E> {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn remote(&self) -> Option<Box<dyn Remote>> {
        Some(Box::new(OverlayRemote(Arc::downgrade(&self.mail))))
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&mut self, tag: Tag, operation: Operation<'_>) {
        match operation {
            Operation::Read { offset, into } => self.read(tag, offset, into),
            Operation::Write { offset, from } => self.write(tag, offset, &from),
            Operation::Flush => self.flush(tag),
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                self.zero(tag, offset, len)
            }
        }
    }

    fn collect(&mut self) -> Option<Completion> {
        if self.done.is_empty() {
            self.pump();
        }
        self.done.pop_front()
    }

    fn attach(&mut self, memory: &Memory) {
        self.slots.attach(memory);
        self.engine.attach(memory);
        self.mail.begins(self.layers.last(), &self.alarm);
    }

    fn detach(&mut self) {
        self.mail.ends();
        self.slots.detach();
        self.engine.detach();
    }

    fn kick(&mut self) {
        self.engine.kick();
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.alarm.source())
    }
}
