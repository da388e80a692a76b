//! Vectored file input and output straight from and into guest memory.
//!
//! A [`GuestSlices`] is a list of ranges of mapped guest memory: most often a view of a [`SliceList`], which its owner fills
//! anew for each request, so that a request costs its own ranges and no allocation. A view is cut and passed on for nothing.
//! The guest may change those bytes at any moment: the kernel touches them, or a volatile copy, and no reference to them is formed.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestMemoryMmap, VolatileSlice};

/// Ranges of one list. Linux takes 1,024 (UIO_MAXIOV); a block request of ours has at most 128 segments, each of which may
/// cross one boundary of two memory regions.
pub const MAX_SLICES: usize = 256;

/// Ranges that one system call takes of a list that was cut in the middle of a range.
const CUT_SLICES: usize = 16;

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Storage for the ranges of one request at a time.
pub struct SliceList(Vec<libc::iovec>);

// SAFETY: the pointers in it are of a request that is over, unless a `Filling` or a `GuestSlices` borrows the list, and then
// it cannot move to another thread.
unsafe impl Send for SliceList {}

impl SliceList {
    /// Room for the longest list; nothing is allocated later.
    pub fn new() -> Self {
        Self(Vec::with_capacity(MAX_SLICES))
    }

    /// Forgets the ranges of the last request and takes those of the next.
    pub fn fill<'mem>(&'mem mut self) -> Filling<'mem> {
        self.0.clear();
        Filling { ranges: &mut self.0, len_bytes: 0, memory: PhantomData }
    }
}

impl Default for SliceList {
    fn default() -> Self {
        Self::new()
    }
}

/// A list that is being filled.
pub struct Filling<'mem> {
    ranges: &'mem mut Vec<libc::iovec>,
    len_bytes: usize,
    memory: PhantomData<&'mem ()>,
}

impl<'mem> Filling<'mem> {
    /// Appends a range; `false` where the list is full.
    #[must_use]
    pub fn push<B: BitmapSlice>(&mut self, slice: VolatileSlice<'mem, B>) -> bool {
        push(self.ranges, &mut self.len_bytes, &slice)
    }

    /// The list.
    pub fn done(self) -> GuestSlices<'mem> {
        let Self { ranges, len_bytes, memory } = self;
        GuestSlices { ranges: Ranges::Of(ranges), first: 0, skip: 0, len_bytes, cut: false, memory }
    }
}

/// Ranges of guest memory, in order, each kept alive by `'mem`.
#[derive(Clone)]
pub struct GuestSlices<'mem> {
    ranges: Ranges<'mem>,
    /// Ranges that are done with.
    first: usize,
    /// Bytes of the next one that are done with.
    skip: usize,
    len_bytes: usize,
    /// The last range may be longer than this list.
    cut: bool,
    memory: PhantomData<&'mem ()>,
}

#[derive(Clone)]
enum Ranges<'mem> {
    One([libc::iovec; 1]),
    Own(Vec<libc::iovec>),
    Of(&'mem [libc::iovec]),
}

impl<'mem> GuestSlices<'mem> {
    /// An empty list with storage of its own, for what happens seldom.
    pub fn new() -> Self {
        let ranges = Ranges::Own(Vec::new());
        Self { ranges, first: 0, skip: 0, len_bytes: 0, cut: false, memory: PhantomData }
    }

    /// A list of one range, which allocates nothing.
    pub fn one<B: BitmapSlice>(slice: VolatileSlice<'mem, B>) -> Self {
        // The pointer comes from a mapping that 'mem keeps.
        let range = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
        let (ranges, len_bytes) = (Ranges::One([range]), slice.len());
        Self { ranges, first: 0, skip: 0, len_bytes, cut: false, memory: PhantomData }
    }

    /// Appends a range; `false` where the list is full, or is a view or a part of another.
    #[must_use]
    pub fn push<B: BitmapSlice>(&mut self, slice: VolatileSlice<'mem, B>) -> bool {
        match &mut self.ranges {
            Ranges::Own(ranges) if !self.cut => push(ranges, &mut self.len_bytes, &slice),
            Ranges::One(_) | Ranges::Own(_) | Ranges::Of(_) => false,
        }
    }

    /// Bytes in all ranges.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// `len` bytes of the list from `offset`, or as many as there are.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        let mut part = self.clone();
        part.advance(offset);
        if len < part.len_bytes {
            (part.len_bytes, part.cut) = (len, true);
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
        self.iter().map(|range| {
            // SAFETY: the range is part of a mapping that 'mem keeps alive: only `push` and `HeldSlices::lend` put ranges
            // here, and both know that. The guest may write there meanwhile, which volatile access allows.
            unsafe { VolatileSlice::new(range.iov_base.cast(), range.iov_len) }
        })
    }

    /// Each range, cut to what belongs to this list.
    pub(crate) fn iter(&self) -> impl Iterator<Item = libc::iovec> + '_ {
        let (mut skip, mut left) = (self.skip, self.len_bytes);
        self.rest().iter().map_while(move |range| {
            let len = (range.iov_len - skip).min(left);
            let cut = libc::iovec { iov_base: range.iov_base.wrapping_byte_add(skip), iov_len: len };
            left -= len;
            skip = 0;
            (len > 0).then_some(cut)
        })
    }

    fn rest(&self) -> &[libc::iovec] {
        let all = match &self.ranges {
            Ranges::One(range) => range,
            Ranges::Own(ranges) => ranges.as_slice(),
            Ranges::Of(ranges) => ranges,
        };
        all.get(self.first..).unwrap_or_default()
    }

    /// What the next system call takes: the ranges themselves, or a few of them in `room` where they have to be cut.
    fn next<'a>(&'a self, room: &'a mut [libc::iovec; CUT_SLICES]) -> &'a [libc::iovec] {
        if self.skip == 0 && !self.cut {
            return self.rest();
        }
        let mut count = 0;
        for (place, range) in room.iter_mut().zip(self.iter()) {
            *place = range;
            count += 1;
        }
        room.get(..count).unwrap_or_default()
    }

    /// Drops the first `bytes` bytes.
    fn advance(&mut self, bytes: usize) {
        let bytes = bytes.min(self.len_bytes);
        self.len_bytes -= bytes;
        let mut skip = self.skip + bytes;
        while let Some(range) = self.rest().first()
            && skip >= range.iov_len
        {
            skip -= range.iov_len;
            self.first += 1;
        }
        self.skip = skip;
    }
}

impl Default for GuestSlices<'_> {
    fn default() -> Self {
        Self::new()
    }
}

fn push<B: BitmapSlice>(ranges: &mut Vec<libc::iovec>, len_bytes: &mut usize, slice: &VolatileSlice<'_, B>) -> bool {
    if slice.is_empty() {
        return true;
    }
    if ranges.len() >= MAX_SLICES {
        return false;
    }
    // The pointer comes from a mapping that the caller's 'mem keeps; it is only handed to the kernel.
    ranges.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
    *len_bytes += slice.len();
    true
}

/// Ranges of one guest's memory that outlive the call they came with: what a request needs that waits or may be tried again.
pub struct HeldSlices {
    /// Keeps what the ranges point to mapped.
    memory: GuestMemoryMmap<()>,
    ranges: Vec<libc::iovec>,
    len_bytes: usize,
}

// SAFETY: the pointers lead into mappings that `memory` keeps, which any thread may use; nothing here is tied to a thread.
unsafe impl Send for HeldSlices {}

impl HeldSlices {
    /// An empty list of ranges of `memory`, with room for the longest.
    pub fn new(memory: GuestMemoryMmap<()>) -> Self {
        Self { memory, ranges: Vec::with_capacity(MAX_SLICES), len_bytes: 0 }
    }

    /// Remembers `slices` in place of what was there; `false`, and nothing remembered, where one is not in this memory.
    #[must_use]
    pub fn hold(&mut self, slices: &GuestSlices<'_>) -> bool {
        use vm_memory::GuestMemoryBackend as _;
        self.ranges.clear();
        self.len_bytes = 0;
        let within = |range: &libc::iovec| {
            let start = range.iov_base as usize;
            self.memory.iter().any(|region| {
                let offset = start.checked_sub(region.as_ptr() as usize);
                offset.is_some_and(|offset| offset <= region.size() && range.iov_len <= region.size() - offset)
            })
        };
        if !slices.iter().all(|range| within(&range)) {
            return false;
        }
        self.ranges.extend(slices.iter());
        self.len_bytes = slices.len_bytes();
        true
    }

    /// The ranges, for as long as they are held: `hold` saw that each lies in a mapping of `memory`.
    pub fn lend(&self) -> GuestSlices<'_> {
        let ranges = Ranges::Of(&self.ranges);
        GuestSlices { ranges, first: 0, skip: 0, len_bytes: self.len_bytes, cut: false, memory: PhantomData }
    }
}

/// Fills all of `into` from `file` at `offset` (preadv(2)), continuing after short reads.
pub fn read_exact_at(file: BorrowedFd<'_>, into: &mut GuestSlices<'_>, mut offset: u64) -> io::Result<()> {
    let mut room = [EMPTY; CUT_SLICES];
    while into.len_bytes > 0 {
        let at = to_off_t(offset)?;
        let ranges = into.next(&mut room);
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
    let mut room = [EMPTY; CUT_SLICES];
    while from.len_bytes > 0 {
        let at = to_off_t(offset)?;
        let ranges = from.next(&mut room);
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

    fn one(mem: &GuestMemoryMmap<()>, len: usize) -> VolatileSlice<'_> {
        vm_memory::GuestMemoryBackend::get_slice(mem, GuestAddress(0), len).expect("in memory")
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
    fn a_part_of_a_list_ends_within_its_ranges() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).expect("memory");
        let file = tempfile::tempfile().expect("file");
        let bytes: Vec<u8> = (0..200).collect();
        mem.write_slice(&bytes, GuestAddress(0)).expect("write");
        // Twenty ranges of ten bytes, from the last to the first.
        let ranges: Vec<_> = (0..20).rev().map(|n| (n * 10, 10)).collect();
        let list = slices(&mem, &ranges, Permissions::Read);
        let whole: Vec<u8> = bytes.chunks(10).rev().flatten().copied().collect();
        for (offset, len) in [(0, 200), (0, 7), (5, 190), (13, 4), (10, 20), (199, 1), (0, 0), (200, 5), (190, 500)] {
            let mut part = list.part(offset, len);
            let expected = whole.get(offset..whole.len().min(offset + len)).unwrap_or_default();
            assert_eq!(part.len_bytes(), expected.len(), "{len} at {offset}");
            let inner = part.part(1, 2);
            write_all_at(file.as_fd(), &mut part, 0).expect("written");
            let mut stored = vec![0; expected.len()];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut stored, 0).expect("read");
            assert_eq!(stored, expected, "{len} at {offset}");
            assert_eq!(inner.len_bytes(), expected.len().saturating_sub(1).min(2));
        }
        assert!(!list.part(0, 5).push(one(&mem, 1)), "a part does not grow");
    }

    #[test]
    fn a_list_is_filled_again_and_again() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("memory");
        let mut list = SliceList::new();
        for count in [1, MAX_SLICES, 3] {
            let mut filling = list.fill();
            for _ in 0..count {
                assert!(filling.push(one(&mem, 8)));
            }
            assert!(filling.push(one(&mem, 0)), "nothing always fits");
            let full = !filling.push(one(&mem, 1));
            assert_eq!(full, count == MAX_SLICES);
            assert_eq!(filling.done().len_bytes(), count * 8 + usize::from(!full));
        }
    }

    #[test]
    fn a_full_list_takes_no_more() {
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("memory");
        let mut list = slices(&mem, &[(0, 1); MAX_SLICES], Permissions::Read);
        assert!(!list.push(one(&mem, 1)));
    }
}
