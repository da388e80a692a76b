//! Ways out that a program may try which has been taken over. For tests of the jail: each is one system call, or two, with which a
//! process could reach what is not its own. None does harm where it is not refused.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use libc::{c_int, c_long, c_ulong};

/// One way.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Where it leads.
    pub group: &'static str,
    /// What is tried.
    pub what: &'static str,
    /// Tries it; what the kernel says.
    pub run: fn() -> io::Result<i64>,
}

/// The value of a key that a test may have put into the session keyring of whoever starts the jail.
pub const KEY: &str = "labyard-test-key";
/// The key of a segment of shared memory that it may have made.
pub const SEGMENT: c_int = 0x1ab;

macro_rules! call {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        // SAFETY: pointers among the arguments are to constants, C strings or values that live past the call, of the kernel's
        // layout, or null, which the kernel refuses; nothing that the process uses is changed where the kernel agrees.
        let result = unsafe { libc::syscall($number $(, $argument)*) };
        said(result)
    }};
}

fn said(result: c_long) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// All of them, by group.
pub const ATTEMPTS: &[Attempt] = &[
    Attempt { group: "files", what: "open /etc/passwd", run: || open(c"/etc/passwd", libc::O_RDONLY) },
    Attempt { group: "files", what: "open ../../etc/passwd", run: || open(c"../../etc/passwd", libc::O_RDONLY) },
    Attempt { group: "files", what: "list the root", run: || open(c"/", libc::O_RDONLY | libc::O_DIRECTORY) },
    Attempt { group: "files", what: "make a file", run: || open(c"/file", libc::O_RDWR | libc::O_CREAT) },
    Attempt { group: "files", what: "make a nameless file", run: || open(c"/", libc::O_RDWR | libc::O_TMPFILE) },
    Attempt { group: "files", what: "make a folder", run: || call!(libc::SYS_mkdir, c"/folder".as_ptr(), 0o700) },
    Attempt { group: "files", what: "make a device node", run: node },
    Attempt { group: "files", what: "open by handle", run: by_handle },
    Attempt { group: "files", what: "change the root", run: || call!(libc::SYS_chroot, c"/".as_ptr()) },
    Attempt { group: "files", what: "run /bin/sh", run: execute },
    Attempt { group: "/proc", what: "open /proc/self/status", run: || open(c"/proc/self/status", libc::O_RDONLY) },
    Attempt { group: "/proc", what: "open /proc/1/mem", run: || open(c"/proc/1/mem", libc::O_RDWR) },
    Attempt { group: "/proc", what: "open /proc/self/fd/2", run: || open(c"/proc/self/fd/2", libc::O_RDWR) },
    Attempt { group: "/proc", what: "open /sys/kernel", run: || open(c"/sys/kernel", libc::O_RDONLY) },
    Attempt { group: "devices", what: "open /dev/kvm", run: || open(c"/dev/kvm", libc::O_RDWR) },
    Attempt { group: "devices", what: "open /dev/net/tun", run: || open(c"/dev/net/tun", libc::O_RDWR) },
    Attempt { group: "devices", what: "open /dev/mem", run: || open(c"/dev/mem", libc::O_RDWR) },
    Attempt { group: "mounts", what: "mount a tmpfs", run: || mount(c"tmpfs", 0) },
    Attempt { group: "mounts", what: "mount proc", run: || mount(c"proc", 0) },
    Attempt { group: "mounts", what: "make the root writable", run: || mount(c"tmpfs", libc::MS_REMOUNT) },
    Attempt {
        group: "mounts",
        what: "unmount the root",
        run: || call!(libc::SYS_umount2, c"/".as_ptr(), libc::MNT_DETACH),
    },
    Attempt { group: "mounts", what: "pivot_root", run: || call!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) },
    Attempt { group: "mounts", what: "open_tree", run: open_tree },
    Attempt { group: "mounts", what: "fsopen", run: || call!(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0) },
    Attempt { group: "namespaces", what: "a new user namespace", run: || unshare(libc::CLONE_NEWUSER) },
    Attempt { group: "namespaces", what: "a new mount namespace", run: || unshare(libc::CLONE_NEWNS) },
    Attempt { group: "namespaces", what: "a new network namespace", run: || unshare(libc::CLONE_NEWNET) },
    Attempt { group: "namespaces", what: "a new pid namespace", run: || unshare(libc::CLONE_NEWPID) },
    Attempt { group: "namespaces", what: "enter a process's namespaces", run: enter_own },
    Attempt { group: "sockets", what: "connect to 127.0.0.1", run: || connect([127, 0, 0, 1]) },
    Attempt { group: "sockets", what: "connect to another host", run: || connect([192, 0, 2, 1]) },
    Attempt { group: "sockets", what: "send to another host", run: send },
    Attempt { group: "sockets", what: "connect to a socket file", run: || connect_unix(b"/run/systemd/private") },
    Attempt { group: "sockets", what: "connect to an abstract socket", run: || connect_unix(b"\0labyard-test") },
    Attempt { group: "sockets", what: "a packet socket", run: || socket(libc::AF_PACKET, libc::SOCK_RAW) },
    Attempt { group: "sockets", what: "a raw socket", run: || socket(libc::AF_INET, libc::SOCK_RAW) },
    Attempt { group: "processes", what: "signal everybody", run: || call!(libc::SYS_kill, -1, 0) },
    Attempt { group: "processes", what: "signal process 2", run: || call!(libc::SYS_kill, 2, 0) },
    Attempt { group: "processes", what: "hold process 2", run: || call!(libc::SYS_pidfd_open, 2, 0) },
    Attempt {
        group: "processes",
        what: "ptrace process 2",
        run: || call!(libc::SYS_ptrace, libc::PTRACE_SEIZE, 2, 0, 0),
    },
    Attempt { group: "processes", what: "read the memory of process 2", run: read_memory },
    Attempt { group: "processes", what: "find shared memory", run: || call!(libc::SYS_shmget, SEGMENT, 0, 0) },
    Attempt { group: "rights", what: "become root", run: || call!(libc::SYS_setresuid, 0, 0, 0) },
    Attempt { group: "rights", what: "become root's group", run: || call!(libc::SYS_setresgid, 0, 0, 0) },
    Attempt { group: "rights", what: "take all capabilities", run: capabilities },
    Attempt {
        group: "rights",
        what: "allow new privileges",
        run: || call!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0usize, 0usize, 0usize, 0usize),
    },
    Attempt { group: "rights", what: "more descriptors", run: || raise(libc::RLIMIT_NOFILE) },
    Attempt { group: "rights", what: "a core file", run: || raise(libc::RLIMIT_CORE) },
    Attempt { group: "rights", what: "real-time priority", run: real_time },
    Attempt { group: "rights", what: "a higher priority", run: || call!(libc::SYS_setpriority, 0, 0, -20) },
    Attempt { group: "kernel", what: "load a module", run: || call!(libc::SYS_init_module, 0, 0, c"".as_ptr()) },
    Attempt {
        group: "kernel",
        what: "load a module from a file",
        run: || call!(libc::SYS_finit_module, 2, c"".as_ptr(), 0),
    },
    Attempt {
        group: "kernel",
        what: "remove a module",
        run: || call!(libc::SYS_delete_module, c"labyard".as_ptr(), 0),
    },
    Attempt { group: "kernel", what: "load another kernel", run: || call!(libc::SYS_kexec_load, 0, 0, 0, 0) },
    Attempt { group: "kernel", what: "a bpf map", run: bpf },
    Attempt { group: "kernel", what: "watch a processor with perf", run: perf },
    Attempt { group: "kernel", what: "handle page faults of the kernel", run: || call!(libc::SYS_userfaultfd, 0) },
    Attempt { group: "kernel", what: "set the clock", run: set_clock },
    Attempt { group: "kernel", what: "name the host", run: || call!(libc::SYS_sethostname, c"out".as_ptr(), 3) },
    Attempt { group: "kernel", what: "ports of the processor", run: || call!(libc::SYS_iopl, 3) },
    Attempt { group: "kernel", what: "swap on a file", run: || call!(libc::SYS_swapon, c"/".as_ptr(), 0) },
    Attempt { group: "keyrings", what: "find a key of who started it", run: find_key },
];

/// Ways that a jail leaves open and filters of system calls do not, beside those of [`ATTEMPTS`].
pub const FILTERED: &[Attempt] = &[
    Attempt { group: "files", what: "open by the old call", run: || call!(libc::SYS_open, c"/".as_ptr(), 0) },
    Attempt { group: "files", what: "openat2", run: || call!(libc::SYS_openat2, libc::AT_FDCWD, c"/".as_ptr(), 0, 0) },
    Attempt { group: "files", what: "execveat", run: || call!(libc::SYS_execveat, 0, c"".as_ptr(), 0, 0, 0) },
    Attempt { group: "files", what: "look at a path", run: || call!(libc::SYS_stat, c"/".as_ptr(), 0) },
    Attempt { group: "files", what: "statx of a path", run: || call!(libc::SYS_statx, 0, c"/".as_ptr(), 0, 0, 0) },
    Attempt { group: "sockets", what: "a socket", run: || socket(libc::AF_INET, libc::SOCK_STREAM) },
    Attempt { group: "sockets", what: "a vsock socket", run: || socket(libc::AF_VSOCK, libc::SOCK_STREAM) },
    Attempt { group: "sockets", what: "a pair of another family", run: || pair(libc::AF_ALG, libc::SOCK_SEQPACKET) },
    Attempt { group: "sockets", what: "a pair of datagrams", run: || pair(libc::AF_UNIX, libc::SOCK_DGRAM) },
    Attempt { group: "sockets", what: "connect", run: || call!(libc::SYS_connect, 0, 0, 0) },
    Attempt { group: "sockets", what: "bind", run: || call!(libc::SYS_bind, 0, 0, 0) },
    Attempt { group: "sockets", what: "listen", run: || call!(libc::SYS_listen, 0, 0) },
    Attempt { group: "rings", what: "make a ring", run: || call!(libc::SYS_io_uring_setup, 1, 0) },
    Attempt { group: "rings", what: "enable a ring", run: || register(12) },
    Attempt { group: "rings", what: "restrict a ring", run: || register(11) },
    Attempt { group: "rings", what: "register buffers", run: || register(0) },
    Attempt { group: "rings", what: "register a personality", run: || register(9) },
    Attempt { group: "memory", what: "map code", run: || map(libc::PROT_READ | libc::PROT_EXEC) },
    Attempt { group: "memory", what: "make memory code", run: || call!(libc::SYS_mprotect, 0, 0, libc::PROT_EXEC) },
    Attempt { group: "memory", what: "protection keys", run: || call!(libc::SYS_pkey_mprotect, 0, 0, 0, 0) },
    Attempt { group: "memory", what: "move memory to an address", run: || call!(libc::SYS_mremap, 0, 0, 0, 3, 0) },
    Attempt { group: "memory", what: "lock memory", run: || call!(libc::SYS_mlockall, 1) },
    Attempt { group: "ioctl", what: "type into a terminal", run: || ioctl(libc::TIOCSTI) },
    Attempt { group: "ioctl", what: "make a tap", run: || ioctl(libc::TUNSETIFF) },
    Attempt { group: "ioctl", what: "read a partition table again", run: || ioctl(0x125f) },
    Attempt { group: "ioctl", what: "a device of KVM's", run: || ioctl(0xc00c_aee0) },
    Attempt { group: "ioctl", what: "debug a vCPU", run: || ioctl(0x4048_ae9b) },
    Attempt { group: "processes", what: "fork", run: || call!(libc::SYS_fork) },
    Attempt { group: "processes", what: "another session", run: || call!(libc::SYS_setsid) },
    Attempt { group: "processes", what: "clone a process", run: || call!(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) },
    Attempt { group: "processes", what: "kill a thread", run: || call!(libc::SYS_tgkill, 1, 1, libc::SIGKILL) },
    Attempt { group: "processes", what: "kill by the old call", run: || call!(libc::SYS_tkill, 1, 0) },
    Attempt { group: "processes", what: "send by a pidfd", run: || call!(libc::SYS_pidfd_send_signal, 0, 0, 0, 0) },
    Attempt { group: "processes", what: "take a descriptor", run: || call!(libc::SYS_pidfd_getfd, 0, 0, 0) },
    Attempt { group: "rights", what: "a filter on all threads", run: || call!(libc::SYS_seccomp, 1, 1, 0) },
    Attempt { group: "rights", what: "a filter that asks", run: || call!(libc::SYS_seccomp, 1, 8, 0) },
    Attempt {
        group: "rights",
        what: "become dumpable",
        run: || call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0),
    },
    Attempt { group: "rights", what: "change the mode of a file", run: || call!(libc::SYS_fchmod, 0, 0o777) },
    Attempt { group: "rights", what: "give a file away", run: || call!(libc::SYS_fchown, 0, 0, 0) },
    Attempt { group: "kernel", what: "personality", run: || call!(libc::SYS_personality, 0x0040_0000) },
    Attempt { group: "kernel", what: "calls of 32 bits", run: old_call },
];

/// Ways past Landlock for a program that keeps its files, beside those of [`ATTEMPTS`]. What they name is not there.
pub const PAST_LANDLOCK: &[Attempt] = &[
    Attempt { group: "files", what: "change a mode", run: || call!(libc::SYS_chmod, NOWHERE.as_ptr(), 0o4755) },
    Attempt { group: "files", what: "change the mode of what is open", run: || call!(libc::SYS_fchmod, -1, 0o4755) },
    Attempt {
        group: "files",
        what: "change a mode, below a folder",
        run: || call!(libc::SYS_fchmodat, libc::AT_FDCWD, NOWHERE.as_ptr(), 0o4755),
    },
    Attempt {
        group: "files",
        what: "change a mode, by the newest call",
        run: || call!(libc::SYS_fchmodat2, libc::AT_FDCWD, NOWHERE.as_ptr(), 0o4755, 0),
    },
    Attempt {
        group: "files",
        what: "set an attribute",
        run: || call!(libc::SYS_setxattr, NOWHERE.as_ptr(), c"user.a".as_ptr(), c"".as_ptr(), 0, 0),
    },
    Attempt {
        group: "files",
        what: "remove an attribute",
        run: || call!(libc::SYS_removexattr, NOWHERE.as_ptr(), c"user.a".as_ptr()),
    },
    Attempt {
        group: "files",
        what: "set times",
        run: || call!(libc::SYS_utimensat, libc::AT_FDCWD, NOWHERE.as_ptr(), 0, 0),
    },
    Attempt { group: "sockets", what: "a Unix socket", run: || socket(libc::AF_UNIX, libc::SOCK_STREAM) },
    Attempt { group: "sockets", what: "a stream of the internet", run: || socket(libc::AF_INET, libc::SOCK_STREAM) },
    Attempt { group: "processes", what: "read a limit of process 2", run: read_limit },
    Attempt { group: "processes", what: "signal a thread of process 2", run: || call!(libc::SYS_tgkill, 2, 2, 0) },
    Attempt { group: "devices", what: "type into a terminal", run: || ioctl(libc::TIOCSTI) },
    Attempt { group: "devices", what: "a line discipline", run: || ioctl(libc::TIOCSETD) },
];

/// A path that nobody has.
const NOWHERE: &std::ffi::CStr = c"/labyard-nobody-has-this";

fn read_limit() -> io::Result<i64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    call!(libc::SYS_prlimit64, 2, libc::RLIMIT_NOFILE, 0, &raw mut limit)
}

fn pair(family: c_int, kind: c_int) -> io::Result<i64> {
    call!(libc::SYS_socketpair, family, kind | libc::SOCK_CLOEXEC, 0, 0)
}

fn register(operation: c_int) -> io::Result<i64> {
    call!(libc::SYS_io_uring_register, -1, operation, 0, 0)
}

fn map(protection: c_int) -> io::Result<i64> {
    call!(libc::SYS_mmap, 0, 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
}

fn ioctl(request: c_ulong) -> io::Result<i64> {
    call!(libc::SYS_ioctl, 0, request, 0)
}

/// getpid(2) by the numbers of x32, which a filter of x86-64 numbers alone would not know (seccomp(2), Caveats).
fn old_call() -> io::Result<i64> {
    const X32_BIT: c_long = 0x4000_0000;
    call!(X32_BIT + libc::SYS_getpid)
}

fn open(path: &'static std::ffi::CStr, flags: c_int) -> io::Result<i64> {
    call!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600)
}

fn node() -> io::Result<i64> {
    call!(libc::SYS_mknod, c"/node".as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 1))
}

fn by_handle() -> io::Result<i64> {
    // struct file_handle of 8 bytes, FILEID_INO32_GEN, and the root's likely inode.
    let handle: [u32; 4] = [8, 1, 2, 0];
    call!(libc::SYS_open_by_handle_at, libc::AT_FDCWD, handle.as_ptr(), libc::O_RDONLY)
}

fn execute() -> io::Result<i64> {
    let nothing = [std::ptr::null::<libc::c_char>()];
    call!(libc::SYS_execve, c"/bin/sh".as_ptr(), nothing.as_ptr(), nothing.as_ptr())
}

fn mount(kind: &'static std::ffi::CStr, flags: c_ulong) -> io::Result<i64> {
    call!(libc::SYS_mount, c"none".as_ptr(), c"/".as_ptr(), kind.as_ptr(), flags, 0)
}

fn open_tree() -> io::Result<i64> {
    call!(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), libc::OPEN_TREE_CLONE)
}

fn unshare(flags: c_int) -> io::Result<i64> {
    call!(libc::SYS_unshare, flags)
}

fn enter_own() -> io::Result<i64> {
    let own = call!(libc::SYS_pidfd_open, std::process::id(), 0)?;
    call!(libc::SYS_setns, own, libc::CLONE_NEWNS | libc::CLONE_NEWNET)
}

fn socket(family: c_int, kind: c_int) -> io::Result<i64> {
    let protocol = if kind == libc::SOCK_RAW { libc::IPPROTO_ICMP } else { 0 };
    call!(libc::SYS_socket, family, kind, protocol)
}

fn address(address: [u8; 4]) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 80u16.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address) },
        sin_zero: [0; 8],
    }
}

fn connect(to: [u8; 4]) -> io::Result<i64> {
    let (socket, to) = (socket(libc::AF_INET, libc::SOCK_STREAM)?, address(to));
    call!(libc::SYS_connect, socket, &raw const to, size_of_val(&to))
}

fn send() -> io::Result<i64> {
    let (socket, to) = (socket(libc::AF_INET, libc::SOCK_DGRAM)?, address([192, 0, 2, 1]));
    call!(libc::SYS_sendto, socket, c"out".as_ptr(), 3, 0, &raw const to, size_of_val(&to))
}

fn connect_unix(name: &'static [u8]) -> io::Result<i64> {
    let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
    let mut to = libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
    to.sun_path.iter_mut().zip(name).for_each(|(to, from)| *to = from.cast_signed());
    call!(libc::SYS_connect, socket, &raw const to, 2 + name.len())
}

fn read_memory() -> io::Result<i64> {
    let mut byte = 0u8;
    let own = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let other = libc::iovec { iov_base: 0x1000 as *mut libc::c_void, iov_len: 1 };
    call!(libc::SYS_process_vm_readv, 2, &raw const own, 1, &raw const other, 1, 0usize)
}

fn capabilities() -> io::Result<i64> {
    // struct __user_cap_header_struct of version 3, and two of __user_cap_data_struct.
    let (header, data) = ([0x2008_0522u32, 0], [u32::MAX; 6]);
    call!(libc::SYS_capset, header.as_ptr(), data.as_ptr())
}

fn raise(resource: libc::__rlimit_resource_t) -> io::Result<i64> {
    let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
    call!(libc::SYS_setrlimit, resource, &raw const limit)
}

fn real_time() -> io::Result<i64> {
    let priority = 1 as c_int;
    call!(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const priority)
}

fn bpf() -> io::Result<i64> {
    // union bpf_attr of BPF_MAP_CREATE: an array of one value of four bytes.
    let map: [u32; 32] = std::array::from_fn(|at| [2, 4, 4, 1].get(at).copied().unwrap_or(0));
    call!(libc::SYS_bpf, 0, map.as_ptr(), size_of_val(&map))
}

fn perf() -> io::Result<i64> {
    // struct perf_event_attr of 64 bytes: the software clock of processor 0, whoever runs there.
    let event: [u32; 16] = [1, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    call!(libc::SYS_perf_event_open, event.as_ptr(), -1, 0, -1, 0)
}

fn set_clock() -> io::Result<i64> {
    let time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    call!(libc::SYS_clock_settime, libc::CLOCK_REALTIME, &raw const time)
}

const SESSION_KEYRING: c_int = -3;

fn find_key() -> io::Result<i64> {
    let name = c"labyard-test-key";
    call!(libc::SYS_keyctl, libc::KEYCTL_SEARCH, SESSION_KEYRING, c"user".as_ptr(), name.as_ptr(), 0)
}

/// What a test leaves where only whoever shares its namespaces and keyring finds it.
///
/// # Errors
/// What the kernel says.
pub fn leave_traces() -> io::Result<()> {
    // keyctl and shmget as above: names and constants.
    call!(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0)?;
    let name = c"labyard-test-key";
    call!(libc::SYS_add_key, c"user".as_ptr(), name.as_ptr(), c"x".as_ptr(), 1, SESSION_KEYRING)?;
    call!(libc::SYS_shmget, SEGMENT, 4096, libc::IPC_CREAT | 0o666)?;
    Ok(())
}

/// Removes the shared memory that [`leave_traces`] has made. The keyring goes with the thread.
///
/// # Errors
/// What the kernel says.
pub fn remove_traces() -> io::Result<()> {
    let segment = call!(libc::SYS_shmget, SEGMENT, 0, 0)?;
    call!(libc::SYS_shmctl, segment, libc::IPC_RMID, 0).map(|_| ())
}

/// Makes processes that wait until their number is refused, or `most` are there; how many, and what the kernel said. They end with
/// the first process of their namespace.
pub fn fork_without_end(most: u32) -> (u32, io::Result<()>) {
    for made in 0..most {
        match call!(libc::SYS_fork) {
            Ok(0) => loop {
                let _ = call!(libc::SYS_pause);
            },
            Ok(_) => {}
            Err(error) => return (made, Err(error)),
        }
    }
    (most, Ok(()))
}

/// Those that a program with files of its own is tried with.
pub fn confined() -> impl Iterator<Item = &'static Attempt> {
    ATTEMPTS.iter().chain(PAST_LANDLOCK)
}

/// Tries one of those, by its group and what it is; what became of it.
///
/// # Errors
/// That none is called so.
pub fn tried(way: &str) -> io::Result<String> {
    let found = confined().find(|attempt| format!("{}={}", attempt.group, attempt.what) == way);
    Ok(outcome((found.ok_or(io::ErrorKind::NotFound)?.run)().map(drop)))
}

/// In a word.
pub fn outcome(said: io::Result<()>) -> String {
    said.map_or_else(|error| name(&error), |()| "made".to_owned())
}

/// The rows of a table of tries on a page of the documentation, behind a mark: each way, and for every column what may be said.
///
/// # Panics
/// Where there is no such table.
pub fn table(page: &str, mark: &str) -> BTreeMap<String, Vec<Vec<String>>> {
    let (_, rest) = page.split_once(mark).expect("the table's mark");
    let rows =
        rest.lines().skip_while(|line| !line.starts_with("|---")).skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [group, what, said @ ..] = cells.as_slice() else { panic!("a row of less than two cells: {row}") };
        let said = said.iter().map(|cell| cell.split(" or ").map(str::to_owned).collect());
        (format!("{group}={what}"), said.collect())
    })
    .collect()
}

/// An error number's name.
pub fn name(error: &io::Error) -> String {
    const NAMES: &[(RawFd, &str)] = &[
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EACCES, "EACCES"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOKEY, "ENOKEY"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
    ];
    let known = NAMES.iter().find(|(number, _)| Some(*number) == error.raw_os_error());
    known.map_or_else(|| format!("{error}"), |(_, name)| (*name).to_owned())
}
