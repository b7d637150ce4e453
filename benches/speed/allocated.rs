//! Bytes that the process has allocated, now and at most.
#![allow(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a count. Every call is passed on as it is, so that zeroed and grown
/// memory costs what it does without the count.
pub(crate) struct Counting;

/// Bytes allocated now.
pub(crate) fn now_bytes() -> usize {
    NOW.load(Ordering::Relaxed)
}

/// The most bytes that were allocated at once while `work` ran.
pub(crate) fn peak_bytes(work: impl FnOnce()) -> usize {
    MOST.store(now_bytes(), Ordering::Relaxed);
    work();
    MOST.load(Ordering::Relaxed)
}

fn add(bytes: usize) {
    MOST.fetch_max(NOW.fetch_add(bytes, Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

// SAFETY: each method is the system's own with the same arguments; the counts touch no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of this method, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract of this method, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Old and new may live side by side while it grows.
        add(bytes);
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of this method, which is the same.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of this method, which is the same.
        unsafe { System.dealloc(at, layout) }
    }
}
