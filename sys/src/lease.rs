//! Leases: the right to write a file, or to rely on it as it is, for as long as a descriptor of it is open (flock(2)).

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, flock};
use rustix::io::Errno;

/// How often a lease is tried that somebody else has.
const LOOK: Duration = Duration::from_millis(20);

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Nobody else writes it, and nobody relies on it.
    Writer,
    /// Nobody writes it.
    Reader,
}

/// Takes a lease, or turns the one that this descriptor has into it; `false` where somebody else's is in the way. Copies of the
/// descriptor share it, also in other processes; it ends with the last of them, or when it is
/// given back.
///
/// # Errors
/// What flock(2) says.
pub fn take(file: impl AsFd, lease: Lease) -> io::Result<bool> {
    let operation = match lease {
        Lease::Writer => FlockOperation::NonBlockingLockExclusive,
        Lease::Reader => FlockOperation::NonBlockingLockShared,
    };
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// As [`take`], but somebody else's lease may end within `patience`: a process that was killed has its own until the kernel has taken its
/// rings down, which takes a moment after everybody has heard of its end.
///
/// # Errors
/// What flock(2) says.
pub fn take_in_time(file: impl AsFd, lease: Lease, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    while !take(&file, lease)? {
        if Instant::now() >= until {
            return Ok(false);
        }
        // Nobody tells when a lease ends; futex(2), not nanosleep(2), is what every thread of the vmm may call.
        std::thread::park_timeout(LOOK);
    }
    Ok(true)
}

/// Ends the lease of this descriptor, and with it that of all its copies, also in other processes.
///
/// For who cannot wait until the last of them is closed: a ring of io_uring lets go of a file a while after it was told to.
///
/// # Errors
/// What flock(2) says.
pub fn give_back(file: impl AsFd) -> io::Result<()> {
    loop {
        match flock(&file, FlockOperation::Unlock) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether a descriptor was opened for reading and writing (fcntl(2), F_GETFL).
///
/// # Errors
/// What fcntl(2) says.
pub fn can_write(file: impl AsFd) -> io::Result<bool> {
    Ok(fcntl_getfl(file)? & OFlags::RWMODE == OFlags::RDWR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_descriptor_tells_whether_it_can_write() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(can_write(file.as_file()).expect("fcntl"));
        assert!(!can_write(File::open(file.path()).expect("opening")).expect("fcntl"));
    }

    #[test]
    fn a_writer_keeps_everybody_out_until_its_last_descriptor_closes() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::open(file.path()).expect("opening");
        let (first, second) = (open(), open());
        assert!(take(&first, Lease::Writer).expect("flock"));
        assert!(take(&first, Lease::Writer).expect("flock"), "its own is not in the way");
        assert!(!take(&second, Lease::Writer).expect("flock"));
        assert!(!take(&second, Lease::Reader).expect("flock"));
        let copy = first.try_clone().expect("a copy");
        drop(first);
        assert!(!take(&second, Lease::Reader).expect("flock"));
        assert!(take(&copy, Lease::Reader).expect("flock"));
        assert!(take(&second, Lease::Reader).expect("flock"), "readers do not exclude each other");
        assert!(!take(&copy, Lease::Writer).expect("flock"));
        drop(copy);
        assert!(take(&second, Lease::Writer).expect("flock"));
    }

    #[test]
    fn a_lease_that_ends_soon_is_waited_for_and_one_that_does_not_is_told_of() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::open(file.path()).expect("opening");
        let (first, second) = (open(), open());
        assert!(take(&first, Lease::Writer).expect("flock"));
        assert!(!take_in_time(&second, Lease::Writer, 3 * LOOK).expect("flock"));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| take_in_time(&second, Lease::Writer, Duration::from_secs(60)));
            // Whether it waits already is the same to it.
            drop(first);
            assert!(waiter.join().expect("a thread").expect("flock"));
        });
    }

    #[test]
    fn a_lease_that_is_given_back_ends_whatever_copies_are_open() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = || File::open(file.path()).expect("opening");
        let (first, second) = (open(), open());
        let copy = first.try_clone().expect("a copy");
        assert!(take(&first, Lease::Writer).expect("flock"));
        give_back(&first).expect("flock");
        assert!(take(&second, Lease::Writer).expect("flock"));
        give_back(&copy).expect("flock");
        assert!(!take(&copy, Lease::Reader).expect("flock"), "somebody else's lease stays");
    }
}
