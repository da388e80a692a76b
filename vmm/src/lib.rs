//! Machines on KVM: one process runs all machines of a playground, joined by switches.
//!
//! [`plan`] decides, purely, what a spec becomes; [`playground`] runs it; [`machine`] is one machine from power-on to its end.
//! No async runtime, and nothing is opened: every file, device and socket arrives as a descriptor ([`control`]).
//!
//! - [`kvm`]: the only unsafe code, a safe shell over the KVM API.
//! - [`arch`]: addresses, CPUID, registers and ACPI tables of the machine that guests see.
//! - [`kernel`], [`boot`]: kernel, initramfs and start info in guest memory.
//! - [`vcpu`], [`runtime`]: the threads.
//! - [`console`]: what a guest prints, and who watches.
//! - [`snapshot`]: a playground at rest on disk.
//! - [`embed`]: the same for a program of one's own; `examples/hello.rs` boots a machine in 30 lines.

pub mod arch;
pub mod boot;
pub mod change;
pub mod console;
pub mod control;
pub mod embed;
pub mod kernel;
pub mod kvm;
pub mod levers;
pub mod machine;
pub mod plan;
pub mod playground;
pub mod reclaim;
pub mod runtime;
pub mod snapshot;
pub mod vcpu;
