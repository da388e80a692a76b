//! A kernel's ELF image, as it is or taken out of a bzImage (Linux, Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use lzma_rust2::XzReader;

use super::elf;

/// "HdrS" at 0x202, and the boot protocol that has a payload (2.08).
const HEADER_MAGIC: &[u8] = b"HdrS";
const PAYLOAD_PROTOCOL: u16 = 0x0208;
/// Longest kernel, packed or not; Debian's have 60 MB.
const MAX_ELF_BYTES: u64 = 512 << 20;
/// Most memory for unpacking xz: the kernel's own scripts ask for a dictionary of 32 MiB (Linux, scripts/xz_wrap.sh).
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// What a file is not.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ImageError {
    #[error("it is neither an ELF image nor a bzImage; give vmlinux, or boot/vmlinuz-VERSION of a distribution")]
    Unknown,
    #[error("bzImage of boot protocol {0:#06x}: its payload cannot be found before 0x0208")]
    Protocol(u16),
    #[error("bzImage with a payload of {len} bytes at {start}, the file ends before")]
    Truncated { start: usize, len: usize },
    #[error("bzImage compressed with {0}; gzip, xz, lz4 and zstd can be unpacked, and a vmlinux can be given")]
    Compression(&'static str),
    #[error("bzImage: unpacking its payload")]
    Unpack(#[source] io::Error),
    #[error("more than {MAX_ELF_BYTES} bytes, packed or unpacked: no kernel is that long")]
    Large,
    #[error("the ELF image is for machine {0}, not for x86-64 (62, 64 bits)")]
    Machine(u16),
    #[error("the ELF image has type {0}, a kernel is a program (2)")]
    Kind(u16),
    #[error("the ELF image is cut short: its headers speak of more than its {len} bytes")]
    Cut { len: usize },
    #[error("the ELF image has no segments to load")]
    NoSegments,
    #[error("the ELF image has a segment that ends above 1 GiB of memory")]
    High,
    #[error("the ELF image does not say `Linux version …`, so it is no Linux kernel")]
    NoVersion,
}

/// Reads a kernel file, but no more than a kernel can have: what is named may be a device without an end.
pub fn read(path: &Path) -> io::Result<Result<Vec<u8>, ImageError>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_ELF_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(if bytes.len() as u64 > MAX_ELF_BYTES { Err(ImageError::Large) } else { Ok(bytes) })
}

/// The ELF image of a kernel file, and where it ends in memory.
pub fn elf_of(file: Vec<u8>) -> Result<(Vec<u8>, u64), ImageError> {
    let elf = if file.starts_with(b"\x7fELF") { file } else { unpack(&file)? };
    if !elf.starts_with(b"\x7fELF") {
        return Err(ImageError::Unknown);
    }
    let end = elf::end_of(&elf)?;
    Ok((elf, end))
}

fn unpack(file: &[u8]) -> Result<Vec<u8>, ImageError> {
    let word = |at: usize| file.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    if file.get(0x202..0x206) != Some(HEADER_MAGIC) {
        return Err(ImageError::Unknown);
    }
    let (Some(protocol), Some(offset), Some(len), Some(sectors)) =
        (word(0x206), word(0x248), word(0x24c), file.get(0x1f1))
    else {
        return Err(ImageError::Unknown);
    };
    let protocol = (protocol & 0xffff) as u16;
    if protocol < PAYLOAD_PROTOCOL {
        return Err(ImageError::Protocol(protocol));
    }
    // Zero means four, for old kernels.
    let sectors = if *sectors == 0 { 4 } else { usize::from(*sectors) };
    let (start, len) = ((sectors + 1) * 512 + offset as usize, len as usize);
    let payload = start.checked_add(len).and_then(|end| file.get(start..end));
    let payload = payload.ok_or(ImageError::Truncated { start, len })?;
    // The last four bytes are the size of the ELF image, for the kernel's own decompressor.
    let stream = payload.get(..len.saturating_sub(4)).unwrap_or_default();
    match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let reader = zstd::stream::read::Decoder::new(stream).map_err(ImageError::Unpack)?;
            read_all(reader.single_frame())
        }
        [0x1f, 0x8b, ..] => read_all(flate2::read::GzDecoder::new(payload)),
        // With the x86 filter, so that calls pack better.
        [0xfd, 0x37, 0x7a, 0x58, 0x5a, ..] => read_all(XzReader::new_mem_limit(stream, false, XZ_MEMORY_KIB)),
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4(stream.get(4..).unwrap_or_default()),
        [0x89, 0x4c, 0x5a, 0x4f, ..] => Err(ImageError::Compression("lzo")),
        [0x5d, 0x00, 0x00, ..] => Err(ImageError::Compression("lzma")),
        [0x7f, b'E', b'L', b'F', ..] => Ok(payload.to_vec()),
        _ => Err(ImageError::Compression("something unknown")),
    }
}

fn read_all(reader: impl Read) -> Result<Vec<u8>, ImageError> {
    let mut elf = Vec::new();
    reader.take(MAX_ELF_BYTES + 1).read_to_end(&mut elf).map_err(ImageError::Unpack)?;
    if elf.len() as u64 > MAX_ELF_BYTES { Err(ImageError::Large) } else { Ok(elf) }
}

/// The old format of LZ4 (lz4, doc/lz4_Frame_format.md, "Legacy frame"): lengths and blocks, nothing at the end.
fn lz4(mut blocks: &[u8]) -> Result<Vec<u8>, ImageError> {
    const BLOCK: usize = 8 << 20;
    let broken = |what: &str| ImageError::Unpack(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
    let (mut elf, mut block) = (Vec::new(), vec![0; BLOCK]);
    while let Some((len, rest)) = blocks.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        let (packed, rest) = rest.split_at_checked(len).ok_or_else(|| broken("a block that ends too early"))?;
        let len = lz4_flex::block::decompress_into(packed, &mut block).map_err(|error| broken(&error.to_string()))?;
        elf.extend_from_slice(block.get(..len).unwrap_or_default());
        if elf.len() as u64 > MAX_ELF_BYTES {
            return Err(ImageError::Large);
        }
        blocks = rest;
    }
    Ok(elf)
}

/// `uname -r` of a kernel, from its banner (Linux, init/version.c).
pub fn version_of(elf: &[u8]) -> Result<String, ImageError> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = elf;
    while let Some(at) = rest.windows(BANNER.len()).position(|window| window == BANNER) {
        rest = rest.get(at + BANNER.len()..).unwrap_or_default();
        let word = rest.split(|byte| *byte == b' ').next().unwrap_or_default();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(byte);
        if word.first().is_some_and(u8::is_ascii_digit) && word.len() < 65 && word.iter().all(plain) {
            return Ok(String::from_utf8_lossy(word).into_owned());
        }
    }
    Err(ImageError::NoVersion)
}

#[cfg(test)]
mod tests;
