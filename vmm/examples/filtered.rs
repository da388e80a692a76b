//! Tries what a filter forbids: on the thread of a role of the monitor, after it has started, one attempt of `labyard_sys::attempts`. Arguments:
//! the role, and the attempt's group and name; without them all attempts, one a line. It should not live to say that it does.
//!
//! Built for debugging only: what is shipped has no hook.

#[cfg(not(debug_assertions))]
fn main() {
    panic!("the hook is there in what is built for debugging only");
}

#[cfg(debug_assertions)]
fn main() -> anyhow::Result<()> {
    hooked::main()
}

#[cfg(debug_assertions)]
#[path = "../tests/guests/elf.rs"]
mod elf;

#[cfg(debug_assertions)]
mod hooked {
    use std::fs::File;
    use std::io::Write;
    use std::sync::OnceLock;

    use anyhow::{Context, Result};
    use labyard_spec::playground::{BootSpec, Entry, MachineSpec, PlaygroundSpec};
    use labyard_sys::attempts::{ATTEMPTS, Attempt, FILTERED};
    use labyard_vmm::embed::{self, Files, OpenError};
    use labyard_vmm::runtime;
    use labyard_vmm::seccomp::{Otherwise, Role};

    use super::elf::elf;

    /// What every role may, so that it is seen that the others die of what they try.
    const HARMLESS: Attempt =
        Attempt { group: "none", what: "ask who I am", run: || Ok(i64::from(std::process::id())) };

    /// hlt, and a jump to it.
    const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

    static CHOSEN: OnceLock<(Role, Attempt)> = OnceLock::new();

    /// What the kernel says when it does let the attempt through is of no matter.
    fn attempt(role: Role) {
        if let Some((chosen, attempt)) = CHOSEN.get()
            && *chosen == role
        {
            let said = (attempt.run)();
            println!("{} {}: let through: {said:?}", role.name(), attempt.what);
            std::process::exit(3);
        }
    }

    pub(super) fn main() -> Result<()> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let all = || ATTEMPTS.iter().chain(FILTERED);
        let [role, group, what] = &arguments[..] else {
            all().for_each(|attempt| println!("{}={}", attempt.group, attempt.what));
            return Ok(());
        };
        let role = Role::ALL.into_iter().find(|known| known.name() == role).context("no such role")?;
        let mut known = all().copied().chain([HARMLESS]);
        let chosen = known.find(|attempt| attempt.group == group && attempt.what == what);
        let _ = CHOSEN.set((role, chosen.context("no such attempt")?));
        let _ = runtime::HOOK.set(attempt);

        // Everything is opened before, as in the program.
        let mut files = Files::default();
        let mut kernel = tempfile::tempfile()?;
        kernel.write_all(&elf(HALT))?;
        let boot = BootSpec {
            kernel: files.add(kernel),
            initrd: Vec::new(),
            extra_cmdline: String::new(),
            entry: Entry::Auto,
        };
        let mut machine = MachineSpec::new("m", boot, files.add(tempfile::tempfile()?));
        machine.memory_mib = 32;
        let spec = PlaygroundSpec { name: "lab".into(), networks: Vec::new(), machines: vec![machine] };
        let playground = match embed::playground() {
            Err(OpenError::Device(_)) => None,
            there => Some(there?),
        };
        labyard_sys::uring::reserve(1, 4);
        labyard_sys::heap::share();
        drop(File::open("/")?); // nothing is forbidden yet
        runtime::confine(Otherwise::Kill)?;
        let Some(playground) = playground else {
            // Without KVM there is no machine, and threads that do nothing but what was chosen.
            for role in Role::ALL {
                let _ = runtime::spawn(role, role.name(), || {})?.join();
            }
            anyhow::bail!("there was no thread of this role");
        };
        let control = runtime::spawn(Role::Control, "control", move || {
            playground.create(&spec, files.into_slots()).expect("created");
            // Its threads are made after this returns.
            let _ = playground.wait("m");
        })?;
        let _ = control.join();
        anyhow::bail!("there was no thread of this role")
    }
}
