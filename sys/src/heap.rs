//! The C library's heap (mallopt(3)).

/// All threads share one heap from now on. By default glibc gives threads heaps of their own, up to eight for each processor, and each keeps
/// what its threads have freed; a process whose threads allocate when they start and hardly afterwards only loses memory to them.
///
/// Without effect, and `false`, in a C library that has one heap anyway.
pub fn share() -> bool {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and locks what it changes.
    return unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 1;
    #[cfg(not(target_env = "gnu"))]
    false
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_env = "gnu")]
    fn the_heap_can_be_shared() {
        assert!(super::share());
    }
}
