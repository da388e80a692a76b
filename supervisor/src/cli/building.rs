//! Work of `rootfs-builder` that somebody at a terminal waits for.

use std::time::Instant;

use labyard_supervisor::builder::{Builder, BuilderError};
use labyard_supervisor::home::Home;
use labyard_supervisor::host::Programs;
use labyard_supervisor::words::printable;

use super::up::Cancel;
use super::{Failure, event_loop, output};

/// Has `rootfs-builder` do `work`, which gets its progress told to standard error and ends early when it is interrupted.
pub(crate) fn with_builder<T>(
    home: &Home,
    work: impl AsyncFnOnce(&Builder, &mut dyn FnMut(&str), &Cancel) -> Result<T, BuilderError>,
) -> Result<T, Failure> {
    let builder = Builder { program: Programs::locate()?.find("rootfs-builder")?, home: home.path.clone() };
    let since = Instant::now();
    let mut told = |line: &str| {
        // Its last words are repeated as ours.
        if !line.starts_with("error: ") {
            output::complain(&format!("[{:7.2} s] {}", since.elapsed().as_secs_f64(), printable(line)));
        }
    };
    event_loop()?.block_on(async {
        let cancel = Cancel::default();
        cancel.on_signals()?;
        work(&builder, &mut told, &cancel).await.map_err(|error| match error {
            BuilderError::Interrupted => Cancel::failure(),
            other => other.into(),
        })
    })
}
