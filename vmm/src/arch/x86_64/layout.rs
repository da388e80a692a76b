//! Where everything is in a guest's address space.
//!
//! ```text
//!   0 ──── 0x6000 start info ── 0x20000 command line ── 0xe0000 ACPI ── 1 MiB kernel … initramfs ── 3 GiB
//!   3.25 GiB virtio-mmio windows ── 0xfec00000 I/O APIC ── 0xfee00000 local APIC ── 4 GiB … rest of memory
//! ```

/// hvm_start_info of the PVH boot protocol.
pub const START_INFO: u64 = 0x6000;
/// Its list of modules: the initramfs.
pub const START_INFO_MODULES: u64 = 0x6040;
/// Its memory map.
pub const MEMORY_MAP: u64 = 0x7000;
/// boot_params, the "zero page" of the Linux boot protocol; where start info and its memory map are otherwise.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables of the 64-bit entry: one PML4, one page of directory pointers, four of directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Descriptors of the 64-bit entry's segments.
pub const GDT: u64 = 0x500;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line with its NUL (COMMAND_LINE_SIZE of x86 in Linux).
pub const COMMAND_LINE_BYTES: usize = 2048;
/// Memory below here is free for the kernel; above, up to 1 MiB, lie tables.
pub const LOW_END: u64 = 0x9_fc00;
/// ACPI tables, the RSDP first (ACPI 6.4, §5.2.5.1: on a 16-byte boundary between 0xe0000 and 0xfffff).
pub const ACPI: u64 = 0xe_0000;
/// The generation id, alone in a page that no memory map calls usable (Microsoft, Virtual Machine Generation ID, 2012).
pub const GENERATION: u64 = 0xf_f000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = GENERATION;
/// The kernel is loaded from here on.
pub const HIGH_START: u64 = 0x10_0000;
/// Memory below 4 GiB ends here at the latest.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// Memory above the hole for devices.
pub const HIGH_MEMORY: u64 = 0x1_0000_0000;

/// First virtio-mmio window; device `n` is at `VIRTIO + n * 0x1000`.
pub const VIRTIO: u64 = 0xd000_0000;
/// I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that Intel's virtualization needs for real mode (KVM_SET_TSS_ADDR), and one for its identity map.
pub const TSS: usize = 0xfffb_d000;
/// KVM_SET_IDENTITY_MAP_ADDR.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;

/// Port of the first serial port.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Its line.
pub const SERIAL_GSI: u32 = 4;
/// Ports of the sleep and reset registers.
pub const POWER_PORT: u64 = 0x600;
/// Port of the register of ACPI events ([`labyard_devices::legacy::ged`]).
pub const EVENTS_PORT: u64 = 0x604;
/// Its line.
pub const EVENTS_GSI: u32 = 1;
/// Port of pvpanic, where QEMU has it.
pub const PVPANIC_PORT: u64 = 0x505;
/// Line of virtio device 0; the following ones have the following lines.
pub const VIRTIO_FIRST_GSI: u32 = 5;
/// virtio devices of one machine at most: one line each.
pub const MAX_VIRTIO_DEVICES: usize = (labyard_devices::legacy::ioapic::MAX_LINES - VIRTIO_FIRST_GSI) as usize;

/// Lines of a machine with so many virtio devices.
pub fn lines(virtio_devices: usize) -> u32 {
    u32::try_from(virtio_devices).map_or(u32::MAX, |count| count.saturating_add(VIRTIO_FIRST_GSI))
}

/// Ranges of guest memory for a machine with `bytes`: address and length.
pub fn memory_ranges(bytes: u64) -> Vec<(u64, u64)> {
    match bytes.checked_sub(LOW_MEMORY_END) {
        None | Some(0) => vec![(0, bytes)],
        Some(high) => vec![(0, LOW_MEMORY_END), (HIGH_MEMORY, high)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_the_hole_for_devices() {
        assert_eq!(memory_ranges(1 << 20), [(0, 1 << 20)]);
        assert_eq!(memory_ranges(LOW_MEMORY_END), [(0, LOW_MEMORY_END)]);
        assert_eq!(memory_ranges(4 << 30), [(0, LOW_MEMORY_END), (HIGH_MEMORY, 1 << 30)]);
    }

    #[test]
    fn windows_and_lines_end_before_what_follows() {
        let windows_end = VIRTIO + MAX_VIRTIO_DEVICES as u64 * labyard_devices::virtio::transport::mmio::WINDOW_BYTES;
        assert!(windows_end <= u64::from(IO_APIC));
        assert_eq!(VIRTIO_FIRST_GSI as usize + MAX_VIRTIO_DEVICES, 120);
    }
}
