//! Registers of a vCPU at power-on.
//!
//! The first vCPU enters the kernel as PVH says (Xen, docs/misc/pvh.pandoc): 32-bit protected mode, paging off, flat segments,
//! EBX pointing at hvm_start_info; or as Linux's 64-bit boot protocol says: long mode, the memory mapped to itself, RSI pointing
//! at boot_params. The others wait for the first one's INIT and SIPI.

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

use super::layout;
use crate::boot::Start;
use crate::boot::linux64::DESCRIPTORS;

/// CR0.PE and CR0.ET; CR0.PG; CR4.PAE; EFER.LME and EFER.LMA (Intel SDM 3A, §2.5, §2.2.1).
const PROTECTED_MODE: u64 = 1 << 0 | 1 << 4;
const PAGING: u64 = 1 << 31;
const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const LONG_MODE_ENABLE: u64 = 1 << 8;
const LONG_MODE_ACTIVE: u64 = 1 << 10;
/// IA32_MISC_ENABLE and its fast-strings bit (Intel SDM 4, table 2-2).
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE: enabled, write-back.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// Local vector table entries of the two pins, and their delivery modes (Intel SDM 3A, §11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// General registers to enter a kernel.
pub fn general(start: Start) -> kvm_regs {
    // Bit 1 of RFLAGS is always set.
    match start {
        Start::Pvh(entry) => kvm_regs { rip: entry, rbx: layout::START_INFO, rflags: 2, ..Default::default() },
        Start::Linux64(entry) => kvm_regs { rip: entry, rsi: layout::ZERO_PAGE, rflags: 2, ..Default::default() },
    }
}

/// Changes the special registers to those of the entry.
pub fn special(start: Start, sregs: &mut kvm_sregs) {
    match start {
        Start::Pvh(_) => protected_mode(sregs),
        Start::Linux64(_) => long_mode(sregs),
    }
}

/// Types (Intel SDM 3A, §3.4.5.1, §3.5): code, execute and read, accessed; data, read and write, accessed; a busy task.
const CODE: u8 = 0xb;
const DATA: u8 = 0x3;
const TASK: u8 = 0xb;

fn flat(type_: u8, selector: u16) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        ..Default::default()
    }
}

/// Flat 32-bit protected mode, paging off.
fn protected_mode(sregs: &mut kvm_sregs) {
    segments(sregs, flat(CODE, 0x8), flat(DATA, 0x10));
    sregs.cr0 = PROTECTED_MODE;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

/// 64-bit mode over the page tables of [`crate::boot::linux64`]; selectors as boot.rst wants them.
fn long_mode(sregs: &mut kvm_sregs) {
    segments(sregs, kvm_segment { l: 1, db: 0, ..flat(CODE, 0x10) }, flat(DATA, 0x18));
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (size_of_val(&DESCRIPTORS) - 1) as u16;
    sregs.cr0 = PROTECTED_MODE | PAGING;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = LONG_MODE_ENABLE | LONG_MODE_ACTIVE;
}

fn segments(sregs: &mut kvm_sregs, code: kvm_segment, data: kvm_segment) {
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, s: 0, g: 0, db: 0, ..flat(TASK, 0x20) };
}

/// Model-specific registers that differ from KVM's power-on values.
pub fn model_specific() -> Option<Msrs> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry(MSR_MISC_ENABLE, FAST_STRINGS), entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)]).ok()
}

/// The pins of a local APIC as a PC's firmware leaves them.
pub fn local_apic(state: &mut kvm_lapic_state) {
    for (register, mode) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        for (to, from) in state.regs.iter_mut().skip(register).zip(mode.to_le_bytes()) {
            *to = from as _;
        }
    }
}
