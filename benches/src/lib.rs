//! What the benches share: guests to boot, VMMs to boot them, and what is measured of each.
//!
//! Figures are printed, never asserted; both sides of a comparison run in turns, in one run, on one machine, with the same kernel,
//! initramfs and command line.
//!
//! - [`guest`]: kernel and initramfs, the same for all.
//! - [`vmm`]: how each VMM is started.
//! - [`boot`]: one boot, from exec to the guest's init.
//! - [`drive`]: what a guest's fio says of a drive.
//! - [`memory`]: what a process holds beside its guest's memory.
//! - [`layout`]: images to build.
//! - [`table`]: medians, and how they are printed.

#![forbid(unsafe_code)]

pub mod boot;
pub mod drive;
pub mod guest;
pub mod layout;
pub mod memory;
pub mod table;
pub mod vmm;
