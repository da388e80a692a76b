//! The list of virtio devices. Adding one is its file and a line here.

use super::device::DeviceType;

/// What the rest of the project needs to know about a device without naming it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Its name in messages.
    pub name: &'static str,
    /// Its id.
    pub device_type: DeviceType,
    /// System calls that it makes at work, and when it goes there and comes back, by their names in the monitor's filters. What
    /// all devices do, wait for their descriptors, is not among them.
    pub calls: &'static [&'static str],
    /// A device of this kind over backends in memory, for fuzzing and tests of the transport.
    #[cfg(any(test, feature = "testing"))]
    pub sample: fn() -> Box<dyn super::device::VirtioDevice>,
}

macro_rules! entry {
    ($name:literal, $kind:ident, $calls:expr, $sample:expr) => {
        Entry {
            name: $name,
            device_type: DeviceType::$kind,
            calls: $calls,
            #[cfg(any(test, feature = "testing"))]
            sample: $sample,
        }
    };
}

/// Every device.
pub const REGISTRY: &[Entry] = &[
    entry!("balloon", Balloon, super::balloon::CALLS, || Box::new(super::balloon::sample())),
    entry!("block", Block, super::block::CALLS, || Box::new(super::block::sample())),
    entry!("console", Console, super::console::CALLS, || Box::new(super::console::sample())),
    entry!("net", Net, super::net::CALLS, || Box::new(super::net::sample())),
    entry!("rng", Rng, super::rng::CALLS, || Box::new(super::rng::Rng::new())),
    entry!("vsock", Vsock, super::vsock::CALLS, || Box::new(super::vsock::sample())),
];
