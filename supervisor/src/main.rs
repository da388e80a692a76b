//! Placeholder entry point of the skeleton.
fn main() {}
