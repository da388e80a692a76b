//! The smallest kernel that boots: an ELF file with a PVH note (xen/include/public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY), and code.

/// Where its code is loaded and entered.
const ADDRESS: u64 = 0x20_0000;

/// A kernel of this code.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 0x1000];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(16, &[2u16, 62].map(u16::to_le_bytes).concat());
    put(24, &[ADDRESS, 64].map(u64::to_le_bytes).concat());
    put(54, &[56u16, 2].map(u16::to_le_bytes).concat());
    let len = code.len() as u64;
    put(64, &1u32.to_le_bytes());
    put(64 + 8, &[0x1000, ADDRESS, ADDRESS, len, len, 1].map(u64::to_le_bytes).concat());
    put(120, &4u32.to_le_bytes());
    put(120 + 8, &[0x200, 0, 0, 20, 20, 4].map(u64::to_le_bytes).concat());
    put(0x200, &[4u32, 4, 18].map(u32::to_le_bytes).concat());
    put(0x20c, b"Xen\0");
    put(0x210, &(ADDRESS as u32).to_le_bytes());
    bytes.extend_from_slice(code);
    bytes
}
