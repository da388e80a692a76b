//! Machines on KVM: one process runs all machines of a playground, joined by switches.
//!
//! [`plan`] decides, purely, what a spec becomes; [`playground`] runs it; [`machine`] is one machine from power-on to its end.
//! No async runtime, and nothing is opened: every file, device and socket arrives as a descriptor ([`control`]).
//!
//! - [`kvm`]: the only unsafe code, a safe shell over the KVM API.
//! - [`arch`]: addresses, CPUID, registers and ACPI tables of the machine that guests see.
//! - [`boot`]: kernel, initramfs and start info in guest memory.
//! - [`vcpu`], [`runtime`]: the threads.
//! - [`console`]: what a guest prints, and who watches.

pub mod arch;
pub mod boot;
pub mod change;
pub mod console;
pub mod control;
pub mod kvm;
pub mod machine;
pub mod plan;
pub mod playground;
pub mod runtime;
pub mod vcpu;
