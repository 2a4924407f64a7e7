//! Is the wall clock of this machine right? Compared with the store's, which all collectors of a destination share. Pure.
//!
//! A wrong clock does harm that nobody can take back: ahead, it expires runs and moves the horizon, forgets agents,
//! seals days that are not over, and deletes what is kept by days. So nothing that rests on the wall clock is begun
//! while the two differ, or before they were compared. Commits go on: they rest on the order of the log.
//!
//! What is compared: renewing the sign of life changes the own directory, and the store notes when. That time lies
//! between asking for the one and having read the other, however slow the store is.

use std::time::Duration;

use crate::coordinator::Now;

/// How far the clocks may be apart.
pub const WITHIN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy)]
struct Compared {
    at: Now,
    skew_ms: i64,
}

/// See the module.
#[derive(Debug)]
pub struct ClockWatch {
    /// None: the clock is not the system's, there is nothing to compare.
    within_ms: Option<i64>,
    /// When the sign of life was asked for that is under way.
    asked: Option<Now>,
    compared: Option<Compared>,
}

impl ClockWatch {
    /// Nothing is known yet. `within`: how far apart the clocks may be; none for a clock that is not the system's.
    pub fn new(within: Option<Duration>) -> Self {
        Self { within_ms: within.map(millis), asked: None, compared: None }
    }

    /// A sign of life is renewed from now on.
    pub fn asked(&mut self, now: Now) {
        self.asked = Some(now);
    }

    /// It was renewed, asked for at this time: the time of the directory is to be read. None: there is nothing to
    /// compare, or it is not known when the directory changed.
    pub fn wanted(&mut self, shown: bool) -> Option<Now> {
        self.asked.take().filter(|_| shown && self.within_ms.is_some())
    }

    /// The directory changed at this time by the store's clock, no earlier than the sign was asked for.
    pub fn compare(&mut self, asked: Now, store_unix_ms: i64, now: Now) {
        let Some(within) = self.within_ms else { return };
        // A clock that was set meanwhile, or a store that took minutes, says nothing.
        if !went_on(asked, now, within) || now.unix_ms.saturating_sub(asked.unix_ms) > within {
            return;
        }
        // Above 0: this machine is ahead.
        let skew_ms =
            asked.unix_ms.saturating_sub(store_unix_ms).max(0) + now.unix_ms.saturating_sub(store_unix_ms).min(0);
        let was_right = self.compared.is_none_or(|before| before.skew_ms.abs() <= within);
        self.compared = Some(Compared { at: now, skew_ms });
        match (was_right, skew_ms.abs() <= within) {
            (true, false) => tracing::error!(
                ahead_seconds = skew_ms / 1000,
                "wall clock and the destination's differ: nothing expires, is forgotten, sealed or retired by this run"
            ),
            (false, true) => tracing::info!("wall clock and the destination's agree again"),
            _ => {}
        }
    }

    /// May something rest on this time? Not before the first comparison, nor after the clock was set, until the next.
    pub fn is_right(&self, now: Now) -> bool {
        let Some(within) = self.within_ms else { return true };
        self.compared.is_some_and(|last| last.skew_ms.abs() <= within && went_on(last.at, now, within))
    }

    /// How far this machine's clock is ahead of the store's, milliseconds; below 0: behind. 0 while nothing is known.
    pub fn skew_ms(&self) -> i64 {
        self.compared.map_or(0, |last| last.skew_ms)
    }

    /// What is wrong and what to do, if the clocks differ.
    pub fn trouble(&self) -> Option<String> {
        let skew = self.skew_ms();
        if skew.abs() <= self.within_ms? {
            return None;
        }
        let side = if skew > 0 { "ahead of" } else { "behind" };
        Some(format!(
            "the clock of this machine is {} s {side} the destination's: until they agree this run seals, expires, \
             forgets, retires and deletes nothing; commits go on. Set the one that is wrong (this machine, or the NameNode)",
            skew.abs() / 1000
        ))
    }
}

/// Did the wall clock go on as the monotonic one did?
fn went_on(from: Now, to: Now, within_ms: i64) -> bool {
    let passed = millis(to.instant.saturating_duration_since(from.instant));
    let shown = to.unix_ms.saturating_sub(from.unix_ms);
    shown.saturating_sub(passed).saturating_abs() <= within_ms
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const HOUR: i64 = 3_600_000;
    const BASE: i64 = 1_700_000_000_000;

    /// After so many seconds, with the wall clock so far ahead.
    fn at(begun: Instant, seconds: u64, ahead_ms: i64) -> Now {
        let unix_ms = BASE + i64::try_from(seconds).unwrap() * 1000 + ahead_ms;
        Now { instant: begun + Duration::from_secs(seconds), unix_ms }
    }

    /// A sign of life that was asked for at second 10 and shown at 11, and the directory read at 12.
    fn compared(begun: Instant, ahead_ms: i64) -> ClockWatch {
        let mut watch = ClockWatch::new(Some(WITHIN));
        watch.asked(at(begun, 10, ahead_ms));
        let asked = watch.wanted(true).unwrap();
        watch.compare(asked, BASE + 11_000, at(begun, 12, ahead_ms));
        watch
    }

    #[test]
    fn a_clock_is_right_when_the_store_says_so() {
        let begun = Instant::now();
        for (ahead, right) in [
            (0, true),
            (200_000, true),
            (-200_000, true),
            (8 * HOUR, false),
            (-8 * HOUR, false),
            (31 * 24 * HOUR, false),
        ] {
            let watch = compared(begun, ahead);
            assert_eq!(watch.is_right(at(begun, 40, ahead)), right, "{ahead} ms ahead");
            assert_eq!(watch.trouble().is_none(), right);
            assert!((watch.skew_ms() - ahead).abs() <= 1000, "{} for {ahead}", watch.skew_ms());
        }
        assert!(compared(begun, 8 * HOUR).trouble().unwrap().contains("28799 s ahead of the destination's"));
        assert!(compared(begun, -8 * HOUR).trouble().unwrap().contains("28799 s behind the destination's"));
    }

    #[test]
    fn nothing_rests_on_a_clock_before_it_was_compared_or_after_it_was_set() {
        let begun = Instant::now();
        assert!(!ClockWatch::new(Some(WITHIN)).is_right(at(begun, 0, 0)));
        let mut watch = compared(begun, 0);
        assert!(watch.is_right(at(begun, 3600, 0)), "an outage of the store changes nothing");
        assert!(!watch.is_right(at(begun, 3600, 8 * HOUR)), "set ahead since");
        watch.compare(at(begun, 3600, 8 * HOUR), BASE + 3_600_500, at(begun, 3601, 8 * HOUR));
        assert!(!watch.is_right(at(begun, 3601, 8 * HOUR)) && watch.trouble().is_some());
        watch.compare(at(begun, 3700, 0), BASE + 3_700_500, at(begun, 3701, 0));
        assert!(watch.is_right(at(begun, 3701, 0)) && watch.trouble().is_none());
    }

    #[test]
    fn what_says_nothing_is_not_compared() {
        let begun = Instant::now();
        let mut watch = ClockWatch::new(Some(WITHIN));
        watch.asked(at(begun, 10, 0));
        assert!(watch.wanted(false).is_none(), "when the directory changed is not known");
        // Set while the store was asked: its answer lies between the two.
        watch.compare(at(begun, 10, 0), BASE + 11_000, at(begun, 12, 8 * HOUR));
        assert!(!watch.is_right(at(begun, 12, 8 * HOUR)));
        watch.compare(at(begun, 10, 0), BASE + 11_000, at(begun, 10_000, 0));
        // The next sign is asked for while the store still looks at the directory: each answer goes with its question.
        watch.asked(at(begun, 10, 0));
        let slow = watch.wanted(true).unwrap();
        watch.asked(at(begun, 10_000, 0));
        watch.compare(slow, BASE + 11_000, at(begun, 10_001, 0));
        assert!(!watch.is_right(at(begun, 10_000, 0)), "too slow to say anything");
    }

    #[test]
    fn a_clock_that_is_not_the_systems_is_taken_as_it_is() {
        let begun = Instant::now();
        let mut watch = ClockWatch::new(None);
        watch.asked(at(begun, 0, 0));
        assert!(watch.wanted(true).is_none() && watch.is_right(at(begun, 0, 9999 * HOUR)) && watch.trouble().is_none());
    }
}
