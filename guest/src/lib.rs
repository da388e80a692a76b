//! `labyard-init`: prepares a guest's root as PID 1 of the initramfs, and stays in the guest as the agent.
//!
//! One static binary, three roles, chosen in `main.rs`: init (PID 1), `agent` (answers calls on vsock) and `launch` (the
//! short life between fork and exec in which a program of ours becomes somebody else's). No unsafe: descriptors travel
//! over sockets, users are switched by a process of its own. No name look-up of the C library: it would need files of
//! the image.

#![forbid(unsafe_code)]

pub mod agent;
mod below;
mod console;
pub mod init;
pub mod launch;
mod modules;
mod ready;
mod users;
