//! What KVM keeps of a machine, beside guest memory: read from stopped vCPUs, written into new ones.
//!
//! A vCPU that left the guest for a port or MMIO access has been entered once more, so that KVM has finished that
//! instruction (api.rst, the note at KVM_EXIT_MMIO); else the registers would belong to the middle of it.
//!
//! The order of writing matters: CPUID is set before, the local APIC before the MSRs (a TSC deadline is armed by the timer's
//! mode), the deadline after the TSC, and pending events last.

use kvm_bindings::{
    KVM_CLOCK_TSC_STABLE, Msrs, kvm_clock_data, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm, call};

/// IA32_TSC_DEADLINE (Intel SDM 4, table 2-2).
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// IA32_TIME_STAMP_COUNTER.
const MSR_TSC: u32 = 0x10;
/// MSRs in one call to KVM.
const MSRS_AT_ONCE: usize = 128;

/// One vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    /// Index and value; the TSC and its deadline come last.
    msrs: Vec<(u32, u64)>,
    tsc_khz: u32,
}

/// What belongs to the machine and not to a vCPU.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ClockState {
    /// Nanoseconds of kvmclock.
    nanoseconds: u64,
}

impl VcpuState {
    /// Reads a vCPU that is not in the guest. `msrs` are those that make its state ([`super::Hypervisor::msrs`]).
    ///
    /// # Errors
    /// What KVM says, with what was read.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, KvmError> {
        // First: KVM takes pending INITs and SIPIs here, which changes what follows.
        let mp_state = vcpu.get_mp_state().map_err(call("reading whether a vCPU waits"))?;
        Ok(Self {
            mp_state,
            regs: vcpu.get_regs().map_err(call("reading registers"))?,
            sregs: vcpu.get_sregs().map_err(call("reading special registers"))?,
            xsave: vcpu.get_xsave().map_err(call("reading the floating-point unit"))?,
            xcrs: vcpu.get_xcrs().map_err(call("reading extended control registers"))?,
            debug_regs: vcpu.get_debug_regs().map_err(call("reading debug registers"))?,
            lapic: vcpu.get_lapic().map_err(call("reading a local APIC"))?,
            tsc_khz: vcpu.get_tsc_khz().map_err(call("reading the TSC's rate"))?,
            msrs: save_msrs(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(call("reading pending events"))?,
        })
    }

    /// Writes the state into a new vCPU, whose CPUID was set.
    ///
    /// # Errors
    /// What KVM says, with what was written.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        // A host without TSC scaling refuses another rate than its own; on the same host nothing is to be changed.
        if vcpu.get_tsc_khz().is_ok_and(|khz| khz != self.tsc_khz) {
            vcpu.set_tsc_khz(self.tsc_khz).map_err(call("setting the TSC's rate of another host"))?;
        }
        vcpu.set_mp_state(self.mp_state).map_err(call("writing whether a vCPU waits"))?;
        vcpu.set_regs(&self.regs).map_err(call("writing registers"))?;
        vcpu.set_sregs(&self.sregs).map_err(call("writing special registers"))?;
        // SAFETY: KVM_SET_XSAVE reads the 4 KiB of the struct, unless the process has enabled dynamic features
        // (arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)), which nothing here does.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(call("writing the floating-point unit"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(call("writing extended control registers"))?;
        vcpu.set_debug_regs(&self.debug_regs).map_err(call("writing debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(call("writing a local APIC"))?;
        restore_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(call("writing pending events"))
    }
}

impl ClockState {
    /// Reads the machine's kvmclock.
    ///
    /// # Errors
    /// What KVM says.
    pub fn save(vm: &Vm) -> Result<Self, KvmError> {
        let clock = vm.vm.get_clock().map_err(call("reading the clock"))?;
        Ok(Self { nanoseconds: clock.clock })
    }

    /// Lets the clock of a new machine go on from there.
    ///
    /// # Errors
    /// What KVM says.
    pub fn restore(&self, vm: &Vm) -> Result<(), KvmError> {
        // KVM_CLOCK_TSC_STABLE is something that KVM tells and does not take.
        let clock = kvm_clock_data { clock: self.nanoseconds, flags: 0, ..Default::default() };
        debug_assert_eq!(clock.flags & KVM_CLOCK_TSC_STABLE, 0);
        vm.vm.set_clock(&clock).map_err(call("setting the clock"))
    }
}

/// All MSRs of `indices` that this vCPU has. KVM stops at the first that it cannot read: that one is left out.
fn save_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let wanted = rest.get(..rest.len().min(MSRS_AT_ONCE)).unwrap_or_default();
        let mut msrs = list(wanted.iter().map(|index| (*index, 0)))?;
        let read = vcpu.get_msrs(&mut msrs).map_err(call("reading MSRs"))?;
        values.extend(msrs.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
        let skip = if read < wanted.len() { read + 1 } else { read };
        rest = rest.get(skip..).unwrap_or_default();
    }
    // Not all hosts list them in an order that suits writing.
    values.sort_by_key(|(index, _)| match *index {
        MSR_TSC => 1,
        MSR_TSC_DEADLINE => 2,
        _ => 0,
    });
    Ok(values)
}

fn restore_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), KvmError> {
    for part in values.chunks(MSRS_AT_ONCE) {
        let written = vcpu.set_msrs(&list(part.iter().copied())?).map_err(call("writing MSRs"))?;
        if let Some((index, _)) = part.get(written) {
            return Err(KvmError::Msr { index: *index });
        }
    }
    Ok(())
}

fn list(values: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, KvmError> {
    let entries: Vec<_> = values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).map_err(|_| call("a list of MSRs")(kvm_ioctls::Error::new(libc::E2BIG)))
}
