//! Machines on KVM: one process runs all machines of a playground, joined by switches.
//!
//! [`plan`] decides, purely, what a spec becomes; [`playground`] runs it; [`machine`] is one machine from power-on to its end.
//! No async runtime, and nothing is opened: every file, device and socket arrives as a descriptor ([`control`]).
//!
//! # Where to begin
//!
//! To boot a machine in a program of one's own, [`embed`] is all that is needed. `examples/hello.rs`:
//!
//! ```no_run
#![doc = include_str!("../examples/hello.rs")]
//! ```
//!
//! To read the code, follow a machine: [`plan::check`] refuses what cannot run, [`playground::Playground::create`] builds everything
//! that can be refused before anything runs, and [`machine::run`] is a machine's thread from power-on to its end, reboots included.
//!
//! # Who lives how long
//!
//! A [`playground::Playground`] lives as long as its process, and so do its switches. A machine's devices, backends and console live
//! as long as the machine; they survive its reboots, at rest while the next [`kvm::Vm`] is made. vCPUs, transports and buses live
//! from one power-on to the next. A [`kvm::Vm`] keeps the memory that it was given, so that no guest runs on unmapped pages.
//!
//! # Errors
//!
//! What cannot be is refused by `create` in one line that names the machine, the value and the way out. From then on nothing a guest does
//! is an error of the process: its machine ends in one of the states of [`MachineState`](labyard_spec::control::MachineState), the reason
//! is in it and in an event, and the other machines go on. A panic within a machine's threads ends that machine.
//!
//! # The map
//!
//! - [`kvm`]: the only unsafe code, a safe shell over the KVM API.
//! - [`arch`]: addresses, CPUID, registers and ACPI tables of the machine that guests see.
//! - [`kernel`], [`boot`]: kernel, initramfs and start info in guest memory.
//! - [`vcpu`], [`runtime`]: the threads.
//! - [`seccomp`]: what each of them may ask the kernel for, in the program; whoever embeds machines decides that himself.
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
pub mod seccomp;
pub mod snapshot;
pub mod vcpu;
