use super::*;

#[test]
fn every_role_has_a_filter_and_names_of_calls_are_distinct() {
    for role in Role::ALL {
        let filter = compile(role, Otherwise::Kill).expect("compiled");
        assert!(filter.len() < 1000, "{}: {} instructions", role.name(), filter.len());
    }
    let mut names: Vec<_> = CALLS.iter().map(|call| call.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CALLS.len());
}

#[test]
fn a_call_has_conditions_in_all_its_lines_or_in_none() {
    for call in CALLS {
        let same = CALLS.iter().filter(|other| other.number == call.number);
        assert!(same.clone().count() == 1 || same.clone().all(|other| !other.only.is_empty()), "{}", call.name);
    }
}

#[test]
fn what_devices_name_is_there() {
    for device in REGISTRY {
        for name in device.calls {
            assert!(CALLS.iter().any(|call| call.name == *name), "{}: no call {name}", device.name);
        }
    }
}

#[test]
fn nobody_opens_connects_executes_or_makes_a_ring() {
    let never = [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_creat,
        libc::SYS_open_by_handle_at,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_io_uring_setup,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pkey_mprotect,
        libc::SYS_kill,
        libc::SYS_tkill,
    ];
    assert!(CALLS.iter().all(|call| !never.contains(&call.number)));
    for number in [libc::SYS_ioctl, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_prctl, libc::SYS_clone] {
        assert!(CALLS.iter().filter(|call| call.number == number).all(|call| !call.only.is_empty()), "{number}");
    }
    let makes_threads = |call: &Call| [libc::SYS_clone, libc::SYS_clone3, libc::SYS_seccomp].contains(&call.number);
    assert!(CALLS.iter().filter(|call| makes_threads(call)).all(|call| call.roles == [Role::Spawner]));
}

#[test]
fn requests_to_kvm_have_the_numbers_of_its_header() {
    // include/uapi/linux/kvm.h, as strace(1) shows them.
    for (name, number) in [
        ("ioctl:KVM_RUN", 0xae80),
        ("ioctl:KVM_CREATE_VM", 0xae01),
        ("ioctl:KVM_SET_USER_MEMORY_REGION", 0x4020_ae46),
        ("ioctl:KVM_SET_GSI_ROUTING", 0x4008_ae6a),
        ("ioctl:KVM_IRQFD", 0x4020_ae76),
        ("ioctl:KVM_GET_MSRS", 0xc008_ae88),
        ("ioctl:KVM_GET_XSAVE", 0x9000_aea4),
    ] {
        let call = CALLS.iter().find(|call| call.name == name).expect(name);
        assert_eq!(call.only.first().map(|only| only.value), Some(number), "{name}");
    }
}

#[test]
fn the_list_in_the_documents_is_what_is_filtered() {
    let told = include_str!("../../../docs/seccomp.json");
    assert!(
        told == list::text(),
        "docs/seccomp.json is old: cargo run -p labyard-vmm --example calls > docs/seccomp.json"
    );
}

#[test]
fn who_is_said_to_be_unseen_may_make_the_call() {
    for (name, roles, why) in UNSEEN {
        let call = CALLS.iter().find(|call| call.name == *name).unwrap_or_else(|| panic!("no call {name}"));
        assert!(roles.iter().all(|role| call.is_made_by(*role)), "{name}: {why}");
    }
}
