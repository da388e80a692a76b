//! One boot: from the exec of a VMM until its guests' init has said so.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::guest::MARKER;
use crate::memory::beside_guests_kib;
use crate::vmm::{Process, Started, milestones};

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

/// A VMM all of whose guests have come to their init. It ends with this.
pub struct Running {
    process: Process,
    control: Option<UnixStream>,
    guests: usize,
    /// From exec to the last guest's marker.
    pub to_init: Duration,
}

impl Running {
    /// Waits for every guest of a VMM that was told to boot.
    pub fn from(started: Started) -> Result<Self> {
        let Started { mut process, consoles, control } = started;
        let here = process.wait_for_exec()?;
        let guests = consoles.len().max(1);
        let mut last = here;
        if consoles.is_empty() {
            last = until_marker(process.child.stdout.take().context("standard output is not a pipe")?)?;
        } else {
            // Each on a thread of its own from the start: a guest whose console nobody reads waits.
            let pieces: Vec<_> = consoles.into_iter().map(pieces).collect();
            for pieces in pieces {
                last = last.max(marker_in(&pieces)?);
            }
        }
        Ok(Self { process, control, guests, to_init: last.duration_since(here) })
    }

    /// PSS beside the memory of its guests, which have so much each.
    pub fn beside_kib(&self, memory_mib: u64) -> Result<u64> {
        beside_guests_kib(self.process.id(), memory_mib << 10, self.guests)
    }
}

/// Watches a VMM that was told to boot one guest.
pub fn watch(started: Started, memory_mib: u64) -> Result<Boot> {
    let running = Running::from(started)?;
    let beside_kib = running.beside_kib(memory_mib)?;
    let milestones = running.control.as_ref().map_or(Ok(Vec::new()), milestones)?;
    Ok(Boot { to_init: running.to_init, beside_kib, milestones })
}

/// Reads until the marker; when that was.
fn until_marker(from: impl Read + Send + 'static) -> Result<Instant> {
    marker_in(&pieces(from))
}

/// What is read, with its time, by a thread that reads until the end.
pub(crate) fn pieces(mut from: impl Read + Send + 'static) -> mpsc::Receiver<(Instant, Vec<u8>)> {
    let (sender, pieces) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            // Read on when nobody listens any more: a closed pipe would be an error to the VMM.
            let _ = sender.send((Instant::now(), buffer[..n].to_vec()));
        }
    });
    pieces
}

fn marker_in(pieces: &mpsc::Receiver<(Instant, Vec<u8>)>) -> Result<Instant> {
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
