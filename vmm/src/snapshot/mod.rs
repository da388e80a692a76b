//! A playground at rest on disk: one state file, and one file of guest memory for each machine (docs/formats.md).
//!
//! Everything is taken in one pause, after workers have given their queues back and vCPUs have left the guest. The state file
//! is read as a claim: magic, version, length and checksum are looked at before anything is made of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kvm_bindings::kvm_cpuid_entry2;
use labyard_devices::legacy::{ioapic, serial};
use labyard_devices::virtio::transport::mmio;
use labyard_spec::control::MachineState;
use serde::{Deserialize, Serialize};

use crate::kvm::state::{ClockState, VcpuState};

pub mod memory;

/// First bytes of a state file.
const MAGIC: &[u8; 8] = b"LABYSNAP";
/// Raised when the meaning of what follows changes.
const VERSION: u32 = 2;
/// Magic, version, length and checksum of the body.
const HEADER_BYTES: usize = 24;
/// A state file is not longer than this: 64 machines with 32 vCPUs of 10 KiB, and three NICs with 1 MiB of frames that wait
/// and 4 MiB of frames under way.
const MAX_BODY_BYTES: u64 = 1 << 30;

/// All machines of a playground.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// In the order of the spec that they ran with.
    pub machines: Vec<SavedMachine>,
}

/// One machine, without its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedMachine {
    /// Its name; the spec must have the same.
    pub name: String,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Where it stood.
    pub life: Life,
}

/// Where a saved machine stood.
#[derive(Debug, Serialize, Deserialize)]
pub enum Life {
    /// It ran, and goes on.
    Ran(Box<SavedRun>),
    /// It had ended; its file of memory is empty.
    Ended(MachineState),
}

/// A machine that ran.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedRun {
    /// Its init has said hello, so a reset is a reboot.
    pub greeted: bool,
    /// What each vCPU was told about itself.
    pub cpuid: Vec<Vec<kvm_cpuid_entry2>>,
    /// By number.
    pub vcpus: Vec<VcpuState>,
    /// kvmclock.
    pub clock: ClockState,
    /// Interrupt routes.
    pub io_apic: ioapic::State,
    /// `ttyS0`.
    pub serial: serial::State,
    /// What ACPI has told and the guest has not heard ([`labyard_devices::legacy::ged`]).
    pub events: u8,
    /// Transports and their devices, in the order in which the guest finds them.
    pub transports: Vec<mmio::State>,
}

/// A state file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Reading or writing a file.
    #[error("snapshot: {doing}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Something else.
    #[error("snapshot: the state file does not begin as one does")]
    Foreign,
    /// Another format.
    #[error("snapshot: the state file has version {0}, this vmm reads {VERSION}")]
    Version(u32),
    /// Cut short, or changed.
    #[error("snapshot: the state file is damaged ({0})")]
    Damaged(&'static str),
    /// Another lab's.
    #[error("snapshot: {0}")]
    Other(String),
}

fn file_error(doing: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::File { doing, source }
}

/// What is in a file already would be in its holes afterwards.
fn must_be_empty(file: &File, what: &str) -> Result<(), SnapshotError> {
    match file.metadata().map_err(file_error("looking at a file to write to"))?.len() {
        0 => Ok(()),
        bytes => Err(SnapshotError::Other(format!("{what} has {bytes} bytes already, and must be empty"))),
    }
}

impl Saved {
    /// Writes the state to an empty file and makes it durable.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, file: &File) -> Result<(), SnapshotError> {
        must_be_empty(file, "the file for the state")?;
        let body = self.encode()?;
        if body.len() as u64 > MAX_BODY_BYTES {
            let bytes = body.len();
            return Err(SnapshotError::Other(format!(
                "a state of {bytes} bytes, at most {MAX_BODY_BYTES} are read again"
            )));
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&body);
        file.write_all_at(&bytes, 0).and_then(|()| file.sync_data()).map_err(file_error("writing the state"))
    }

    /// Reads what `write` wrote.
    ///
    /// # Errors
    /// The file is no state file, of another version, or damaged.
    pub fn read(file: &File) -> Result<Self, SnapshotError> {
        let mut header = [0; HEADER_BYTES];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(SnapshotError::Foreign),
            other => other.map_err(file_error("reading the state"))?,
        }
        let Header { len, checksum } = Header::decode(header)?;
        let file_bytes = file.metadata().map_err(file_error("looking at the state"))?.len();
        if file_bytes.saturating_sub(HEADER_BYTES as u64) < len as u64 {
            return Err(SnapshotError::Damaged("cut short"));
        }
        let mut body = vec![0; len];
        match file.read_exact_at(&mut body, HEADER_BYTES as u64) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(SnapshotError::Damaged("cut short"));
            }
            other => other.map_err(file_error("reading the state"))?,
        }
        if crc32c::crc32c(&body) != checksum {
            return Err(SnapshotError::Damaged("its checksum"));
        }
        Self::decode(&body)
    }

    /// What follows the header of a state file.
    ///
    /// # Errors
    /// It is damaged.
    pub fn decode(body: &[u8]) -> Result<Self, SnapshotError> {
        match postcard::take_from_bytes(body) {
            Ok((saved, [])) => Ok(saved),
            _ => Err(SnapshotError::Damaged("its content")),
        }
    }

    /// The other way.
    ///
    /// # Errors
    /// It has no binary form.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        postcard::to_allocvec(self).map_err(|_| SnapshotError::Damaged("it has no binary form"))
    }
}

/// The first bytes of a state file, checked.
struct Header {
    len: usize,
    checksum: u32,
}

impl Header {
    fn decode(header: [u8; HEADER_BYTES]) -> Result<Self, SnapshotError> {
        let [magic @ .., v0, v1, v2, v3, c0, c1, c2, c3, l0, l1, l2, l3, l4, l5, l6, l7] = header;
        if magic != *MAGIC {
            return Err(SnapshotError::Foreign);
        }
        let version = u32::from_le_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let len = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        match usize::try_from(len) {
            Ok(len) if len as u64 <= MAX_BODY_BYTES => Ok(Self { len, checksum: u32::from_le_bytes([c0, c1, c2, c3]) }),
            _ => Err(SnapshotError::Damaged("its length")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let file = tempfile::tempfile().expect("a file");
        Saved { machines: Vec::new() }.write(&file).expect("writing");
        let mut bytes = vec![0; file.metadata().expect("metadata").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("reading");
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Saved, SnapshotError> {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(bytes, 0).expect("writing");
        Saved::read(&file)
    }

    #[test]
    fn what_was_written_is_read() {
        assert!(read(&written()).expect("its own").machines.is_empty());
    }

    #[test]
    fn what_is_no_whole_state_file_is_told_apart() {
        let good = written();
        for len in 0..good.len() {
            assert!(read(good.get(..len).expect("shorter")).is_err(), "cut at {len}");
        }
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x10;
            assert!(read(&bad).is_err(), "changed at {place}");
        }
        assert!(matches!(read(b"#!/bin/sh\n and so on and on and on"), Err(SnapshotError::Foreign)));
        let mut newer = good.clone();
        newer[8] = 3;
        assert!(matches!(read(&newer), Err(SnapshotError::Version(3))));
        let mut huge = good;
        huge[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(read(&huge), Err(SnapshotError::Damaged("its length"))));
    }
}
