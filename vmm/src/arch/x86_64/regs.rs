//! Registers of a vCPU at power-on.
//!
//! The first vCPU enters the kernel as PVH says (Xen, docs/misc/pvh.pandoc): 32-bit protected mode, paging off, flat segments,
//! EBX pointing at hvm_start_info. The others wait for the first one's INIT and SIPI.

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

use super::layout;

/// CR0.PE and CR0.ET.
const PROTECTED_MODE: u64 = 1 << 0 | 1 << 4;
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

/// General registers to enter `entry`.
pub fn general(entry: u64) -> kvm_regs {
    // Bit 1 of RFLAGS is always set.
    kvm_regs { rip: entry, rbx: layout::START_INFO, rflags: 2, ..Default::default() }
}

/// Changes the special registers to flat 32-bit protected mode.
pub fn protected_mode(sregs: &mut kvm_sregs) {
    let flat = |type_: u8, selector: u16| kvm_segment {
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
    };
    // Types: code, execute and read, accessed; data, read and write, accessed; a busy 32-bit task.
    let (code, data) = (flat(0xb, 0x8), flat(0x3, 0x10));
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, s: 0, g: 0, db: 0, ..flat(0xb, 0x18) };
    sregs.cr0 = PROTECTED_MODE;
    sregs.cr4 = 0;
    sregs.efer = 0;
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
