//! Children that start with chosen descriptors at chosen numbers, in a session of their own, or bound to their parent's life.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the child find each descriptor at its number, open across exec. Numbers 0 to 2 are `Command`'s own business.
///
/// # Panics
/// Where a number is below 3 or named twice: the caller writes them down as constants.
pub fn give(command: &mut Command, descriptors: Vec<(OwnedFd, RawFd)>) {
    for (position, (_, number)) in descriptors.iter().enumerate() {
        let twice = descriptors.iter().skip(position + 1).any(|(_, other)| other == number);
        assert!(*number >= 3 && !twice, "descriptor number {number}");
    }
    let above = descriptors
        .iter()
        .map(|(_, number)| *number)
        .chain(descriptors.iter().map(|(descriptor, _)| descriptor.as_raw_fd()))
        .max()
        .map_or(3, |highest| highest.saturating_add(1));
    // Written in the child, where nothing may be allocated.
    let mut copies = vec![-1; descriptors.len()];
    // Numbers that are free are taken here, so that the pipe by which `Command` hears of a failed exec gets none of them: the table
    // would lie over it, and a program that did not start would pass for one that did.
    let taken: Vec<OwnedFd> = descriptors
        .iter()
        .filter_map(|(descriptor, number)| rustix::io::fcntl_dupfd_cloexec(descriptor, *number).ok())
        .collect();
    let place = move || {
        let _ = &taken; // as long as the command is there
        for ((descriptor, _), copy) in descriptors.iter().zip(&mut copies) {
            // SAFETY: fcntl takes two numbers and touches no memory; `descriptors` keeps the source open.
            *copy = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
            if *copy < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for ((_, number), copy) in descriptors.iter().zip(&copies) {
            // SAFETY: dup2 takes two numbers and touches no memory. The child's descriptor at `number` is replaced, which is one of
            // `taken` or of nobody here: the one that the child uses until its exec lies elsewhere. In the parent nothing changes.
            if unsafe { libc::dup2(*copy, *number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure calls fcntl and dup2 only, which are async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(place) };
}

/// Starts the child as the leader of a session of its own: no terminal, and no signal meant for its parent's group.
pub fn in_own_session(command: &mut Command) {
    // SAFETY: the closure makes one system call, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?)) };
}

/// Lets the kernel kill the child when the thread that spawns it ends. For children that nobody could find again.
pub fn dies_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have gone before the call above.
        if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: the closure makes two system calls, which are async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(bind) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Stdio;

    #[test]
    fn a_program_that_cannot_start_is_told_whatever_numbers_are_given() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null"));
        let mut command = Command::new("/nonexistent/program");
        // The descriptors lie below; the numbers are the next that are free, and so would be those of the pipe.
        let given: Vec<_> = (0..60).map(|_| null()).collect();
        let next = given.iter().map(AsRawFd::as_raw_fd).max().expect("some") + 1;
        give(&mut command, given.into_iter().zip(next..).collect());
        let error = command.spawn().expect_err("there is no such program");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_child_finds_each_descriptor_at_its_number_even_when_they_swap() {
        let file = |text: &str| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("file");
            std::fs::File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).expect("writing");
            OwnedFd::from(std::fs::File::open(path).expect("opening"))
        };
        let (one, two) = (file("one"), file("two"));
        let mut command = Command::new("sh");
        command.args(["-c", "cat <&4; cat <&3"]).stdout(Stdio::piped());
        give(&mut command, vec![(one, 4), (two, 3)]);
        let output = command.output().expect("sh");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "onetwo");
    }

    #[test]
    fn a_child_in_its_own_session_leads_it() {
        let mut command = Command::new("sh");
        command.args(["-c", "set -- $(cat /proc/$$/stat); [ \"$1\" = \"$6\" ]"]);
        in_own_session(&mut command);
        assert!(command.status().expect("sh").success());
    }
}
