//! Filters of system calls, by thread role (seccomp(2)). A call that is not in [`calls::CALLS`] is the end of the process.
//!
//! | role | threads | may beside the others |
//! |---|---|---|
//! | process | `main`, control connections, each machine's own, captures, gateways | make threads, machines, memory, rings; take descriptors |
//! | io | `MACHINE io` | files, taps and rings of its machine |
//! | vcpu | `MACHINE cpuN` | enter the guest, and what a driver's reset takes |
//!
//! The process' filter comes first, on the only thread; what is made later inherits it, and adds its role's. All threads share memory,
//! so what stands between a guest and the kernel is the process' filter; roles are a second wall (docs/adr/0008).
//!
//! clone3(2) has its flags in memory, where no filter can look: it is answered with ENOSYS, and the C library takes clone(2).

mod calls;

use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

pub use calls::{CALLS, Call, Only};

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Everything that is not below.
    Process,
    /// Devices of a machine.
    Io,
    /// A vCPU.
    Vcpu,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Process, Self::Io, Self::Vcpu];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Io => "io",
            Self::Vcpu => "vcpu",
        }
    }
}

/// Filters of the roles that threads add to the process' own, once that is in place.
static FILTERS: OnceLock<[BpfProgram; 2]> = OnceLock::new();

/// Filters this process, which has one thread. Threads of a role add theirs from then on.
///
/// # Errors
/// What seccomp(2) says.
pub fn begin() -> io::Result<()> {
    let filters = [compile(Role::Io)?, compile(Role::Vcpu)?];
    apply(&no_clone3()?)?;
    apply(&compile(Role::Process)?)?;
    let _ = FILTERS.set(filters); // a second call has filtered twice, and the first filters are as good
    Ok(())
}

/// Adds the filter of its role to the calling thread; nothing in a process that has none, such as one that embeds machines.
///
/// # Errors
/// What seccomp(2) says.
pub fn enter(role: Role) -> io::Result<()> {
    match (FILTERS.get(), role) {
        (Some([io, _]), Role::Io) => apply(io),
        (Some([_, vcpu]), Role::Vcpu) => apply(vcpu),
        (None, _) | (_, Role::Process) => Ok(()),
    }
}

fn apply(filter: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(filter).map_err(io::Error::other)
}

fn no_clone3() -> io::Result<BpfProgram> {
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let rules = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    filter(rules, SeccompAction::Allow, refused)
}

/// A role's filter.
fn compile(role: Role) -> io::Result<BpfProgram> {
    let mut rules = std::collections::BTreeMap::new();
    for call in CALLS.iter().filter(|call| call.roles.contains(&role)) {
        let alternatives: &mut Vec<SeccompRule> = rules.entry(call.number).or_default();
        for only in call.only {
            alternatives.push(rule(only)?);
        }
    }
    filter(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn rule(only: &[Only]) -> io::Result<SeccompRule> {
    let conditions = only.iter().map(|only| {
        let operator = SeccompCmpOp::MaskedEq(only.mask);
        SeccompCondition::new(only.argument, SeccompCmpArgLen::Dword, operator, only.value).map_err(io::Error::other)
    });
    SeccompRule::new(conditions.collect::<io::Result<_>>()?).map_err(io::Error::other)
}

fn filter(
    rules: std::collections::BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}
