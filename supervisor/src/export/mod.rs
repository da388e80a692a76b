//! A drive as one file: what the layers of a machine that does not run say, flattened over what they lie on.
//!
//! ```text
//!   plan.json ──> chain: base, frozen layers, top ──> pieces that are not zeros ──> raw or qcow2 ──> draft ──> FILE
//! ```
//!
//! Bytes of the guest are copied, never looked at. Maps were written by the vmm, which a guest may have taken over: they are read as
//! `spec::overlay` reads them, with checksums and bounds, a page at a time. Everything is opened by paths of the plan, which is ours.

mod chain;
mod draft;
mod qcow2;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use labyard_spec::playground::DriveSpec;
use serde::Serialize;

use crate::plan::Plan;
use chain::Chain;
pub use chain::ChainError;
use draft::Draft;
pub use draft::DraftError;

/// What the file is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Byte n of the drive is byte n of the file, which is sparse.
    Raw,
    /// QEMU's format, version 3, without a backing file.
    Qcow2,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// What it is made from.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// What it is written to.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// Nobody wants it any more.
    #[error("interrupted")]
    Interrupted,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of the drive.
    pub capacity_bytes: u64,
    /// Bytes of it that are not zeros, in whole blocks.
    pub data_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// Where pieces of a drive go: in order, none of them zeros, none over the border of a cluster.
trait Writer {
    fn piece(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
    /// Everything was given. Bytes of the file.
    fn finish(&mut self) -> std::io::Result<u64>;
}

/// Bytes of a piece at most, and the border that none goes over: a cluster of qcow2.
const PIECE_BYTES: u64 = qcow2::CLUSTER_BYTES;

/// Writes a drive to `path`, which is complete or not there when this returns. `told` hears how far it is, in bytes of the drive.
///
/// # Errors
/// The drive is in use or damaged, the file is there already, or cannot be written.
pub fn export(
    plan: &Plan,
    drive: &DriveSpec,
    path: &Path,
    (format, replace): (Format, bool),
    cancel: &AtomicBool,
    mut told: impl FnMut(u64),
) -> Result<Exported, ExportError> {
    let chain = Chain::open(plan, drive)?;
    let draft = Draft::new(path, replace)?;
    let capacity_bytes = chain.capacity_bytes();
    let file = draft.file();
    let mut writer: Box<dyn Writer> = match format {
        Format::Raw => Box::new(Raw { file: file.map_err(|error| draft.failed(error))?, capacity_bytes }),
        Format::Qcow2 => {
            let writer = file.and_then(|file| qcow2::Qcow2::new(file, capacity_bytes));
            Box::new(writer.map_err(|error| draft.failed(error))?)
        }
    };
    let mut data_bytes = 0;
    chain.pieces(|offset, bytes| {
        if cancel.load(Ordering::SeqCst) {
            return Err(ExportError::Interrupted);
        }
        told(offset);
        if !bytes.is_empty() && bytes.iter().any(|byte| *byte != 0) {
            data_bytes += bytes.len() as u64;
            writer.piece(offset, bytes).map_err(|error| draft.failed(error))?;
        }
        Ok(())
    })?;
    let file_bytes = writer.finish().map_err(|error| draft.failed(error))?;
    drop(writer);
    if cancel.load(Ordering::SeqCst) {
        return Err(ExportError::Interrupted);
    }
    draft.publish()?;
    told(capacity_bytes);
    Ok(Exported { capacity_bytes, data_bytes, file_bytes })
}

/// A plain file.
struct Raw {
    file: std::fs::File,
    capacity_bytes: u64,
}

impl Writer for Raw {
    fn piece(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
    }

    fn finish(&mut self) -> std::io::Result<u64> {
        self.file.set_len(self.capacity_bytes)?;
        Ok(self.capacity_bytes)
    }
}

#[cfg(test)]
mod tests;
