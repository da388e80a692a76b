//! What an ELF kernel says about itself, looked at before anything of it is loaded (System V ABI, chapters 4 and 5).
//!
//! The file comes from the user, so this is about clear words, not malice: `linux-loader` loads it and checks again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::arch::x86_64::layout;

/// Bytes of the file header and of a program header in a 64-bit ELF file.
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Program headers at most; Linux has five.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// EI_CLASS and EI_DATA: 64 bits, little-endian.
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// EM_X86_64.
const X86_64: u16 = 62;
/// PT_LOAD.
const LOAD: u32 = 1;

/// A file that is no kernel for this machine.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file itself.
    #[error("kernel: reading it")]
    Read(#[source] io::Error),
    /// Something else.
    #[error("kernel: not an ELF image; take the vmlinux, which `labyard kernel add` gets out of a bzImage")]
    NotElf,
    /// For other processors.
    #[error("kernel: an ELF image for {0}, this host runs x86-64 ones (ELF machine {X86_64}, 64 bits, little-endian)")]
    Machine(String),
    /// Its end is missing.
    #[error("kernel: cut short: its headers speak of {needed} bytes, the file has {has}")]
    CutShort {
        /// Where what it speaks of ends.
        needed: u64,
        /// Its length.
        has: u64,
    },
    /// Headers that contradict themselves.
    #[error("kernel: not an ELF image that can be started: {0}")]
    Malformed(&'static str),
    /// In the way of tables.
    #[error("kernel: a segment wants the address {0:#x}, the first that is free is {first:#x}", first = layout::HIGH_START)]
    TooLow(u64),
}

/// What a kernel asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// End of its last segment: memory reaches at least so far.
    pub end: u64,
}

/// Reads the headers of a kernel.
pub fn inspect(file: &File) -> Result<Claims, KernelError> {
    let has = file.metadata().map_err(KernelError::Read)?.len();
    let mut header = [0; HEADER_BYTES];
    read(file, &mut header, 0, has).map_err(|error| match error {
        KernelError::CutShort { .. } if has < 4 => KernelError::NotElf,
        other => other,
    })?;
    let [0x7f, b'E', b'L', b'F', class, data, ..] = header else { return Err(KernelError::NotElf) };
    let machine = u16::from_le_bytes(field(&header, 18));
    if (class, data, machine) != (CLASS_64, LITTLE_ENDIAN, X86_64) {
        return Err(KernelError::Machine(machine_name(class, data, machine)));
    }
    let (table, size, count) = (
        u64::from_le_bytes(field(&header, 32)),
        u16::from_le_bytes(field(&header, 54)),
        u16::from_le_bytes(field(&header, 56)),
    );
    if usize::from(size) != PROGRAM_HEADER_BYTES || count > MAX_PROGRAM_HEADERS {
        return Err(KernelError::Malformed("its program headers are not those of a kernel"));
    }
    let mut end = 0;
    for number in 0..u64::from(count) {
        let mut header = [0; PROGRAM_HEADER_BYTES];
        let at = table.checked_add(number * PROGRAM_HEADER_BYTES as u64);
        read(file, &mut header, at.ok_or(KernelError::Malformed("its program headers lie nowhere"))?, has)?;
        if u32::from_le_bytes(field(&header, 0)) == LOAD {
            end = end.max(segment_end(&header, has)?);
        }
    }
    match end {
        0 => Err(KernelError::Malformed("nothing in it is to be loaded")),
        end => Ok(Claims { end }),
    }
}

/// The end of a segment in memory.
fn segment_end(header: &[u8; PROGRAM_HEADER_BYTES], has: u64) -> Result<u64, KernelError> {
    let number = |at| u64::from_le_bytes(field(header, at));
    let (offset, address, in_file, in_memory) = (number(8), number(24), number(32), number(40));
    let needed = offset.checked_add(in_file).ok_or(KernelError::Malformed("a segment wraps around"))?;
    if needed > has {
        return Err(KernelError::CutShort { needed, has });
    }
    if address < layout::HIGH_START {
        return Err(KernelError::TooLow(address));
    }
    if in_memory < in_file {
        return Err(KernelError::Malformed("a segment is smaller in memory than in the file"));
    }
    address.checked_add(in_memory).ok_or(KernelError::Malformed("a segment wraps around"))
}

fn read(file: &File, into: &mut [u8], at: u64, has: u64) -> Result<(), KernelError> {
    let needed = at.saturating_add(into.len() as u64);
    if needed > has {
        return Err(KernelError::CutShort { needed, has });
    }
    file.read_exact_at(into, at).map_err(KernelError::Read)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    for (to, from) in value.iter_mut().zip(bytes.iter().skip(at)) {
        *to = *from;
    }
    value
}

fn machine_name(class: u8, data: u8, machine: u16) -> String {
    match (class, data, machine) {
        (_, _, 3) => "32-bit x86".into(),
        (_, _, 183) => "AArch64".into(),
        (_, _, 243) => "RISC-V".into(),
        (class, data, machine) => format!("ELF machine {machine} (class {class}, data {data})"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// A kernel with one segment of `code` at `address`, entered at its start; with a PVH note if `pvh`.
    pub(crate) fn image(address: u64, code: &[u8], pvh: bool) -> Vec<u8> {
        let mut bytes = vec![0; 0x1000];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', CLASS_64, LITTLE_ENDIAN]);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(18, &X86_64.to_le_bytes());
        put(24, &address.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &2u16.to_le_bytes());
        let (load, note) = (64, 64 + 56);
        put(load, &LOAD.to_le_bytes());
        for (at, value) in [(8, 0x1000), (24, address), (32, code.len() as u64), (40, code.len() as u64)] {
            put(load + at, &value.to_le_bytes());
        }
        // PT_NOTE; XEN_ELFNOTE_PHYS32_ENTRY is 18.
        put(note, &(if pvh { 4u32 } else { 0 }).to_le_bytes());
        for (at, value) in [(8, 0x200u64), (32, 24), (40, 24), (48, 4)] {
            put(note + at, &value.to_le_bytes());
        }
        put(0x200, &[4u32, 8, 18].map(u32::to_le_bytes).concat());
        put(0x20c, b"Xen\0");
        put(0x210, &address.to_le_bytes());
        bytes.extend_from_slice(code);
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("written");
        file
    }

    #[test]
    fn a_sound_kernel_says_where_it_ends() {
        let claims = inspect(&file(&image(0x100_0000, &[0xf4; 100], true))).expect("sound");
        assert_eq!(claims, Claims { end: 0x100_0064 });
    }

    #[test]
    fn each_wrong_kernel_is_refused_in_its_own_words() {
        type Change = fn(&mut Vec<u8>);
        let cases: &[(Change, &str)] = &[
            (Vec::clear, "not an ELF image; take the vmlinux"),
            (|bytes| bytes[0] = b'M', "not an ELF image; take the vmlinux"),
            (|bytes| bytes.truncate(20), "cut short: its headers speak of 64 bytes, the file has 20"),
            (|bytes| bytes.truncate(0x1010), "cut short: its headers speak of 4196 bytes, the file has 4112"),
            (|bytes| bytes[18] = 183, "an ELF image for AArch64"),
            (|bytes| bytes[4] = 1, "ELF machine 62 (class 1, data 1)"),
            (|bytes| bytes[56] = 65, "not those of a kernel"),
            (|bytes| bytes[56] = 0, "nothing in it is to be loaded"),
            (|bytes| bytes[32..40].fill(0xff), "cut short"),
            (|bytes| bytes[64 + 24..64 + 32].fill(0), "a segment wants the address 0x0"),
            (|bytes| bytes[64 + 8..64 + 16].fill(0xff), "wraps around"),
            (|bytes| bytes[64 + 40..64 + 48].fill(0xff), "wraps around"),
            (|bytes| bytes[64 + 40] = 1, "smaller in memory"),
        ];
        for (change, expected) in cases {
            let mut bytes = image(0x100_0000, &[0xf4; 100], true);
            change(&mut bytes);
            let error = inspect(&file(&bytes)).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
