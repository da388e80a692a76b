//! How a driver finds and sets up a device.

pub mod mmio;
