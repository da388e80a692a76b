//! The list of virtio devices. Adding one is its file and a line here.

use super::device::DeviceType;

/// What the rest of the project needs to know about a device without naming it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name in messages.
    pub name: &'static str,
    /// Its id.
    pub device_type: DeviceType,
    /// A device of this kind over backends in memory, for fuzzing and tests of the transport.
    #[cfg(any(test, feature = "testing"))]
    pub sample: fn() -> Box<dyn super::device::VirtioDevice>,
}

macro_rules! entry {
    ($name:literal, $kind:ident, $sample:expr) => {
        Entry {
            name: $name,
            device_type: DeviceType::$kind,
            #[cfg(any(test, feature = "testing"))]
            sample: $sample,
        }
    };
}

/// Every device.
pub const REGISTRY: &[Entry] = &[
    entry!("balloon", Balloon, || Box::new(super::balloon::sample())),
    entry!("block", Block, || Box::new(super::block::sample())),
    entry!("console", Console, || Box::new(super::console::sample())),
    entry!("net", Net, || Box::new(super::net::sample())),
    entry!("rng", Rng, || Box::new(super::rng::Rng::new())),
    entry!("vsock", Vsock, || Box::new(super::vsock::sample())),
];
