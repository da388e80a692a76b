//! Kernel, initramfs, command line and start info in guest memory, by the PVH boot protocol
//! (Xen, docs/misc/pvh.pandoc; `xen/include/public/arch-x86/hvm/start_info.h`).
//!
//! Files are read at offsets, never by a cursor: machines of one playground share descriptors.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use labyard_devices::Memory;
use labyard_sys::iov::{self, GuestSlices};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Cmdline, KernelLoader};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions, ReadVolatile,
    VolatileMemoryError, VolatileSlice,
};

use crate::arch::x86_64::acpi::{self, Description};
use crate::arch::x86_64::layout;

/// XEN_HVM_START_MAGIC_VALUE.
const START_MAGIC: u32 = 0x336e_c578;
/// E820 types: usable, reserved.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A machine could not be made ready to start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file.
    #[error("kernel: not an ELF image that fits into the machine's memory")]
    Kernel(#[source] linux_loader::loader::Error),
    /// Without a PVH note there is no way in.
    #[error(
        "kernel: the ELF image has no PVH entry point (note XEN_ELFNOTE_PHYS32_ENTRY); a Linux kernel needs CONFIG_PVH"
    )]
    NoPvh,
    /// The initramfs.
    #[error("initramfs: {bytes} bytes do not fit beside the kernel into {memory} bytes of memory")]
    InitrdTooLarge {
        /// Its size.
        bytes: u64,
        /// Memory below 4 GiB.
        memory: u64,
    },
    /// Reading it.
    #[error("initramfs: reading it")]
    Initrd(#[source] io::Error),
    /// The command line.
    #[error("command line of {0} bytes, Linux takes 2047")]
    CommandLine(usize),
    /// Tables.
    #[error("tables")]
    Acpi(#[from] acpi::TooLong),
    /// Start info.
    #[error("writing the start info")]
    StartInfo(#[source] linux_loader::configurator::Error),
}

/// What is loaded.
pub struct Images {
    /// An ELF kernel.
    pub kernel: Arc<File>,
    /// Parts of the initramfs, one after another.
    pub initrd: Vec<Arc<File>>,
    /// The command line.
    pub cmdline: String,
}

/// The command line for a machine: early words on the serial port, then `hvc0`; a panic resets, which is an event.
///
/// `quiet` comes first: the early console prints what it finds in the log when it is registered, and each of those bytes would
/// be two exits.
///
/// `reboot=acpi` because Linux takes a hardware-reduced machine for one with EFI and would jump to a BIOS that is not there
/// (arch/x86/kernel/reboot.c, reboot_init).
pub fn command_line(extra: &str) -> String {
    let ours = "quiet earlycon=uart8250,io,0x3f8 console=hvc0 net.ifnames=0 panic=-1 reboot=acpi rdinit=/init";
    [ours, extra].join(" ").trim_end().to_owned()
}

/// Puts everything into memory; the address where the first vCPU starts.
pub fn load(mem: &Memory, images: &Images, machine: &Description) -> Result<u64, BootError> {
    let mut kernel = At { file: Arc::clone(&images.kernel), position: 0 };
    let loaded =
        Elf::load(mem, None, &mut kernel, Some(GuestAddress(layout::HIGH_START))).map_err(BootError::Kernel)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else { return Err(BootError::NoPvh) };
    let modules = load_initrd(mem, &images.initrd, loaded.kernel_end)?;
    load_command_line(mem, &images.cmdline)?;
    let rsdp = acpi::write(mem, machine)?;

    let map = memory_map(mem);
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp.raw_value(),
        nr_modules: u32::try_from(modules.len()).unwrap_or(0),
        modlist_paddr: layout::START_INFO_MODULES,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::START_INFO));
    params.set_sections(&map, GuestAddress(layout::MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(layout::START_INFO_MODULES));
    PvhBootConfigurator::write_bootparams(&params, mem).map_err(BootError::StartInfo)?;
    Ok(entry.raw_value())
}

fn load_command_line(mem: &Memory, text: &str) -> Result<(), BootError> {
    let too_long = || BootError::CommandLine(text.len());
    let mut cmdline = Cmdline::new(layout::COMMAND_LINE_BYTES).map_err(|_| too_long())?;
    cmdline.insert_str(text).map_err(|_| too_long())?;
    linux_loader::loader::load_cmdline(mem, GuestAddress(layout::COMMAND_LINE), &cmdline).map_err(|_| too_long())
}

/// As high as possible below 4 GiB, so that the kernel can decompress and relocate below it.
fn load_initrd(mem: &Memory, parts: &[Arc<File>], kernel_end: u64) -> Result<Vec<hvm_modlist_entry>, BootError> {
    if parts.is_empty() {
        return Ok(Vec::new());
    }
    let sizes = parts.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<Vec<_>>>();
    let sizes = sizes.map_err(BootError::Initrd)?;
    let total = sizes.iter().fold(0u64, |sum, size| sum.saturating_add(size.next_multiple_of(4)));
    let memory = low_memory(mem);
    let start = memory.checked_sub(total).map(|start| start & !0xfff).filter(|start| *start >= kernel_end);
    let start = start.ok_or(BootError::InitrdTooLarge { bytes: total, memory })?;
    let mut next = start;
    for (file, size) in parts.iter().zip(sizes) {
        let mut slices = GuestSlices::new();
        let room = GuestMemory::get_slices(mem, GuestAddress(next), size as usize, Permissions::Write);
        for slice in room.into_iter().flatten().flatten() {
            if !slices.push(slice) {
                return Err(BootError::InitrdTooLarge { bytes: total, memory });
            }
        }
        iov::read_exact_at(file.as_fd(), &mut slices, 0).map_err(BootError::Initrd)?;
        next += size.next_multiple_of(4);
    }
    Ok(vec![hvm_modlist_entry { paddr: start, size: next - start, ..Default::default() }])
}

fn low_memory(mem: &Memory) -> u64 {
    mem.iter().find(|region| region.start_addr().raw_value() == 0).map_or(0, |region| region.len())
}

fn memory_map(mem: &Memory) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, size, type_| hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
    let mut map = vec![
        entry(0, layout::LOW_END, RAM),
        entry(layout::ACPI, layout::HIGH_START - layout::ACPI, RESERVED),
        entry(layout::HIGH_START, low_memory(mem).saturating_sub(layout::HIGH_START), RAM),
    ];
    for region in mem.iter().filter(|region| region.start_addr().raw_value() != 0) {
        map.push(entry(region.start_addr().raw_value(), region.len(), RAM));
    }
    map
}

/// A file read from a position of our own.
struct At {
    file: Arc<File>,
    position: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for At {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.file.metadata()?.len(), offset),
        };
        self.position = base.checked_add_signed(offset).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for At {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let left = self.file.metadata().map_err(VolatileMemoryError::IOError)?.len().saturating_sub(self.position);
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut slices = GuestSlices::new();
        if len == 0 || !slices.push(buffer.subslice(0, len)?) {
            return Ok(0);
        }
        iov::read_exact_at(self.file.as_fd(), &mut slices, self.position).map_err(VolatileMemoryError::IOError)?;
        self.position += len as u64;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    fn memory(bytes: usize) -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), bytes)]).expect("memory")
    }

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("written");
        Arc::new(file)
    }

    #[test]
    fn parts_of_the_initramfs_follow_each_other_on_four_bytes() {
        let mem = memory(16 << 20);
        let modules = load_initrd(&mem, &[file(b"first"), file(b"second")], 0x20_0000).expect("fits");
        let [module] = modules.as_slice() else { panic!("one module") };
        assert_eq!((module.paddr % 0x1000, module.size), (0, 16));
        let mut bytes = [0; 16];
        mem.read_slice(&mut bytes, GuestAddress(module.paddr)).expect("read");
        assert_eq!(&bytes, b"first\0\0\0second\0\0");
    }

    #[test]
    fn an_initramfs_that_meets_the_kernel_is_refused() {
        let error = load_initrd(&memory(4 << 20), &[file(&[1; 3 << 20])], 0x20_0000).expect_err("too large");
        assert!(error.to_string().contains("3145728 bytes"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let machine = Description { cpu_count: 1, virtio: Vec::new() };
        for bytes in [&b""[..], b"MZ not a kernel", &[0x7f, b'E', b'L', b'F', 2, 1, 1]] {
            let images = Images { kernel: file(bytes), initrd: Vec::new(), cmdline: String::new() };
            assert!(matches!(load(&memory(4 << 20), &images, &machine), Err(BootError::Kernel(_))));
        }
    }

    #[test]
    fn a_command_line_that_linux_would_cut_is_refused() {
        assert!(load_command_line(&memory(4 << 20), &"x".repeat(2047)).is_ok());
        assert!(matches!(load_command_line(&memory(4 << 20), &"x".repeat(2048)), Err(BootError::CommandLine(2048))));
    }
}
