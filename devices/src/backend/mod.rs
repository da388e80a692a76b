//! What is behind a drive.

pub mod block;
pub mod engine;
pub mod overlay;
pub mod raw;
