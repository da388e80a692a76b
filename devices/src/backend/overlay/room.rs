//! Room on the host's disk: what finds none waits, is tried again, and who wants to know is told.
//!
//! ```text
//!                       told `Full`                   the alarm: after a second, or when somebody asks
//!   there is room ── a step finds none ──▶ out of room ───────────────────────────────────────────▶ tried
//!         ▲                                    ▲                                                      │
//!         │                                    └────────────────── a step finds none ─────────────────┤
//!         └─── told `HasRoom` ─────────────────────── nothing waits any more ─────────────────────────┘
//! ```
//!
//! Who asks ([`Mail::retry`], from any thread) waits for a try that began after the question, so that the answer is true when it
//! comes. A sync that finds no room is not tried again: the kernel forgets what it could not write (`flush`).

use std::io;
use std::time::Duration;

use labyard_sys::space::{NO_QUOTA, NO_SPACE};

use super::super::block::NoRoom;
use super::super::engine::Engine;
use super::Overlay;
use super::growth::{Letter, Mail};

/// How long what found no room waits before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a drive may take for a try that somebody waits for; the host's disk may be slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is told of the host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostDisk {
    /// It has no room: the guest's writes wait.
    Full {
        /// What it says, an errno.
        errno: i32,
    },
    /// They go on.
    HasRoom,
}

/// Gets told, by whichever thread the drive is at work on. It must not wait for that.
pub type Told = Box<dyn FnMut(HostDisk) + Send>;

/// Where the drive stands.
#[derive(Default)]
pub(super) struct Room {
    /// Something waits for the alarm.
    is_out: bool,
    /// It was said that there is none.
    was_told: bool,
    /// The last try that was asked for when the present one began.
    trying: u64,
    pub(super) told: Option<Told>,
}

impl Room {
    pub(super) fn is_out(&self) -> bool {
        self.is_out
    }

    fn tell(&mut self, what: HostDisk) {
        if let Some(told) = &mut self.told {
            told(what);
        }
    }
}

/// What drive and askers share of it, in the letter.
#[derive(Default)]
pub(super) struct Tries {
    /// What the host's disk says, while something waits.
    full: Option<i32>,
    /// Tries that were asked for, and the last of them that has found no room.
    asked: u64,
    failed: u64,
}

/// No room on the host's disk, or no more of it for this user.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn errno(error: &io::Error) -> i32 {
    let by_kind = if error.kind() == io::ErrorKind::QuotaExceeded { NO_QUOTA } else { NO_SPACE };
    error.raw_os_error().unwrap_or(by_kind)
}

impl Mail {
    /// Has the drive try at once, and waits for what becomes of it.
    pub(super) fn retry(&self) -> Result<(), NoRoom> {
        let mut letter = self.letter();
        if letter.tries.full.is_none() {
            return Ok(());
        }
        letter.tries.asked = letter.tries.asked.saturating_add(1);
        let own = letter.tries.asked;
        // A drive at rest is settled by somebody who waits for its own alarm.
        self.ring(&letter);
        let open = |letter: &mut Letter| letter.tries.full.is_some() && letter.tries.failed < own;
        let letter = self.wait(letter, PATIENCE, open);
        match letter.tries.full {
            None => Ok(()),
            Some(errno) if letter.tries.failed >= own => Err(NoRoom::Full(io::Error::from_raw_os_error(errno))),
            Some(_) => Err(NoRoom::Late { seconds: PATIENCE.as_secs() }),
        }
    }

    /// A try has found no room; whether another was asked for since it began.
    fn found_none(&self, errno: i32, trying: u64) -> bool {
        let mut letter = self.letter();
        (letter.tries.full, letter.tries.failed) = (Some(errno), trying);
        self.answered.notify_all();
        letter.tries.asked > trying
    }

    fn found_room(&self) {
        self.letter().tries.full = None;
        self.answered.notify_all();
    }
}

impl<E: Engine> Overlay<E> {
    /// Whether what failed so is tried again once there is room.
    pub(super) fn can_wait(&self, error: &io::Error) -> bool {
        is_full(error) && !self.mail.has_given_up()
    }

    /// Something found no room: it waits for the alarm.
    pub(super) fn is_out_of_room(&mut self, error: &io::Error) {
        if std::mem::replace(&mut self.room.is_out, true) {
            return;
        }
        let errno = errno(error);
        // First: who asks hears of it once, and of nothing that comes later.
        if !std::mem::replace(&mut self.room.was_told, true) {
            log::warn!("the host's disk has no room ({error}): writes of a drive wait until it has");
            self.room.tell(HostDisk::Full { errno });
        }
        let after = if self.mail.found_none(errno, self.room.trying) { Duration::ZERO } else { RETRY_AFTER };
        if let Err(error) = self.alarm.set(after) {
            log::error!("setting the alarm for a full disk: {error}");
        }
    }

    /// Tries what waits, once the alarm has rung.
    pub(super) fn try_again(&mut self) {
        if !self.room.is_out {
            return;
        }
        self.room.is_out = false;
        self.room.trying = self.mail.letter().tries.asked;
        self.retry_pages();
        self.start_waiting();
        self.may_have_room();
    }

    /// Something has ended. Where nothing waits any more, there is room: not before, so that who was told need not be told anew for
    /// each of many that wait.
    pub(super) fn may_have_room(&mut self) {
        if !self.room.was_told || self.room.is_out || !self.slots.no_write_is_there() || self.flush.writes_pages() {
            return;
        }
        self.room.was_told = false;
        // A machine whose power is cut has no more room than before.
        if !self.mail.has_given_up() {
            log::info!("the host's disk has room again: writes go on");
            self.room.tell(HostDisk::HasRoom);
        }
        self.mail.found_room();
    }
}
