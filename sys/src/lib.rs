//! Safe wrappers over Linux, one file per facility. The home of `unsafe`: every block here names the invariant it rests on,
//! and the function around it is safe.

#[cfg(feature = "testing")]
pub mod attempts;
pub mod confine;
pub mod counting;
pub mod exec;
pub mod fdpass;
pub mod filter;
pub mod heap;
pub mod iov;
pub mod landlock;
pub mod lease;
pub mod memfd;
pub mod message;
pub mod pidfd;
pub mod random;
pub mod space;
pub mod spawn;
pub mod split;
pub mod tap;
pub mod timer;
pub mod uring;
pub mod wait;
