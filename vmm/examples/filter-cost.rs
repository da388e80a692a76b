//! What a filter of system calls costs: calls of a thread before and after it has taken on the filter of its role.
//!
//! `getpid` is let through by its number alone, which the kernel remembers; `ioctl` goes by its arguments, like KVM_RUN: there the program of the
//! filter runs each time. The ioctl is made on a socket, by the roles that may.

use std::hint::black_box;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use labyard_vmm::seccomp::{self, Otherwise, Role};

const CALLS: u32 = 1_000_000;

/// Nanoseconds of a call.
fn measure(call: impl Fn()) -> f64 {
    let since = Instant::now();
    (0..CALLS).for_each(|_| call());
    since.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn main() -> std::io::Result<()> {
    seccomp::prepare(Otherwise::Kill)?;
    let may_ioctl = |role| seccomp::CALLS.iter().any(|call| call.name == "ioctl:FIONBIO" && call.is_made_by(role));
    println!("{:8} {:>22} {:>22}", "role", "getpid, ns: before after", "ioctl, ns: before after");
    for role in [Role::Control, Role::Machine, Role::Io, Role::Vcpu] {
        let thread = std::thread::spawn(move || -> std::io::Result<String> {
            let (socket, _other) = UnixStream::pair()?;
            let getpid = || {
                black_box(rustix::process::getpid());
            };
            let ioctl = || {
                let _ = black_box(rustix::io::ioctl_fionbio(&socket, true));
            };
            let before = (measure(getpid), measure(ioctl));
            // As in the vmm: a thread has inherited what its maker may not.
            seccomp::enter(Role::Spawner)?;
            seccomp::enter(role)?;
            let after = (measure(getpid), if may_ioctl(role) { measure(ioctl) } else { f64::NAN });
            Ok(format!("{:8} {:>10.0} {:>11.0} {:>10.0} {:>11.0}", role.name(), before.0, after.0, before.1, after.1))
        });
        println!("{}", thread.join().map_err(|_| std::io::Error::other("it panicked"))??);
    }
    Ok(())
}
