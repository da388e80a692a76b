//! Fuzz targets for whatever a guest, an image or a peer may send, and a driver that needs nothing but stable Rust.
//!
//! A target is a function of bytes that panics where a rule is broken. The driver has no coverage to follow, so a target reads
//! its bytes as a program (a list of things that a driver does) or brings seeds of its own; either way most inputs get far.
//!
//! - [`targets`]: the list. Devices come from `labyard_devices::REGISTRY`, so a new one is fuzzed without a line here.
//! - [`input`]: bytes as numbers and choices.
//! - [`mutate`]: new inputs from old ones, the same for the same seed.
//! - [`campaign`]: runs a target, catches panics and hangs, keeps the input.

#![forbid(unsafe_code)]

pub mod campaign;
pub mod input;
pub mod mutate;
pub mod targets;
