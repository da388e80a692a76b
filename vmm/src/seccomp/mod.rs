//! Filters of system calls, by thread role (seccomp(2)): a call that is not in [`CALLS`] is the end of the process.
//!
//! | role | threads | may beside what all may |
//! |---|---|---|
//! | main | `main` | accept connections |
//! | spawner | `spawner` | make threads, which inherit its filter: all that they may, it may. It hears nothing but the program's own threads |
//! | control | `control`, `capture`, `MACHINE keys` | take and pass descriptors, look at files and make drives of them |
//! | machine | `MACHINE`, `MACHINE kvm` | make machines of KVM's and memory, start and stop devices |
//! | io | `MACHINE io`, `NETWORK way out` | what devices at work need |
//! | vcpu | `MACHINE cpuN` | enter the guest, and what devices need that a driver starts or resets |
//!
//! All threads share memory, so what stands between a guest and the kernel is the union of these filters; that roles differ is a
//! second wall (docs/adr/0007). Rings, which make calls that no filter sees, are made before ([`labyard_sys::uring::reserve`]).
//!
//! clone3(2) has its flags in memory, where no filter can look: it is answered with ENOSYS, and glibc takes clone(2).

mod calls;
pub mod list;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{LazyLock, OnceLock};

use labyard_devices::REGISTRY;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

pub use calls::{CALLS, Call, Only, UNSEEN};

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the table above says it")]
pub enum Role {
    Main,
    Spawner,
    Control,
    Machine,
    Io,
    Vcpu,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Main, Self::Spawner, Self::Control, Self::Machine, Self::Io, Self::Vcpu];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Spawner => "spawner",
            Self::Control => "control",
            Self::Machine => "machine",
            Self::Io => "io",
            Self::Vcpu => "vcpu",
        }
    }

    /// Whether its threads run devices, or start and stop them.
    fn works_for_devices(self) -> bool {
        matches!(self, Self::Machine | Self::Io | Self::Vcpu)
    }
}

/// Names of the calls that devices make. Collected once: every start of the process compiles the filters.
static OF_DEVICES: LazyLock<BTreeSet<&str>> =
    LazyLock::new(|| REGISTRY.iter().flat_map(|device| device.calls).copied().collect());

impl Call {
    /// Whether a role makes this call, for itself or for devices.
    pub fn is_made_by(&self, role: Role) -> bool {
        self.roles.contains(&role) || (role.works_for_devices() && OF_DEVICES.contains(self.name))
    }

    /// Whether a role's filter lets it through: the spawner's lets through what threads may that it makes.
    pub fn is_allowed(&self, role: Role) -> bool {
        match role {
            Role::Spawner => Role::ALL.iter().any(|role| *role != Role::Main && self.is_made_by(*role)),
            role => self.is_made_by(role),
        }
    }
}

/// What becomes of a call that is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// The end of the process.
    Kill,
    /// A line in the kernel's log, and it is made. For finding out what a filter lacks.
    #[cfg(debug_assertions)]
    Log,
}

/// Filters of roles, compiled before the first of them holds.
struct Filters {
    no_clone3: BpfProgram,
    by_role: BTreeMap<Role, BpfProgram>,
}

/// There in a process that has filters; a program that embeds machines has none.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Compiles the filters; from now on each thread takes on its own by [`enter`].
///
/// # Errors
/// A mistake in [`CALLS`].
pub fn prepare(otherwise: Otherwise) -> io::Result<()> {
    let by_role = Role::ALL.iter().map(|role| Ok((*role, compile(*role, otherwise)?))).collect::<io::Result<_>>()?;
    let filters = Filters { no_clone3: no_clone3()?, by_role };
    let _ = FILTERS.set(filters); // whoever was first has compiled the same
    Ok(())
}

/// Whether the filters are there.
pub fn is_prepared() -> bool {
    FILTERS.get().is_some()
}

/// Filters the calling thread, on top of what it has inherited; nothing in a process that has no filters.
///
/// # Errors
/// What seccomp(2) says.
pub fn enter(role: Role) -> io::Result<()> {
    let Some(filters) = FILTERS.get() else { return Ok(()) };
    if role == Role::Spawner {
        apply(&filters.no_clone3)?;
    }
    let filter = filters.by_role.get(&role).ok_or(io::ErrorKind::NotFound)?;
    apply(filter)
}

fn apply(filter: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(filter).map_err(io::Error::other)
}

fn no_clone3() -> io::Result<BpfProgram> {
    let refused = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    build(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, refused)
}

fn compile(role: Role, otherwise: Otherwise) -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in CALLS.iter().filter(|call| call.is_allowed(role)) {
        let alternatives = rules.entry(call.number).or_default();
        if !call.only.is_empty() {
            let conditions = call.only.iter().map(|only| only.condition()).collect::<io::Result<_>>()?;
            alternatives.push(SeccompRule::new(conditions).map_err(io::Error::other)?);
        }
    }
    let otherwise = match otherwise {
        Otherwise::Kill => SeccompAction::KillProcess,
        #[cfg(debug_assertions)]
        Otherwise::Log => SeccompAction::Log,
    };
    build(rules, otherwise, SeccompAction::Allow)
}

impl Only {
    fn condition(self) -> io::Result<SeccompCondition> {
        // Conditions are on arguments of which the kernel looks at 32 bits.
        let operator = SeccompCmpOp::MaskedEq(self.mask);
        SeccompCondition::new(self.argument, SeccompCmpArgLen::Dword, operator, self.value).map_err(io::Error::other)
    }
}

fn build(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
