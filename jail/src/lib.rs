//! The jail: leaves the host behind and becomes another program.
//!
//! Whoever starts it is trusted; the program that it becomes is not, once a guest has broken it. So every step is checked, none is
//! optional, and a failure ends the process before the program runs. One thread, no code of the monitor.
//!
//! In order:
//! 1. The descriptor table: each descriptor moves to its fixed number, all others are closed.
//! 2. The limit of open descriptors.
//! 3. New user, mount, network, IPC, UTS and cgroup namespaces.
//! 4. An empty, read-only root.
//! 5. No capabilities, no_new_privs. (Undumpable is what the program makes itself: exec resets it, prctl(2).)
//! 6. execveat of the program's descriptor with an empty environment.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::io::{self, Read};

use labyard_spec::jail::JailSpec;
use labyard_sys::{confine, exec};

/// Bytes of a [`JailSpec`]; a table of thousands of descriptors fits.
pub const MAX_SPEC_BYTES: u64 = 1 << 20;

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum JailError {
    #[error("reading the jail spec from descriptor {descriptor}")]
    Read { descriptor: i32, source: io::Error },
    #[error("the jail spec on descriptor {descriptor} is cut off or longer than {MAX_SPEC_BYTES} bytes")]
    Cut { descriptor: i32 },
    #[error("the jail spec is not what this jail understands")]
    Parse(#[from] serde_json::Error),
    #[error("the program's arguments")]
    Arguments(#[source] io::Error),
    #[error("arranging descriptors")]
    Descriptors(#[source] io::Error),
    #[error("limiting open descriptors")]
    Limit(#[source] io::Error),
    #[error("entering new namespaces (user namespaces must be allowed, or the caller root)")]
    Namespaces(#[source] io::Error),
    #[error("emptying the root")]
    Root(#[source] io::Error),
    #[error("dropping capabilities")]
    Capabilities(#[source] io::Error),
    #[error("setting no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    #[error("executing {program}")]
    Exec { program: String, source: io::Error },
}

/// Reads the spec. An empty one means that whoever started the jail died first.
///
/// # Errors
/// Where the spec cannot be read, is too long or is not a [`JailSpec`].
pub fn read_spec(from: impl Read, descriptor: i32) -> Result<JailSpec, JailError> {
    let mut bytes = Vec::new();
    let read = Read::take(from, MAX_SPEC_BYTES + 1).read_to_end(&mut bytes);
    let read = read.map_err(|source| JailError::Read { descriptor, source })?;
    if read == 0 || read as u64 > MAX_SPEC_BYTES {
        return Err(JailError::Cut { descriptor });
    }
    Ok(serde_json::from_slice(&bytes)?)
}

/// Confines the process and becomes the program. Returns only the error.
///
/// # Errors
/// Every step has its own. The process is then in no state to do anything but end.
pub fn enter(spec: &JailSpec) -> Result<Infallible, JailError> {
    let arguments = exec::arguments(&spec.argv).map_err(JailError::Arguments)?;
    let program = exec::arrange(&spec.descriptors, spec.program).map_err(JailError::Descriptors)?;
    confine::limit_descriptors(spec.max_descriptors).map_err(JailError::Limit)?;
    if spec.confine {
        confine::enter_namespaces().map_err(JailError::Namespaces)?;
        confine::empty_root().map_err(JailError::Root)?;
        confine::drop_capabilities().map_err(JailError::Capabilities)?;
    }
    confine::no_new_privileges().map_err(JailError::NoNewPrivileges)?;
    let source = exec::execveat(&program, &arguments);
    Err(JailError::Exec { program: spec.argv.first().cloned().unwrap_or_default(), source })
}
