//! The end of a playground that has lived long enough, or that nobody uses.
//!
//! Used is who has a stream into a machine, and for as long. A supervisor that takes over counts from its own beginning; while none
//! runs, nothing expires.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::shared::{Phase, Shared};
use super::stop;
use crate::record::{Expiry, Then, now_ms};

/// How long guests get to power off.
const GRACE: Duration = Duration::from_secs(30);
/// The longest sleep between two looks at the clock, which may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Who uses the playground now, and when somebody last did.
#[derive(Debug)]
pub(super) struct Usage {
    streams: AtomicUsize,
    last_ms: AtomicU64,
}

impl Usage {
    pub(super) fn new() -> Self {
        Self { streams: AtomicUsize::new(0), last_ms: AtomicU64::new(now_ms()) }
    }

    /// A stream is opened; it is used until what comes back is dropped.
    pub(super) fn begin(shared: &Arc<Shared>) -> Used {
        shared.usage.streams.fetch_add(1, Ordering::SeqCst);
        Used(Arc::clone(shared))
    }

    /// When it has been idle for so long; `None` while it is in use.
    fn idle_at(&self, idle_ms: u64) -> Option<u64> {
        let idle = self.streams.load(Ordering::SeqCst) == 0;
        idle.then(|| self.last_ms.load(Ordering::SeqCst).saturating_add(idle_ms))
    }
}

/// Somebody uses it.
pub(super) struct Used(Arc<Shared>);

impl Drop for Used {
    fn drop(&mut self) {
        self.0.usage.last_ms.store(now_ms(), Ordering::SeqCst);
        self.0.usage.streams.fetch_sub(1, Ordering::SeqCst);
        self.0.ring();
    }
}

/// Waits for the end that is due, brings it about, and says whether the folder is to go with it.
pub(super) async fn watch(shared: Arc<Shared>) -> Then {
    let mut bell = shared.bell();
    loop {
        let phase = *bell.borrow_and_update();
        if phase == Phase::Over {
            return Then::Stop;
        }
        let expiry = shared.state().expiry;
        let due = due(&expiry, &shared.usage);
        let left = due.map(|(at, _)| Duration::from_millis(at.saturating_sub(now_ms())));
        if let (Some(Duration::ZERO), Some((_, why))) = (left, due)
            && phase == Phase::Up
            && !shared.is_stopping()
        {
            shared.note(None, &format!("{why}: the lab is {}", expiry.then.past()));
            stop::stop(&shared, GRACE).await;
            return expiry.then;
        }
        let sleep = left.filter(|left| !left.is_zero()).unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            changed = bell.changed() => if changed.is_err() { return Then::Stop },
        }
    }
}

/// The earlier of both ends.
fn due(expiry: &Expiry, usage: &Usage) -> Option<(u64, &'static str)> {
    let lived = expiry.at_ms.map(|at| (at, "its lifetime is over"));
    let idle = expiry.idle_ms.and_then(|ms| Some((usage.idle_at(ms)?, "nobody has used it")));
    lived.into_iter().chain(idle).min_by_key(|(at, _)| *at)
}
