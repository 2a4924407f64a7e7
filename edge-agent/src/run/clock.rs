//! Aggregator time: the time in the last answer plus the monotonic time since that answer was received. So it is never
//! ahead of the aggregator's clock, however long the answer travelled.

use std::time::Instant;

/// Times that an answer can have: up to the end of the year 9999, so that nothing computed from one overflows.
const USABLE_MS: std::ops::RangeInclusive<i64> = 1..=253_402_300_799_999;

/// The last answer's time.
#[derive(Debug, Clone, Copy, Default)]
pub struct AggregatorClock {
    last: Option<(i64, Instant)>,
}

impl AggregatorClock {
    /// An answer with `unix_ms` was received at `received`.
    pub fn answered(&mut self, unix_ms: i64, received: Instant) {
        if USABLE_MS.contains(&unix_ms) && self.last.is_none_or(|(_, before)| received >= before) {
            self.last = Some((unix_ms, received));
        }
    }

    /// Milliseconds since the epoch by the aggregator's clock; none before the first answer.
    pub fn now_ms(&self, now: Instant) -> Option<i64> {
        self.last.map(|(ms, at)| ms + now.saturating_duration_since(at).as_millis() as i64)
    }

    /// Like [`now_ms`](Self::now_ms), with this host's clock before the first answer.
    pub fn now_or_own_ms(&self, now: Instant) -> i64 {
        self.now_ms(now).unwrap_or_else(own_clock_ms)
    }
}

/// This host's clock, milliseconds since the epoch.
pub fn own_clock_ms() -> i64 {
    common::clock::unix_ms()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_goes_on_from_the_receipt() {
        let now = Instant::now();
        let mut clock = AggregatorClock::default();
        assert_eq!(clock.now_ms(now), None);
        clock.answered(1_000, now);
        assert_eq!(clock.now_ms(now + Duration::from_millis(250)), Some(1_250));
        clock.answered(0, now + Duration::from_millis(300));
        assert_eq!(clock.now_ms(now + Duration::from_millis(300)), Some(1_300), "an answer without time is ignored");
        for absurd in [i64::MIN, -1, i64::MAX, i64::MAX / 1000] {
            clock.answered(absurd, now + Duration::from_millis(400));
            assert_eq!(clock.now_or_own_ms(now + Duration::from_millis(400)) * 1000, 1_400_000);
        }
    }
}
