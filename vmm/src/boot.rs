//! Kernel, initramfs, command line and start info in guest memory, by the PVH boot protocol
//! (Xen, docs/misc/pvh.pandoc; `xen/include/public/arch-x86/hvm/start_info.h`) or the 64-bit one of Linux (`linux64`).
//!
//! Files are read at offsets, never by a cursor: machines of one playground share descriptors.

pub(crate) mod linux64;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use labyard_devices::Memory;
use labyard_spec::playground::Entry;
use labyard_sys::iov::{self, GuestSlices};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{Cmdline, KernelLoader};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions, ReadVolatile,
    VolatileMemoryError, VolatileSlice,
};

use crate::arch::x86_64::acpi::{self, Description};
use crate::arch::x86_64::layout;
use crate::kernel::{self, KernelError};
use crate::kvm::memory::reports_in_small_blocks;

/// XEN_HVM_START_MAGIC_VALUE.
const START_MAGIC: u32 = 0x336e_c578;
/// E820 types: usable, reserved.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A machine could not be made ready to start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// What the kernel says about itself.
    #[error(transparent)]
    Claims(#[from] KernelError),
    /// Loading it.
    #[error("kernel: loading it")]
    Kernel(#[source] linux_loader::loader::Error),
    /// PVH was asked for.
    #[error(
        "kernel: no PVH entry point (ELF note XEN_ELFNOTE_PHYS32_ENTRY); Linux has it with CONFIG_PVH, else ask for the entry `linux64`"
    )]
    NoPvh,
    /// Less than the kernel's own minimum.
    #[error(
        "{has_mib} MiB of memory: this kernel ends at {kernel_mib} MiB and its initramfs, packed and unpacked, takes {initrd_mib} MiB; give it {needed_mib} MiB or more"
    )]
    Memory {
        /// What the machine has.
        has_mib: u64,
        /// End of the kernel.
        kernel_mib: u64,
        /// Twice the initramfs.
        initrd_mib: u64,
        /// Both.
        needed_mib: u64,
    },
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
    /// Page tables, descriptors or the generation id.
    #[error("writing tables")]
    Tables(#[source] vm_memory::GuestMemoryError),
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
    /// How the kernel is entered.
    pub entry: Entry,
}

impl Images {
    /// Refuses what cannot be started in a machine with `memory_bytes`, before anything is built.
    pub fn check(&self, memory_bytes: u64) -> Result<(), BootError> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let kernel = kernel::inspect(&self.kernel)?.end;
        // The kernel unpacks it while it is still there.
        let initrd = sizes(&self.initrd)?.iter().fold(0u64, |sum, size| sum.saturating_add(*size)).saturating_mul(2);
        let needed = kernel.saturating_add(initrd);
        if needed > memory_bytes {
            let (kernel_mib, initrd_mib, needed_mib) = (mib(kernel), mib(initrd), mib(needed));
            return Err(BootError::Memory { has_mib: memory_bytes >> 20, kernel_mib, initrd_mib, needed_mib });
        }
        Ok(())
    }
}

/// Where the first vCPU starts, and by which protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the PVH entry point.
    Pvh(u64),
    /// At the ELF image's entry point, in 64-bit mode.
    Linux64(u64),
}

/// A range of the memory map, by the types of E820.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
    kind: u32,
}

/// What the kernel is told of.
struct InMemory {
    rsdp: u64,
    /// Address and length.
    initrd: Option<(u64, u64)>,
}

/// The command line for a machine: early words on the serial port, then `hvc0`; a panic resets, which is an event.
///
/// `quiet` comes first: the early console prints what it finds in the log when it is registered, and each of those bytes would
/// be two exits.
///
/// `reboot=acpi` because Linux takes a hardware-reduced machine for one with EFI and would jump to a BIOS that is not there
/// (arch/x86/kernel/reboot.c, reboot_init).
///
/// `pci=off` because there is none: looking for it is an access to ports, and so an exit, for each of 32 slots and more.
pub fn command_line(extra: &str) -> String {
    let ours = "quiet earlycon=uart8250,io,0x3f8 console=hvc0 net.ifnames=0 panic=-1 reboot=acpi pci=off rdinit=/init";
    [ours, extra].join(" ").trim_end().to_owned()
}

/// Free memory is reported in blocks of 128 KiB (Linux, mm/page_reporting.c): a guest of half a GiB has hardly a whole free block of
/// the usual 2 MiB once its page cache lies between.
const REPORT_SMALL_BLOCKS: &str = "page_reporting.page_reporting_order=5";

/// Puts everything into memory, whose pages have `page_size` bytes.
pub fn load(mem: &Memory, page_size: u64, images: &Images, machine: &Description) -> Result<Start, BootError> {
    let end = kernel::inspect(&images.kernel)?.end;
    let mut kernel = At { file: Arc::clone(&images.kernel), position: 0 };
    let loaded =
        Elf::load(mem, None, &mut kernel, Some(GuestAddress(layout::HIGH_START))).map_err(BootError::Kernel)?;
    let start = match (images.entry, loaded.pvh_boot_cap) {
        (Entry::Auto | Entry::Pvh, PvhBootCapability::PvhEntryPresent(entry)) => Start::Pvh(entry.raw_value()),
        (Entry::Pvh, _) => return Err(BootError::NoPvh),
        (Entry::Auto | Entry::Linux64, _) => Start::Linux64(loaded.kernel_load.raw_value()),
    };
    let initrd = load_initrd(mem, &images.initrd, end)?;
    match reports_in_small_blocks(page_size) {
        // Before the other words: the last word for a parameter holds, and a person's words come last.
        true => load_command_line(mem, &format!("{REPORT_SMALL_BLOCKS} {}", images.cmdline))?,
        false => load_command_line(mem, &images.cmdline)?,
    }
    let rsdp = acpi::write(mem, machine)?.raw_value();
    let (image, map) = (InMemory { rsdp, initrd }, memory_map(mem));
    match start {
        Start::Pvh(_) => write_start_info(mem, &image, &map)?,
        Start::Linux64(_) => linux64::write(mem, &image, &map)?,
    }
    Ok(start)
}

/// Writes the machine's generation id; a guest that runs looks at it when it is told so ([`ged::Event::Generation`]).
///
/// [`ged::Event::Generation`]: labyard_devices::legacy::ged::Event::Generation
pub fn write_generation(mem: &Memory, id: [u8; 16]) -> Result<(), BootError> {
    mem.write_slice(&id, GuestAddress(layout::GENERATION)).map_err(BootError::Tables)
}

fn write_start_info(mem: &Memory, image: &InMemory, map: &[Range]) -> Result<(), BootError> {
    let entry =
        |range: &Range| hvm_memmap_table_entry { addr: range.start, size: range.len, type_: range.kind, reserved: 0 };
    let map: Vec<_> = map.iter().map(entry).collect();
    let module = |(paddr, size)| hvm_modlist_entry { paddr, size, ..Default::default() };
    let modules: Vec<_> = image.initrd.map(module).into_iter().collect();
    let start_info = hvm_start_info {
        magic: START_MAGIC,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: image.rsdp,
        nr_modules: u32::try_from(modules.len()).unwrap_or(0),
        modlist_paddr: layout::START_INFO_MODULES,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(layout::START_INFO));
    params.set_sections(&map, GuestAddress(layout::MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(layout::START_INFO_MODULES));
    PvhBootConfigurator::write_bootparams(&params, mem).map_err(BootError::StartInfo)
}

fn load_command_line(mem: &Memory, text: &str) -> Result<(), BootError> {
    let too_long = || BootError::CommandLine(text.len());
    let mut cmdline = Cmdline::new(layout::COMMAND_LINE_BYTES).map_err(|_| too_long())?;
    cmdline.insert_str(text).map_err(|_| too_long())?;
    linux_loader::loader::load_cmdline(mem, GuestAddress(layout::COMMAND_LINE), &cmdline).map_err(|_| too_long())
}

fn sizes(parts: &[Arc<File>]) -> Result<Vec<u64>, BootError> {
    parts.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<_>>().map_err(BootError::Initrd)
}

/// As high as possible below 4 GiB, so that the kernel can decompress and relocate below it. Its address and length.
fn load_initrd(mem: &Memory, parts: &[Arc<File>], kernel_end: u64) -> Result<Option<(u64, u64)>, BootError> {
    if parts.is_empty() {
        return Ok(None);
    }
    let sizes = sizes(parts)?;
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
    Ok(Some((start, next - start)))
}

fn low_memory(mem: &Memory) -> u64 {
    mem.iter().find(|region| region.start_addr().raw_value() == 0).map_or(0, |region| region.len())
}

fn memory_map(mem: &Memory) -> Vec<Range> {
    let range = |start, len, kind| Range { start, len, kind };
    let mut map = vec![
        range(0, layout::LOW_END, RAM),
        range(layout::ACPI, layout::HIGH_START - layout::ACPI, RESERVED),
        range(layout::HIGH_START, low_memory(mem).saturating_sub(layout::HIGH_START), RAM),
    ];
    for region in mem.iter().filter(|region| region.start_addr().raw_value() != 0) {
        map.push(range(region.start_addr().raw_value(), region.len(), RAM));
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
    use crate::kernel::tests::image;
    use std::io::Write;

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
        let initrd = load_initrd(&mem, &[file(b"first"), file(b"second")], 0x20_0000).expect("fits");
        let (address, len) = initrd.expect("one module");
        assert_eq!((address % 0x1000, len), (0, 16));
        let mut bytes = [0; 16];
        mem.read_slice(&mut bytes, GuestAddress(address)).expect("read");
        assert_eq!(&bytes, b"first\0\0\0second\0\0");
    }

    #[test]
    fn an_initramfs_that_meets_the_kernel_is_refused() {
        let error = load_initrd(&memory(4 << 20), &[file(&[1; 3 << 20])], 0x20_0000).expect_err("too large");
        assert!(error.to_string().contains("3145728 bytes"), "{error}");
    }

    fn images(kernel: &[u8], entry: Entry) -> Images {
        Images { kernel: file(kernel), initrd: Vec::new(), cmdline: String::new(), entry }
    }

    #[test]
    fn each_entry_is_found_or_refused() {
        let machine = Description { cpu_count: 1, virtio: Vec::new() };
        let (with, without) = (image(0x20_0000, &[0xf4], true), image(0x20_0000, &[0xf4], false));
        let start = |kernel: &[u8], entry| load(&memory(4 << 20), 4096, &images(kernel, entry), &machine);
        assert_eq!(start(&with, Entry::Auto).expect("PVH"), Start::Pvh(0x20_0000));
        assert_eq!(start(&with, Entry::Linux64).expect("64 bits"), Start::Linux64(0x20_0000));
        assert_eq!(start(&without, Entry::Auto).expect("64 bits"), Start::Linux64(0x20_0000));
        assert!(matches!(start(&without, Entry::Pvh), Err(BootError::NoPvh)));
        assert!(matches!(start(b"MZ", Entry::Auto), Err(BootError::Claims(KernelError::NotElf))));
    }

    #[test]
    fn free_memory_is_reported_in_blocks_that_suit_the_pages() {
        let machine = Description { cpu_count: 1, virtio: Vec::new() };
        let images = Images { cmdline: "a b".into(), ..images(&image(0x20_0000, &[0xf4], true), Entry::Auto) };
        for (page_size, expected) in [(4096, "page_reporting.page_reporting_order=5 a b\0"), (2 << 20, "a b\0")] {
            let mem = memory(4 << 20);
            load(&mem, page_size, &images, &machine).expect("loaded");
            let mut line = vec![0; expected.len()];
            mem.read_slice(&mut line, GuestAddress(layout::COMMAND_LINE)).expect("read");
            assert_eq!(String::from_utf8_lossy(&line), expected);
        }
    }

    #[test]
    fn memory_below_the_kernels_own_minimum_is_refused_with_the_numbers() {
        let mut images = images(&image(0x200_0000, &[0xf4; 1 << 20], true), Entry::Auto);
        images.initrd = vec![file(&[1; 3 << 20])];
        assert!(images.check(39 << 20).is_ok());
        let error = images.check(38 << 20).expect_err("too little").to_string();
        assert_eq!(
            error,
            "38 MiB of memory: this kernel ends at 33 MiB and its initramfs, packed and unpacked, takes 6 MiB; give it 39 MiB or more"
        );
    }

    #[test]
    fn a_command_line_that_linux_would_cut_is_refused() {
        assert!(load_command_line(&memory(4 << 20), &"x".repeat(2047)).is_ok());
        assert!(matches!(load_command_line(&memory(4 << 20), &"x".repeat(2048)), Err(BootError::CommandLine(2048))));
    }
}
