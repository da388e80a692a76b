//! Little-endian fields and the checksum of metadata_csum.

/// Puts a 16-bit field.
pub(crate) fn put16(into: &mut [u8], at: usize, value: u16) {
    into[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Puts a 32-bit field.
pub(crate) fn put32(into: &mut [u8], at: usize, value: u32) {
    into[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Puts a 64-bit field.
pub(crate) fn put64(into: &mut [u8], at: usize, value: u64) {
    into[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Low half of a field that is split in two.
pub(crate) fn low16(value: u32) -> u16 {
    (value & 0xffff) as u16
}

/// High half of a field that is split in two.
pub(crate) fn high16(value: u32) -> u16 {
    (value >> 16) as u16
}

/// Low half of a field that is split in two.
pub(crate) fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// High half of a field that is split in two.
pub(crate) fn high32(value: u64) -> u32 {
    (value >> 32) as u32
}

/// CRC-32C as the kernel runs it: no inversion before or after (`ext4_chksum`), so that a sum can be continued.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_kernels() {
        // The check value of CRC-32C (iSCSI) over "123456789" is e3069283 with both inversions.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(!0, b"1234"), b"56789"), crc32c(!0, b"123456789"));
    }
}
