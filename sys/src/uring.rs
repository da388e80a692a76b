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
//! for all that is in flight. The ring is born disabled and restricted before it starts: it can do these five steps on the
//! files that it was made with, and nothing else, whoever writes into it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

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

/// The ring.
pub struct Ring {
    ring: IoUring,
    /// Raised with each completion.
    done: EventFd,
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
    /// A ring over these files, for as many steps at a time as `depth`.
    ///
    /// # Errors
    /// What io_uring_setup(2) and io_uring_register(2) say: without io_uring `Unsupported`, where it is forbidden `PermissionDenied`.
    pub fn new(files: &[BorrowedFd<'_>], depth: u16) -> io::Result<Self> {
        let ring: IoUring = IoUring::builder().setup_r_disabled().build(depth.next_power_of_two().into())?;
        if !(ring.params().is_feature_nodrop() && ring.params().is_feature_submit_stable()) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring loses completions"));
        }
        let done = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let submitter = ring.submitter();
        submitter.register_files(&files)?;
        submitter.register_eventfd(done.as_raw_fd())?;
        let fixed = 1u8 << FIXED_FILE_BIT;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_allowed(fixed),
            Restriction::sqe_flags_required(fixed),
        ])?;
        submitter.register_enable_rings()?;
        let slot = |_| Slot {
            tag: 0,
            file: 0,
            work: Work::Task(Task::Sync),
            ranges: Vec::with_capacity(USUAL_RANGES),
            first: 0,
        };
        Ok(Self {
            ring,
            done,
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
        self.done.as_raw_fd()
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
        let pushed = unsafe { self.ring.submission().push(&entry) };
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
        let _ = self.done.write(1); // full is raised, too
    }

    fn submit(&mut self) {
        while !self.queued.is_empty() && self.broken.is_none() {
            match self.ring.submit() {
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
                None if self.done.read().is_ok() => {}
                None => return None,
            }
        }
    }

    fn completion(&mut self) -> Option<(u16, i32)> {
        let entry = self.ring.completion().next()?;
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
        let waited = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 1, ENTER_GETEVENTS, None) };
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
        self.queued.clear(); // entries that the kernel has not taken go with the ring
        self.detach();
        if self.in_flight > 0 {
            std::mem::forget(std::mem::take(&mut self.slots));
        }
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

/// IOSQE_FIXED_FILE (io_uring_enter(2)): bit 0 of the flags of an entry.
const FIXED_FILE_BIT: u8 = 0;

#[cfg(test)]
mod tests;
