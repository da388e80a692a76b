//! What a vCPU says about itself: the host's features as KVM supports them, and a topology of one core per vCPU.
//!
//! Leaves as in the Intel SDM, volume 2A, CPUID, and the AMD64 APM, volume 3, appendix E.

use kvm_bindings::CpuId;

/// Leaf 1, ECX: timer interrupts at a TSC value; bit 31: a hypervisor is there.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;

/// Leaf 1, ECX: VMX. Leaf 0x80000001, ECX: SVM. A guest does not run guests of its own: nested virtualization is the part of
/// KVM where most has gone wrong, and a distribution's udev loads kvm_amd or kvm_intel wherever it sees the bit.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;

/// Changes the supported leaves to those of vCPU `cpu` of `count`.
pub fn for_vcpu(cpuid: &mut CpuId, cpu: u32, count: u32, tsc_deadline: bool) {
    let core_bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                // EBX: APIC id, logical processors, CLFLUSH size and brand as they are.
                entry.ebx = entry.ebx & 0xffff | count.min(0xff) << 16 | cpu << 24;
                entry.ecx = entry.ecx & !VMX | HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                // HTT: more than one logical processor in the package.
                entry.edx = if count > 1 { entry.edx | 1 << 28 } else { entry.edx & !(1 << 28) };
            }
            // Cache sharing: each core has its own, the last level is everybody's.
            0x4 if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 { count - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing.min(0xfff) << 14 | (count - 1).min(0x3f) << 26;
            }
            0xb | 0x1f => {
                // Level 0: one thread a core. Level 1: the cores.
                let (shift, processors, kind) = match entry.index {
                    0 => (0, 1, 1),
                    1 => (core_bits, count, 2),
                    _ => (0, 0, 0),
                };
                entry.eax = shift;
                entry.ebx = processors;
                entry.ecx = kind << 8 | entry.index;
                entry.edx = cpu;
            }
            0x8000_0001 => entry.ecx &= !SVM,
            // What SVM can do, where there is none.
            0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // AMD: cores of the package, and bits of the APIC id that number them.
            0x8000_0008 => entry.ecx = core_bits << 12 | (count - 1),
            0x8000_001e => {
                entry.eax = cpu;
                entry.ebx = cpu;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn guests_are_not_offered_guests_of_their_own() {
        let entries: Vec<_> = [1, 0x8000_0001, 0x8000_000a]
            .map(|function| kvm_cpuid_entry2 { function, eax: !0, ebx: !0, ecx: !0, edx: !0, ..Default::default() })
            .into();
        let mut cpuid = CpuId::from_entries(&entries).expect("three entries");
        for_vcpu(&mut cpuid, 0, 1, true);
        let [one, extended, svm] = cpuid.as_slice() else { panic!("three entries") };
        assert_eq!((one.ecx & VMX, extended.ecx & SVM, svm.eax | svm.ebx | svm.edx), (0, 0, 0));
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_and_all_agree_on_the_topology() {
        let leaves = [(1, 0), (0xb, 0), (0xb, 1), (0x8000_0008, 0)];
        let entries: Vec<_> =
            leaves.map(|(function, index)| kvm_cpuid_entry2 { function, index, ..Default::default() }).into();
        for cpu in 0..3 {
            let mut cpuid = CpuId::from_entries(&entries).expect("four entries");
            for_vcpu(&mut cpuid, cpu, 3, true);
            let [one, threads, cores, amd] = cpuid.as_slice() else { panic!("four entries") };
            assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.ecx >> 31), (cpu, 3, 1));
            assert_eq!((threads.eax, threads.ebx, threads.edx), (0, 1, cpu));
            assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, cpu));
            assert_eq!(amd.ecx, 2 << 12 | 2);
        }
    }
}
