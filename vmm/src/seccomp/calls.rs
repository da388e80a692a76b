//! Which role may make which system call, as data. Devices of the registry name what they need by [`Call::name`], and every role that
//! works for devices has it.
//!
//! A line here is one rule. A call with conditions is allowed by any of its lines.

use kvm_bindings as kvm;
use libc::c_long;
use vmm_sys_util::ioctl::{_IOC_NONE as NONE, _IOC_READ as READ, _IOC_WRITE as WRITE, ioctl_expr};

use super::Role::{self, Control, Io, Machine, Main, Spawner, Vcpu};

/// A system call that some roles may make.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its name; behind a colon what its condition is.
    pub name: &'static str,
    /// Its number.
    pub number: c_long,
    /// All that has to hold, if not only the number counts.
    pub only: &'static [Only],
    /// Who may make it, beside those who work for devices that need it.
    pub roles: &'static [Role],
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy)]
pub struct Only {
    /// Which argument, from 0.
    pub argument: u8,
    /// These bits of it count.
    pub mask: u64,
    /// And are this.
    pub value: u64,
}

impl Only {
    /// Whether it holds for these arguments.
    pub fn holds(&self, arguments: &[u64]) -> bool {
        arguments.get(usize::from(self.argument)).is_some_and(|value| value & self.mask == self.value)
    }
}

/// Everybody.
const ALL: &[Role] = &Role::ALL;
/// All threads that the spawner makes.
const MADE: &[Role] = &[Control, Machine, Io, Vcpu];

/// The flags with which glibc makes a thread (clone(2); nptl/pthread_create.c): a process of its own it cannot be.
const THREAD: u64 = int(libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID);
/// SECCOMP_SET_MODE_FILTER (seccomp(2)).
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// Makes a socket wait or not (ioctl(2)).
const FIONBIO: u64 = libc::FIONBIO;
/// The signal that glibc's SIGRTMIN is: it keeps two for itself (signal(7)).
const WAKE: u64 = 34;
/// Which files a ring works on, and nothing else of it.
const FILES_UPDATE: u64 = labyard_sys::uring::REGISTER_FILES_UPDATE as u64;

/// A number that the kernel takes as an int: 32 bits count.
const fn int(value: libc::c_int) -> u64 {
    value as u32 as u64
}

/// A request to KVM.
const fn kvm(direction: u32, number: u32, size: usize) -> u64 {
    ioctl_expr(direction, kvm::KVMIO, number, size as u32) as u64
}

const fn plain(name: &'static str, number: c_long, roles: &'static [Role]) -> Call {
    Call { name, number, only: &[], roles }
}

const fn when(name: &'static str, number: c_long, only: &'static [Only], roles: &'static [Role]) -> Call {
    Call { name, number, only, roles }
}

/// The argument is this number of 32 bits.
const fn is(argument: u8, value: u64) -> Only {
    Only { argument, mask: u32::MAX as u64, value }
}

/// The argument has none of these bits.
const fn lacks(argument: u8, bits: u64) -> Only {
    Only { argument, mask: bits, value: 0 }
}

/// All of them.
#[rustfmt::skip]
pub const CALLS: &[Call] = &[
    // What the C library and Rust's do anywhere: locks, memory, signals, the end of a thread.
    plain("futex", libc::SYS_futex, ALL),
    plain("write", libc::SYS_write, ALL),
    plain("writev", libc::SYS_writev, ALL),
    plain("close", libc::SYS_close, ALL),
    plain("munmap", libc::SYS_munmap, ALL),
    plain("brk", libc::SYS_brk, ALL),
    plain("rt_sigprocmask", libc::SYS_rt_sigprocmask, ALL),
    plain("rt_sigreturn", libc::SYS_rt_sigreturn, ALL),
    plain("restart_syscall", libc::SYS_restart_syscall, ALL),
    plain("sigaltstack", libc::SYS_sigaltstack, ALL),
    plain("exit", libc::SYS_exit, MADE),
    plain("exit_group", libc::SYS_exit_group, ALL),
    plain("gettid", libc::SYS_gettid, ALL),
    plain("getpid", libc::SYS_getpid, ALL),
    plain("clock_gettime", libc::SYS_clock_gettime, ALL),
    plain("getrandom", libc::SYS_getrandom, ALL),
    plain("sched_yield", libc::SYS_sched_yield, ALL),
    when("mmap:no PROT_EXEC", libc::SYS_mmap, &[lacks(2, int(libc::PROT_EXEC))], ALL),
    when("mprotect:no PROT_EXEC", libc::SYS_mprotect, &[lacks(2, int(libc::PROT_EXEC))], ALL),
    when("mremap:MREMAP_MAYMOVE", libc::SYS_mremap, &[is(3, int(libc::MREMAP_MAYMOVE))], ALL),
    when("madvise:MADV_DONTNEED", libc::SYS_madvise, &[is(2, int(libc::MADV_DONTNEED))], ALL),
    when("fcntl:F_GETFD", libc::SYS_fcntl, &[is(1, int(libc::F_GETFD))], ALL),
    when("rt_sigaction:SIGSEGV", libc::SYS_rt_sigaction, &[is(0, int(libc::SIGSEGV))], ALL),
    when("rt_sigaction:SIGBUS", libc::SYS_rt_sigaction, &[is(0, int(libc::SIGBUS))], ALL),
    when("rt_sigaction:SIGABRT", libc::SYS_rt_sigaction, &[is(0, int(libc::SIGABRT))], ALL),
    when("tgkill:SIGABRT", libc::SYS_tgkill, &[is(2, int(libc::SIGABRT))], ALL),
    // Making threads, which then take on the filter of their role.
    when("clone:a thread", libc::SYS_clone, &[is(0, THREAD)], &[Spawner]),
    plain("clone3", libc::SYS_clone3, &[Spawner]),
    plain("set_robust_list", libc::SYS_set_robust_list, &[Spawner]),
    plain("rseq", libc::SYS_rseq, &[Spawner]),
    plain("sched_getaffinity", libc::SYS_sched_getaffinity, &[Spawner]),
    when("prctl:PR_SET_NAME", libc::SYS_prctl, &[is(0, int(libc::PR_SET_NAME))], &[Spawner]),
    when("prctl:PR_SET_NO_NEW_PRIVS", libc::SYS_prctl, &[is(0, int(libc::PR_SET_NO_NEW_PRIVS)), is(1, 1)], &[Spawner]),
    when("seccomp:SECCOMP_SET_MODE_FILTER without flags", libc::SYS_seccomp, &[is(0, SECCOMP_SET_MODE_FILTER), is(1, 0)], &[Spawner]),
    // The control socket.
    plain("accept4", libc::SYS_accept4, &[Main]),
    plain("recvmsg", libc::SYS_recvmsg, &[Control]),
    plain("sendmsg", libc::SYS_sendmsg, &[Control]),
    // Of any other family the kernel would load a module and make a socket before it says that there are no pairs of it.
    when("socketpair:AF_UNIX stream", libc::SYS_socketpair, &[is(0, int(libc::AF_UNIX)), is(1, int(libc::SOCK_STREAM | libc::SOCK_CLOEXEC)), is(2, 0)], &[Control]),
    plain("ppoll", libc::SYS_ppoll, &[Control]),
    plain("shutdown", libc::SYS_shutdown, &[Control]),
    plain("recvfrom", libc::SYS_recvfrom, &[Control]),
    plain("sendto", libc::SYS_sendto, &[Control]),
    // Descriptors that are not opened but made or copied.
    plain("eventfd2", libc::SYS_eventfd2, &[Control, Machine]),
    plain("epoll_create1", libc::SYS_epoll_create1, &[Control, Machine]),
    plain("timerfd_create", libc::SYS_timerfd_create, &[Control, Machine]),
    when("fcntl:F_DUPFD_CLOEXEC", libc::SYS_fcntl, &[is(1, int(libc::F_DUPFD_CLOEXEC))], &[Control, Machine]),
    when("fcntl:F_GETFL", libc::SYS_fcntl, &[is(1, int(libc::F_GETFL))], &[Control]),
    plain("flock", libc::SYS_flock, &[Control]),
    plain("memfd_create", libc::SYS_memfd_create, &[Machine]),
    when("ioctl:FIONBIO", libc::SYS_ioctl, &[is(1, FIONBIO)], &[]),
    // Waiting for events.
    plain("read", libc::SYS_read, MADE),
    plain("epoll_ctl", libc::SYS_epoll_ctl, MADE),
    plain("epoll_wait", libc::SYS_epoll_wait, MADE),
    plain("timerfd_settime", libc::SYS_timerfd_settime, MADE),
    // Files.
    when("statx:AT_EMPTY_PATH", libc::SYS_statx, &[is(2, int(libc::AT_EMPTY_PATH))], &[Control, Machine]),
    plain("lseek", libc::SYS_lseek, &[Control, Machine]),
    plain("pread64", libc::SYS_pread64, &[Control, Machine]),
    plain("preadv", libc::SYS_preadv, &[Control, Machine]),
    plain("pwrite64", libc::SYS_pwrite64, &[Control, Machine]),
    plain("pwritev", libc::SYS_pwritev, &[Control, Machine]),
    plain("ftruncate", libc::SYS_ftruncate, &[Control, Machine]),
    plain("fallocate", libc::SYS_fallocate, &[Control, Machine]),
    plain("fdatasync", libc::SYS_fdatasync, &[Control, Machine]),
    plain("fsync", libc::SYS_fsync, &[Control, Machine]),
    plain("io_uring_enter", libc::SYS_io_uring_enter, &[Control, Machine]),
    when("io_uring_register:IORING_REGISTER_FILES_UPDATE", libc::SYS_io_uring_register, &[is(1, FILES_UPDATE)], &[Control, Machine]),
    // Guest memory.
    when("madvise:MADV_HUGEPAGE", libc::SYS_madvise, &[is(2, int(libc::MADV_HUGEPAGE))], &[Machine]),
    when("madvise:MADV_NOHUGEPAGE", libc::SYS_madvise, &[is(2, int(libc::MADV_NOHUGEPAGE))], &[]),
    // KVM (Linux, Documentation/virt/kvm/api.rst): the system, a machine, a vCPU.
    when("ioctl:KVM_RUN", libc::SYS_ioctl, &[is(1, kvm(NONE, 0x80, 0))], &[Vcpu]),
    when("ioctl:KVM_CREATE_VM", libc::SYS_ioctl, &[is(1, kvm(NONE, 0x1, 0))], &[Machine]),
    when("ioctl:KVM_CHECK_EXTENSION", libc::SYS_ioctl, &[is(1, kvm(NONE, 0x3, 0))], &[Control, Machine]),
    when("ioctl:KVM_GET_VCPU_MMAP_SIZE", libc::SYS_ioctl, &[is(1, kvm(NONE, 0x4, 0))], &[Machine]),
    when("ioctl:KVM_CREATE_VCPU", libc::SYS_ioctl, &[is(1, kvm(NONE, 0x41, 0))], &[Machine]),
    when("ioctl:KVM_SET_USER_MEMORY_REGION", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x46, size_of::<kvm::kvm_userspace_memory_region>()))], &[Machine]),
    when("ioctl:KVM_SET_TSS_ADDR", libc::SYS_ioctl, &[is(1, kvm(NONE, 0x47, 0))], &[Machine]),
    when("ioctl:KVM_SET_IDENTITY_MAP_ADDR", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x48, 8))], &[Machine]),
    when("ioctl:KVM_SET_GSI_ROUTING", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x6a, size_of::<kvm::kvm_irq_routing>()))], &[Machine, Vcpu]),
    when("ioctl:KVM_IRQFD", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x76, size_of::<kvm::kvm_irqfd>()))], &[Machine]),
    when("ioctl:KVM_IOEVENTFD", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x79, size_of::<kvm::kvm_ioeventfd>()))], &[Machine]),
    when("ioctl:KVM_SET_CLOCK", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x7b, size_of::<kvm::kvm_clock_data>()))], &[Machine]),
    when("ioctl:KVM_GET_CLOCK", libc::SYS_ioctl, &[is(1, kvm(READ, 0x7c, size_of::<kvm::kvm_clock_data>()))], &[Machine]),
    when("ioctl:KVM_ENABLE_CAP", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0xa3, size_of::<kvm::kvm_enable_cap>()))], &[Machine]),
    when("ioctl:KVM_GET_REGS", libc::SYS_ioctl, &[is(1, kvm(READ, 0x81, size_of::<kvm::kvm_regs>()))], &[Vcpu]),
    when("ioctl:KVM_SET_REGS", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x82, size_of::<kvm::kvm_regs>()))], &[Machine]),
    when("ioctl:KVM_GET_SREGS", libc::SYS_ioctl, &[is(1, kvm(READ, 0x83, size_of::<kvm::kvm_sregs>()))], &[Machine, Vcpu]),
    when("ioctl:KVM_SET_SREGS", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x84, size_of::<kvm::kvm_sregs>()))], &[Machine]),
    when("ioctl:KVM_GET_MSRS", libc::SYS_ioctl, &[is(1, kvm(READ | WRITE, 0x88, size_of::<kvm::kvm_msrs>()))], &[Vcpu]),
    when("ioctl:KVM_SET_MSRS", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x89, size_of::<kvm::kvm_msrs>()))], &[Machine]),
    when("ioctl:KVM_GET_LAPIC", libc::SYS_ioctl, &[is(1, kvm(READ, 0x8e, size_of::<kvm::kvm_lapic_state>()))], &[Machine, Vcpu]),
    when("ioctl:KVM_SET_LAPIC", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x8f, size_of::<kvm::kvm_lapic_state>()))], &[Machine]),
    when("ioctl:KVM_SET_CPUID2", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x90, size_of::<kvm::kvm_cpuid2>()))], &[Machine]),
    when("ioctl:KVM_GET_MP_STATE", libc::SYS_ioctl, &[is(1, kvm(READ, 0x98, size_of::<kvm::kvm_mp_state>()))], &[Vcpu]),
    when("ioctl:KVM_SET_MP_STATE", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0x99, size_of::<kvm::kvm_mp_state>()))], &[Machine]),
    when("ioctl:KVM_GET_VCPU_EVENTS", libc::SYS_ioctl, &[is(1, kvm(READ, 0x9f, size_of::<kvm::kvm_vcpu_events>()))], &[Vcpu]),
    when("ioctl:KVM_SET_VCPU_EVENTS", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0xa0, size_of::<kvm::kvm_vcpu_events>()))], &[Machine]),
    when("ioctl:KVM_GET_DEBUGREGS", libc::SYS_ioctl, &[is(1, kvm(READ, 0xa1, size_of::<kvm::kvm_debugregs>()))], &[Vcpu]),
    when("ioctl:KVM_SET_DEBUGREGS", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0xa2, size_of::<kvm::kvm_debugregs>()))], &[Machine]),
    when("ioctl:KVM_SET_TSC_KHZ", libc::SYS_ioctl, &[is(1, kvm(NONE, 0xa2, 0))], &[Machine]),
    when("ioctl:KVM_GET_TSC_KHZ", libc::SYS_ioctl, &[is(1, kvm(NONE, 0xa3, 0))], &[Machine, Vcpu]),
    when("ioctl:KVM_GET_XSAVE", libc::SYS_ioctl, &[is(1, kvm(READ, 0xa4, size_of::<kvm::kvm_xsave>()))], &[Vcpu]),
    when("ioctl:KVM_SET_XSAVE", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0xa5, size_of::<kvm::kvm_xsave>()))], &[Machine]),
    when("ioctl:KVM_GET_XCRS", libc::SYS_ioctl, &[is(1, kvm(READ, 0xa6, size_of::<kvm::kvm_xcrs>()))], &[Vcpu]),
    when("ioctl:KVM_SET_XCRS", libc::SYS_ioctl, &[is(1, kvm(WRITE, 0xa7, size_of::<kvm::kvm_xcrs>()))], &[Machine]),
    when("ioctl:KVM_KVMCLOCK_CTRL", libc::SYS_ioctl, &[is(1, kvm(NONE, 0xad, 0))], &[Vcpu]),
    // Bringing a vCPU out of its guest.
    when("tgkill:SIGRTMIN", libc::SYS_tgkill, &[is(2, WAKE)], &[Machine]),
];

// Why a role may make calls that it was never seen to make.
const HEAP: &str = "any thread may be the one whose allocation makes the heap grow, shrink or move";
const CLOCK: &str = "where the host's clock is not one that programs can read, the vDSO asks the kernel";
const LAST: &str = "what is logged, or the last handle of something, whichever thread that falls to";
const DEVICES: &str =
    "a device's work falls to this thread when a driver starts or resets it, when it stops, or with its last handle";
const END: &str = "a fault or an abort: the process ends, and says why";
const DEBUG: &str = "what is built for debugging looks at a descriptor before it closes it";
const KEYS: &str = "the first table with random keys on a thread";
const ASKS: &str = "kvm-ioctls asks what KVM can before it takes some requests";
const TSC: &str = "the host's TSC runs at another rate than the one where it was saved";
const HOLES: &str = "where data and holes of a file begin, when a drive is looked at";
const STOP: &str = "the kernel goes on by it with a wait that a stop has interrupted";
const CHANNEL: &str = "a channel's other end is in the middle of something";

/// Calls that roles were never seen to make when they were traced (`tools/trace-calls`), and why they may.
#[rustfmt::skip]
pub const UNSEEN: &[(&str, &[Role], &str)] = &[
    ("brk", &[Spawner], HEAP),
    ("madvise:MADV_DONTNEED", &[Main, Spawner], HEAP),
    ("mremap:MREMAP_MAYMOVE", ALL, HEAP),
    ("munmap", &[Main, Spawner], HEAP),
    ("clock_gettime", ALL, CLOCK),
    ("close", &[Main, Spawner], LAST),
    ("write", &[Main, Spawner], LAST),
    ("epoll_create1", &[Io], DEVICES),
    ("epoll_wait", &[Control, Vcpu], DEVICES),
    ("fallocate", &[Machine, Vcpu], DEVICES),
    ("fdatasync", &[Vcpu], DEVICES),
    ("fsync", &[Machine, Vcpu], DEVICES),
    ("flock", &[Io, Vcpu], DEVICES),
    ("ftruncate", &[Io, Vcpu], DEVICES),
    ("io_uring_enter", &[Control, Vcpu], DEVICES),
    ("io_uring_register:IORING_REGISTER_FILES_UPDATE", &[Io, Vcpu], DEVICES),
    ("ioctl:FIONBIO", &[Machine, Vcpu], DEVICES),
    ("madvise:MADV_NOHUGEPAGE", &[Machine, Vcpu], DEVICES),
    ("pread64", &[Io, Vcpu], DEVICES),
    ("preadv", &[Control, Vcpu], DEVICES),
    ("pwrite64", &[Vcpu], DEVICES),
    ("pwritev", &[Control, Vcpu], DEVICES),
    ("read", &[Control], DEVICES),
    ("recvfrom", &[Machine, Vcpu], DEVICES),
    ("sendto", &[Machine, Vcpu], DEVICES),
    ("shutdown", &[Control, Machine, Vcpu], DEVICES),
    ("socketpair:AF_UNIX stream", &[Machine, Vcpu], DEVICES),
    ("statx:AT_EMPTY_PATH", &[Vcpu], DEVICES),
    ("timerfd_create", &[Io], DEVICES),
    ("timerfd_settime", &[Machine, Vcpu], DEVICES),
    ("exit_group", &[Main, Spawner, Io, Vcpu], END),
    ("getpid", &[Spawner, Control, Io, Vcpu], END),
    ("gettid", &[Main], END),
    ("rt_sigaction:SIGABRT", ALL, END),
    ("rt_sigaction:SIGBUS", &[Spawner, Control, Io, Vcpu], END),
    ("rt_sigaction:SIGSEGV", &[Spawner, Control, Io, Vcpu], END),
    ("rt_sigreturn", &[Main, Spawner, Control, Machine, Io], END),
    ("tgkill:SIGABRT", ALL, END),
    ("writev", ALL, END),
    ("fcntl:F_GETFD", ALL, DEBUG),
    ("getrandom", &[Spawner, Vcpu], KEYS),
    ("ioctl:KVM_CHECK_EXTENSION", &[Machine], ASKS),
    ("ioctl:KVM_SET_TSC_KHZ", &[Machine], TSC),
    ("lseek", &[Control], HOLES),
    ("restart_syscall", ALL, STOP),
    ("sched_yield", ALL, CHANNEL),
];
