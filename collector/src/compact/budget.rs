//! What compaction may cost: bytes per second, threads at once, and nothing at all while live traffic needs the machine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use crate::config::compaction::CompactionConfig;

/// Shared by every compaction of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes_per_second: u64,
    parallel: usize,
    /// When the bytes that were granted so far are paid for.
    paid: Mutex<Instant>,
    workers: Semaphore,
    busy: watch::Receiver<bool>,
}

impl Budget {
    /// `busy` is true while compaction must wait: the collector's memory is over its limit, or streams are answered
    /// busy. Once its sender is gone nothing is waited for.
    pub fn new(config: &CompactionConfig, busy: watch::Receiver<bool>) -> Self {
        let parallel = config.parallel.max(1);
        Self(Arc::new(Inner {
            bytes_per_second: config.bandwidth.bytes().max(1),
            parallel,
            paid: Mutex::new(Instant::now()),
            workers: Semaphore::new(parallel),
            busy,
        }))
    }

    /// For a process without live traffic.
    pub fn alone(config: &CompactionConfig) -> Self {
        Self::new(config, watch::channel(false).1)
    }

    /// Does compaction wait for live traffic now?
    pub fn is_waiting(&self) -> bool {
        *self.0.busy.borrow() && self.0.busy.has_changed().is_ok()
    }

    pub(super) fn parallel(&self) -> usize {
        self.0.parallel
    }

    /// Waits until so many bytes may be read or written.
    pub(super) async fn spend(&self, bytes: usize) {
        let mut busy = self.0.busy.clone();
        // An error says that nobody can be busy any more.
        let _ = busy.wait_for(|busy| !busy).await;
        let turn = {
            let mut paid = self.0.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*paid).max(Instant::now());
            *paid = turn + Duration::from_secs_f64(bytes as f64 / self.0.bytes_per_second as f64);
            turn
        };
        sleep_until(turn).await;
    }

    /// Runs `work` on a blocking thread, at most `parallel` at once; none if it panicked.
    pub(super) async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let permit = self.0.workers.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        drop(permit);
        done.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::units::Size;

    fn config() -> CompactionConfig {
        CompactionConfig { bandwidth: Size::new(1000), ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_paid_for_in_time_by_all_together() {
        let budget = Budget::alone(&config());
        let begun = Instant::now();
        let spend = async |budget: Budget| {
            for _ in 0..10 {
                budget.spend(500).await;
            }
        };
        tokio::join!(spend(budget.clone()), spend(budget.clone()));
        // The last of 20 has its turn when 19 are paid for.
        assert_eq!(begun.elapsed().as_millis(), 9500);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_spent_while_others_need_the_machine() {
        let (sender, busy) = watch::channel(true);
        let budget = Budget::new(&config(), busy);
        assert!(budget.is_waiting());
        let waiting = tokio::time::timeout(Duration::from_secs(3600), budget.spend(1)).await;
        assert!(waiting.is_err());
        sender.send(false).unwrap();
        budget.spend(1).await;
        sender.send(true).unwrap();
        drop(sender);
        budget.spend(1).await;
        assert!(!budget.is_waiting());
    }
}
