//! One boot: from the exec of a VMM until its guest's init has said so.

use std::io::Read;
use std::process::Child;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::MARKER;
use crate::memory::beside_guest_kib;
use crate::vmm::{Started, milestones};

/// Without a word from the guest for so long, the boot has failed.
const SILENCE: Duration = Duration::from_secs(120);

/// What was seen of one boot.
pub struct Boot {
    /// From exec to the marker.
    pub to_init: Duration,
    /// PSS of the VMM beside the guest's memory, at that time.
    pub beside_kib: u64,
    /// Labyard's own milestones, in microseconds.
    pub milestones: Vec<(String, f64)>,
}

/// Ends the VMM with its scope.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill(); // gone already is as good
        let _ = self.0.wait();
    }
}

/// Watches a VMM that was told to boot.
pub fn watch(started: Started, memory_mib: u64) -> Result<Boot> {
    let Started { mut child, console, control } = started;
    let mut output = child.stdout.take().context("standard output is not a pipe")?;
    let child = Ended(child);
    let here = output.read_exact(&mut [0]).map(|()| Instant::now()).context("sh did not come to its exec")?;
    let said = match console {
        Some(console) => until_marker(console),
        None => until_marker(output),
    };
    let at = said?;
    let beside_kib = beside_guest_kib(child.0.id(), memory_mib << 10)?;
    let milestones = control.as_ref().map_or(Ok(Vec::new()), milestones)?;
    Ok(Boot { to_init: at.duration_since(here), beside_kib, milestones })
}

/// Reads until the marker; when that was.
fn until_marker(mut from: impl Read + Send + 'static) -> Result<Instant> {
    let (sender, pieces) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            // Read on when nobody listens any more: a closed pipe would be an error to the VMM.
            let _ = sender.send((Instant::now(), buffer[..n].to_vec()));
        }
    });
    let mut said = Vec::new();
    loop {
        let Ok((at, piece)) = pieces.recv_timeout(SILENCE) else {
            let text = String::from_utf8_lossy(&said).into_owned();
            bail!("the guest did not say \"{MARKER}\" but ended or fell silent; it said: {text:?}");
        };
        said.extend_from_slice(&piece);
        if said.windows(MARKER.len()).any(|window| window == MARKER.as_bytes()) {
            return Ok(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_found_in_pieces_and_its_lack_is_told() {
        let (first, rest) = MARKER.split_at(5);
        let pieces = std::io::Cursor::new(format!("early\n{first}")).chain(std::io::Cursor::new(format!("{rest}\n")));
        until_marker(pieces).expect("found");
        let error = until_marker(std::io::Cursor::new("Kernel panic")).expect_err("lacking").to_string();
        assert!(error.contains("Kernel panic"), "{error}");
    }
}
