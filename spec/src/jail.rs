//! What `labyard-jail` is told, on the stream socket [`SPEC_FD`].
//!
//! 1. To the jail: a [`JailSpec`] as one line of JSON.
//! 2. From the jail: one line with the pid of the process that becomes the program. It is a child of the jail's parent; the jail itself
//!    has ended then, unless both are one.
//! 3. To the jail: [`GO`]. Whoever starts it has written the pid down by then. Without it nothing is started.

use serde::{Deserialize, Serialize};

/// Where the jail hears and answers.
pub const SPEC_FD: i32 = 3;

/// Lets the program begin.
pub const GO: &[u8] = b"go\n";

/// Bytes of a line with a pid.
pub const MAX_PID_BYTES: usize = 16;

/// Descriptors of the vmm after the jail: numbers are fixed, nothing else is open.
pub mod fd {
    /// Standard input: `/dev/null`.
    pub const STDIN: i32 = 0;
    /// Standard output: `/dev/null`.
    pub const STDOUT: i32 = 1;
    /// Standard error: the vmm's log, append-only.
    pub const LOG: i32 = 2;
    /// The listening control socket.
    pub const CONTROL: i32 = 3;
    /// `/dev/kvm`.
    pub const KVM: i32 = 4;
    /// Last words: [`crate::control::Event`] lines of ended machines, append-only.
    pub const LAST_WORDS: i32 = 5;
}

/// How to close the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailSpec {
    /// Descriptor of the static program to exec, as inherited by the jail.
    pub program: i32,
    /// Its arguments, `argv[0]` included.
    pub argv: Vec<String>,
    /// `(from, to)`: what the jail inherited as `from` is `to` in the program. Everything else is closed.
    pub descriptors: Vec<(i32, i32)>,
    /// Highest number of open descriptors (RLIMIT_NOFILE).
    pub max_descriptors: u64,
    /// Highest number of threads (RLIMIT_NPROC), where it is limited.
    pub max_threads: Option<u64>,
    /// Run with namespaces and an empty root. Off only for tests of the vmm by itself.
    pub confine: bool,
}
