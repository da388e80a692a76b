//! Whether a layer belongs where it is put: its header against its files and what lies below it. Whoever opens a chain asks this,
//! for writing as for reading.

use super::Header;

/// The files that a layer is in, and where it is to lie.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Bytes of its map.
    pub map_bytes: u64,
    /// Bytes of its data.
    pub data_bytes: u64,
    /// Name of what is below it; empty where that is nothing.
    pub below: &'a str,
    /// Bytes of the base below all layers; 0 where there is none.
    pub base_bytes: u64,
    /// Bytes of the drive; a layer from before it grew has fewer.
    pub drive_bytes: u64,
    /// It is the layer that is written, whose files are longer where a growth was cut short ("Growth" in `docs/formats.md`).
    pub is_top: bool,
}

/// A layer that does not belong there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Misfit {
    #[error(
        "its map has {found} bytes, a drive of {drive} bytes needs {needed}; it was cut or belongs to another drive"
    )]
    MapSize { found: u64, needed: u64, drive: u64 },
    #[error("its data has {found} bytes, its map says {needed}; it was cut or belongs to another drive")]
    DataSize { found: u64, needed: u64 },
    #[error("it lies on `{expected}` and was given `{found}` (nothing is ``)")]
    OtherBase { expected: String, found: String },
    #[error("it was made on a base of {expected} bytes, which has {found} now; the image was cut or replaced")]
    BaseSize { expected: u64, found: u64 },
    #[error("it belongs to a drive of {found} bytes, asked is one of {asked}")]
    OtherCapacity { found: u64, asked: u64 },
}

impl Header {
    /// Whether a layer with this header belongs there.
    ///
    /// # Errors
    /// Why not.
    pub fn fits(&self, place: &Place<'_>) -> Result<(), Misfit> {
        let drive = self.capacity_bytes;
        let is_long_as = |found: u64, needed: u64| found == needed || place.is_top && found > needed;
        if !is_long_as(place.map_bytes, self.map_bytes()) {
            return Err(Misfit::MapSize { found: place.map_bytes, needed: self.map_bytes(), drive });
        }
        if !is_long_as(place.data_bytes, drive) {
            return Err(Misfit::DataSize { found: place.data_bytes, needed: drive });
        }
        if drive > place.drive_bytes {
            return Err(Misfit::OtherCapacity { found: drive, asked: place.drive_bytes });
        }
        if self.below != place.below {
            return Err(Misfit::OtherBase { expected: self.below.clone(), found: place.below.to_owned() });
        }
        if self.base_bytes != place.base_bytes {
            return Err(Misfit::BaseSize { expected: self.base_bytes, found: place.base_bytes });
        }
        Ok(())
    }
}
