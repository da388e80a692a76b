//! A drive that becomes larger while it works: what drive and askers share, and the asking. What they share of a lack of room
//! lies in the same letter (`room`).
//!
//! ```text
//!   who asks:   files lengthened and synced ──> mail ──> waits                                            ──> told
//!   the drive:                                   └─> between two rounds of flush: header written, maps larger ┘
//! ```
//!
//! What takes long is done by who asks, and is invisible until the header says so. The header is the drive's alone to write, because a
//! flush writes it, too. Only when it is on the disk has the guest the new size, so nothing that it has flushed lies behind the end
//! that a power cut leaves.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use labyard_spec::overlay::{MAX_CAPACITY_BYTES, pages};
use labyard_sys::timer::Alarm;

use super::super::block::{GrowError, NoRoom, Remote};
use super::super::engine::Engine;
use super::Overlay;
use super::layer::{self, Layer, Leased};
use super::room::Tries;

/// How long a drive may take to answer: a flush has to end first.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a drive and those who want it larger share.
pub(super) struct Mail {
    /// A letter may be there: the only thing that a drive at work looks at. Set by who asks, cleared by the drive.
    asked: AtomicBool,
    /// Nobody waits for room on the host's disk. Set once, by who cuts the machine's power.
    given_up: AtomicBool,
    /// As the guest sees it; written by the drive alone.
    capacity_bytes: AtomicU64,
    /// Guards the question and its answer. No other lock is taken under it.
    letter: Mutex<Letter>,
    pub(super) answered: Condvar,
}

pub(super) struct Letter {
    /// The top layer's, and what wakes the drive; `None` while no guest uses it.
    at_work: Option<(Arc<Leased>, Arc<Alarm>)>,
    wanted: Option<u64>,
    answer: Option<Result<(), GrowError>>,
    pub(super) tries: Tries,
}

impl Mail {
    pub(super) fn new(capacity_bytes: u64) -> Arc<Self> {
        let letter = Mutex::new(Letter { at_work: None, wanted: None, answer: None, tries: Tries::default() });
        let capacity_bytes = AtomicU64::new(capacity_bytes);
        let no = || AtomicBool::new(false);
        Arc::new(Self { asked: no(), given_up: no(), capacity_bytes, letter, answered: Condvar::new() })
    }

    pub(super) fn letter(&self) -> MutexGuard<'_, Letter> {
        self.letter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as `open` holds of the letter, and no longer than `patience`.
    pub(super) fn wait<'a>(
        &self,
        letter: MutexGuard<'a, Letter>,
        patience: Duration,
        open: impl FnMut(&mut Letter) -> bool,
    ) -> MutexGuard<'a, Letter> {
        let waited = self.answered.wait_timeout_while(letter, patience, open);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Wakes a drive at work; one at rest waits for nothing.
    pub(super) fn ring(&self, letter: &Letter) {
        let Some((_, alarm)) = &letter.at_work else { return };
        // So that the drive looks at its alarm, and takes it back, also where nothing waits.
        self.asked.store(true, Ordering::SeqCst);
        if let Err(error) = alarm.set(Duration::ZERO) {
            log::error!("waking a drive: {error}");
        }
    }

    /// Bytes that the guest sees.
    pub(super) fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    pub(super) fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::SeqCst)
    }

    /// A guest uses the drive from now on, or its top layer is another one.
    pub(super) fn begins(&self, top: Option<&Layer>, alarm: &Arc<Alarm>) {
        self.letter().at_work = top.map(|top| (Arc::clone(&top.files), Arc::clone(alarm)));
    }

    /// No guest uses it any more.
    pub(super) fn ends(&self) {
        self.letter().at_work = None;
        self.reply(Err(GrowError::AtRest));
    }

    fn reply(&self, answer: Result<(), GrowError>) {
        let mut letter = self.letter();
        if letter.wanted.take().is_some() {
            letter.answer = Some(answer);
            self.answered.notify_all();
        }
    }
}

impl<E: Engine> Overlay<E> {
    /// Becomes larger, where that is asked and no flush is under way.
    pub(super) fn grow_if_asked(&mut self) {
        if !self.mail.is_asked() || !self.flush.is_idle() {
            return;
        }
        self.mail.asked.store(false, Ordering::SeqCst);
        let wanted = self.mail.letter().wanted;
        if let Some(bytes) = wanted {
            let grown = self.grow(bytes);
            self.mail.reply(grown.map_err(GrowError::Files));
        }
    }

    /// The alarm has rung, or a mail came: what waits for either goes on.
    pub(super) fn awakened(&mut self) {
        let has_rung = self.alarm.has_rung();
        self.grow_if_asked();
        // A mail makes what found no room try a little earlier, and wait again.
        if has_rung {
            self.try_again();
        }
    }

    fn grow(&mut self, bytes: u64) -> io::Result<()> {
        let Some(top) = self.layers.last_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        let pages = pages(bytes);
        if !self.staging.grow(pages) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // Nothing to do, unless another layer has become the top meanwhile.
        layer::lengthen(&top.files, top.header.capacity_bytes, bytes)?;
        layer::write_capacity(&top.files, &mut top.header, bytes)?;
        top.bits.grow(pages);
        self.flush.grow(pages);
        self.capacity_bytes = bytes;
        self.mail.capacity_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// A handle for any thread. It keeps nothing open: the files' leases end with the drive.
pub(super) struct OverlayRemote(pub(super) Weak<Mail>);

impl Remote for OverlayRemote {
    fn grow(&self, bytes: u64) -> Result<(), GrowError> {
        let mail = self.0.upgrade().ok_or(GrowError::Ended)?;
        let capacity = mail.capacity_bytes();
        GrowError::check(bytes, capacity)?;
        if bytes > MAX_CAPACITY_BYTES {
            return Err(GrowError::Large { bytes, most: MAX_CAPACITY_BYTES });
        }
        if bytes == capacity {
            return Ok(());
        }
        let mut letter = mail.letter();
        let Some((files, alarm)) = &letter.at_work else { return Err(GrowError::AtRest) };
        layer::lengthen(files, capacity, bytes).map_err(GrowError::Files)?;
        let alarm = Arc::clone(alarm);
        (letter.wanted, letter.answer) = (Some(bytes), None);
        mail.asked.store(true, Ordering::SeqCst);
        alarm.set(Duration::ZERO).map_err(GrowError::Files)?;
        let unanswered = |letter: &mut Letter| letter.answer.is_none();
        let mut letter = mail.wait(letter, PATIENCE, unanswered);
        letter.wanted = None;
        letter.answer.take().unwrap_or(Err(GrowError::Late { seconds: PATIENCE.as_secs() }))
    }

    fn retry(&self) -> Result<(), NoRoom> {
        self.0.upgrade().map_or(Ok(()), |mail| mail.retry())
    }

    fn give_up(&self) {
        if let Some(mail) = self.0.upgrade() {
            mail.given_up.store(true, Ordering::SeqCst);
            mail.ring(&mail.letter());
        }
    }
}
