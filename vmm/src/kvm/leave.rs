//! Makes KVM_RUN return from another thread (Linux, Documentation/virt/kvm/api.rst, `immediate_exit` of struct kvm_run).
//!
//! The flag is looked at when KVM_RUN is entered, after the last moment at which a signal could come too early; a signal brings
//! out who is inside already. So one flag and then one signal are enough.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

/// A mapping of our own of a vCPU's struct kvm_run, so that it is there for as long as somebody may write to it.
pub struct Leave {
    run: NonNull<kvm_run>,
}

// SAFETY: the only access through the pointer is one atomic byte, and the mapping belongs to no thread.
unsafe impl Send for Leave {}

impl Leave {
    /// Maps the flag of `vcpu`.
    pub fn of(vcpu: &VcpuFd) -> io::Result<Self> {
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, vcpu.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces none.
        let run =
            unsafe { libc::mmap(std::ptr::null_mut(), size_of::<kvm_run>(), protection, libc::MAP_SHARED, fd, 0) };
        if run == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let run = NonNull::new(run.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { run })
    }

    /// From now on KVM_RUN returns with EINTR and does not enter the guest. What an exit has left undone it does first.
    pub fn raise(&self) {
        self.set(1);
    }

    /// KVM_RUN enters the guest again. The vCPU is not in KVM_RUN.
    pub fn lower(&self) {
        self.set(0);
    }

    fn set(&self, value: u8) {
        // SAFETY: the mapping is at least a struct kvm_run long and lives as long as `self`; only the address is taken.
        let flag = unsafe { &raw mut (*self.run.as_ptr()).immediate_exit };
        // SAFETY: one byte, always aligned, within a mapping that lives as long as `self`; while vCPUs run, it is accessed by
        // this and by the kernel alone.
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        flag.store(value, Ordering::SeqCst);
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        // SAFETY: exactly what `of` has mapped, once; nothing points into it any more.
        let unmapped = unsafe { libc::munmap(self.run.as_ptr().cast(), size_of::<kvm_run>()) };
        if unmapped != 0 {
            log::error!("unmapping a vCPU's flag: {}", io::Error::last_os_error());
        }
    }
}
