//! What a vCPU says about itself: what KVM supports on this host, cut by a template, with a topology of one thread a core and
//! all cores in one package.
//!
//! Leaves as in the Intel SDM, volume 2A, CPUID, and the AMD64 APM, volume 3, appendix E.

mod template;
mod xstate;

pub use template::{Template, TemplateError};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1, ECX: timer interrupts at a TSC value; bit 31: a hypervisor is there. EDX: more than one logical processor.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const MANY: u32 = 1 << 28;

/// Leaf 1, ECX: VMX. Leaf 0x80000001, ECX: SVM. Without being asked to, a guest does not run guests of its own: nested
/// virtualization is the part of KVM where most has gone wrong, and a distribution's udev loads kvm_amd or kvm_intel wherever
/// it sees the bit.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Leaf 0x80000001, ECX, of AMD: the package has several cores that are no threads.
const CORES_NOT_THREADS: u32 = 1 << 1;

/// An entry's index counts (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
const INDEXED: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
/// Extended topology, first and second version (Intel SDM, tables 3-8): level types.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
const THREADS: u32 = 1;
const CORES: u32 = 2;

/// The processors of one machine.
#[derive(Debug, Clone)]
pub struct Processors {
    /// How many.
    pub count: u32,
    /// What is cut.
    pub template: &'static Template,
    /// They can run guests of their own.
    pub nested: bool,
    /// Their local APICs have a TSC deadline timer.
    pub tsc_deadline: bool,
}

/// Whether guests on this host can run guests of their own.
pub fn can_nest(supported: &CpuId) -> bool {
    supported.as_slice().iter().any(|entry| match entry.function {
        0x1 => entry.ecx & VMX != 0,
        0x8000_0001 => entry.ecx & SVM != 0,
        _ => false,
    })
}

/// Registers whose bits are features, by leaf; of other leaves a guest learns sizes and names (Intel SDM 2A, AMD64 APM 3).
const FEATURES: [(u32, [bool; 4]); 6] = [
    (0x1, [false, false, true, true]),
    (0x7, [false, true, true, true]),
    (0xd, [true, false, false, true]),
    (0x8000_0001, [false, false, true, true]),
    (0x8000_0008, [false, true, false, false]),
    (0x4000_0001, [true, false, false, false]),
];

/// What a guest that was started with `leaves` makes use of and this host does not have.
pub fn lacking(leaves: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Option<String> {
    leaves.iter().find_map(|leaf| {
        let (_, counted) = FEATURES.iter().find(|(function, _)| *function == leaf.function)?;
        // Sub-leaves of leaf 0xd beyond the second are sizes.
        if leaf.function == 0xd && leaf.index > 1 {
            return None;
        }
        let host = supported.iter().find(|host| (host.function, host.index) == (leaf.function, leaf.index));
        let host = host.map_or([0; 4], |host| [host.eax, host.ebx, host.ecx, host.edx]);
        let ours = if leaf.function == 1 { [0, 0, HYPERVISOR | TSC_DEADLINE, MANY] } else { [0; 4] };
        let cores = if leaf.function == 0x8000_0001 { CORES_NOT_THREADS } else { 0 };
        let registers = [("eax", leaf.eax), ("ebx", leaf.ebx), ("ecx", leaf.ecx & !cores), ("edx", leaf.edx)];
        registers.into_iter().zip(counted).zip(host.into_iter().zip(ours)).find_map(
            |(((name, value), counted), (host, ours))| {
                let missing = value & !(host | ours);
                let (function, index) = (leaf.function, leaf.index);
                (*counted && missing != 0)
                    .then(|| format!("this one lacks bits {missing:#x} of {name} of CPUID leaf {function:#x}.{index}"))
            },
        )
    })
}

impl Processors {
    /// The leaves of vCPU `cpu`, from those that KVM supports. `None` where they are more than KVM takes.
    pub fn leaves(&self, supported: &CpuId, cpu: u32) -> Option<CpuId> {
        let mut entries: Vec<_> =
            supported.as_slice().iter().filter(|entry| !TOPOLOGY.contains(&entry.function)).copied().collect();
        for entry in &mut entries {
            self.change(entry, cpu);
        }
        template::base().apply(&mut entries);
        self.template.apply(&mut entries);
        xstate::follow(&mut entries);
        // KVM tells whether these leaves are there, but not what is in them: that is ours alone.
        for function in TOPOLOGY {
            if supported.as_slice().iter().any(|entry| entry.function == function) {
                entries.extend(self.topology(function, cpu));
            }
        }
        CpuId::from_entries(&entries).ok()
    }

    /// Bits of an APIC id that number the cores.
    fn core_bits(&self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }

    fn change(&self, entry: &mut kvm_cpuid_entry2, cpu: u32) {
        let count = self.count;
        match entry.function {
            0x1 => {
                // EBX: APIC id, logical processors, CLFLUSH size and brand as they are.
                entry.ebx = entry.ebx & 0xffff | count.next_power_of_two().min(0xff) << 16 | cpu << 24;
                entry.ecx |= HYPERVISOR;
                if !self.nested {
                    entry.ecx &= !VMX;
                }
                if self.tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                entry.edx = if count > 1 { entry.edx | MANY } else { entry.edx & !MANY };
            }
            // Intel: ids that share a cache, in bits 25..14, and ids of cores in the package, both rounded up to a power of two.
            0x4 if entry.eax & 0x1f != 0 => {
                let ids = count.next_power_of_two().saturating_sub(1);
                let sharing = if is_last_level(entry) { ids.min(0xfff) } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | ids.min(0x3f) << 26;
            }
            // AMD: processors that share a cache.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if is_last_level(entry) { count.saturating_sub(1).min(0xfff) } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            0x8000_0001 => {
                if !self.nested {
                    entry.ecx &= !SVM;
                }
                entry.ecx = if count > 1 { entry.ecx | CORES_NOT_THREADS } else { entry.ecx & !CORES_NOT_THREADS };
            }
            // What SVM can do, where there is none.
            0x8000_000a if !self.nested => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // AMD: cores of the package, and bits of the APIC id that number them.
            0x8000_0008 => entry.ecx = self.core_bits() << 12 | count.saturating_sub(1) & 0xff,
            // AMD: APIC id; core and its threads less one; node and the package's nodes less one.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (cpu, cpu & 0xff, 0),
            _ => {}
        }
    }

    /// Level 0: one thread a core. Level 1: the cores. Level 2: none, the end.
    fn topology(&self, function: u32, cpu: u32) -> [kvm_cpuid_entry2; 3] {
        let levels = [(0, 1, THREADS), (self.core_bits(), self.count, CORES), (0, 0, 0)];
        let mut index = 0;
        levels.map(|(shift, processors, kind)| {
            let entry = kvm_cpuid_entry2 {
                function,
                index,
                flags: INDEXED,
                eax: shift,
                ebx: processors,
                ecx: kind << 8 | index,
                edx: cpu,
                ..Default::default()
            };
            index += 1;
            entry
        })
    }
}

/// Caches of level 3 and above are everybody's, those below a core's own (leaves 4 and 0x8000001d, EAX bits 7..5).
fn is_last_level(entry: &kvm_cpuid_entry2) -> bool {
    entry.eax >> 5 & 7 >= 3
}

#[cfg(test)]
mod tests;
