//! What links of networks do to frames when they are asked to, and how it is asked.

use serde::{Deserialize, Serialize};

/// What one direction of a link does to the frames on it. The default lets everything through at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LinkFaults {
    /// How long a frame is on its way, in microseconds.
    #[serde(default)]
    pub delay_us: u64,
    /// By how much that varies, up and down. Frames of one direction do not overtake each other all the same.
    #[serde(default)]
    pub jitter_us: u64,
    /// Frames of a million that are lost by chance.
    #[serde(default)]
    pub loss_ppm: u32,
    /// Bits that pass in a second, Ethernet headers counted.
    #[serde(default)]
    pub bits_per_second: Option<u64>,
    /// Nothing passes.
    #[serde(default)]
    pub cut: bool,
}

/// All frames of a million.
pub const ALL_PPM: u32 = 1_000_000;
/// The longest delay: a minute.
pub const MAX_DELAY_US: u64 = 60_000_000;

/// Which frames are meant, as the machine of the NIC sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Those that it sends and those that it receives.
    Both,
    /// Those that it sends.
    Sent,
    /// Those that it receives.
    Received,
}

impl Direction {
    /// Whether sent frames are meant.
    pub fn has_sent(self) -> bool {
        self != Self::Received
    }

    /// Whether received frames are meant.
    pub fn has_received(self) -> bool {
        self != Self::Sent
    }
}

/// One thing that is to be another way; the others stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LinkChange {
    /// Delay and jitter.
    Delay {
        /// From now on.
        delay_us: u64,
        /// From now on, at most the delay.
        jitter_us: u64,
    },
    /// Loss.
    Loss {
        /// From now on.
        ppm: u32,
    },
    /// Rate.
    Rate {
        /// From now on; without it, there is no limit.
        bits_per_second: Option<u64>,
    },
    /// Nothing passes any more.
    Cut,
    /// Everything is as it was made, and what is under way arrives now.
    Heal,
}

impl LinkFaults {
    /// What they become.
    ///
    /// # Errors
    /// What is asked for cannot be; the text says why.
    pub fn changed(self, change: LinkChange) -> Result<Self, String> {
        match change {
            LinkChange::Delay { delay_us, .. } if delay_us > MAX_DELAY_US => {
                Err(format!("a delay of {delay_us} us: a minute, {MAX_DELAY_US} us, is the longest"))
            }
            LinkChange::Delay { delay_us, jitter_us } if jitter_us > delay_us => {
                Err(format!("a jitter of {jitter_us} us is more than the delay of {delay_us} us that it varies"))
            }
            LinkChange::Delay { delay_us, jitter_us } => Ok(Self { delay_us, jitter_us, ..self }),
            LinkChange::Loss { ppm } if ppm > ALL_PPM => Err(format!("a loss of {ppm} frames of a million")),
            LinkChange::Loss { ppm } => Ok(Self { loss_ppm: ppm, ..self }),
            LinkChange::Rate { bits_per_second: Some(rate @ 0..MIN_RATE) } => {
                Err(format!("a rate of {rate} bits a second: {MIN_RATE} is the least; `cut` lets nothing pass"))
            }
            LinkChange::Rate { bits_per_second } => Ok(Self { bits_per_second, ..self }),
            LinkChange::Cut => Ok(Self { cut: true, ..self }),
            LinkChange::Heal => Ok(Self::default()),
        }
    }
}

/// The slowest link, at which a frame of 1,500 bytes takes 12 seconds.
pub const MIN_RATE: u64 = 1000;

/// A NIC's link as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkStatus {
    /// Machine name.
    pub machine: String,
    /// Position of the interface in the manifest: 0 is eth0.
    pub interface: u32,
    /// The network that it is plugged into.
    pub network: String,
    /// Whether the guest sees a carrier.
    pub carrier: bool,
    /// What happens to frames that it sends.
    pub sent: LinkFaults,
    /// What happens to frames for it.
    pub received: LinkFaults,
    /// What the port of the switch has counted, by name.
    pub counters: Vec<(String, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_add_up_and_those_that_cannot_be_are_refused() {
        let slow = LinkFaults::default().changed(LinkChange::Delay { delay_us: 50_000, jitter_us: 5_000 });
        let lossy = slow.and_then(|faults| faults.changed(LinkChange::Loss { ppm: 20_000 })).expect("both can be");
        assert_eq!((lossy.delay_us, lossy.jitter_us, lossy.loss_ppm), (50_000, 5_000, 20_000));
        assert_eq!(lossy.changed(LinkChange::Heal), Ok(LinkFaults::default()));
        for (change, part) in [
            (LinkChange::Delay { delay_us: 60_000_001, jitter_us: 0 }, "a minute"),
            (LinkChange::Delay { delay_us: 10, jitter_us: 11 }, "more than the delay"),
            (LinkChange::Loss { ppm: 1_000_001 }, "of a million"),
            (LinkChange::Rate { bits_per_second: Some(999) }, "1000 is the least"),
        ] {
            let error = lossy.changed(change).expect_err("it cannot be");
            assert!(error.contains(part), "{error}");
        }
    }
}
