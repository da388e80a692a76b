//! The PC that guests see: hardware-reduced ACPI, an I/O APIC, virtio over MMIO, a serial port, and nothing older.

pub mod acpi;
pub mod cpuid;
pub mod layout;
pub mod regs;
