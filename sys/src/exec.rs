//! The last steps of a program that becomes another: a table of descriptors at fixed numbers, and execveat.
//!
//! For single-threaded programs only: descriptors are moved and closed by number, whoever owns them.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use libc::c_int;

/// What is in the program's hands after [`arrange`].
#[derive(Debug)]
pub struct Arranged {
    /// Where the program itself is; closed when it starts.
    pub program: RawFd,
}

/// Makes the descriptor `from` of each pair appear as `to`, keeps `program` (at a number of its own, closed by exec) and closes everything else.
///
/// First everything is copied to numbers above the whole table and then to its place, so that no source is overwritten before it is read.
///
/// # Errors
/// `InvalidInput` where a number is negative or a target is named twice; what fcntl(2), dup2(2) or close_range(2) says, with the number.
pub fn arrange(table: &[(RawFd, RawFd)], program: RawFd) -> io::Result<Arranged> {
    let mut targets: Vec<_> = table.iter().map(|(_, to)| *to).collect();
    targets.sort_unstable();
    if targets.windows(2).any(|pair| pair.first() == pair.last()) || targets.first().is_some_and(|least| *least < 0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor targets {targets:?} are not distinct numbers"),
        ));
    }
    let above = table.iter().flat_map(|(from, to)| [*from, *to]).chain([program]).max().unwrap_or(0);
    let above = above.checked_add(1).ok_or(io::ErrorKind::InvalidInput)?;
    let program = copy_above(program, above)?;
    let copies = table
        .iter()
        .map(|(from, to)| Ok((copy_above(*from, program + 1)?, *to)))
        .collect::<io::Result<Vec<(RawFd, RawFd)>>>()?;
    for (from, to) in copies {
        // SAFETY: dup2 takes two numbers and touches no memory; the caller's contract gives up whatever `to` was.
        let result = unsafe { libc::dup2(from, to) };
        check(result).map_err(|error| named(error, "placing", to))?;
    }
    // Everything that is not in the table: the gaps between its numbers, and all above but the program.
    let mut next = 0;
    for keep in targets.into_iter().chain([program]) {
        if keep > next {
            close_range(next, keep - 1)?;
        }
        next = keep + 1;
    }
    close_range(next, RawFd::MAX)?;
    Ok(Arranged { program })
}

/// A copy of a descriptor that was inherited at a number agreed on with the parent; the original stays open.
///
/// # Errors
/// Where nothing is open there.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let copy = copy_above(number, 3)?;
    // SAFETY: `copy` was made by the line above, so nobody else owns or closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The same, and programs that the caller starts do not get the original either.
///
/// # Errors
/// Where nothing is open there.
pub fn inherited_alone(number: RawFd) -> io::Result<OwnedFd> {
    let copy = inherited(number)?;
    // SAFETY: F_SETFD takes a number and touches no memory.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(copy)
}

/// Whether a descriptor is open at this number.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes a number and touches no memory.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

fn copy_above(from: RawFd, least: RawFd) -> io::Result<RawFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes two numbers and touches no memory; a number that is not open is an error.
    let result = unsafe { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, least) };
    check(result).map_err(|error| named(error, "copying", from))
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: close_range takes numbers and touches no memory; the caller's contract gives these descriptors up.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result < 0 { Err(named(io::Error::last_os_error(), "closing from", first)) } else { Ok(()) }
}

/// Becomes the program behind the descriptor, with these arguments and an empty environment. Returns only the error.
///
/// `argv` is what was built beforehand with [`arguments`].
pub fn execveat(program: &Arranged, argv: &Arguments) -> io::Error {
    let (path, environment) = (c"", [std::ptr::null::<libc::c_char>()]);
    // SAFETY: `path` is a C string and both arrays end with a null pointer; every pointer before it is a C string that `argv` owns.
    // They outlive the call, which returns only when it has failed.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.program,
            path.as_ptr(),
            argv.pointers.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Arguments in the form that the kernel reads.
#[derive(Debug)]
pub struct Arguments {
    /// Null-terminated; each points into `strings`.
    pointers: Vec<*const libc::c_char>,
    #[expect(dead_code, reason = "owns what `pointers` points to")]
    strings: Vec<CString>,
}

/// Prepares `argv`, program name included.
///
/// # Errors
/// `InvalidInput` where an argument holds a NUL byte.
pub fn arguments(argv: &[String]) -> io::Result<Arguments> {
    let strings =
        argv.iter().map(|argument| Ok(CString::new(argument.as_bytes())?)).collect::<io::Result<Vec<CString>>>()?;
    let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
    Ok(Arguments { pointers, strings })
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn named(error: io::Error, doing: &str, number: RawFd) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} descriptor {number}: {error}"))
}
