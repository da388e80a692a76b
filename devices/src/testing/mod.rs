//! The driver's side, for tests, fuzzing and benches: a guest that sets a device up through its registers and offers it
//! buffers, and a host that runs workers on the test's own thread.

#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    reason = "a test that goes wrong may panic"
)]

mod driver;
mod host;
mod watched;

pub use driver::{Buffer, GuestDriver, readable, writable};
pub use host::{InlineHost, Recorder};
pub use watched::Watched;
