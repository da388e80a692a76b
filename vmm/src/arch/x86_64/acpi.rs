//! ACPI tables of a hardware-reduced machine (ACPI 6.4): processors and I/O APIC (MADT, §5.2.12), sleep and reset registers
//! (FADT, §5.2.9), and the devices (DSDT): the serial port, pvpanic, every virtio-mmio window (`LNRO0005`), and a generic event
//! device (§5.6.9) that tells of the power button and of a new generation id.

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt,
    Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
    ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use labyard_devices::Memory;
use labyard_devices::legacy::{ged, power};
use vm_memory::{Bytes, GuestAddress};

use super::layout;

const OEM_ID: [u8; 6] = *b"LABYRD";
const OEM_TABLE_ID: [u8; 8] = *b"LABYARD ";
const OEM_REVISION: u32 = 1;

/// IAPC_BOOT_ARCH (§5.2.9.3): no VGA, no CMOS clock; the bits for legacy devices and 8042 stay off.
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// Notification values: the button was pressed (table 5.182), the id has changed (the generation id's own).
const STATUS_CHANGED: u8 = 0x80;
/// _STA (§6.3.7): present, enabled, shown, working.
const PRESENT: u8 = 0xf;

/// The tables did not fit below the kernel.
#[derive(Debug, thiserror::Error)]
#[error("ACPI tables of {bytes} bytes do not fit into {room} bytes")]
pub struct TooLong {
    bytes: u64,
    room: u64,
}

/// What the tables tell about a machine.
pub struct Description {
    /// Processors.
    pub cpu_count: u32,
    /// virtio-mmio devices: window address and line.
    pub virtio: Vec<(u64, u32)>,
}

#[derive(Default)]
struct Bytes8(Vec<u8>);

impl AmlSink for Bytes8 {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Bytes8::default();
    aml.to_aml_bytes(&mut bytes);
    bytes.0
}

/// Writes all tables; the address of the RSDP.
pub fn write(mem: &Memory, machine: &Description) -> Result<GuestAddress, TooLong> {
    let rsdp_at = layout::ACPI;
    let mut next = align(rsdp_at + Rsdp::len() as u64);
    let mut place = |bytes: Vec<u8>| -> Result<u64, TooLong> {
        let at = next;
        next = align(at + bytes.len() as u64);
        let room = layout::ACPI_END - layout::ACPI;
        let too_long = TooLong { bytes: next - layout::ACPI, room };
        if next > layout::ACPI_END || mem.write_slice(&bytes, GuestAddress(at)).is_err() {
            return Err(too_long);
        }
        Ok(at)
    };
    let dsdt = place(dsdt(machine).as_slice().to_vec())?;
    let fadt = place(bytes_of(&fadt(dsdt).finalize()))?;
    let madt = place(bytes_of(&madt(machine.cpu_count)))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes_of(&xsdt))?;
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    mem.write_slice(&rsdp, GuestAddress(rsdp_at)).map_err(|_| TooLong { bytes: rsdp.len() as u64, room: 0 })?;
    Ok(GuestAddress(rsdp_at))
}

fn align(address: u64) -> u64 {
    address.next_multiple_of(16)
}

fn madt(cpu_count: u32) -> MADT {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for cpu in 0..cpu_count {
        // The plan allows at most 254, the ids of this structure.
        let id = u8::try_from(cpu).unwrap_or(u8::MAX);
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn fadt(dsdt: u64) -> FADTBuilder {
    let register =
        |offset: u64| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, layout::POWER_PORT + offset);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS);
    fadt
}

fn dsdt(machine: &Description) -> Sdt {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut append = |aml: &dyn Aml| table.append_slice(&bytes_of(aml));
    append(&Scope::new("_SB_".into(), vec![&SerialPort, &PvPanic, &PowerButton, &Generation, &EventDevice]));
    for (index, (address, gsi)) in (0..).zip(&machine.virtio) {
        append(&Scope::new("_SB_".into(), vec![&VirtioWindow { index, address: *address, gsi: *gsi }]));
    }
    // §7.4.2: the values for the sleep control register to enter S5.
    append(&Name::new("_S5_".into(), &Package::new(vec![&power::SLEEP_TYPE_OFF, &0u8])));
    table
}

/// A virtio-mmio window (Linux, drivers/virtio/virtio_mmio.c: `LNRO0005`).
struct VirtioWindow {
    index: u32,
    address: u64,
    gsi: u32,
}

impl Aml for VirtioWindow {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // Windows lie below 4 GiB (layout), so 32 bits hold their address.
        let window = Memory32Fixed::new(true, self.address as u32, 0x1000);
        let line = Interrupt::new(true, true, false, false, self.gsi);
        Device::new(
            format!("V{:03}", self.index).as_str().into(),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &self.index),
                &Name::new("_CCA".into(), &acpi_tables::aml::ONE),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&window, &line])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// pvpanic (QEMU, docs/specs/pvpanic.rst).
struct PvPanic;

impl Aml for PvPanic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let port = layout::PVPANIC_PORT as u16;
        Device::new(
            "PEVT".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0001"),
                &Name::new("_STA".into(), &PRESENT),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The power button as a control method device (§4.8.2.2.1.2).
struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Device::new("PWRB".into(), vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))]).to_aml_bytes(sink);
    }
}

/// Where the generation id is (Microsoft, Virtual Machine Generation ID, 2012; Linux, drivers/virt/vmgenid.c, finds it by `_CID`).
struct Generation;

impl Aml for Generation {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (low, high) = (layout::GENERATION as u32, (layout::GENERATION >> 32) as u32);
        Device::new(
            "VGEN".into(),
            vec![
                &Name::new("_HID".into(), &"LBYD0001"),
                &Name::new("_CID".into(), &"VM_Gen_Counter"),
                &Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// Reads which events have happened, and notifies their devices.
struct EventDevice;

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (port, window) = (layout::EVENTS_PORT as u16, ged::WINDOW_BYTES as u8);
        let line = Interrupt::new(true, true, false, false, layout::EVENTS_GSI);
        let (happened, bits) = (Path::new("EVTS"), Local(0));
        let (button, generation) = (ged::Event::PowerButton as u8, ged::Event::Generation as u8);
        Device::new(
            "GED_".into(),
            vec![
                &Name::new("_HID".into(), &"ACPI0013"),
                &Name::new("_UID".into(), &ZERO),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line])),
                &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &port, &window),
                &Field::new(
                    "EVTR".into(),
                    FieldAccessType::Byte,
                    FieldLockRule::NoLock,
                    FieldUpdateRule::WriteAsZeroes,
                    vec![FieldEntry::Named(*b"EVTS", 8)],
                ),
                &Method::new(
                    "_EVT".into(),
                    1,
                    true,
                    vec![
                        &Store::new(&bits, &happened),
                        &If::new(
                            &And::new(&ZERO, &bits, &button),
                            vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &STATUS_CHANGED)],
                        ),
                        &If::new(
                            &And::new(&ZERO, &bits, &generation),
                            vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &STATUS_CHANGED)],
                        ),
                    ],
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The serial port, so that its driver finds port and line.
struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let port = layout::SERIAL_PORT as u16;
        let ports = IO::new(port, port, 1, 8);
        let line = Interrupt::new(true, true, false, false, layout::SERIAL_GSI);
        Device::new(
            "COM1".into(),
            vec![
                &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                &Name::new("_UID".into(), &0u8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &line])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("memory")
    }

    fn table(mem: &Memory, at: u64) -> Vec<u8> {
        let len: u32 = mem.read_obj(GuestAddress(at + 4)).expect("length");
        let mut bytes = vec![0; len as usize];
        mem.read_slice(&mut bytes, GuestAddress(at)).expect("table");
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_with_a_good_checksum() {
        let mem = memory();
        let virtio = (0..30).map(|n| (layout::VIRTIO + n * 0x1000, 5 + n as u32)).collect();
        let rsdp = write(&mem, &Description { cpu_count: 3, virtio }).expect("fits");
        let mut bytes = [0; 36];
        mem.read_slice(&mut bytes, rsdp).expect("rsdp");
        assert_eq!((&bytes[..8], sum(&bytes[..20]), sum(&bytes)), (b"RSD PTR ".as_slice(), 0, 0));
        let xsdt = table(&mem, u64::from_le_bytes(bytes[24..32].try_into().expect("eight")));
        assert_eq!((&xsdt[..4], sum(&xsdt)), (b"XSDT".as_slice(), 0));
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let found = table(&mem, u64::from_le_bytes(entry.try_into().expect("eight")));
            assert_eq!(sum(&found), 0);
            names.push(found[..4].to_vec());
            if &found[..4] == b"FACP" {
                let dsdt = table(&mem, u64::from_le_bytes(found[140..148].try_into().expect("eight")));
                assert_eq!((&dsdt[..4], sum(&dsdt)), (b"DSDT".as_slice(), 0));
                assert_eq!(dsdt.windows(8).filter(|bytes| bytes == b"LNRO0005").count(), 30);
                for id in ["ACPI0013", "QEMU0001", "VM_Gen_Counter", "_EVT"] {
                    assert!(dsdt.windows(id.len()).any(|bytes| bytes == id.as_bytes()), "{id}");
                }
            }
        }
        assert_eq!(names, [b"FACP", b"APIC"]);
    }

    #[test]
    fn the_most_devices_and_processors_fit() {
        let virtio = (0..layout::MAX_VIRTIO_DEVICES).map(|n| (layout::VIRTIO + n as u64 * 0x1000, 5)).collect();
        assert!(write(&memory(), &Description { cpu_count: 254, virtio }).is_ok());
    }
}
