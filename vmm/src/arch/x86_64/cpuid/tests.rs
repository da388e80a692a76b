//! The model against recorded processors of both vendors, since a test host has only one (docs/untested.md).

use super::*;

const INTEL: &str = include_str!("fixtures/intel-alder-lake.txt");
const AMD: &str = include_str!("fixtures/amd-milan.txt");
const COUNTS: [u32; 6] = [1, 2, 3, 4, 8, 32];

fn recorded(text: &str) -> CpuId {
    let entries: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let hex = |at: usize| u32::from_str_radix(words[at], 16).expect("a number");
            let index = words[1].parse().expect("a subleaf");
            let (eax, ebx, ecx, edx) = (hex(2), hex(3), hex(4), hex(5));
            kvm_cpuid_entry2 { function: hex(0), index, eax, ebx, ecx, edx, ..Default::default() }
        })
        .collect();
    CpuId::from_entries(&entries).expect("few entries")
}

fn processors(count: u32, template: Option<&str>, nested: bool) -> Processors {
    Processors { count, template: Template::find(template).expect("a template"), nested, tsc_deadline: true }
}

fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    let found = cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index));
    *found.unwrap_or_else(|| panic!("leaf {function:#x}, subleaf {index}"))
}

fn leaves(text: &str, count: u32, cpu: u32) -> CpuId {
    processors(count, None, false).leaves(&recorded(text), cpu).expect("few entries")
}

#[test]
fn every_vcpu_of_every_vendor_has_its_own_apic_id_everywhere() {
    for count in COUNTS {
        for cpu in 0..count {
            for text in [INTEL, AMD] {
                let cpuid = leaves(text, count, cpu);
                assert_eq!(leaf(&cpuid, 1, 0).ebx >> 24, cpu);
                for level in 0..3 {
                    assert_eq!(leaf(&cpuid, 0xb, level).edx, cpu);
                }
            }
            assert_eq!(leaf(&leaves(INTEL, count, cpu), 0x1f, 1).edx, cpu);
            let amd = leaf(&leaves(AMD, count, cpu), 0x8000_001e, 0);
            assert_eq!((amd.eax, amd.ebx, amd.ecx), (cpu, cpu, 0), "one thread a core, one node");
        }
    }
}

#[test]
fn the_extended_topology_is_one_thread_a_core_and_all_cores_in_one_package() {
    // By hand: bits of the APIC id that number the cores.
    for (count, bits) in COUNTS.into_iter().zip([0, 1, 2, 2, 3, 5]) {
        for (text, function) in [(INTEL, 0xb), (INTEL, 0x1f), (AMD, 0xb)] {
            let cpuid = leaves(text, count, 0);
            let level = |index| {
                let entry = leaf(&cpuid, function, index);
                (entry.eax, entry.ebx, entry.ecx)
            };
            assert_eq!(level(0), (0, 1, THREADS << 8));
            assert_eq!(level(1), (bits, count, CORES << 8 | 1));
            assert_eq!(level(2), (0, 0, 2), "the end");
        }
    }
    assert!(leaves(AMD, 2, 0).as_slice().iter().all(|entry| entry.function != 0x1f), "this AMD has no leaf 0x1f");
}

#[test]
fn caches_below_the_last_level_are_a_cores_own() {
    for (count, ids) in COUNTS.into_iter().zip([0, 1, 3, 3, 7, 31]) {
        let intel = leaves(INTEL, count, 0);
        for (index, sharing) in [(0, 0), (1, 0), (2, 0), (3, ids)] {
            let eax = leaf(&intel, 4, index).eax;
            assert_eq!((eax >> 14 & 0xfff, eax >> 26), (sharing, ids), "leaf 4, subleaf {index}, {count} vCPUs");
        }
        assert_eq!(leaf(&intel, 4, 4).eax, 0, "no cache, no topology");
        let amd = leaves(AMD, count, 0);
        for (index, sharing) in [(0, 0), (1, 0), (2, 0), (3, count - 1)] {
            assert_eq!(leaf(&amd, 0x8000_001d, index).eax >> 14 & 0xfff, sharing);
        }
    }
}

#[test]
fn counts_of_logical_processors_agree() {
    for (count, bits) in COUNTS.into_iter().zip([0, 1, 2, 2, 3, 5]) {
        for text in [INTEL, AMD] {
            let cpuid = leaves(text, count, 0);
            let one = leaf(&cpuid, 1, 0);
            assert_eq!((one.ebx >> 16 & 0xff, one.edx & MANY != 0), (1 << bits, count > 1));
            assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, bits << 12 | (count - 1));
            assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & CORES_NOT_THREADS != 0, count > 1);
        }
    }
}

#[test]
fn guests_are_offered_guests_of_their_own_only_when_asked() {
    for (text, function, bit) in [(INTEL, 1, VMX), (AMD, 0x8000_0001, SVM)] {
        let supported = recorded(text);
        assert!(can_nest(&supported));
        for nested in [false, true] {
            let cpuid = processors(1, None, nested).leaves(&supported, 0).expect("few entries");
            assert_eq!(leaf(&cpuid, function, 0).ecx & bit != 0, nested);
            assert_eq!(can_nest(&cpuid), nested);
        }
    }
    assert_eq!(leaf(&leaves(AMD, 1, 0), 0x8000_000a, 0).eax, 0);
}

#[test]
fn what_depends_on_the_hosts_counters_is_cut_from_every_machine() {
    assert_eq!(leaf(&leaves(INTEL, 1, 0), 0xa, 0).eax, 0);
    assert_eq!(leaf(&leaves(AMD, 1, 0), 0x8000_0022, 0).eax, 0);
    assert_eq!(leaf(&leaves(AMD, 1, 0), 0x8000_0001, 0).ecx & (3 << 23), 0);
    assert_eq!(leaf(&leaves(INTEL, 1, 0), 1, 0).ecx & (HYPERVISOR | TSC_DEADLINE), HYPERVISOR | TSC_DEADLINE);
}

#[test]
fn a_level_is_the_same_processor_on_both_vendors() {
    const AVX: u32 = 1 << 28;
    const AVX2: u32 = 1 << 5;
    const AVX512F: u32 = 1 << 16;
    for text in [INTEL, AMD] {
        let cut = |template| processors(2, Some(template), false).leaves(&recorded(text), 0).expect("few entries");
        let (v2, v3) = (cut("x86-64-v2"), cut("x86-64-v3"));
        assert_eq!((leaf(&v3, 1, 0).ecx & AVX, leaf(&v3, 7, 0).ebx & (AVX2 | AVX512F)), (AVX, AVX2));
        assert_eq!((leaf(&v2, 1, 0).ecx & AVX, leaf(&v2, 7, 0).ebx & (AVX2 | AVX512F)), (0, 0));
        // States and the bytes that they need: x87 and SSE, and AVX above 512 bytes and a header of 64.
        assert_eq!((leaf(&v3, 0xd, 0).eax, leaf(&v3, 0xd, 0).ecx), (0x7, 512 + 64 + 256));
        assert_eq!((leaf(&v2, 0xd, 0).eax, leaf(&v2, 0xd, 0).ecx), (0x3, 512 + 64));
    }
    let cpuid = processors(1, Some("x86-64-v3"), false).leaves(&recorded(INTEL), 0).expect("few entries");
    assert_eq!((leaf(&cpuid, 0xd, 18).eax, leaf(&cpuid, 0x1d, 0).eax, leaf(&cpuid, 7, 0).edx >> 24 & 3), (0, 0, 0));
    assert_eq!(leaf(&leaves(INTEL, 1, 0), 0xd, 0).ecx, 11_008, "uncut, the area stays as large as the host's");
}

/// What Linux does at boot (`paranoid_xstate_size_valid`, `fpu__init_system_xstate`): components that have a feature, and the end of the
/// last of them.
fn counted_by_linux(cpuid: &CpuId) -> (u32, u32) {
    const COMPONENTS: [(u32, u32, usize, u32); 9] = [
        (2, 1, 2, 28),
        (3, 7, 1, 14),
        (4, 7, 1, 14),
        (5, 7, 1, 16),
        (6, 7, 1, 16),
        (7, 7, 1, 16),
        (9, 7, 2, 3),
        (17, 7, 3, 24),
        (18, 7, 3, 24),
    ];
    let mut counted = (0x3, 576);
    for (component, function, register, bit) in COMPONENTS {
        let of = leaf(cpuid, function, 0);
        if [of.eax, of.ebx, of.ecx, of.edx][register] >> bit & 1 != 0 && leaf(cpuid, 0xd, 0).eax >> component & 1 != 0 {
            let state = leaf(cpuid, 0xd, component);
            counted = (counted.0 | 1 << component, counted.1.max(state.ebx + state.eax));
        }
    }
    counted
}

#[test]
fn the_state_that_is_saved_is_that_of_the_features_that_are_left() {
    // By hand: of one feature each that goes, what is left of the host's states.
    let cut = |text, function, register: fn(&mut kvm_cpuid_entry2) -> &mut u32, bits: u32| {
        let mut entries = recorded(text).as_slice().to_vec();
        for entry in entries.iter_mut().filter(|entry| entry.function == function && entry.index == 0) {
            *register(entry) &= !bits;
        }
        processors(1, None, false).leaves(&CpuId::from_entries(&entries).expect("few"), 0).expect("few entries")
    };
    let cases = [
        ("AVX takes AVX-512 along", cut(INTEL, 1, |entry| &mut entry.ecx, 1 << 28), 0x6_0203),
        ("AVX-512", cut(INTEL, 7, |entry| &mut entry.ebx, 1 << 16), 0x6_0207),
        ("protection keys", cut(INTEL, 7, |entry| &mut entry.ecx, 1 << 3), 0x6_00e7),
        ("AMX", cut(INTEL, 7, |entry| &mut entry.edx, 1 << 24), 0x2e7),
        ("AVX of AMD", cut(AMD, 1, |entry| &mut entry.ecx, 1 << 28), 0x203),
        ("XSAVE", cut(INTEL, 1, |entry| &mut entry.ecx, 1 << 26), 0),
    ];
    for (what, cpuid, states) in cases {
        let (found, bytes) = (leaf(&cpuid, 0xd, 0).eax, leaf(&cpuid, 0xd, 0).ecx);
        assert_eq!(found, states, "{what}");
        if states != 0 {
            assert_eq!((found, bytes), counted_by_linux(&cpuid), "{what}");
        }
        assert_eq!(leaf(&cpuid, 0xd, 2).eax != 0, states & 4 != 0, "{what}: the state's own sub-leaf");
    }
    let without = cut(INTEL, 7, |entry| &mut entry.edx, 1 << 24);
    assert_eq!((leaf(&without, 0xd, 1).eax, leaf(&without, 0xd, 18).eax), (0xf, 0), "no faults on first use");
}

#[test]
fn every_template_says_of_its_state_what_linux_counts() {
    for text in [INTEL, AMD] {
        for name in Template::names() {
            let cpuid = processors(2, Some(name), false).leaves(&recorded(text), 0).expect("few entries");
            let zero = leaf(&cpuid, 0xd, 0);
            assert_eq!((zero.eax, zero.ecx), counted_by_linux(&cpuid), "{name}");
            assert_eq!(
                leaf(&cpuid, 1, 0).ecx & 1 << 27,
                0,
                "{name}: the guest's system turns XSAVE on, nobody before it"
            );
            // KVM on this AMD offers shadow stacks; a host whose KVM does not has no state of theirs.
            let stacks = leaf(&cpuid, 7, 0).ecx >> 7 & 1 != 0;
            if text == AMD {
                assert_eq!(leaf(&cpuid, 0xd, 11).eax != 0, stacks, "{name}");
                assert_eq!(leaf(&cpuid, 0xd, 1).ecx, if stacks { 0x1800 } else { 0 }, "{name}");
            }
        }
    }
}

#[test]
fn a_manifest_can_name_every_template() {
    assert_eq!(Template::names(), labyard_spec::playground::CPU_TEMPLATES);
}
