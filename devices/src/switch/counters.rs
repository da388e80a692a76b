//! What a port counts. Frames are counted as they would be on a wire: a large segment counts as the frames that it stands for,
//! whoever cuts it and whether it is cut at all, so that both sides of a switch count the same.
//!
//! Nothing vanishes unseen. From the guest: `sent` or one of `refused`. For the guest: `received`, one of `dropped`, or still
//! waiting. A frame that was sent is offered to one port, or to every other port if it is a group's.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[doc = $doc:literal])* $count:ident = $name:literal,)*) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Count {
            $($(#[doc = $doc])* $count,)*
        }

        const NAMES: &[&str] = &[$($name),*];
        const COUNTS: usize = NAMES.len();
    };
}

counts! {
    /// Frames from the guest that were forwarded.
    SentFrames = "sent_frames",
    /// Their bytes.
    SentBytes = "sent_bytes",
    /// Frames that the guest has got.
    ReceivedFrames = "received_frames",
    /// Their bytes.
    ReceivedBytes = "received_bytes",
    /// Sent, but nobody has the address.
    SentToNobody = "sent_to_nobody",
    /// From the guest: headers that make no sense, or work left undone that was not agreed on.
    RefusedHeaders = "refused_headers",
    /// From the guest: the source address is not the NIC's.
    RefusedSource = "refused_source",
    /// From the guest: longer than the MTU allows.
    RefusedLength = "refused_length",
    /// From the guest: the link is down.
    RefusedLink = "refused_link_down",
    /// From the guest: lost by chance on its link, which was asked to lose some.
    LostSent = "lost_sent",
    /// From the guest: its link was asked to be slow, and the queue in front of it is full.
    QueueSent = "lost_sent_queue_full",
    /// From the guest: its link was asked to let nothing pass.
    CutSent = "lost_sent_cut",
    /// For the guest: lost by chance on its link, which was asked to lose some.
    LostReceived = "lost_received",
    /// For the guest: its link was asked to be slow, and the queue in front of it is full.
    QueueReceived = "lost_received_queue_full",
    /// For the guest: its link was asked to let nothing pass.
    CutReceived = "lost_received_cut",
    /// For the guest: too much is on its way to it already.
    LineFull = "dropped_line_full",
    /// For the guest: it has no buffers, and the backlog is full.
    DroppedFull = "dropped_backlog_full",
    /// For the guest: the link is down.
    DroppedLink = "dropped_link_down",
    /// For the guest: its ring makes no sense.
    DroppedBroken = "dropped_broken",
    /// For the guest: its driver is not there.
    DroppedUnplugged = "dropped_unplugged",
}

/// The counters of a port.
#[derive(Debug)]
pub struct Counters([AtomicU64; COUNTS]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTS])
    }
}

impl Counters {
    pub(super) fn add(&self, count: Count, amount: u64) {
        if let Some(counter) = self.0.get(count as usize) {
            counter.fetch_add(amount, Ordering::Relaxed);
        }
    }
}

/// Counters as they were; each is exact, together they are not one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    values: [u64; COUNTS],
    /// Frames that are on their way to the guest, or wait for its buffers.
    pub waiting_frames: u64,
}

impl Snapshot {
    pub(super) fn of(counters: &Counters, waiting_frames: u64) -> Self {
        Self { values: counters.0.each_ref().map(|counter| counter.load(Ordering::Relaxed)), waiting_frames }
    }

    /// One of them.
    pub fn get(&self, count: Count) -> u64 {
        self.values.get(count as usize).copied().unwrap_or(0)
    }

    /// All frames for the guest that it will not get.
    pub fn dropped_frames(&self) -> u64 {
        const DROPPED: [Count; 8] = [
            Count::DroppedFull,
            Count::DroppedLink,
            Count::DroppedBroken,
            Count::DroppedUnplugged,
            Count::LostReceived,
            Count::QueueReceived,
            Count::CutReceived,
            Count::LineFull,
        ];
        DROPPED.iter().fold(0, |sum, count| self.get(*count).wrapping_add(sum))
    }

    /// All frames from the guest that were not forwarded.
    pub fn refused_frames(&self) -> u64 {
        const REFUSED: [Count; 7] = [
            Count::RefusedHeaders,
            Count::RefusedSource,
            Count::RefusedLength,
            Count::RefusedLink,
            Count::LostSent,
            Count::QueueSent,
            Count::CutSent,
        ];
        REFUSED.iter().fold(0, |sum, count| self.get(*count).wrapping_add(sum))
    }

    /// All frames that were offered to the port for its guest.
    pub fn offered_frames(&self) -> u64 {
        self.get(Count::ReceivedFrames).wrapping_add(self.dropped_frames()).wrapping_add(self.waiting_frames)
    }

    /// Names and values, always the same names in the same order.
    pub fn list(&self) -> Vec<(&'static str, u64)> {
        let values = NAMES.iter().copied().zip(self.values);
        values.chain([("waiting_frames", self.waiting_frames)]).collect()
    }
}
