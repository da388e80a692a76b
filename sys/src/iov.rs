//! Vectored file input and output straight from and into guest memory.
//!
//! A [`GuestSlices`] is a list of ranges of mapped guest memory, held by value so that a request needs no allocation.
//! The guest may change those bytes at any moment: only the kernel touches them here, and no reference to them is formed.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Ranges of one list. Linux takes 1,024 (UIO_MAXIOV); a block request of ours has at most 128 segments, each of which may
/// cross one boundary of two memory regions.
pub const MAX_SLICES: usize = 256;

/// Ranges of guest memory, in order, each kept alive by `'mem`.
pub struct GuestSlices<'mem> {
    iovecs: [libc::iovec; MAX_SLICES],
    first: usize,
    count: usize,
    memory: PhantomData<&'mem ()>,
}

impl<'mem> GuestSlices<'mem> {
    /// An empty list.
    pub fn new() -> Self {
        const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { iovecs: [EMPTY; MAX_SLICES], first: 0, count: 0, memory: PhantomData }
    }

    /// Appends a range; `false` where the list is full.
    #[must_use]
    pub fn push<B: BitmapSlice>(&mut self, slice: VolatileSlice<'mem, B>) -> bool {
        match self.iovecs.get_mut(self.first + self.count) {
            Some(place) => {
                // The pointer comes from a mapping that 'mem keeps; it is only handed to the kernel.
                *place = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
                self.count += 1;
                true
            }
            None => false,
        }
    }

    /// Bytes in all ranges.
    pub fn len_bytes(&self) -> usize {
        self.rest().iter().map(|range| range.iov_len).sum()
    }

    fn rest(&self) -> &[libc::iovec] {
        self.iovecs.get(self.first..self.first + self.count).unwrap_or_default()
    }

    /// Drops the first `bytes` bytes.
    fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 && self.count > 0 {
            let Some(range) = self.iovecs.get_mut(self.first) else { return };
            let step = bytes.min(range.iov_len);
            range.iov_base = range.iov_base.wrapping_byte_add(step);
            range.iov_len -= step;
            bytes -= step;
            if range.iov_len == 0 {
                self.first += 1;
                self.count -= 1;
            }
        }
    }
}

impl Default for GuestSlices<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Fills all of `into` from `file` at `offset` (preadv(2)), continuing after short reads.
pub fn read_exact_at(file: BorrowedFd<'_>, into: &mut GuestSlices<'_>, mut offset: u64) -> io::Result<()> {
    while into.count > 0 {
        let at = to_off_t(offset)?;
        let ranges = into.rest();
        // SAFETY: each iovec covers a part of a mapping that 'mem keeps alive past this call. The guest may change those
        // bytes meanwhile; only the kernel writes them here, and no reference to them exists.
        let n = unsafe { libc::preadv(file.as_raw_fd(), ranges.as_ptr(), to_int(ranges.len()), at) };
        match progress(n)? {
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(n) => {
                into.advance(n);
                offset += n as u64;
            }
            None => {}
        }
    }
    Ok(())
}

/// Writes all of `from` to `file` at `offset` (pwritev(2)), continuing after short writes.
pub fn write_all_at(file: BorrowedFd<'_>, from: &mut GuestSlices<'_>, mut offset: u64) -> io::Result<()> {
    while from.count > 0 {
        let at = to_off_t(offset)?;
        let ranges = from.rest();
        // SAFETY: as in `read_exact_at`; the kernel only reads these bytes.
        let n = unsafe { libc::pwritev(file.as_raw_fd(), ranges.as_ptr(), to_int(ranges.len()), at) };
        match progress(n)? {
            Some(0) => return Err(io::ErrorKind::WriteZero.into()),
            Some(n) => {
                from.advance(n);
                offset += n as u64;
            }
            None => {}
        }
    }
    Ok(())
}

/// `None`: interrupted, try again.
fn progress(n: isize) -> io::Result<Option<usize>> {
    match usize::try_from(n) {
        Ok(n) => Ok(Some(n)),
        Err(_) => {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) }
        }
    }
}

fn to_off_t(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn to_int(count: usize) -> libc::c_int {
    libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

    fn slices<'a>(mem: &'a GuestMemoryMmap<()>, ranges: &[(u64, usize)], access: Permissions) -> GuestSlices<'a> {
        let mut list = GuestSlices::new();
        for (address, len) in ranges {
            for slice in mem.get_slices(GuestAddress(*address), *len, access).expect("in memory") {
                assert!(list.push(slice.expect("in memory")));
            }
        }
        list
    }

    #[test]
    fn bytes_travel_between_a_file_and_scattered_guest_memory() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).expect("memory");
        let file = tempfile::tempfile().expect("file");
        mem.write_slice(b"hello, ", GuestAddress(0x10)).expect("write");
        mem.write_slice(b"guest", GuestAddress(0x2000)).expect("write");
        let mut from = slices(&mem, &[(0x10, 7), (0x2000, 5)], Permissions::Read);
        assert_eq!(from.len_bytes(), 12);
        write_all_at(file.as_fd(), &mut from, 100).expect("written");
        let mut into = slices(&mem, &[(0x3000, 5), (0x3100, 7)], Permissions::Write);
        read_exact_at(file.as_fd(), &mut into, 100).expect("read");
        let (mut a, mut b) = ([0; 5], [0; 7]);
        mem.read_slice(&mut a, GuestAddress(0x3000)).expect("read");
        mem.read_slice(&mut b, GuestAddress(0x3100)).expect("read");
        assert_eq!((&a, &b), (b"hello", b", guest"));
    }

    #[test]
    fn the_end_of_the_file_is_an_error_not_a_loop() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("memory");
        let file = tempfile::tempfile().expect("file");
        let mut into = slices(&mem, &[(0, 16)], Permissions::Write);
        let error = read_exact_at(file.as_fd(), &mut into, 0).expect_err("nothing there");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_full_list_takes_no_more() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("memory");
        let mut list = slices(&mem, &[(0, 1); MAX_SLICES], Permissions::Read);
        let extra =
            mem.get_slices(GuestAddress(0), 1, Permissions::Read).expect("memory").next().expect("one").expect("ok");
        assert!(!list.push(extra));
    }
}
