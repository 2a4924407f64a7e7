//! The run: how an origin is opened, when marks are due, when the gate opens. Pure; the owner thread does what it says.
//!
//! Invariants (design section 4): an open that names no end, follows a *left* or says *restored* goes alone until it was
//! seen committed, or 60 s have passed; T of a mark is read before the files are listed, and the mark is appended only
//! after everything listed has been cut; nothing is appended to any origin but this run's.

pub mod audit;
pub mod clock;
pub mod watch;

use std::time::{Duration, Instant};

use proto::ids::Origin;
use proto::wire;

use crate::outbox::index::Ended;

/// How long a gated open is waited for.
pub const GATE: Duration = Duration::from_secs(60);
/// After files could not be listed, the next attempt at a mark.
const MARK_RETRY: Duration = Duration::from_secs(30);
/// No origin is minted before this instant (2026-11-01T00:00:00Z), whatever the clocks say.
const BUILD_UNIX_MS: i64 = 1_793_491_200_000;

/// The open of a new run, and whether it goes alone.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenPlan {
    /// The message of seq 0.
    pub open: wire::Open,
    /// Nothing else of the run is sent before it was seen committed.
    pub alone: bool,
}

/// Decides the open from what the outbox knows.
pub fn plan_open(newest: Option<(Origin, u64, Ended)>, restored: bool) -> OpenPlan {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let mut open = wire::Open { agent_version: version, ..Default::default() };
    match newest {
        Some((origin, _, _)) if restored => {
            open.restored = true;
            open.restored_from = origin.to_bytes();
        }
        None if restored => open.restored = true,
        Some((origin, end, ended)) => {
            open.previous = Some(wire::PreviousOrigin { origin: origin.to_bytes(), end });
            open.after_left = ended == Ended::Left;
        }
        None => {}
    }
    let alone = open.previous.is_none() || open.after_left || open.restored;
    OpenPlan { open, alone }
}

/// Milliseconds for a new origin: aggregator time, else the greatest of what this host knows.
pub fn mint_time(aggregator_ms: Option<i64>, own_clock_ms: i64, newest_seen_ms: i64) -> u64 {
    let time = aggregator_ms.unwrap_or_else(|| own_clock_ms.max(newest_seen_ms).max(BUILD_UNIX_MS));
    time.max(0) as u64
}

/// Gate and marks of one run.
#[derive(Debug)]
pub struct Run {
    origin: Origin,
    /// Until when the open is waited for.
    gate: Option<Instant>,
    interval: Duration,
    due: Instant,
    /// T of the mark that waits for cuts.
    noted: Option<i64>,
    may_mark: bool,
}

impl Run {
    /// A run whose open was appended at `now`.
    pub fn new(origin: Origin, alone: bool, interval: Duration, now: Instant) -> Self {
        Self { origin, gate: alone.then(|| now + GATE), interval, due: now + interval, noted: None, may_mark: true }
    }

    /// The run's origin.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Is the open still sent alone?
    pub fn is_gated(&self) -> bool {
        self.gate.is_some()
    }

    /// Seqs of `origin` were seen committed: true if that opens the gate.
    pub fn committed(&mut self, origin: Origin, open_is_in: bool) -> bool {
        origin == self.origin && open_is_in && self.gate.take().is_some()
    }

    /// True once, when the open was waited for long enough: data goes before the proof of completeness.
    pub fn gate_timed_out(&mut self, now: Instant) -> bool {
        self.gate.take_if(|until| now >= *until).is_some()
    }

    /// Is a mark to be begun: T read, then everything listed?
    pub fn mark_due(&self, now: Instant) -> bool {
        self.may_mark && self.noted.is_none() && now >= self.due
    }

    /// May this run still say what is complete?
    pub fn may_mark(&self) -> bool {
        self.may_mark
    }

    /// No mark, and no *left*, from now on: this run cannot say what is complete.
    pub fn stop_marks(&mut self) {
        self.may_mark = false;
        self.noted = None;
    }

    /// All files were listed after T was read.
    pub fn noted(&mut self, at_unix_ms: i64) {
        self.noted = Some(at_unix_ms);
    }

    /// Not all files could be listed: no mark, another attempt later.
    pub fn note_failed(&mut self, now: Instant) {
        self.noted = None;
        self.due = now + MARK_RETRY.min(self.interval);
    }

    /// T of the mark that is appended once everything noted is cut.
    pub fn waiting_mark(&self) -> Option<i64> {
        self.noted
    }

    /// The mark was appended.
    pub fn marked(&mut self, now: Instant) {
        self.noted = None;
        self.due = now + self.interval;
    }

    /// A drain begins: whatever was noted before no longer counts, the drain notes anew.
    pub fn begin_drain(&mut self) {
        self.noted = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(n: u128) -> Origin {
        Origin::mint(1_793_500_000_000, n)
    }

    #[test]
    fn opens_chain_and_the_exceptions_go_alone() {
        let root = plan_open(None, false);
        assert!(root.alone && root.open.previous.is_none() && !root.open.restored);
        let chained = plan_open(Some((origin(1), 7, Ended::Closed)), false);
        assert!(!chained.alone);
        assert_eq!(chained.open.previous, Some(wire::PreviousOrigin { origin: origin(1).to_bytes(), end: 7 }));
        let after_left = plan_open(Some((origin(1), 7, Ended::Left)), false);
        assert!(after_left.alone && after_left.open.after_left && after_left.open.previous.is_some());
        let restored = plan_open(Some((origin(1), 7, Ended::No)), true);
        assert!(restored.alone && restored.open.restored && restored.open.previous.is_none());
        assert_eq!(restored.open.restored_from, origin(1).to_bytes());
    }

    #[test]
    fn origin_times_never_come_from_a_clock_in_1970() {
        assert_eq!(mint_time(Some(5), 9, 9), 5);
        assert_eq!(mint_time(None, 0, 0), BUILD_UNIX_MS as u64);
        assert_eq!(mint_time(None, 0, BUILD_UNIX_MS + 7), BUILD_UNIX_MS as u64 + 7);
    }

    #[test]
    fn the_gate_opens_on_its_own_commit_or_after_a_minute() {
        let now = Instant::now();
        let mut run = Run::new(origin(1), true, Duration::from_secs(300), now);
        assert!(!run.committed(origin(2), true), "another origin's open");
        assert!(!run.committed(origin(1), false), "other seqs of it");
        assert!(run.committed(origin(1), true));
        assert!(!run.is_gated());
        let mut late = Run::new(origin(1), true, Duration::from_secs(300), now);
        assert!(!late.gate_timed_out(now + Duration::from_secs(59)));
        assert!(late.gate_timed_out(now + GATE));
        assert!(!late.gate_timed_out(now + GATE), "once");
    }

    #[test]
    fn a_mark_keeps_the_time_read_before_the_listing() {
        let (now, step) = (Instant::now(), Duration::from_secs(300));
        let mut run = Run::new(origin(1), false, step, now);
        assert!(!run.mark_due(now));
        assert!(run.mark_due(now + step));
        run.noted(10);
        assert!(!run.mark_due(now + step * 5), "one at a time");
        assert_eq!(run.waiting_mark(), Some(10));
        run.marked(now + step * 2);
        assert!(!run.mark_due(now + step * 2));
        run.note_failed(now + step * 3);
        assert!(run.mark_due(now + step * 3 + MARK_RETRY));
        run.noted(30);
        run.stop_marks();
        assert!(run.waiting_mark().is_none() && !run.mark_due(now + step * 9), "a copy says nothing is complete");
    }
}
