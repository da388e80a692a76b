//! A filter of system calls (seccomp(2)) for programs that are not the vmm: what none of them needs is the end of the process. It is a list
//! of what is forbidden, because their libraries make calls that change with each version; the wall is Landlock, this is the one behind it.
//!
//! What comes by another door than x86-64's own is the end, too: 32 bits, and the numbers of x32.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// What a program may do nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave<'a> {
    /// Neither sockets nor programs.
    Nothing,
    /// Make sockets of the internet, by which names are looked up and TCP is spoken. One of a file is answered as if the kernel had none.
    Network,
    /// Send and receive datagrams of the internet, and end these processes.
    Datagrams(&'a [u32]),
    /// Make sockets of files and of the internet, and watch and end others.
    Supervising,
    /// Run programs that talk to the kernel's own sockets, but none of the rest.
    Programs,
}

/// What nobody does who only reads, computes and writes.
#[rustfmt::skip]
const FORBIDDEN: &[libc::c_long] = &[
    // Other programs and processes.
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_fork, libc::SYS_vfork,
    libc::SYS_ptrace, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_process_madvise, libc::SYS_kcmp,
    libc::SYS_pidfd_open, libc::SYS_pidfd_getfd, libc::SYS_pidfd_send_signal,
    libc::SYS_kill, libc::SYS_tkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo,
    // Mounts and namespaces.
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_move_mount, libc::SYS_open_tree, libc::SYS_fsopen, libc::SYS_fsconfig,
    libc::SYS_fsmount, libc::SYS_fspick, libc::SYS_mount_setattr, libc::SYS_pivot_root, libc::SYS_chroot,
    libc::SYS_unshare, libc::SYS_setns,
    // Parts of the kernel with a history.
    libc::SYS_bpf, libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_modify_ldt,
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    libc::SYS_io_setup, libc::SYS_io_submit,
    libc::SYS_keyctl, libc::SYS_add_key, libc::SYS_request_key,
    // The host.
    libc::SYS_init_module, libc::SYS_finit_module, libc::SYS_delete_module, libc::SYS_kexec_load, libc::SYS_kexec_file_load,
    libc::SYS_reboot, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_acct, libc::SYS_quotactl, libc::SYS_quotactl_fd, libc::SYS_syslog,
    libc::SYS_sethostname, libc::SYS_setdomainname, libc::SYS_settimeofday, libc::SYS_clock_settime, libc::SYS_adjtimex,
    libc::SYS_clock_adjtime, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_personality, libc::SYS_vhangup,
    // What Landlock does not hold: modes, attributes and times of files.
    libc::SYS_chmod, libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchmodat2,
    libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr, SETXATTRAT,
    libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_fremovexattr, REMOVEXATTRAT, FILE_SETATTR,
    libc::SYS_utime, libc::SYS_utimes, libc::SYS_futimesat, libc::SYS_utimensat,
    // Files past their names, and what is no file.
    libc::SYS_open_by_handle_at, libc::SYS_name_to_handle_at, libc::SYS_mknod, libc::SYS_mknodat, libc::SYS_fanotify_init,
    // Other users.
    libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_setresuid, libc::SYS_setresgid,
    libc::SYS_setgroups, libc::SYS_setfsuid, libc::SYS_setfsgid, libc::SYS_chown, libc::SYS_fchown, libc::SYS_lchown, libc::SYS_fchownat,
    // Shared memory and queues with names.
    libc::SYS_shmget, libc::SYS_shmat, libc::SYS_msgget, libc::SYS_semget, libc::SYS_mq_open,
];

/// Families of sockets with which names are looked up and TCP is spoken: services beside, addresses, and which of them this host has.
const FAMILIES: &[libc::c_int] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// Calls that libc does not name yet (asm/unistd_64.h).
const SETXATTRAT: libc::c_long = 463;
const REMOVEXATTRAT: libc::c_long = 466;
const FILE_SETATTR: libc::c_long = 469;

/// What types into a terminal or changes what reads it (ioctl_tty(2)), and TIOCLINUX, which pastes (ioctl_console(2)).
const OF_TERMINALS: &[u64] = &[libc::TIOCSTI, libc::TIOCSETD, 0x541c];
/// Namespaces that clone(2) makes.
#[rustfmt::skip]
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID, libc::CLONE_NEWIPC, libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];
/// Numbers from here on are x32's (asm/unistd.h).
const X32: u32 = 0x4000_0000;

/// Filters the calling thread and those that it makes. Needs no_new_privs.
///
/// # Errors
/// What seccomp(2) says.
pub fn forbid(leave: Leave<'_>) -> io::Result<()> {
    let program = program(leave)?;
    let answered = build(answered(leave)?, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))?;
    seccompiler::apply_filter(&answered).map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// What is answered as if the kernel did not have it, by programs that have another way then.
fn answered(leave: Leave<'_>) -> io::Result<Rules> {
    // The flags of clone3(2) lie in memory: clone(2) is taken.
    let mut rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let sockets = match leave {
        // nscd(8) and services like it are asked over a file; without them names are looked up as ever.
        Leave::Network => Some(rule(vec![is(0, libc::AF_UNIX)?])?),
        // ip(8) asks by several families for what it has by netlink, too.
        Leave::Programs => Some(rule(vec![is_not(0, libc::AF_NETLINK)?])?),
        _ => None,
    };
    rules.extend(sockets.map(|rule| (libc::SYS_socket, vec![rule])));
    Ok(rules)
}

fn program(leave: Leave<'_>) -> io::Result<BpfProgram> {
    let mut rules: Rules = FORBIDDEN.iter().map(|number| (*number, Vec::new())).collect();
    // A process of its own is no thread (clone(2)).
    let thread = libc::CLONE_THREAD.unsigned_abs().into();
    rules.insert(libc::SYS_clone, vec![rule(vec![masked(0, thread, 0)?])?]);
    // Limits and threads of others.
    rules.insert(libc::SYS_prlimit64, vec![rule(vec![is_not(0, 0)?])?]);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    rules.insert(libc::SYS_tgkill, vec![rule(vec![is_not(0, own)?])?]);
    let of_terminals = OF_TERMINALS.iter().map(|request| rule(vec![compare(1, SeccompCmpOp::Eq, *request)?]));
    rules.insert(libc::SYS_ioctl, of_terminals.collect::<io::Result<_>>()?);
    match leave {
        Leave::Nothing => {
            rules.extend([libc::SYS_socket, libc::SYS_socketpair].map(|number| (number, Vec::new())));
            let exec = libc::PROT_EXEC.unsigned_abs().into();
            for number in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
                rules.insert(number, vec![rule(vec![masked(2, exec, exec)?])?]);
            }
        }
        Leave::Network => {
            rules.insert(libc::SYS_socket, vec![none_of(0, FAMILIES)?]);
        }
        Leave::Datagrams(children) => {
            // Flags stand beside the type (socket(2)).
            let mut other = vec![none_of(0, &[libc::AF_INET, libc::AF_INET6])?];
            for kind in [libc::SOCK_STREAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET] {
                other.push(rule(vec![masked(1, 0xf, kind.unsigned_abs().into())?])?);
            }
            rules.insert(libc::SYS_socket, other);
            let children: Vec<_> = children.iter().map(|pid| pid.cast_signed()).collect();
            for number in [libc::SYS_kill, libc::SYS_pidfd_open] {
                rules.insert(number, vec![none_of(0, &children)?]);
            }
            rules.remove(&libc::SYS_pidfd_send_signal);
        }
        Leave::Supervising => {
            let others = [libc::SYS_kill, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal];
            others.iter().for_each(|number| drop(rules.remove(number)));
            rules.insert(libc::SYS_socket, vec![none_of(0, FAMILIES)?]);
        }
        Leave::Programs => {
            let children = [libc::SYS_execve, libc::SYS_fork, libc::SYS_vfork, libc::SYS_kill, libc::SYS_tgkill];
            children.iter().for_each(|number| drop(rules.remove(number)));
            let namespace = |flag: &libc::c_int| {
                let flag = flag.unsigned_abs().into();
                rule(vec![masked(0, flag, flag)?])
            };
            rules.insert(libc::SYS_clone, NAMESPACES.iter().map(namespace).collect::<io::Result<_>>()?);
        }
    }
    let mut program = vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    program.extend(build(rules, SeccompAction::KillProcess)?);
    Ok(program)
}

/// One instruction; the first word of what a filter sees is the call's number (seccomp(2)).
fn statement(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// The kernel takes an `int` of the lower half of a register.
fn compare(argument: u8, op: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).map_err(io::Error::other)
}

fn is(argument: u8, value: libc::c_int) -> io::Result<SeccompCondition> {
    compare(argument, SeccompCmpOp::Eq, value.cast_unsigned().into())
}

fn is_not(argument: u8, value: libc::c_int) -> io::Result<SeccompCondition> {
    compare(argument, SeccompCmpOp::Ne, value.cast_unsigned().into())
}

fn none_of(argument: u8, values: &[libc::c_int]) -> io::Result<SeccompRule> {
    rule(values.iter().map(|value| is_not(argument, *value)).collect::<io::Result<_>>()?)
}

fn masked(argument: u8, mask: u64, value: u64) -> io::Result<SeccompCondition> {
    let op = SeccompCmpOp::MaskedEq(mask);
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, op, value).map_err(io::Error::other)
}

fn rule(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

/// Calls of these rules meet `action`, all others are made.
fn build(rules: Rules, action: SeccompAction) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, TargetArch::x86_64);
    filter.map_err(io::Error::other)?.try_into().map_err(io::Error::other)
}
