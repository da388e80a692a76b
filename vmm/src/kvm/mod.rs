//! A safe shell over the KVM API (Linux, Documentation/virt/kvm/api.rst): what this monitor uses of it, and no more.
//!
//! The only unsafe code of this crate. A [`Vm`] keeps the memory that it was given, so that no guest runs on unmapped pages.

pub mod leave;
pub mod memory;

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use labyard_devices::Memory;
use labyard_devices::legacy::ioapic::{MAX_LINES, Msi, MsiRoutes};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::layout;

pub mod state;

/// A call to KVM failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is not `/dev/kvm`.
    #[error("the descriptor given as KVM is not usable")]
    NotKvm(#[source] kvm_ioctls::Error),
    /// Another interface.
    #[error("KVM's interface is version {0}, not 12")]
    Version(i32),
    /// It cannot do what is needed.
    #[error("KVM lacks {0}")]
    Lacks(&'static str),
    /// A call.
    #[error("KVM: {what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: kvm_ioctls::Error,
    },
    /// An MSR of a saved machine that this host does not take.
    #[error("KVM: MSR {index:#x} of the saved machine is refused; was it saved on another kind of processor?")]
    Msr {
        /// Its index.
        index: u32,
    },
}

fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { what, source }
}

/// `/dev/kvm`, checked.
pub struct Hypervisor {
    kvm: Kvm,
    cpuid: CpuId,
    msrs: Arc<[u32]>,
}

impl Hypervisor {
    /// The hypervisor behind an open `/dev/kvm`.
    pub fn new(device: OwnedFd) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is open and owned, and ownership moves into `Kvm`, which closes it once.
        let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(device.into_raw_fd()) };
        match kvm.get_api_version() {
            12 => {}
            -1 => return Err(KvmError::NotKvm(kvm_ioctls::Error::last())),
            other => return Err(KvmError::Version(other)),
        }
        for (cap, name) in [
            (Cap::SplitIrqchip, "a split interrupt controller"),
            (Cap::Irqfd, "irqfds"),
            (Cap::Ioeventfd, "ioeventfds"),
            (Cap::ImmediateExit, "immediate exit"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Lacks(name));
            }
        }
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("reading the supported CPUID"))?;
        let msrs = kvm.get_msr_index_list().map_err(call("reading the list of MSRs"))?.as_slice().into();
        Ok(Self { kvm, cpuid, msrs })
    }

    /// A hypervisor that has no processor for any machine, for fuzzing what lies in front of it.
    ///
    /// # Errors
    /// Where there is no `/dev/null`.
    #[cfg(feature = "testing")]
    pub fn nowhere() -> std::io::Result<Self> {
        let device = OwnedFd::from(std::fs::File::open("/dev/null")?);
        // SAFETY: as in `new`; each call of KVM's fails on a descriptor that is not KVM's.
        let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(device.into_raw_fd()) };
        let cpuid = CpuId::new(0).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { kvm, cpuid, msrs: Vec::new().into() })
    }

    /// MSRs that make a vCPU's state (KVM_GET_MSR_INDEX_LIST).
    pub fn msrs(&self) -> Arc<[u32]> {
        Arc::clone(&self.msrs)
    }

    /// vCPUs of one machine at most (KVM_CAP_MAX_VCPUS, and the 8-bit ids of the tables).
    pub fn max_vcpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX).min(254)
    }

    /// What vCPUs can be told that they are.
    pub fn cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// Whether local APICs have a TSC deadline timer.
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// A machine without vCPUs over `mem`.
    pub fn create_vm(&self, mem: &Memory) -> Result<Vm, KvmError> {
        let vm = loop {
            match self.kvm.create_vm() {
                // A signal came; KVM did nothing.
                Err(error) if error.errno() == libc::EINTR => {}
                other => break other.map_err(call("creating a machine"))?,
            }
        };
        let vm = Vm { vm: Arc::new(vm), _mem: mem.clone() };
        vm.vm.set_identity_map_address(layout::IDENTITY_MAP).map_err(call("placing the identity map"))?;
        vm.vm.set_tss_address(layout::TSS).map_err(call("placing the task state"))?;
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = MAX_LINES.into();
        vm.vm.enable_cap(&split).map_err(call("splitting the interrupt controller"))?;
        for (slot, region) in (0..).zip(mem.iter()) {
            let host = region.get_host_address(vm_memory::MemoryRegionAddress(0));
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: vm_memory::Address::raw_value(&region.start_addr()),
                memory_size: region.len(),
                userspace_addr: host.map_or(0, |address| address as u64),
            };
            // SAFETY: the range is a mapping that `_mem` keeps for as long as this machine exists; the guest's writes to
            // it are sound because no reference to guest memory is ever formed.
            unsafe { vm.vm.set_user_memory_region(region) }.map_err(call("giving the machine its memory"))?;
        }
        Ok(vm)
    }
}

/// A machine.
pub struct Vm {
    vm: Arc<VmFd>,
    /// Stays mapped while the machine exists.
    _mem: Memory,
}

impl Vm {
    /// A vCPU.
    pub fn create_vcpu(&self, id: u32) -> Result<VcpuFd, KvmError> {
        self.vm.create_vcpu(id.into()).map_err(call("creating a vCPU"))
    }

    /// An eventfd that raises line `gsi`.
    pub fn line(&self, gsi: u32) -> Result<EventFd, KvmError> {
        let event = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK)
            .map_err(|error| call("making an interrupt's eventfd")(errno(&error)))?;
        self.vm.register_irqfd(&event, gsi).map_err(call("registering an interrupt"))?;
        Ok(event)
    }

    /// Lets a 32-bit write of `value` to `address` raise `event` without leaving the kernel.
    pub fn kick(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        let address = IoEventAddress::Mmio(address);
        self.vm.register_ioevent(event, &address, value).map_err(call("registering a notification"))
    }

    /// Where the I/O APIC's routes go.
    pub fn msi_routes(&self) -> Box<dyn MsiRoutes> {
        let routes = Mutex::new(vec![None; MAX_LINES as usize]);
        Box::new(Routes { vm: Arc::clone(&self.vm), routes })
    }
}

fn errno(error: &std::io::Error) -> kvm_ioctls::Error {
    kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Routes of all lines; KVM takes the whole table with each change (KVM_SET_GSI_ROUTING).
struct Routes {
    vm: Arc<VmFd>,
    routes: Mutex<Vec<Option<Msi>>>,
}

impl MsiRoutes for Routes {
    fn set(&mut self, line: u32, msi: Option<Msi>) {
        let routes = self.routes.get_mut().unwrap_or_else(PoisonError::into_inner);
        match routes.get_mut(line as usize) {
            Some(route) if *route != msi => *route = msi,
            _ => return,
        }
        let entries: Vec<_> = (0..).zip(routes.iter()).filter_map(|(gsi, msi)| Some(entry(gsi, (*msi)?))).collect();
        match KvmIrqRouting::from_entries(&entries) {
            Ok(table) => {
                if let Err(error) = self.vm.set_gsi_routing(&table) {
                    log::error!("setting interrupt routes: {error}");
                }
            }
            Err(error) => log::error!("interrupt routes: {error:?}"),
        }
    }
}

fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: kvm_bindings::KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi { address_lo: msi.address, address_hi: 0, data: msi.data, ..Default::default() };
    entry
}
