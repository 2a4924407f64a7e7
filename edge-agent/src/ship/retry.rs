//! How soon a batch is sent again: backoff with jitter, under a budget that keeps retries from multiplying the load of
//! an aggregator that is in trouble already.

use std::time::Duration;

use tower::retry::budget::{Budget, TpsBudget};

/// A batch waits this long when the budget is used up.
pub const BUDGET_PAUSE: Duration = Duration::from_millis(500);
/// The pause after a first failure elsewhere.
pub const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
/// Retries beyond this share of successes wait.
const RETRY_SHARE: f32 = 0.5;
/// Retries per second that are always allowed.
const FLOOR_PER_SECOND: u32 = 10;

/// Delays and budget of one agent.
#[derive(Debug)]
pub struct Retry {
    budget: TpsBudget,
}

impl Retry {
    /// A full budget.
    pub fn new() -> Self {
        Self { budget: TpsBudget::new(Duration::from_secs(10), FLOOR_PER_SECOND, RETRY_SHARE) }
    }

    /// Takes one retry out of the budget, if it has one.
    pub fn may_retry(&self) -> bool {
        self.budget.withdraw()
    }

    /// A batch was stored: that pays for retries.
    pub fn succeeded(&self) {
        self.budget.deposit();
    }

    /// The pause before the next send after `attempts` earlier ones: at once after the first failure (elsewhere), then
    /// growing to 5 s, each shortened by up to a half.
    pub fn delay(&self, attempts: u32, random: u64) -> Duration {
        let full = match attempts {
            0 => return Duration::ZERO,
            n => (FIRST * (1 << n.min(10))).min(LONGEST),
        };
        full.mul_f64(0.5 + (random % 1000) as f64 / 2000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound() {
        let retry = Retry::new();
        assert_eq!(retry.delay(0, 7), Duration::ZERO);
        assert!(retry.delay(1, 0) < retry.delay(3, 0));
        assert!(retry.delay(1_000, 999) <= LONGEST);
        assert!(retry.delay(1_000, 0) >= LONGEST / 2);
    }

    #[test]
    fn the_budget_ends_and_successes_refill_it() {
        let retry = Retry::new();
        let first = (0..1_000).filter(|_| retry.may_retry()).count();
        assert!(first < 1_000);
        (0..10).for_each(|_| retry.succeeded());
        assert!(retry.may_retry());
    }
}
