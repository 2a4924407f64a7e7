//! The heap of the system under test: everything that this process has allocated and not given back, without what the
//! test itself keeps. That is put aside by copying it: what the copy takes is known exactly, and the original is dropped.

use std::alloc::System;
use std::fmt;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are allocated now.
pub fn live() -> usize {
    let stats = HEAP.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// What `copy` makes, and the bytes that it takes.
pub fn sized<T>(copy: impl FnOnce() -> T) -> (T, usize) {
    let before = live();
    let copy = copy();
    let taken = live().saturating_sub(before);
    (copy, taken)
}

/// Samples of a week.
#[derive(Debug, Clone, Default)]
pub struct Week(Vec<usize>);

impl Week {
    pub fn add(&mut self, bytes: usize) {
        self.0.push(bytes);
    }

    pub fn mean(&self) -> usize {
        self.0.iter().sum::<usize>() / self.0.len().max(1)
    }
}

impl fmt::Display for Week {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = |bytes: usize| bytes / 1024;
        let (least, most) = (self.0.iter().min().copied(), self.0.iter().max().copied());
        let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
        write!(f, "{} KiB on average, {} to {} KiB", kib(self.mean()), kib(least), kib(most))
    }
}
