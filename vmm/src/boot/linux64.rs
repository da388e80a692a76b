//! What the 64-bit entry point finds in memory (Linux, Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; the fields in
//! Documentation/arch/x86/zero-page.rst): boot_params, page tables that map the first 4 GiB to themselves, and descriptors.

use labyard_devices::Memory;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams, Error};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{BootError, InMemory, Range};
use crate::arch::x86_64::layout;

/// Values of the setup header: "HdrS", 0xaa55, "undefined" boot loader, and protocol 2.15, the one of this page.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
const UNDEFINED_LOADER: u8 = 0xff;
const PROTOCOL: u16 = 0x020f;
/// loadflags: LOADED_HIGH.
const LOADED_HIGH: u8 = 1;

/// Page table entries (Intel SDM 3A, §4.5): present, writable; a 2 MiB page.
const PRESENT_WRITABLE: u64 = 1 << 0 | 1 << 1;
const LARGE_PAGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const TABLE_ENTRIES: u64 = 512;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const MAPPED_GIB: u64 = 4;

/// Null, unused, code at 0x10 (__BOOT_CS: 64-bit, execute and read), data at 0x18 (__BOOT_DS: read and write).
pub(crate) const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Writes all of it.
pub(super) fn write(mem: &Memory, image: &InMemory, map: &[Range]) -> Result<(), BootError> {
    let tables = |error: GuestMemoryError| BootError::Tables(error);
    for (at, entry) in page_tables() {
        mem.write_obj(entry, GuestAddress(at)).map_err(tables)?;
    }
    for (at, descriptor) in (layout::GDT..).step_by(8).zip(DESCRIPTORS) {
        mem.write_obj(descriptor, GuestAddress(at)).map_err(tables)?;
    }
    let params = BootParams::new(&zero_page(image, map)?, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, mem).map_err(BootError::StartInfo)
}

fn zero_page(image: &InMemory, map: &[Range]) -> Result<boot_params, BootError> {
    let mut params = boot_params { acpi_rsdp_addr: image.rsdp, ..Default::default() };
    params.hdr.header = HEADER_MAGIC;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.version = PROTOCOL;
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.loadflags = LOADED_HIGH;
    // All of these lie below 4 GiB: the layout ends low memory at 3 GiB.
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = (layout::COMMAND_LINE_BYTES - 1) as u32;
    if let Some((address, bytes)) = image.initrd {
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (address as u32, bytes as u32);
    }
    for (entry, range) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind };
    }
    params.e820_entries = u8::try_from(map.len()).map_err(|_| BootError::StartInfo(Error::MissingStartAddress))?;
    Ok(params)
}

/// Address and value of each entry: one PML4 entry, four directory pointers, four directories of 2 MiB pages.
fn page_tables() -> impl Iterator<Item = (u64, u64)> {
    let (root, pointers) = (layout::PAGE_TABLES, layout::PAGE_TABLES + PAGE);
    let directories = pointers + PAGE;
    let first = [(root, pointers | PRESENT_WRITABLE)];
    let second = (0..MAPPED_GIB).map(move |gib| (pointers + gib * 8, (directories + gib * PAGE) | PRESENT_WRITABLE));
    let pages = (0..MAPPED_GIB * TABLE_ENTRIES)
        .map(move |page| (directories + page * 8, (page * LARGE_PAGE_BYTES) | PRESENT_WRITABLE | LARGE_PAGE));
    first.into_iter().chain(second).chain(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_gibibytes_are_mapped_to_themselves() {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("memory");
        let image = InMemory { rsdp: 0xe_0000, initrd: Some((0x20_0000, 0x1234)) };
        let map =
            [Range { start: 0, len: layout::LOW_END, kind: 1 }, Range { start: 0x10_0000, len: 3 << 20, kind: 1 }];
        write(&mem, &image, &map).expect("fits");
        let entry = |table: u64, index: u64| -> u64 {
            mem.read_obj::<u64>(GuestAddress((table & !0xfff) + index * 8)).expect("in memory")
        };
        // As the processor walks.
        for address in [0u64, 0x10_0000, 0x1234_5678, 0xbfff_ffff, 0xffff_ffff] {
            let pointers = entry(layout::PAGE_TABLES, address >> 39);
            let directory = entry(pointers, address >> 30 & 511);
            let page = entry(directory, address >> 21 & 511);
            assert_eq!((pointers & 3, directory & 3, page & 0x83), (3, 3, 0x83), "{address:#x}");
            assert_eq!((page & !0x1f_ffff) | (address & 0x1f_ffff), address);
        }
        assert_eq!(entry(layout::PAGE_TABLES, 1), 0);
        const { assert!(layout::PAGE_TABLES + 6 * PAGE <= layout::COMMAND_LINE) };
        const { assert!(layout::ZERO_PAGE + PAGE <= layout::PAGE_TABLES) };
    }

    #[test]
    fn the_zero_page_has_each_field_at_its_offset() {
        let mem = Memory::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("memory");
        let image = InMemory { rsdp: 0xe_0000, initrd: Some((0x20_0000, 0x1234)) };
        write(&mem, &image, &[Range { start: 0x10_0000, len: 3 << 20, kind: 1 }]).expect("fits");
        let word = |offset: u64| mem.read_obj::<u32>(GuestAddress(layout::ZERO_PAGE + offset)).expect("in memory");
        // zero-page.rst and boot.rst: rsdp, header, ramdisk, command line, the map.
        assert_eq!((word(0x70), word(0x202), word(0x218), word(0x21c)), (0xe_0000, HEADER_MAGIC, 0x20_0000, 0x1234));
        assert_eq!((word(0x228), word(0x1e8) & 0xff), (layout::COMMAND_LINE as u32, 1));
        assert_eq!((word(0x2d0), word(0x2d8), word(0x2e0)), (0x10_0000, 3 << 20, 1));
    }
}
