//! A ring of file input and output (io_uring(7)) between registered files and guest memory.
//!
//! ```text
//!   read, write, sync, punch, zero ─▶ slot, entry in the ring ── kick ─▶ kernel ─▶ source is readable ─▶ collect
//!                                        ▲                                             │ less than all was moved
//!                                        └─────────────────────────────────────────────┘
//! ```
//!
//! What the kernel uses after a call has returned belongs to the ring: a handle of the guest's memory, and for each slot the list
//! of its ranges. A step of other memory than the ring's is refused, and a ring that is dropped, or gives its memory up, waits
//! for all that is in flight. The ring is born disabled and restricted before it starts: it can do these five steps on
//! registered files, and nothing else, whoever writes into it. Which files are registered is all that can change.
//!
//! A program that gives up io_uring_setup(2) reserves rings before ([`reserve`]): from then on a new ring is one of those, and
//! a dropped one goes back. No system call but io_uring_enter(2), and io_uring_register(2) for files, is made after that.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use io_uring::register::Restriction;
use io_uring::squeue::Entry;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::iov::GuestSlices;

/// Ranges that a slot has room for from the start; a longer list makes its slot grow, once.
const USUAL_RANGES: usize = 8;
/// IORING_ENTER_GETEVENTS (io_uring_enter(2)).
const ENTER_GETEVENTS: u32 = 1;

/// A step of something other than data in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// fdatasync(2).
    Sync,
    /// fallocate(2), FALLOC_FL_PUNCH_HOLE.
    Punch {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// fallocate(2), FALLOC_FL_ZERO_RANGE.
    Zero {
        /// In bytes.
        offset: u64,
        /// In bytes.
        len: u64,
    },
}

/// A step that did not start, because all slots are taken, the memory is not the ring's, or the kernel has refused the ring:
/// whoever asked for it does it another way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotStarted;

/// What a slot does.
#[derive(Debug, Clone, Copy)]
enum Work {
    Read { offset: u64 },
    Write { offset: u64 },
    Task(Task),
}

/// One step from its start to its end.
struct Slot {
    tag: u64,
    file: u32,
    work: Work,
    /// What is left of its data, in the kernel's hands until its completion is seen.
    ranges: Vec<libc::iovec>,
    /// Ranges that are done with.
    first: usize,
}

/// Files of one ring at most.
const MAX_FILES: usize = 64;

/// A ring of the kernel's, restricted and enabled, without files.
struct Bare {
    ring: IoUring,
    /// Raised with each completion.
    done: EventFd,
}

impl Bare {
    fn new(depth: u16) -> io::Result<Self> {
        let ring: IoUring = IoUring::builder().setup_r_disabled().build(depth.next_power_of_two().into())?;
        if !(ring.params().is_feature_nodrop() && ring.params().is_feature_submit_stable()) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring loses completions"));
        }
        let done = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let submitter = ring.submitter();
        submitter.register_files(&[NO_FILE; MAX_FILES])?;
        submitter.register_eventfd(done.as_raw_fd())?;
        let fixed = 1u8 << FIXED_FILE_BIT;
        submitter.register_restrictions(&mut [
            Restriction::register_op(REGISTER_FILES_UPDATE),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_allowed(fixed),
            Restriction::sqe_flags_required(fixed),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, done })
    }

    /// Registers these files and no others.
    fn take_files(&self, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut table = [NO_FILE; MAX_FILES];
        if files.len() > table.len() {
            let why = format!("{} files are too many for one ring, which has places for {MAX_FILES}", files.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        table.iter_mut().zip(files).for_each(|(place, file)| *place = file.as_raw_fd());
        // It ends early where a place is taken by something that cannot be (io_uring_register(2), IORING_REGISTER_FILES_UPDATE).
        match self.ring.submitter().register_files_update(0, &table)? {
            MAX_FILES => Ok(()),
            done => Err(io::Error::other(format!("the kernel took {done} of {MAX_FILES} places of a ring's files"))),
        }
    }

    /// As it was made. The kernel closes the files some time later, on Linux 6.1 up to a second.
    fn forget_files(&mut self) -> io::Result<()> {
        self.take_files(&[])?;
        let _ = self.done.read(); // not raised is as good
        Ok(())
    }
}

/// Rings that were made ahead.
struct Pool {
    free: Mutex<Vec<Bare>>,
    depth: u16,
    made: usize,
    /// Why there are fewer than were asked for.
    lack: Option<(io::ErrorKind, String)>,
}

impl Pool {
    fn new(count: usize, depth: u16) -> Self {
        let (mut free, mut lack) = (Vec::new(), None);
        while free.len() < count && lack.is_none() {
            match Bare::new(depth) {
                Ok(bare) => free.push(bare),
                Err(error) => lack = Some((error.kind(), error.to_string())),
            }
        }
        Self { made: free.len(), free: Mutex::new(free), depth, lack }
    }

    fn take(&self) -> io::Result<Bare> {
        if let Some(bare) = self.lock().pop() {
            return Ok(bare);
        }
        let made = self.made;
        Err(match &self.lack {
            Some((kind, why)) => {
                io::Error::new(*kind, format!("{made} rings were made at the start and are taken, for then: {why}"))
            }
            None => {
                let why = format!("all {made} rings that were made at the start are taken");
                io::Error::new(io::ErrorKind::QuotaExceeded, why)
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Bare>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The program's, once it has reserved rings.
static POOL: OnceLock<Arc<Pool>> = OnceLock::new();

/// Makes `count` rings now, of `depth` steps at a time; from now on there are no others. How many were to be had.
pub fn reserve(count: usize, depth: u16) -> usize {
    POOL.get_or_init(|| Arc::new(Pool::new(count, depth))).made
}

/// The ring.
pub struct Ring {
    bare: ManuallyDrop<Bare>,
    /// Where it goes when it is not needed any more.
    home: Option<Arc<Pool>>,
    /// What the ranges of slots lie in.
    memory: Option<GuestMemoryMmap<()>>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slots whose entries the kernel has not taken yet, in order.
    queued: VecDeque<u16>,
    /// Slots whose entries it will never take.
    refused: VecDeque<u16>,
    /// How many entries the kernel has taken and not completed.
    in_flight: usize,
    /// Why the kernel takes no entries any more.
    broken: Option<i32>,
}

// SAFETY: the pointers in slots lead into `memory`, which moves along, and are only handed to the kernel.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring over these files, for as many steps at a time as `depth`, or as those have that were reserved.
    ///
    /// # Errors
    /// What io_uring_setup(2) and io_uring_register(2) say: without io_uring `Unsupported`, where it is forbidden `PermissionDenied`. That
    /// all that were reserved are taken.
    pub fn new(files: &[BorrowedFd<'_>], depth: u16) -> io::Result<Self> {
        Self::out_of(POOL.get().cloned(), files, depth)
    }

    fn out_of(home: Option<Arc<Pool>>, files: &[BorrowedFd<'_>], depth: u16) -> io::Result<Self> {
        let (bare, depth) = match &home {
            Some(pool) => (pool.take()?, depth.min(pool.depth)),
            None => (Bare::new(depth)?, depth),
        };
        if let Err(error) = bare.take_files(files) {
            give_back(home.as_deref(), bare);
            return Err(error);
        }
        let slot = |_| Slot {
            tag: 0,
            file: 0,
            work: Work::Task(Task::Sync),
            ranges: Vec::with_capacity(USUAL_RANGES),
            first: 0,
        };
        Ok(Self {
            bare: ManuallyDrop::new(bare),
            home,
            memory: None,
            slots: (0..depth).map(slot).collect(),
            free: (0..depth).collect(),
            queued: VecDeque::with_capacity(depth.into()),
            refused: VecDeque::with_capacity(depth.into()),
            in_flight: 0,
            broken: None,
        })
    }

    /// Takes a handle of the memory that reads and writes are of; waits for what is in flight in another one.
    pub fn attach(&mut self, memory: GuestMemoryMmap<()>) {
        self.detach();
        self.memory = Some(memory);
    }

    /// Gives the memory up, when all in flight has ended.
    pub fn detach(&mut self) {
        self.submit();
        while self.in_flight > 0 && self.wait() {
            self.reap_only();
        }
        if !self.queued.is_empty() {
            // Entries that lead into this memory must never start later.
            self.broken = Some(libc::EAGAIN);
            self.refused.extend(self.queued.drain(..));
        }
        if self.in_flight > 0 {
            // The kernel may still write there; what cannot be waited for is never given back.
            std::mem::forget(self.memory.take());
        }
        self.memory = None;
    }

    /// Can be read when `collect` has news.
    pub fn source(&self) -> RawFd {
        self.bare.done.as_raw_fd()
    }

    /// Fills all of `into` from a file.
    ///
    /// # Errors
    /// Nothing was started.
    pub fn read(&mut self, tag: u64, file: u32, offset: u64, into: &GuestSlices<'_>) -> Result<(), NotStarted> {
        self.start(tag, file, Work::Read { offset }, Some(into))
    }

    /// Writes all of `from` to a file.
    ///
    /// # Errors
    /// Nothing was started.
    pub fn write(&mut self, tag: u64, file: u32, offset: u64, from: &GuestSlices<'_>) -> Result<(), NotStarted> {
        self.start(tag, file, Work::Write { offset }, Some(from))
    }

    /// Does what is no transfer.
    ///
    /// # Errors
    /// Nothing was started.
    pub fn task(&mut self, tag: u64, file: u32, task: Task) -> Result<(), NotStarted> {
        self.start(tag, file, Work::Task(task), None)
    }

    fn start(&mut self, tag: u64, file: u32, work: Work, data: Option<&GuestSlices<'_>>) -> Result<(), NotStarted> {
        if self.broken.is_some() || !data.is_none_or(|data| self.owns(data)) {
            return Err(NotStarted);
        }
        let index = self.free.pop().ok_or(NotStarted)?;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return Err(NotStarted) };
        (slot.tag, slot.file, slot.work, slot.first) = (tag, file, work, 0);
        slot.ranges.clear();
        slot.ranges.extend(data.into_iter().flat_map(GuestSlices::iter));
        self.queue(index);
        Ok(())
    }

    /// Whether every range lies in a region of the memory that the ring keeps alive.
    fn owns(&self, data: &GuestSlices<'_>) -> bool {
        let Some(memory) = &self.memory else { return false };
        data.iter().all(|range| {
            let start = range.iov_base as usize;
            memory.iter().any(|region| {
                let from = region.as_ptr() as usize;
                let len = usize::try_from(region.len()).unwrap_or(0);
                start >= from && start - from <= len && range.iov_len <= len - (start - from)
            })
        })
    }

    /// Puts the slot's entry into the ring.
    fn queue(&mut self, index: u16) {
        let Some(slot) = self.slots.get(usize::from(index)) else { return };
        let entry = slot.entry().user_data(index.into());
        // SAFETY: the entry's ranges lie in the slot and lead into `memory`. Both stay as they are until the completion of this
        // entry is seen, also when the ring is dropped. The guest may change those bytes meanwhile; only the kernel touches
        // them, and no reference to them exists.
        let pushed = unsafe { self.bare.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => self.queued.push_back(index),
            // There are as many entries as slots, so a full ring cannot be; if it is, the step ends with an error.
            Err(_) => self.refused.push_back(index),
        }
    }

    /// Starts what was queued: one system call for all of it.
    pub fn kick(&mut self) {
        self.submit();
        // What could not start and has nothing in flight that would call again, calls itself.
        if !self.refused.is_empty() || (!self.queued.is_empty() && self.in_flight == 0) {
            self.raise();
        }
    }

    /// Makes the source readable once, for news from elsewhere.
    pub fn raise(&self) {
        let _ = self.bare.done.write(1); // full is raised, too
    }

    fn submit(&mut self) {
        while !self.queued.is_empty() && self.broken.is_none() {
            match self.bare.ring.submit() {
                Ok(taken) => {
                    let taken = taken.min(self.queued.len());
                    self.queued.drain(..taken);
                    self.in_flight += taken;
                    if taken == 0 {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Memory is short, or completions have to be collected first: the next kick or collection tries again.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)) => return,
                Err(error) => {
                    self.broken = Some(error.raw_os_error().unwrap_or(libc::EIO));
                    self.refused.extend(self.queued.drain(..));
                }
            }
        }
    }

    /// The next step that has ended.
    pub fn collect(&mut self) -> Option<(u64, io::Result<()>)> {
        loop {
            if let Some(index) = self.refused.pop_front() {
                return self.end(index, Err(io::Error::from_raw_os_error(self.broken.unwrap_or(libc::EIO))));
            }
            match self.completion() {
                Some((index, result)) => {
                    if let Some(ended) = self.advance(index, result) {
                        return self.end(index, ended);
                    }
                }
                None if !self.queued.is_empty() => {
                    let before = self.queued.len();
                    self.kick();
                    if self.queued.len() == before {
                        return None;
                    }
                }
                // Taken back first, looked at afterwards: a completion in between is seen now or raises it again.
                None if self.bare.done.read().is_ok() => {}
                None => return None,
            }
        }
    }

    fn completion(&mut self) -> Option<(u16, i32)> {
        let entry = self.bare.ring.completion().next()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some((u16::try_from(entry.user_data()).ok()?, entry.result()))
    }

    /// What a completion means for its slot; `None` where it goes on.
    fn advance(&mut self, index: u16, result: i32) -> Option<io::Result<()>> {
        let slot = self.slots.get_mut(usize::from(index))?;
        let ended = match (usize::try_from(result), slot.work) {
            (Err(_), _) if matches!(-result, libc::EINTR | libc::EAGAIN) => None,
            (Err(_), _) => Some(Err(io::Error::from_raw_os_error(-result))),
            (Ok(_), Work::Task(_)) => Some(Ok(())),
            (Ok(moved), Work::Read { .. } | Work::Write { .. }) => slot.moved(moved),
        };
        if ended.is_none() {
            self.queue(index);
        }
        ended
    }

    fn end(&mut self, index: u16, result: io::Result<()>) -> Option<(u64, io::Result<()>)> {
        let tag = self.slots.get(usize::from(index))?.tag;
        self.free.push(index);
        Some((tag, result))
    }

    /// Waits for a completion without starting anything; `false` where that cannot be.
    fn wait(&self) -> bool {
        // SAFETY: nothing is submitted and no signal mask is passed, so the kernel takes no pointer from this call.
        let waited = unsafe { self.bare.ring.submitter().enter::<libc::sigset_t>(0, 1, ENTER_GETEVENTS, None) };
        waited.is_ok() || waited.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
    }

    /// Takes completions whose results nobody asks for any more.
    fn reap_only(&mut self) {
        while let Some((index, _)) = self.completion() {
            self.free.push(index);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Entries that the kernel has not taken go with the ring.
        let is_clean = self.queued.is_empty() && self.broken.is_none();
        self.queued.clear();
        self.detach();
        // SAFETY: nothing uses it after this, which happens once.
        let bare = unsafe { ManuallyDrop::take(&mut self.bare) };
        if self.in_flight > 0 {
            std::mem::forget(std::mem::take(&mut self.slots));
        } else if is_clean && self.broken.is_none() {
            give_back(self.home.as_deref(), bare);
        }
    }
}

/// A ring without files is free for others; one that keeps them is closed.
fn give_back(home: Option<&Pool>, mut bare: Bare) {
    if let Some(pool) = home
        && bare.forget_files().is_ok()
    {
        pool.lock().push(bare);
    }
}

impl Slot {
    fn entry(&self) -> Entry {
        let file = Fixed(self.file);
        let ranges = self.ranges.get(self.first..).unwrap_or_default();
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        let keep_size = libc::FALLOC_FL_KEEP_SIZE;
        match self.work {
            Work::Read { offset } => opcode::Readv::new(file, ranges.as_ptr(), count).offset(offset).build(),
            Work::Write { offset } => opcode::Writev::new(file, ranges.as_ptr(), count).offset(offset).build(),
            Work::Task(Task::Sync) => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            Work::Task(Task::Punch { offset, len }) => {
                opcode::Fallocate::new(file, len).offset(offset).mode(libc::FALLOC_FL_PUNCH_HOLE | keep_size).build()
            }
            Work::Task(Task::Zero { offset, len }) => {
                opcode::Fallocate::new(file, len).offset(offset).mode(libc::FALLOC_FL_ZERO_RANGE | keep_size).build()
            }
        }
    }

    /// So many bytes were moved: the end of the step, or `None` where something is left.
    fn moved(&mut self, bytes: usize) -> Option<io::Result<()>> {
        let (offset, nothing) = match &mut self.work {
            Work::Read { offset } => (offset, io::ErrorKind::UnexpectedEof),
            Work::Write { offset } => (offset, io::ErrorKind::WriteZero),
            Work::Task(_) => return Some(Ok(())),
        };
        *offset += bytes as u64;
        let mut left = bytes;
        while let Some(range) = self.ranges.get_mut(self.first) {
            if left < range.iov_len {
                range.iov_base = range.iov_base.wrapping_byte_add(left);
                range.iov_len -= left;
                return if bytes == 0 { Some(Err(nothing.into())) } else { None };
            }
            left -= range.iov_len;
            self.first += 1;
        }
        Some(Ok(()))
    }
}

/// A place without a file (io_uring_register(2), IORING_REGISTER_FILES).
const NO_FILE: RawFd = -1;
/// IORING_REGISTER_FILES_UPDATE (io_uring_register(2); include/uapi/linux/io_uring.h).
pub const REGISTER_FILES_UPDATE: u8 = 6;

/// IOSQE_FIXED_FILE (io_uring_enter(2)): bit 0 of the flags of an entry.
const FIXED_FILE_BIT: u8 = 0;

#[cfg(test)]
mod tests;
