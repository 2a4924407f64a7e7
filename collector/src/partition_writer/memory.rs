//! The memory that all groups of a collector share: counted here, kept under its limit by whoever rolls groups (I7).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;

/// A shared count of bytes, and the permits for work on the blocking pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    used: AtomicU64,
    workers: Semaphore,
}

impl MemoryBudget {
    /// A budget of so many bytes. Over it nothing fails: the group written to least recently must be rolled.
    pub fn new(limit: u64) -> Self {
        let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self(Arc::new(Inner { limit, used: AtomicU64::new(0), workers: Semaphore::new(workers) }))
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Is more held than the limit?
    pub fn is_over(&self) -> bool {
        self.used() > self.limit()
    }

    pub(super) fn add(&self, bytes: u64) {
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: u64) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Decoders and compressors run at most one per core, so their working memory is bounded too.
    pub(super) fn workers(&self) -> &Semaphore {
        &self.0.workers
    }
}

/// Bytes that one owner holds; given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: MemoryBudget,
    bytes: u64,
}

impl Held {
    pub(super) fn new(budget: MemoryBudget) -> Self {
        Self { budget, bytes: 0 }
    }

    pub(super) fn set(&mut self, bytes: u64) {
        self.budget.add(bytes);
        self.budget.sub(self.bytes);
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back() {
        let budget = MemoryBudget::new(100);
        let mut held = Held::new(budget.clone());
        held.set(101);
        assert!(budget.is_over());
        held.set(7);
        assert_eq!((budget.used(), budget.is_over()), (7, false));
        drop(held);
        assert_eq!(budget.used(), 0);
    }
}
