//! Real guests. Run by `tests/run-guests`, which prepares a store, the programs and a host where guests can run.
//!
//! A lab takes half a minute to come up in the emulated host, so one lab carries many checks ([`lab::Lab::check`]): each has
//! a name, prints how long it took, and fails the test at the end, so that one failure does not hide the others.

mod access;
mod apparmor;
mod bake;
mod block;
mod crowd;
mod cycles;
mod examples;
mod full;
mod greedy;
mod host;
mod images;
mod kernels;
mod killed;
mod kills;
mod lab;
mod machines;
mod many;
mod members;
mod net;
mod quiet;
mod reference;
mod refused;
mod rootless;
mod rounds;
mod saved;
mod six;
mod sizes;
mod starting;
mod tiny;
mod two_machines;
mod uplink;

/// A number that a variable has.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Whether the counts of the soak are wanted.
fn is_soak() -> bool {
    std::env::var_os("LABYARD_SOAK").is_some()
}
