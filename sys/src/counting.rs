//! An allocator that counts, for tests that say how much memory something takes, or that it takes none.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, with two counters. A test program makes it its `#[global_allocator]`.
#[derive(Debug, Default)]
pub struct Counting {
    calls: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    /// One that has counted nothing.
    pub const fn new() -> Self {
        Self { calls: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Allocations so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Bytes that are in use.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

// SAFETY: every call is passed on to the system's allocator as it came, so its guarantees are this one's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(layout.size() as u64, Ordering::SeqCst);
        // SAFETY: the caller promises of `layout` what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.bytes.fetch_sub(layout.size() as u64, Ordering::SeqCst);
        // SAFETY: the block came from `alloc` above with this layout, which is `System`'s.
        unsafe { System.dealloc(block, layout) }
    }
}
