//! A machine that is baked: its drives are mounted for reading and sent to the host as they are asked for. Nothing of the image runs.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use labyard_spec::guest::{AGENT_PORT, Hello, MachineConfig};
use vsock::VsockListener;

use super::drives::Drives;
use super::{WHO, announce, mounts, power_off};
use crate::agent::bake::{self, Mounted};
use crate::console::say;
use crate::modules::Modules;

/// Drives are mounted below it, each by its serial.
const PLACE: &str = "/baked";

#[derive(Debug, thiserror::Error)]
pub(super) enum BakeError {
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    #[error("listening on vsock port {AGENT_PORT}")]
    Listen { source: io::Error },
    #[error("waiting for the next call")]
    Accept { source: io::Error },
}

/// Answers calls until the power is cut, or somebody asks for that.
pub(super) fn serve(
    config: &MachineConfig,
    drives: &Drives<'_>,
    mut modules: Option<&mut Modules>,
    release: &str,
) -> Result<Infallible, BakeError> {
    let mut mounted = Vec::new();
    for found in std::iter::once(&drives.root).chain(&drives.others) {
        let at = PathBuf::from(format!("{PLACE}/{}", found.drive.serial));
        mounts::for_reading(found, &at, modules.as_deref_mut())?;
        let is_root = found.drive.mount.as_deref().map(Path::new) == Some(Path::new("/"));
        mounted.push(Mounted { serial: found.drive.serial.clone(), at, is_root });
    }
    let listener = VsockListener::bind_with_cid_port(vsock::VMADDR_CID_ANY, AGENT_PORT)
        .map_err(|source| BakeError::Listen { source })?;
    if let Some(mut ready) = announce(release)
        && let Err(error) = ready.say(&Hello::AgentReady)
    {
        say(WHO, format_args!("the host was not told that drives can be read: {error}"));
    }
    // Where machines are told their resolvers, the file was written by us.
    let own_resolvers = config.nameservers.is_empty();
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                continue;
            }
            Err(source) => return Err(BakeError::Accept { source }),
        };
        match bake::serve(stream.as_fd(), &mounted, own_resolvers) {
            Ok(true) => power_off(),
            Ok(false) => {}
            Err(error) => say(WHO, format_args!("a call ended early: {error}")),
        }
    }
}
