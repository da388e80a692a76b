//! Vectored file input and output straight from and into guest memory.
//!
//! A [`GuestSlices`] is a list of ranges of mapped guest memory, held by value so that a request needs no allocation.
//! The guest may change those bytes at any moment: only the kernel touches them here, and no reference to them is formed.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

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

    /// `len` bytes from `skip` on, or what there is of them.
    #[must_use]
    pub fn part(&self, skip: usize, len: usize) -> Self {
        let mut part = Self::new();
        let (mut skip, mut len) = (skip, len);
        for range in self.rest() {
            let start = skip.min(range.iov_len);
            let take = len.min(range.iov_len - start);
            if take > 0
                && let Some(place) = part.iovecs.get_mut(part.count)
            {
                *place = libc::iovec { iov_base: range.iov_base.wrapping_byte_add(start), iov_len: take };
                part.count += 1;
            }
            skip -= start;
            len -= take;
        }
        part
    }

    /// Fills all of it with zeros.
    pub fn zero(&self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for range in self.slices() {
            let mut at = 0;
            while let Ok(rest) = range.offset(at)
                && !rest.is_empty()
            {
                rest.copy_from(&ZEROS);
                at += rest.len().min(ZEROS.len());
            }
        }
    }

    /// Copies to `to`, as much as fits.
    pub fn copy_to(&self, to: &VolatileSlice<'_>) {
        let mut at = 0;
        for range in self.slices() {
            let Ok(place) = to.offset(at) else { return };
            range.copy_to_volatile_slice(place);
            at += range.len();
        }
    }

    fn slices(&self) -> impl Iterator<Item = VolatileSlice<'mem>> {
        self.rest().iter().map(|range| {
            // SAFETY: the range is part of a mapping that 'mem keeps alive: only `push` and `HeldSlices::lend` put ranges
            // here, and both know that. The guest may write there meanwhile, which volatile access allows.
            unsafe { VolatileSlice::new(range.iov_base.cast(), range.iov_len) }
        })
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

/// Ranges of one guest's memory that outlive the call they came with: what a request needs that waits or may be tried again.
pub struct HeldSlices {
    /// Keeps what the ranges point to mapped.
    memory: GuestMemoryMmap<()>,
    iovecs: [libc::iovec; MAX_SLICES],
    count: usize,
}

// SAFETY: the pointers lead into mappings that `memory` keeps, which any thread may use; nothing here is tied to a thread.
unsafe impl Send for HeldSlices {}

impl HeldSlices {
    /// An empty list of ranges of `memory`.
    pub fn new(memory: GuestMemoryMmap<()>) -> Self {
        const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { memory, iovecs: [EMPTY; MAX_SLICES], count: 0 }
    }

    /// Remembers `slices` in place of what was there; `false`, and nothing remembered, where one is not in this memory.
    #[must_use]
    pub fn hold(&mut self, slices: &GuestSlices<'_>) -> bool {
        use vm_memory::GuestMemoryBackend as _;
        self.count = 0;
        let within = |range: &libc::iovec| {
            let start = range.iov_base as usize;
            self.memory.iter().any(|region| {
                let offset = start.checked_sub(region.as_ptr() as usize);
                offset.is_some_and(|offset| offset <= region.size() && range.iov_len <= region.size() - offset)
            })
        };
        let rest = slices.rest();
        if !rest.iter().all(within) {
            return false;
        }
        for (place, range) in self.iovecs.iter_mut().zip(rest) {
            *place = *range;
        }
        self.count = rest.len();
        true
    }

    /// The ranges, for as long as they are held.
    pub fn lend(&self) -> GuestSlices<'_> {
        let mut lent = GuestSlices::new();
        // `hold` saw that each lies in a mapping of `memory`, which lives as long as the borrow.
        for (place, range) in lent.iovecs.iter_mut().zip(self.iovecs.iter().take(self.count)) {
            *place = *range;
        }
        lent.count = self.count;
        lent
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
    use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

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
    fn a_part_of_a_list_is_the_same_memory() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).expect("memory");
        mem.write_slice(b"abcdef", GuestAddress(0)).expect("write");
        mem.write_slice(b"ghi", GuestAddress(0x2000)).expect("write");
        let list = slices(&mem, &[(0, 6), (0x2000, 3)], Permissions::Read);
        let mut bytes = [b'.'; 8];
        list.part(4, 4).copy_to(&VolatileSlice::from(bytes.as_mut_slice()));
        assert_eq!(&bytes, b"efgh....");
        assert_eq!(list.part(9, 1).len_bytes(), 0);
        list.part(5, 2).zero();
        let mut all = [0; 6];
        mem.read_slice(&mut all, GuestAddress(0)).expect("read");
        assert_eq!(&all, b"abcde\0");
    }

    #[test]
    fn only_ranges_of_the_own_memory_are_held() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).expect("memory");
        let other = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).expect("memory");
        mem.write_slice(b"kept", GuestAddress(0x3ffc)).expect("write");
        let mut held = HeldSlices::new(mem.clone());
        assert!(!held.hold(&slices(&other, &[(0, 1)], Permissions::Read)));
        assert_eq!(held.lend().len_bytes(), 0);
        assert!(held.hold(&slices(&mem, &[(0x3ffc, 4)], Permissions::Read)));
        drop(mem);
        let mut bytes = [0; 4];
        held.lend().copy_to(&VolatileSlice::from(bytes.as_mut_slice()));
        assert_eq!(&bytes, b"kept");
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
