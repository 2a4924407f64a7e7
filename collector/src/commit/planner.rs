//! Which step on the log comes next. Pure: outcomes go in, steps and effects come out, one step at a time.
//!
//! Keeps the commit rules: a number is taken only after every record before it was read; a draft whose rename was not
//! answered is settled before anything else; a new draft is made only when the old one is dead; a time-out is never
//! taken for "not committed"; every name is used once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::wire;

use super::draft::{CommitId, Draft};
use crate::publish::BroughtAll;
use crate::store::Renamed;

/// One thing to do on the store.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Read record `n`.
    Read {
        /// Its number.
        n: u64,
    },
    /// Write the draft into the staging directory.
    WriteDraft {
        /// Names it.
        id: CommitId,
        /// Its content.
        bytes: Bytes,
    },
    /// Rename the draft to `commits/<n>`, sent once.
    Rename {
        /// Names it.
        id: CommitId,
        /// Where to.
        n: u64,
    },
    /// Rename the draft to its void.
    Void {
        /// Names it.
        id: CommitId,
    },
    /// Is the own staging directory there?
    OwnDirectory,
    /// Bring the files of the own record to their places.
    Publish {
        /// What is left of them.
        files: Vec<wire::PublishedFile>,
    },
}

/// How a step ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Record `n`.
    Record {
        /// Its number.
        n: u64,
        /// What it says.
        record: Box<wire::CommitRecord>,
    },
    /// There is no record `n`, and the one before it is there: the end of the log.
    End {
        /// The first missing number.
        n: u64,
    },
    /// The draft is written and closed.
    Written,
    /// The draft could not be written; its name is used up.
    Unusable(String),
    /// The rename of the draft was answered.
    Renamed(Renamed),
    /// The rename of the draft was not answered.
    RenameUnanswered(String),
    /// The rename to the void was answered.
    Voided(Renamed),
    /// The own directory is there, or not.
    OwnDirectory(bool),
    /// Every file of the own record was tried.
    Published(BroughtAll),
    /// Nothing was done, or nothing is known: the same step again, later.
    Again(String),
    /// This run cannot go on.
    Stop(Stop),
}

/// Why this run of the collector ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The staging directory is gone.
    #[error(
        "this run is retired: its staging directory {0} is gone; what it had staged is asked for again by the next run, start the collector again"
    )]
    Retired(String),
    /// A record says that this run must not commit any more.
    #[error(
        "this run is retired by record {n}, written by {incarnation} because this run showed no sign of life for long; what it had staged is asked for again by the next run, start the collector again"
    )]
    RetiredBy {
        /// The record.
        n: u64,
        /// Who wrote it.
        incarnation: String,
    },
    /// The log may have been cleaned past what this run has read.
    #[error(
        "this run last saw the end of the commit log {seconds} s ago, more than half of housekeeping.log_retention: what others wrote and cleaned since is not known here; what it had staged is asked for again by the next run, start the collector again"
    )]
    Stale {
        /// Since then.
        seconds: u64,
    },
    /// A newer release wrote to the log.
    #[error("a newer release wrote {0}; upgrade this collector")]
    Newer(String),
    /// Something in `_catchment/` is damaged or missing.
    #[error("the commit log cannot be used: {0}")]
    Log(String),
}

/// What the owner of the ledger does next.
#[derive(Debug)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Merge a record of somebody else, then call [`Planner::touch`] if it took something out of the draft.
    Merge {
        /// Its number.
        n: u64,
        /// What it says.
        record: Box<wire::CommitRecord>,
    },
    /// The draft is record `n`.
    Committed {
        /// Its number.
        n: u64,
        /// The draft.
        draft: Box<Draft>,
    },
    /// The draft will never be a record: what is left of it goes into a new one.
    Dead(Box<Draft>),
    /// Every file of the own record was tried; these cannot be brought to their places for now.
    Published(Vec<wire::PublishedFile>),
    /// This run ends.
    Stop(Stop),
}

#[derive(Debug)]
enum Phase {
    Idle,
    Tail,
    Write(Box<Draft>),
    Rename(Box<Draft>),
    /// This number was taken: read past it to the end, then go on.
    Taken(Box<Draft>, u64),
    /// The rename was not answered.
    Void(Box<Draft>),
    /// The draft is gone: its id is in the log, or it is dead.
    Gone(Box<Draft>),
    /// Its id is not in the log, or its directory is missing.
    Directory(Box<Draft>),
    Publish {
        left: Vec<wire::PublishedFile>,
        stuck: Vec<wire::PublishedFile>,
    },
}

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// The state of this incarnation on the log.
#[derive(Debug)]
pub struct Planner {
    phase: Phase,
    next: u64,
    /// The number to which the draft may still be renamed: sent, and neither answered nor settled.
    unsettled: Option<u64>,
    outstanding: bool,
    not_before: Option<Instant>,
    backoff: Duration,
    trouble: Option<String>,
    staging: String,
}

impl Planner {
    /// Begins behind a log of which the records below `next` were read. `staging` is the own directory, for messages.
    pub fn new(next: u64, staging: String) -> Self {
        let (phase, outstanding, not_before) = (Phase::Idle, false, None);
        let (unsettled, trouble) = (None, None);
        Self { phase, next, unsettled, outstanding, not_before, backoff: FIRST_BACKOFF, trouble, staging }
    }

    /// The first number that was not read.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// What may be shown as read: never past a number for which the draft is unsettled, since whoever sees that may
    /// free it, and the draft would land there (C10).
    pub fn read(&self) -> u64 {
        self.unsettled.map_or(self.next, |n| n.min(self.next))
    }

    /// May a draft of this run still be renamed to a number?
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_none()
    }

    /// Neither a draft nor a step under way.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle) && !self.outstanding
    }

    /// The own directory.
    pub fn staging(&self) -> &str {
        &self.staging
    }

    /// What keeps it from going on, if something does.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The draft that is under way.
    pub fn draft(&self) -> Option<&Draft> {
        match &self.phase {
            Phase::Write(draft) | Phase::Rename(draft) | Phase::Taken(draft, _) => Some(draft),
            Phase::Void(draft) | Phase::Gone(draft) | Phase::Directory(draft) => Some(draft),
            Phase::Idle | Phase::Tail | Phase::Publish { .. } => None,
        }
    }

    /// Begins a commit. Only when idle.
    pub fn begin(&mut self, draft: Draft) {
        assert!(self.is_idle(), "one commit at a time");
        self.phase = Phase::Write(Box::new(draft));
    }

    /// Begins to read the log to its end. Only when idle.
    pub fn tail(&mut self) {
        debug_assert!(self.is_idle(), "one step at a time");
        self.phase = Phase::Tail;
    }

    /// Brings the files of the record just committed to their places.
    pub fn publish(&mut self, files: Vec<wire::PublishedFile>) {
        debug_assert!(self.is_idle(), "right after the commit");
        self.phase = Phase::Publish { left: files, stuck: Vec::new() };
    }

    /// The record just merged took something out of the draft.
    pub fn touch(&mut self) {
        match &mut self.phase {
            Phase::Write(draft) | Phase::Rename(draft) | Phase::Taken(draft, _) => draft.touched = true,
            Phase::Void(draft) | Phase::Gone(draft) | Phase::Directory(draft) => draft.touched = true,
            Phase::Idle | Phase::Tail | Phase::Publish { .. } => {}
        }
    }

    /// The next step, if none is under way and none has to wait.
    pub fn poll(&mut self, now: Instant) -> Option<Step> {
        if self.outstanding || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let step = match &self.phase {
            Phase::Idle => return None,
            Phase::Tail | Phase::Taken(..) | Phase::Gone(_) => Step::Read { n: self.next },
            Phase::Write(draft) => Step::WriteDraft { id: draft.id, bytes: draft.bytes.clone() },
            Phase::Rename(draft) => Step::Rename { id: draft.id, n: self.next },
            Phase::Void(draft) => Step::Void { id: draft.id },
            Phase::Directory(_) => Step::OwnDirectory,
            Phase::Publish { left, .. } => Step::Publish { files: left.clone() },
        };
        if let Step::Rename { n, .. } = step {
            self.unsettled = Some(n);
        }
        self.outstanding = true;
        Some(step)
    }

    /// Takes the outcome of the step under way.
    pub fn on(&mut self, outcome: Outcome, now: Instant) -> Effect {
        self.outstanding = false;
        match outcome {
            Outcome::Again(reason) => {
                self.wait(reason, now);
                return Effect::Nothing;
            }
            Outcome::Stop(stop) => return Effect::Stop(stop),
            _ => {}
        }
        let went_on = went_on(&outcome);
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        self.not_before = None;
        let effect = match (phase, outcome) {
            (Phase::Tail, Outcome::Record { n, record }) => self.merge(Phase::Tail, n, record),
            (Phase::Tail, Outcome::End { .. }) => Effect::Nothing,
            (Phase::Taken(draft, taken), Outcome::Record { n, record }) => {
                self.record(|draft| Phase::Taken(draft, taken), draft, n, record)
            }
            (Phase::Taken(draft, taken), Outcome::End { n }) if n <= taken => {
                self.wait(format!("record {n} exists, but the store does not show it yet"), now);
                return self.go(Phase::Taken(draft, taken));
            }
            (Phase::Taken(draft, _), Outcome::End { .. }) if draft.touched => Effect::Dead(draft),
            (Phase::Taken(draft, _), Outcome::End { .. }) => self.go(Phase::Rename(draft)),
            (Phase::Gone(draft), Outcome::Record { n, record }) => self.record(Phase::Gone, draft, n, record),
            (Phase::Gone(draft), Outcome::End { .. }) => self.go(Phase::Directory(draft)),
            (Phase::Write(draft), Outcome::Written) => self.go(Phase::Rename(draft)),
            (Phase::Write(draft), Outcome::Unusable(reason)) => {
                self.wait(reason, now);
                self.go(Phase::Directory(draft))
            }
            (Phase::Rename(draft), Outcome::Renamed(renamed)) => self.renamed(draft, renamed),
            (Phase::Rename(draft), Outcome::RenameUnanswered(reason)) => {
                self.trouble = Some(reason);
                self.go(Phase::Void(draft))
            }
            (Phase::Void(draft), Outcome::Voided(renamed)) => self.voided(draft, renamed),
            (Phase::Directory(draft), Outcome::OwnDirectory(true)) => Effect::Dead(draft),
            (Phase::Directory(_), Outcome::OwnDirectory(false)) => Effect::Stop(Stop::Retired(self.staging.clone())),
            (Phase::Publish { mut stuck, .. }, Outcome::Published(all)) => {
                stuck.extend(all.stuck);
                if !all.again.is_empty() {
                    self.wait(all.reason.unwrap_or_default(), now);
                    return self.go(Phase::Publish { left: all.again, stuck });
                }
                Effect::Published(stuck)
            }
            (phase, outcome) => unreachable!("the driver answers the step it was given: {phase:?} {outcome:?}"),
        };
        if matches!(effect, Effect::Committed { .. } | Effect::Dead(_)) || matches!(self.phase, Phase::Taken(..)) {
            self.unsettled = None;
        }
        if went_on {
            (self.trouble, self.backoff) = (None, FIRST_BACKOFF);
        }
        effect
    }

    fn go(&mut self, phase: Phase) -> Effect {
        self.phase = phase;
        Effect::Nothing
    }

    fn wait(&mut self, reason: String, now: Instant) {
        self.trouble = Some(reason);
        self.not_before = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
    }

    fn merge(&mut self, phase: Phase, n: u64, record: Box<wire::CommitRecord>) -> Effect {
        assert_eq!(n, self.next, "records are read in order");
        self.phase = phase;
        self.next = n + 1;
        Effect::Merge { n, record }
    }

    /// A record read while a draft is under way: it may be the draft itself.
    fn record(
        &mut self,
        phase: impl FnOnce(Box<Draft>) -> Phase,
        draft: Box<Draft>,
        n: u64,
        record: Box<wire::CommitRecord>,
    ) -> Effect {
        if record.commit_id[..] == draft.id.0 {
            assert_eq!(n, self.next, "records are read in order");
            self.next = n + 1;
            return Effect::Committed { n, draft };
        }
        self.merge(phase(draft), n, record)
    }

    fn renamed(&mut self, draft: Box<Draft>, renamed: Renamed) -> Effect {
        match renamed {
            Renamed::Done => {
                let n = self.next;
                self.next = n + 1;
                Effect::Committed { n, draft }
            }
            Renamed::TargetExists => self.go(Phase::Taken(draft, self.next)),
            Renamed::SourceMissing => self.go(Phase::Gone(draft)),
            Renamed::ParentMissing => {
                Effect::Stop(Stop::Log("the directory _catchment/commits is missing: somebody removed it".into()))
            }
        }
    }

    fn voided(&mut self, draft: Box<Draft>, renamed: Renamed) -> Effect {
        match renamed {
            // The void exists: an earlier rename to it was carried out though its answer was lost.
            Renamed::Done | Renamed::TargetExists => Effect::Dead(draft),
            Renamed::SourceMissing | Renamed::ParentMissing => self.go(Phase::Gone(draft)),
        }
    }
}

/// Does this end a trouble? That the own directory is there, or a draft was given up, does not: a store that takes no
/// draft would be asked again at once, for ever.
fn went_on(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Written | Outcome::Renamed(_) | Outcome::Record { .. } | Outcome::End { .. } => true,
        Outcome::Published(all) => all.again.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: CommitId = CommitId([7; 16]);

    fn draft() -> Draft {
        let record = wire::CommitRecord::default();
        Draft { id: ID, groups: vec![3], seqs: vec![], record, bytes: Bytes::from_static(b"r"), touched: false }
    }

    fn record(id: [u8; 16]) -> Box<wire::CommitRecord> {
        Box::new(wire::CommitRecord { commit_id: Bytes::copy_from_slice(&id), ..Default::default() })
    }

    /// A planner whose draft is written and renamed to number 5: that answer comes next.
    fn renaming(now: Instant) -> Planner {
        let mut planner = Planner::new(5, "_catchment/staging/me".into());
        planner.begin(draft());
        assert!(matches!(planner.poll(now), Some(Step::WriteDraft { id: ID, .. })));
        assert!(planner.poll(now).is_none(), "one step at a time");
        planner.on(Outcome::Written, now);
        assert_eq!(planner.poll(now), Some(Step::Rename { id: ID, n: 5 }));
        planner
    }

    #[test]
    fn a_taken_number_is_read_before_the_next_is_tried() {
        let now = Instant::now();
        let mut planner = renaming(now);
        planner.on(Outcome::Renamed(Renamed::TargetExists), now);
        assert_eq!(planner.poll(now), Some(Step::Read { n: 5 }));
        let effect = planner.on(Outcome::Record { n: 5, record: record([1; 16]) }, now);
        assert!(matches!(effect, Effect::Merge { n: 5, .. }));
        assert_eq!(planner.poll(now), Some(Step::Read { n: 6 }));
        planner.on(Outcome::End { n: 6 }, now);
        assert_eq!(planner.poll(now), Some(Step::Rename { id: ID, n: 6 }));
        let effect = planner.on(Outcome::Renamed(Renamed::Done), now);
        assert!(matches!(effect, Effect::Committed { n: 6, .. }) && planner.next() == 7);
    }

    #[test]
    fn a_touched_draft_is_never_renamed_again() {
        let now = Instant::now();
        let mut planner = renaming(now);
        planner.on(Outcome::Renamed(Renamed::TargetExists), now);
        planner.poll(now);
        planner.on(Outcome::Record { n: 5, record: record([1; 16]) }, now);
        planner.touch();
        planner.poll(now);
        assert!(matches!(planner.on(Outcome::End { n: 6 }, now), Effect::Dead(draft) if draft.touched));
        assert!(planner.is_idle());
    }

    #[test]
    fn a_number_that_is_taken_and_not_shown_is_no_end() {
        let now = Instant::now();
        let mut planner = renaming(now);
        planner.on(Outcome::Renamed(Renamed::TargetExists), now);
        planner.poll(now);
        assert!(matches!(planner.on(Outcome::End { n: 5 }, now), Effect::Nothing));
        assert!(planner.poll(now).is_none() && planner.trouble().is_some());
        assert_eq!(planner.poll(now + LONGEST_BACKOFF), Some(Step::Read { n: 5 }));
    }

    #[test]
    fn an_unanswered_rename_is_settled_by_the_void() {
        let now = Instant::now();
        for renamed in [Renamed::Done, Renamed::TargetExists] {
            let mut planner = renaming(now);
            planner.on(Outcome::RenameUnanswered("timed out".into()), now);
            assert_eq!(planner.poll(now), Some(Step::Void { id: ID }));
            planner.on(Outcome::Again("timed out".into()), now);
            assert!(planner.poll(now).is_none());
            assert_eq!(planner.poll(now + LONGEST_BACKOFF), Some(Step::Void { id: ID }), "until it is answered");
            assert!(matches!(planner.on(Outcome::Voided(renamed), now), Effect::Dead(_)));
        }
    }

    /// C10: whoever reads on while a rename is unsettled must not show that.
    #[test]
    fn what_is_shown_as_read_never_passes_an_unsettled_number() {
        let now = Instant::now();
        let mut planner = renaming(now);
        planner.on(Outcome::RenameUnanswered("timed out".into()), now);
        planner.poll(now);
        planner.on(Outcome::Voided(Renamed::SourceMissing), now);
        for n in 5..9 {
            planner.poll(now);
            planner.on(Outcome::Record { n, record: record([1; 16]) }, now);
            assert_eq!((planner.next(), planner.read()), (n + 1, 5));
        }
        planner.poll(now);
        planner.on(Outcome::End { n: 9 }, now);
        assert!(!planner.is_settled());
        planner.poll(now);
        planner.on(Outcome::OwnDirectory(true), now);
        assert_eq!((planner.next(), planner.read()), (9, 9));
        let mut planner = renaming(now);
        planner.on(Outcome::Renamed(Renamed::TargetExists), now);
        planner.poll(now);
        planner.on(Outcome::Record { n: 5, record: record([1; 16]) }, now);
        assert_eq!(planner.read(), 6, "answered: it cannot land there any more");
    }

    #[test]
    fn a_draft_that_is_gone_is_looked_for_in_the_log() {
        let now = Instant::now();
        let gone = || {
            let mut planner = renaming(now);
            planner.on(Outcome::RenameUnanswered("timed out".into()), now);
            planner.poll(now);
            planner.on(Outcome::Voided(Renamed::SourceMissing), now);
            assert_eq!(planner.poll(now), Some(Step::Read { n: 5 }));
            planner
        };
        let mut planner = gone();
        let effect = planner.on(Outcome::Record { n: 5, record: record(ID.0) }, now);
        assert!(matches!(effect, Effect::Committed { n: 5, .. }));
        for (there, dead) in [(true, true), (false, false)] {
            let mut planner = gone();
            planner.on(Outcome::Record { n: 5, record: record([1; 16]) }, now);
            planner.poll(now);
            planner.on(Outcome::End { n: 6 }, now);
            assert_eq!(planner.poll(now), Some(Step::OwnDirectory));
            let effect = planner.on(Outcome::OwnDirectory(there), now);
            assert_eq!(matches!(effect, Effect::Dead(_)), dead);
            assert_eq!(matches!(effect, Effect::Stop(Stop::Retired(_))), !dead);
        }
    }

    #[test]
    fn what_was_answered_not_now_is_sent_again() {
        let now = Instant::now();
        let mut planner = renaming(now);
        planner.on(Outcome::Again("standby".into()), now);
        assert_eq!(planner.trouble(), Some("standby"));
        assert_eq!(planner.poll(now + LONGEST_BACKOFF), Some(Step::Rename { id: ID, n: 5 }));
        planner.on(Outcome::Renamed(Renamed::Done), now);
        assert_eq!(planner.trouble(), None);
    }

    #[test]
    fn a_draft_that_could_not_be_written_is_given_up_with_its_name() {
        let now = Instant::now();
        let mut planner = Planner::new(0, "_catchment/staging/me".into());
        planner.begin(draft());
        planner.poll(now);
        planner.on(Outcome::Unusable("close was not answered".into()), now);
        assert_eq!(planner.poll(now + LONGEST_BACKOFF), Some(Step::OwnDirectory));
        assert!(matches!(planner.on(Outcome::OwnDirectory(true), now), Effect::Dead(_)));
    }

    #[test]
    fn a_store_that_takes_no_draft_is_asked_less_and_less_often_and_stays_a_trouble() {
        let begun = Instant::now();
        let mut planner = Planner::new(0, "_catchment/staging/me".into());
        let mut attempts = 0;
        for millis in (0..60_000).step_by(50) {
            let now = begun + Duration::from_millis(millis);
            if planner.is_idle() {
                planner.begin(draft());
            }
            let outcome = match planner.poll(now) {
                Some(Step::WriteDraft { .. }) => Outcome::Unusable("quota".into()),
                Some(Step::OwnDirectory) => Outcome::OwnDirectory(true),
                Some(step) => panic!("{step:?}"),
                None => continue,
            };
            attempts += u32::from(matches!(outcome, Outcome::Unusable(_)));
            planner.on(outcome, now);
            assert_eq!(planner.trouble(), Some("quota"), "after {millis} ms");
        }
        assert!((7..15).contains(&attempts), "{attempts} in a minute");
        let late = begun + Duration::from_secs(120);
        if planner.is_idle() {
            planner.begin(draft());
        } else {
            planner.poll(late);
            planner.on(Outcome::OwnDirectory(true), late);
            planner.begin(draft());
        }
        planner.poll(late);
        planner.on(Outcome::Written, late);
        assert_eq!((planner.trouble(), planner.backoff), (None, FIRST_BACKOFF));
    }
}
