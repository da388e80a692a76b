//! Writes a qcow2 image, version 3, as QEMU's docs/interop/qcow2.rst has it: clusters of 64 KiB in the order in which they come, no
//! backing file, no snapshot, no feature bit, every cluster referred to once.
//!
//! ```text
//!   header │ L1 table │ L2 table, its data clusters │ L2 table, … │ refcount blocks │ refcount table
//! ```
//!
//! A cluster of zeros has no entry and reads as zeros. The header is written last: before that the file is no image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Writer;

/// log2 of a cluster (cluster_bits, "Header").
const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster.
pub(super) const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Entries of 8 bytes in a cluster ("Cluster mapping").
const TABLE_ENTRIES: u64 = CLUSTER_BYTES / 8;
/// Bytes of the drive that one L2 table maps.
const TABLE_SPAN: u64 = TABLE_ENTRIES * CLUSTER_BYTES;
/// Refcounts of 16 bits in a cluster (refcount_order 4, "Host cluster management").
const BLOCK_ENTRIES: u64 = CLUSTER_BYTES / 2;
const REFCOUNT_ORDER: u32 = 4;
/// Bytes of the header of version 3 without optional fields.
const HEADER_BYTES: u32 = 104;
const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
/// Bit 63 of L1 and L2 entries: the refcount is exactly one.
const COPIED: u64 = 1 << 63;

/// An image that is being written.
pub(super) struct Qcow2 {
    file: File,
    capacity_bytes: u64,
    l1: Vec<u64>,
    /// The L2 table that is being filled: its place in the L1 table, and its entries.
    table: Option<(usize, Vec<u64>)>,
    /// The cluster that is being filled: its number on the drive, and its bytes.
    cluster: Option<(u64, Vec<u8>)>,
    /// Clusters of the file that are taken.
    taken: u64,
}

impl Qcow2 {
    /// An image of a drive in an empty file.
    pub(super) fn new(file: File, capacity_bytes: u64) -> io::Result<Self> {
        let entries = usize::try_from(capacity_bytes.div_ceil(TABLE_SPAN)).map_err(io::Error::other)?;
        let l1 = vec![0; entries];
        let taken = 1 + (entries as u64).div_ceil(TABLE_ENTRIES);
        Ok(Self { file, capacity_bytes, l1, table: None, cluster: None, taken })
    }

    fn take(&mut self, clusters: u64) -> u64 {
        let first = self.taken;
        self.taken += clusters;
        first * CLUSTER_BYTES
    }

    /// Writes the cluster that was being filled.
    fn end_cluster(&mut self) -> io::Result<()> {
        let Some((number, bytes)) = self.cluster.take() else { return Ok(()) };
        let (place, entry) = (usize::try_from(number / TABLE_ENTRIES), usize::try_from(number % TABLE_ENTRIES));
        let (place, entry) = (place.map_err(io::Error::other)?, entry.map_err(io::Error::other)?);
        if self.table.as_ref().is_none_or(|(other, _)| *other != place) {
            self.end_table()?;
            let at = self.take(1);
            *self.l1.get_mut(place).ok_or(io::ErrorKind::InvalidInput)? = at | COPIED;
            self.table = Some((place, vec![0; TABLE_ENTRIES as usize]));
        }
        let at = self.take(1);
        self.file.write_all_at(&bytes, at)?;
        if let Some(entry) = self.table.as_mut().and_then(|(_, table)| table.get_mut(entry)) {
            *entry = at | COPIED;
        }
        Ok(())
    }

    /// Writes the table that was being filled.
    fn end_table(&mut self) -> io::Result<()> {
        let Some((place, table)) = self.table.take() else { return Ok(()) };
        let at = self.l1.get(place).ok_or(io::ErrorKind::InvalidInput)? & !COPIED;
        self.file.write_all_at(&big_endian(&table), at)
    }

    /// Writes the refcounts of all clusters, their own included. Where their table is, and its clusters.
    fn write_refcounts(&mut self) -> io::Result<(u64, u32)> {
        let (mut blocks, mut tables) = (0, 0);
        loop {
            let all = self.taken + blocks + tables;
            let needed = all.div_ceil(BLOCK_ENTRIES);
            if (needed, needed.div_ceil(TABLE_ENTRIES)) == (blocks, tables) {
                break;
            }
            (blocks, tables) = (needed, needed.div_ceil(TABLE_ENTRIES));
        }
        let (first, table) = (self.take(blocks), self.take(tables));
        let mut left = self.taken;
        let mut entries = Vec::new();
        for block in 0..blocks {
            let used = left.min(BLOCK_ENTRIES);
            left -= used;
            let at = first + block * CLUSTER_BYTES;
            let mut bytes = [0, 1].repeat(used as usize);
            bytes.resize(CLUSTER_BYTES as usize, 0);
            self.file.write_all_at(&bytes, at)?;
            entries.push(at);
        }
        self.file.write_all_at(&big_endian(&entries), table)?;
        Ok((table, u32::try_from(tables).map_err(io::Error::other)?))
    }

    fn header(&self, refcount_table: u64, refcount_clusters: u32) -> io::Result<Vec<u8>> {
        let l1_size = u32::try_from(self.l1.len()).map_err(io::Error::other)?;
        let fields: [&[u8]; 16] = [
            &MAGIC,
            &VERSION.to_be_bytes(),
            &0u64.to_be_bytes(), // backing_file_offset
            &0u32.to_be_bytes(), // backing_file_size
            &CLUSTER_BITS.to_be_bytes(),
            &self.capacity_bytes.to_be_bytes(),
            &0u32.to_be_bytes(), // crypt_method
            &l1_size.to_be_bytes(),
            &CLUSTER_BYTES.to_be_bytes(), // l1_table_offset: behind the header's cluster
            &refcount_table.to_be_bytes(),
            &refcount_clusters.to_be_bytes(),
            &0u32.to_be_bytes(), // nb_snapshots
            &0u64.to_be_bytes(), // snapshots_offset
            &[0; 24],            // incompatible, compatible and autoclear features
            &REFCOUNT_ORDER.to_be_bytes(),
            &HEADER_BYTES.to_be_bytes(),
        ];
        Ok(fields.concat())
    }
}

impl Writer for Qcow2 {
    fn piece(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (number, within) = (offset / CLUSTER_BYTES, (offset % CLUSTER_BYTES) as usize);
        if self.cluster.as_ref().is_none_or(|(other, _)| *other != number) {
            self.end_cluster()?;
            self.cluster = Some((number, vec![0; CLUSTER_BYTES as usize]));
        }
        let place = self.cluster.as_mut().and_then(|(_, cluster)| cluster.get_mut(within..within + bytes.len()));
        place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<u64> {
        self.end_cluster()?;
        self.end_table()?;
        self.file.write_all_at(&big_endian(&self.l1), CLUSTER_BYTES)?;
        let (table, clusters) = self.write_refcounts()?;
        let bytes = self.taken * CLUSTER_BYTES;
        self.file.set_len(bytes)?;
        self.file.write_all_at(&self.header(table, clusters)?, 0)?;
        Ok(bytes)
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
