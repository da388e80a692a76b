//! A virtio device at rest.

use serde::{Deserialize, Serialize};

use super::config::ConfigSpace;
use crate::counters::Counters;
use crate::fault::Faults;
use crate::worker::{Activation, Worker};

/// Device ids (VIRTIO 1.2, §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u32)]
pub enum DeviceType {
    /// §5.1
    Net = 1,
    /// §5.2
    Block = 2,
    /// §5.3
    Console = 3,
    /// §5.4
    Rng = 4,
    /// §5.5
    Balloon = 5,
    /// §5.10
    Vsock = 19,
}

/// What a driver may learn about a device before it is set up.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// Its id.
    pub device_type: DeviceType,
    /// Features of its own, beside [`super::feature::COMMON`].
    pub features: u64,
    /// Largest size of each queue, a power of two.
    pub queue_sizes: Vec<u16>,
    /// Its configuration space.
    pub config: ConfigSpace,
}

/// A device could not be activated; it comes back to rest.
pub struct Refused {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Why.
    pub why: String,
}

/// State of a device that a snapshot holds, beside what its transport keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Whose state this is.
    pub device_type: DeviceType,
    /// Raised when `bytes` change their meaning.
    pub version: u32,
    /// The device's own; empty for a device that keeps nothing.
    pub bytes: Vec<u8>,
}

/// A state that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Of another kind of device or another version.
    #[error("state of {found:?} version {version} for a {expected:?}")]
    Foreign {
        /// The device that was asked.
        expected: DeviceType,
        /// Whose state it is.
        found: DeviceType,
        /// Its version.
        version: u32,
    },
    /// Not what this device writes.
    #[error("state of {0:?} is damaged: {1}")]
    Damaged(DeviceType, &'static str),
}

/// A virtio device at rest: no queue, no thread, no driver.
pub trait VirtioDevice: Send {
    /// What a driver may learn. The same for the life of the device.
    fn info(&self) -> DeviceInfo;
    /// Whether features that were all offered make sense together; if not, why.
    fn accepts(&self, _features: u64) -> Result<(), &'static str> {
        Ok(())
    }
    /// Goes to work.
    fn activate(self: Box<Self>, with: Activation) -> Result<Box<dyn Worker>, Refused>;
    /// Its counter of guest's mistakes.
    fn faults(&self) -> &Faults;
    /// All that it counts, its faults first; read while it works, so they are shared with its worker.
    fn counters(&self) -> Counters {
        Counters::of_faults(self.faults())
    }
    /// The driver has let go (§2.1.2): what it told the device is forgotten. A device that only stopped for a while to be
    /// saved is not reset.
    fn reset(&mut self) {}
    /// Makes durable what its driver was told is written, so that whoever takes its state back finds it; at rest, before `save`.
    ///
    /// # Errors
    /// What its backend says: the state is then not to be used.
    fn settle(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    /// What a snapshot keeps. Most devices have nothing of their own.
    fn save(&self) -> DeviceState {
        DeviceState { device_type: self.info().device_type, version: 1, bytes: Vec::new() }
    }
    /// Takes back what `save` gave.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        state.bytes_of(self.info().device_type, 0, "bytes where none belong").map(|_| ())
    }
}

impl DeviceState {
    /// The bytes of a state of version 1, `len` of them; else `damage` says what they are not.
    pub(super) fn bytes_of(&self, expected: DeviceType, len: usize, damage: &'static str) -> Result<&[u8], StateError> {
        if self.device_type != expected || self.version != 1 {
            return Err(StateError::Foreign { expected, found: self.device_type, version: self.version });
        }
        if self.bytes.len() != len {
            return Err(StateError::Damaged(expected, damage));
        }
        Ok(&self.bytes)
    }
}

/// The refusal of a device that was given another number of queues than it declared.
pub fn wrong_queues(device: Box<dyn VirtioDevice>) -> Refused {
    Refused { why: "the number of queues is not the device's".into(), device }
}
