//! The few devices that are not virtio: what a kernel needs before it has drivers.

pub mod ged;
pub mod ioapic;
pub mod power;
pub mod pvpanic;
pub mod serial;
