//! The wall clock, in one place, so that a load test can let a day pass in minutes for whole processes.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock that runs faster than the system's: at `real_start` of the system's it shows `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fast {
    /// What it shows at the beginning, milliseconds since the epoch.
    pub start_unix_ms: i64,
    /// The beginning by the system's clock. Processes that are given the same agree on the time.
    pub real_start_unix_ms: i64,
    /// How many times faster it runs.
    pub rate: u32,
}

static FAST: OnceLock<Fast> = OnceLock::new();

/// Milliseconds since the epoch. A system clock before 1970 shows 0.
pub fn unix_ms() -> i64 {
    match FAST.get() {
        None => system_unix_ms(),
        Some(fast) => fast.at(system_unix_ms()),
    }
}

/// Lets this process live by a fast clock from now on; nothing but a load tester calls this. Only the first call counts.
pub fn run_fast(fast: Fast) {
    let _ = FAST.set(fast);
}

/// Does this process live by a fast clock?
pub fn is_fast() -> bool {
    FAST.get().is_some()
}

/// Milliseconds since the epoch by the system's clock.
pub fn system_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

impl Fast {
    /// What it shows when the system's clock shows `real_unix_ms`.
    pub fn at(&self, real_unix_ms: i64) -> i64 {
        let passed = real_unix_ms.saturating_sub(self.real_start_unix_ms);
        self.start_unix_ms.saturating_add(passed.saturating_mul(i64::from(self.rate)))
    }

    /// As one word, for an environment variable; [`Fast::parse`] reads it.
    pub fn to_text(&self) -> String {
        format!("{},{},{}", self.start_unix_ms, self.real_start_unix_ms, self.rate)
    }

    /// Reads what [`Fast::to_text`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let fast = Self {
            start_unix_ms: parts.next()?.parse().ok()?,
            real_start_unix_ms: parts.next()?.parse().ok()?,
            rate: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(fast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_runs_from_its_start_and_survives_its_text() {
        let fast = Fast { start_unix_ms: 1_000_000, real_start_unix_ms: 500, rate: 360 };
        assert_eq!(fast.at(500), 1_000_000);
        assert_eq!(fast.at(1_500), 1_360_000);
        assert_eq!(Fast::parse(&fast.to_text()), Some(fast));
        assert_eq!(Fast::parse("1,2"), None);
        assert!(system_unix_ms() > 1_700_000_000_000 && unix_ms() > 1_700_000_000_000);
    }
}
