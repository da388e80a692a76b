//! Leaf 0xd, the state that XSAVE saves, follows from the features that are left (Intel SDM 1, chapter 13; AMD64 APM 3, appendix E).
//!
//! A component without its feature is no state: a guest that finds one counts other sizes than its processor uses. So whatever cuts
//! a feature need not know of this leaf. Sizes in EBX, of what the guest has turned on, are KVM's to fill in while it runs.

use kvm_bindings::kvm_cpuid_entry2;

const LEAF: u32 = 0xd;
/// x87 and SSE, which have neither a sub-leaf nor, with XSAVE, a feature of their own.
const LEGACY: u64 = 0b11;
/// Bytes of these two and of the header.
const LEGACY_BYTES: u32 = 512 + 64;

/// Leaf 1, ECX: XSAVE, and whether the system has turned it on, which a processor that starts has not.
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
/// Sub-leaf 1, EAX: XSAVES, without which there is no state of the system's own; faults on first use, which are for AMX alone.
const XSAVES: u32 = 1 << 3;
const XFD: u32 = 1 << 4;
/// Sub-leaf n, ECX: the component is the system's own, selected by IA32_XSS.
const SUPERVISOR: u32 = 1;

/// AVX, on which AVX-512 builds, and the tiles of AMX.
const AVX: u64 = 1 << 2;
const AVX_512: u64 = 0b111 << 5;
const AMX: u64 = 0b11 << 17;

/// A register of leaf 1, or of leaf 7, sub-leaf 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Leaf1Ecx,
    Leaf7Ebx,
    Leaf7Ecx,
    Leaf7Edx,
}

/// Components, and the features one of which they need (Intel SDM 1, table 13-1 and the features' chapters). What is not here, no
/// feature of a guest's goes with, and it goes.
const COMPONENTS: [(u64, &[(Register, u32)]); 7] = [
    (AVX, &[(Register::Leaf1Ecx, 28)]),
    // MPX: bounds, and how they are used.
    (0b11 << 3, &[(Register::Leaf7Ebx, 14)]),
    (AVX_512, &[(Register::Leaf7Ebx, 16)]),
    // Processor trace.
    (1 << 8, &[(Register::Leaf7Ebx, 25)]),
    // Protection keys.
    (1 << 9, &[(Register::Leaf7Ecx, 3)]),
    // Control-flow enforcement: shadow stacks, tracking of indirect branches; user's and system's.
    (0b11 << 11, &[(Register::Leaf7Ecx, 7), (Register::Leaf7Edx, 20)]),
    (AMX, &[(Register::Leaf7Edx, 24)]),
];

/// Cuts what has no feature any more, and the size of the area with it.
pub(super) fn follow(entries: &mut [kvm_cpuid_entry2]) {
    let find = |entries: &[kvm_cpuid_entry2], function, index| {
        entries.iter().find(|entry| (entry.function, entry.index) == (function, index)).copied().unwrap_or_default()
    };
    let (one, seven) = (find(entries, 1, 0), find(entries, 7, 0));
    let has = |(register, bit): &(Register, u32)| {
        let value = match register {
            Register::Leaf1Ecx => one.ecx,
            Register::Leaf7Ebx => seven.ebx,
            Register::Leaf7Ecx => seven.ecx,
            Register::Leaf7Edx => seven.edx,
        };
        value >> bit & 1 != 0
    };
    for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx &= !OSXSAVE;
    }
    if one.ecx & XSAVE == 0 {
        for entry in entries.iter_mut().filter(|entry| entry.function == LEAF) {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        return;
    }
    let with_feature = COMPONENTS.iter().filter(|(_, features)| features.iter().any(has)).map(|(bits, _)| bits);
    let mut kept = with_feature.fold(LEGACY, |kept, bits| kept | bits);
    if kept & AVX == 0 {
        kept &= !AVX_512;
    }
    let saves = find(entries, LEAF, 1).eax & XSAVES != 0;
    let mask = |low: u32, high: u32| (u64::from(high) << 32 | u64::from(low)) & kept;
    // x87 and SSE, then where each of the others ends.
    let user = find(entries, LEAF, 0);
    let user = mask(user.eax, user.edx);
    let system = find(entries, LEAF, 1);
    let system = if saves { mask(system.ecx, system.edx) } else { 0 };
    let mut end = LEGACY_BYTES;
    for entry in entries.iter_mut().filter(|entry| entry.function == LEAF && entry.index > 1) {
        let component = 1u64.checked_shl(entry.index).unwrap_or(0);
        let is_there = if entry.ecx & SUPERVISOR != 0 { system } else { user } & component != 0;
        if !is_there {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        } else if entry.ecx & SUPERVISOR == 0 {
            end = end.max(entry.ebx.saturating_add(entry.eax));
        }
    }
    let halves = |mask: u64| (mask as u32, (mask >> 32) as u32);
    for entry in entries.iter_mut().filter(|entry| entry.function == LEAF) {
        match entry.index {
            0 => ((entry.eax, entry.edx), entry.ecx) = (halves(user), end),
            1 => {
                (entry.ecx, entry.edx) = halves(system);
                if user & AMX == 0 {
                    entry.eax &= !XFD;
                }
            }
            _ => {}
        }
    }
}
