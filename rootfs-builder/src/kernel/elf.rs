//! What is looked at in a kernel's ELF image: that it is whole, and how much memory it takes (ELF-64 object file format, chapters 3
//! and 6). What runs it looks again.

use super::image::ImageError;

/// Offsets in the header: class and byte order, type, machine, program headers and their size and count.
const CLASS: usize = 4;
const TYPE: usize = 16;
const MACHINE: usize = 18;
const HEADERS_AT: usize = 32;
const HEADER_LEN: usize = 54;
const HEADER_COUNT: usize = 56;
/// ELF-64, little-endian; `ET_EXEC`; `EM_X86_64`; `PT_LOAD`.
const CLASS_64_LITTLE: [u8; 2] = [2, 1];
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;
const LOAD: u32 = 1;
/// Offsets in a program header, and its length.
const SEGMENT_OFFSET: usize = 8;
const SEGMENT_ADDRESS: usize = 24;
const SEGMENT_FILE_LEN: usize = 32;
const SEGMENT_MEMORY_LEN: usize = 40;
const SEGMENT_HEADER_LEN: u16 = 56;

/// No kernel can be higher: the initramfs and what the kernel makes at once must fit below 4 GiB, too.
const MAX_END: u64 = 1 << 30;
/// Beside the kernel itself: the initramfs twice (as it came and unpacked), page descriptors, and programs that mount the root.
/// On the safe side: what lies below 16 MiB, and the kernel's own start-up code once it has run, are free for them, too.
const ROOM_MIB: u64 = 24;

/// Where the kernel ends in memory; fails where the image is not a whole x86-64 program.
pub(super) fn end_of(elf: &[u8]) -> Result<u64, ImageError> {
    let half = |at: usize| bytes_at(elf, at).map(u16::from_le_bytes);
    let (Some(kind), Some(machine)) = (half(TYPE), half(MACHINE)) else { return Err(ImageError::NoSegments) };
    if bytes_at(elf, CLASS) != Some(CLASS_64_LITTLE) || machine != X86_64 {
        return Err(ImageError::Machine(machine));
    }
    if kind != EXECUTABLE {
        return Err(ImageError::Kind(kind));
    }
    let (Some(at), Some(len), Some(count)) =
        (bytes_at(elf, HEADERS_AT).map(u64::from_le_bytes), half(HEADER_LEN), half(HEADER_COUNT))
    else {
        return Err(ImageError::NoSegments);
    };
    if len != SEGMENT_HEADER_LEN || count == 0 {
        return Err(ImageError::NoSegments);
    }
    let mut highest = 0;
    for number in 0..u64::from(count) {
        let header = number.checked_mul(u64::from(len)).and_then(|offset| offset.checked_add(at));
        let header = header.and_then(|header| usize::try_from(header).ok()).ok_or(ImageError::NoSegments)?;
        let cut = || ImageError::Cut { len: elf.len() };
        let head = header.checked_add(usize::from(len)).and_then(|end| elf.get(header..end)).ok_or_else(cut)?;
        let word = |offset: usize| bytes_at(head, offset).map(u64::from_le_bytes).ok_or_else(cut);
        if bytes_at(head, 0).map(u32::from_le_bytes) != Some(LOAD) {
            continue;
        }
        let file_end = word(SEGMENT_OFFSET)?.checked_add(word(SEGMENT_FILE_LEN)?);
        if file_end.is_none_or(|end| end > elf.len() as u64) {
            return Err(cut());
        }
        let end = word(SEGMENT_ADDRESS)?.checked_add(word(SEGMENT_MEMORY_LEN)?);
        let end = end.filter(|end| *end <= MAX_END).ok_or(ImageError::High)?;
        highest = highest.max(end);
    }
    if highest == 0 { Err(ImageError::NoSegments) } else { Ok(highest) }
}

/// The least memory of a machine with a kernel that ends at `end`, in whole steps of 8 MiB.
pub(super) fn min_memory_mib(end: u64) -> u64 {
    (end.div_ceil(1 << 20) + ROOM_MIB).next_multiple_of(8)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// An image with one segment that is loaded at 16 MiB and takes `memory_len`; `content` follows its headers.
#[cfg(test)]
pub(super) fn image_with(content: &[u8], memory_len: u64) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[TYPE..TYPE + 2].copy_from_slice(&EXECUTABLE.to_le_bytes());
    elf[MACHINE..MACHINE + 2].copy_from_slice(&X86_64.to_le_bytes());
    elf[HEADERS_AT] = 64;
    elf[HEADER_LEN] = 56;
    elf[HEADER_COUNT] = 1;
    let mut segment = [0; 56];
    segment[0] = 1;
    for (at, value) in [
        (SEGMENT_OFFSET, 120),
        (SEGMENT_ADDRESS, 16 << 20),
        (SEGMENT_FILE_LEN, content.len() as u64),
        (SEGMENT_MEMORY_LEN, memory_len),
    ] {
        segment[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    [elf, segment.to_vec(), content.to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_takes_memory_up_to_its_last_segment() {
        let elf = image_with(b"text", 20 << 20);
        assert_eq!(end_of(&elf).expect("a kernel"), 36 << 20);
        assert_eq!((min_memory_mib(36 << 20), min_memory_mib((40 << 20) + 1)), (64, 72));
    }

    #[test]
    fn an_image_that_is_not_whole_is_refused_by_what_is_wrong() {
        let good = image_with(b"text", 4);
        let with = |at: usize, bytes: &[u8]| {
            let mut elf = good.clone();
            elf[at..at + bytes.len()].copy_from_slice(bytes);
            elf
        };
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (good[..good.len() - 1].to_vec(), "cut short: its headers speak of more than its 123 bytes"),
            (good[..100].to_vec(), "cut short"),
            (good[..18].to_vec(), "no segments"),
            (with(CLASS, &[1]), "machine 62"),
            (with(MACHINE, &[183]), "machine 183"),
            (with(TYPE, &[3]), "type 3"),
            (with(HEADER_COUNT, &[0]), "no segments"),
            (with(HEADER_LEN, &[1]), "no segments"),
            (with(HEADERS_AT, &[0xff; 8]), "cut short"),
            (with(64, &[4]), "no segments"),
            (with(64 + SEGMENT_FILE_LEN, &[0xff; 8]), "cut short"),
            (with(64 + SEGMENT_ADDRESS, &[0xff; 8]), "above 1 GiB"),
            (with(64 + SEGMENT_MEMORY_LEN, &(1u64 << 30).to_le_bytes()), "above 1 GiB"),
        ];
        for (elf, expected) in cases {
            let error = end_of(&elf).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}, not {expected}");
        }
    }
}
