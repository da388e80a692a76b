//! Kernel images: ELF headers that nearly make sense, alone or packed into a bzImage, for the builder that keeps them and for the
//! monitor that loads them.
//!
//! Rules: what the builder keeps ends below its limit; what the monitor's look at the headers refuses is not loaded.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;

use flate2::read::GzEncoder;
use labyard_devices::Memory;
use labyard_rootfs_builder::kernel::image;
use labyard_spec::playground::Entry;
use labyard_vmm::arch::x86_64::acpi::Description;
use labyard_vmm::boot::{self, Images};
use labyard_vmm::kernel;
use vm_memory::GuestAddress;

use crate::input::Input;

/// Memory of the machine that loads them.
const MEMORY: usize = 16 << 20;
/// Where a kernel's first segment belongs.
const HIGH: u64 = 0x20_0000;

/// Reads the bytes as a kernel that is added to the store.
pub(super) fn store(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let elf = elf(&mut input);
    let file = if input.one_in(4) { elf } else { bz_image(&elf, &mut input) };
    if let Ok((elf, end)) = image::elf_of(file) {
        assert!(elf.starts_with(b"\x7fELF") && end <= 1 << 30, "a kernel that ends at {end:#x}");
        if let Ok(version) = image::version_of(&elf) {
            assert!(!version.contains('/') && !version.is_empty(), "the version {version:?} names a folder");
        }
    }
}

/// Reads the bytes as a kernel that a machine is started with.
pub(super) fn load(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let entry = input.pick(&[Entry::Auto, Entry::Pvh, Entry::Linux64]);
    let initrd = (0..input.byte() % 3).map(|_| stored(&vec![7; input.short().into()])).collect();
    let words = if input.one_in(16) { usize::from(input.short()) } else { 10 };
    let elf = elf(&mut input);
    let cmdline = boot::command_line(&"x".repeat(words));
    let images = Images { kernel: stored(&elf), initrd, cmdline, entry };
    let regions = [(GuestAddress(0), MEMORY), (GuestAddress(1 << 32), 1 << 20)];
    let mem = Memory::from_ranges(&regions[..1 + usize::from(input.one_in(2))]).expect("memory");
    if let Ok(claims) = kernel::inspect(&images.kernel) {
        assert!(claims.end > HIGH.min(1 << 20), "a kernel that ends at {:#x}", claims.end);
    }
    let _ = images.check(MEMORY as u64).map_err(|error| error.to_string());
    let machine = Description { cpu_count: 1 + u32::from(input.byte() % 4), virtio: vec![(0xd000_0000, 5)] };
    let loaded = boot::load(&mem, 4096, &images, &machine);
    assert!(loaded.is_err() || kernel::inspect(&images.kernel).is_ok(), "what was refused is not loaded");
    if let Err(error) = loaded {
        assert!(!error.to_string().is_empty(), "an error without a word");
    }
    let _ = boot::write_generation(&mem, input.array()); // it has its place in any memory
}

fn stored(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    Arc::new(file)
}

/// Headers of a kernel (ELF-64 object file format, chapters 3 and 6), some of it spoilt.
fn elf(input: &mut Input<'_>) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    let mut put = |at: usize, value: &[u8]| file[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &HIGH.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    let count = u16::from(input.byte() % 4) + 1;
    put(56, &count.to_le_bytes());
    for number in 0..usize::from(count) {
        let header = 64 + number * 56;
        let kind: u32 = input.pick(&[1, 1, 4, 0]);
        put(header, &kind.to_le_bytes());
        let in_file = u64::from(input.short() % 0x1000);
        let offset = if kind == 4 { 0x200 } else { 0x800 };
        let address = HIGH + u64::from(input.byte()) * 0x1000;
        let in_memory = if input.one_in(4) { input.word().into() } else { in_file + u64::from(input.byte()) };
        // A note is as long as notes are (name and description of 4 and 8 bytes, each on 4 bytes).
        let (in_file, in_memory) = if kind == 4 { (24, 24) } else { (in_file, in_memory) };
        for (at, value) in [(8, offset), (24, address), (32, in_file), (40, in_memory), (48, 4)] {
            put(header + at, &value.to_le_bytes());
        }
    }
    // XEN_ELFNOTE_PHYS32_ENTRY is 18.
    for (at, word) in [(0x200, 4), (0x204, 8), (0x208, 18u32)] {
        put(at, &word.to_le_bytes());
    }
    put(0x20c, b"Xen\0");
    put(0x210, &HIGH.to_le_bytes());
    let banners = ["Linux version 6.12.1 (a", "Linux version ../etc ", "Linux version 6.1", "no kernel"];
    put(0x300, input.pick(&banners).as_bytes());
    for _ in 0..input.byte() % 4 {
        // Numbers of eight, four, two bytes and one, at fields of the headers.
        let at = input.pick(&[0usize, 4, 16, 18, 32, 54, 56, 64, 72, 88, 96, 104, 112, 0x200, 0x204, 0x20c]);
        let value = if input.one_in(2) { input.long() } else { input.byte().into() }.to_le_bytes();
        let width = input.pick(&[1usize, 2, 4, 8]);
        put(at, &value[..width]);
    }
    let spare = usize::from(input.short() % 0x2000);
    file.resize(file.len() + spare, 0x90);
    if input.one_in(8) {
        file.truncate(input.below(0x1000));
    }
    file
}

/// Setup header (Linux, Documentation/arch/x86/boot.rst) and payload, some of it spoilt.
fn bz_image(elf: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut payload = match input.byte() % 8 {
        0 => gzip(elf),
        1 | 2 => zstd::bulk::compress(elf, 1).expect("packed"),
        3 | 4 => {
            let packed = lz4_flex::block::compress(elf);
            [&[0x02, 0x21, 0x4c, 0x18][..], &(packed.len() as u32).to_le_bytes(), &packed].concat()
        }
        5 => elf.to_vec(),
        6 => [&[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0][..], &input.array::<64>()].concat(),
        _ => [input.pick(&[&[0x89, 0x4c, 0x5a, 0x4f][..], &[0x5d, 0, 0], b"?"]), elf].concat(),
    };
    payload.extend_from_slice(&(elf.len() as u32).to_le_bytes());
    if input.one_in(4) && !payload.is_empty() {
        let at = input.below(payload.len());
        match input.byte() % 2 {
            0 => payload.truncate(at),
            _ => payload[at] ^= input.byte(),
        }
    }
    let sectors = input.byte() % 8;
    let mut file = vec![0; (if sectors == 0 { 5 } else { usize::from(sectors) + 1 }) * 512];
    if file.len() < 0x250 {
        file.resize(0x400, 0);
    }
    file[0x1f1] = sectors;
    file[0x202..0x206].copy_from_slice(if input.one_in(16) { b"HdrX" } else { b"HdrS" });
    let protocol: u16 = input.pick(&[0x020f, 0x020f, 0x020f, 0x0208, 0x0207]);
    file[0x206..0x208].copy_from_slice(&protocol.to_le_bytes());
    let (start, len) =
        if input.one_in(8) { (input.word(), input.word()) } else { (u32::from(input.byte()), payload.len() as u32) };
    file[0x248..0x24c].copy_from_slice(&start.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&len.to_le_bytes());
    file.resize(file.len() + start.min(0x1000) as usize, 0);
    file.extend_from_slice(&payload);
    if input.one_in(16) {
        file.truncate(input.below(0x300));
    }
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut packed).expect("packed");
    packed
}
