//! An allocator that counts, for tests that say how much memory something takes, or that it takes none.
//!
//! It counts for each thread by itself: the threads of a test program that are not asked, such as the one that runs the tests, have
//! memory to take at any time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Neither is made on first use nor dropped at the end, which an allocator could not bear.
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with counters. A test program makes it its `#[global_allocator]`.
#[derive(Debug, Default)]
pub struct Counting(());

impl Counting {
    /// One that counts.
    pub const fn new() -> Self {
        Self(())
    }

    /// Allocations of this thread so far.
    pub fn calls(&self) -> u64 {
        CALLS.get()
    }

    /// Bytes that this thread has taken and not given back; what it gave back of others' is subtracted, modulo 2^64.
    pub fn bytes(&self) -> u64 {
        BYTES.get()
    }
}

// SAFETY: every call is passed on to the system's allocator as it came, so its guarantees are this one's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get().wrapping_add(1));
        BYTES.set(BYTES.get().wrapping_add(layout.size() as u64));
        // SAFETY: the caller promises of `layout` what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get().wrapping_sub(layout.size() as u64));
        // SAFETY: the block came from `alloc` above with this layout, which is `System`'s.
        unsafe { System.dealloc(block, layout) }
    }
}
