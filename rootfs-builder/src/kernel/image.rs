//! A kernel's ELF image, as it is or taken out of a bzImage (Linux, Documentation/arch/x86/boot.rst).

use std::io::{self, Read};

/// "HdrS" at 0x202, and the boot protocol that has a payload (2.08).
const HEADER_MAGIC: &[u8] = b"HdrS";
const PAYLOAD_PROTOCOL: u16 = 0x0208;
/// Longest kernel; Debian's have 60 MB.
const MAX_ELF_BYTES: u64 = 512 << 20;

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
    #[error("bzImage compressed with {0}; zstd, gzip and lz4 can be unpacked, and a vmlinux can be given")]
    Compression(&'static str),
    #[error("bzImage: unpacking its payload")]
    Unpack(#[source] io::Error),
    #[error("bzImage: its payload has more than {MAX_ELF_BYTES} bytes")]
    Large,
    #[error("the ELF image is not for x86-64")]
    Machine,
    #[error("the ELF image does not say `Linux version …`, so it is no Linux kernel")]
    NoVersion,
}

/// The ELF image of a kernel file.
pub fn elf_of(file: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    let elf = if file.starts_with(b"\x7fELF") { file } else { unpack(&file)? };
    // ELF-64, little-endian, EM_X86_64.
    let header = (elf.get(4..6), elf.get(18..20));
    if !elf.starts_with(b"\x7fELF") || header != (Some(&[2, 1]), Some(&[62, 0])) {
        return Err(ImageError::Machine);
    }
    Ok(elf)
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
        [0xfd, 0x37, 0x7a, 0x58, 0x5a, ..] => Err(ImageError::Compression("xz")),
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
mod tests {
    use super::*;
    use std::io::Write;

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(18, 0);
        elf.extend_from_slice(&[62, 0]);
        elf.extend_from_slice(b"\0\0Linux version %s (%s)\0Linux version 6.12.3-test (me) #1\0");
        elf
    }

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 0x400];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(HEADER_MAGIC);
        file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend_from_slice(&[0; 16]);
        file.extend_from_slice(payload);
        file
    }

    #[test]
    fn the_elf_image_comes_out_as_it_went_in() {
        let size = (elf().len() as u32).to_le_bytes();
        let zstd = [zstd::encode_all(&elf()[..], 3).expect("packed"), size.to_vec()].concat();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&elf()).expect("packed");
        let gzip = [gzip.finish().expect("packed"), size.to_vec()].concat();
        let block = lz4_flex::block::compress(&elf());
        let lz4 = [&[0x02, 0x21, 0x4c, 0x18], &(block.len() as u32).to_le_bytes()[..], &block, &size].concat();
        for file in [elf(), bz_image(&zstd), bz_image(&gzip), bz_image(&lz4)] {
            assert_eq!(elf_of(file).expect("a kernel"), elf());
        }
        assert_eq!(version_of(&elf()).expect("a version"), "6.12.3-test");
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_what_it_lacks() {
        let mut short = bz_image(b"\x28\xb5\x2f\xfd");
        short.truncate(0x410);
        let mut old = bz_image(b"x");
        old[0x206] = 0;
        let mut arm = elf();
        arm[18] = 183;
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (Vec::new(), "neither an ELF image nor a bzImage"),
            (b"#!/bin/sh".to_vec(), "neither an ELF image nor a bzImage"),
            (short, "the file ends before"),
            (old, "boot protocol 0x0200"),
            (bz_image(&[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0]), "compressed with xz"),
            (bz_image(b"\x28\xb5\x2f\xfdnot zstd really"), "unpacking its payload"),
            (bz_image(b"????"), "something unknown"),
            (arm, "not for x86-64"),
        ];
        for (file, expected) in cases {
            let error = elf_of(file).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(version_of(b"\x7fELF and nothing else").is_err());
    }
}
