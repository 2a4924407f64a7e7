//! Housekeeping of this run: which chore comes next, which record besides commits, and the end of a drain.
//!
//! Keeps: a retired directory is deleted only when every file that its run has in records read here is in its final
//! place; a checkpoint is written only over finished records, when no retired directory is left; a view that is too
//! old ends the run, whatever it is doing; nothing that rests on the wall clock is begun while that is wrong.

use std::time::{Duration, Instant};

use proto::wire;
use proto::wire::commit_record::Action as Said;

use super::{Action, Coordinator, Now};
use crate::chores::{Chore, Done};
use crate::commit::draft::Author;
use crate::commit::{CommitId, Draft, Outcome, Stop};
use crate::housekeeping::expiry;
use crate::housekeeping::life::Looked;
use crate::housekeeping::seen::{Seen, Shown};
use crate::log::view::Applied;
use crate::store::Renamed;

/// How long the last record of a drain may take: it only spares the others a wait.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

impl Coordinator {
    /// Ends the run when its view is older than half of what is kept. It never loads the log again: what was cleaned
    /// in between could have retired it.
    pub(super) fn check_age(&mut self, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.end_seen);
        let fresh = age <= self.keeper.limits().log_retention / 2;
        if !fresh {
            self.stop(Stop::Stale { seconds: age.as_secs() });
        }
        fresh
    }

    /// Notes when the end of the log was last seen. Not while a draft is unsettled: what is read then is read for it.
    pub(super) fn note_end(&mut self, was_end: bool) {
        if was_end && self.planner.is_settled() {
            self.end_seen = self.step_sent;
        }
    }

    /// Does this outcome show the end of the log?
    pub(super) fn shows_end(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::End { .. } | Outcome::Renamed(Renamed::Done))
    }

    /// Renews the sign of life, also while the process drains: until its last record.
    pub(super) fn show(&mut self, now: Now) {
        if self.leaving.is_some() {
            return;
        }
        if let Some(seen) = self.keeper.show(now.instant) {
            self.clock.asked(now);
            self.actions.push(Action::Show { seen, read: self.planner.read() });
        }
    }

    pub(super) fn shown(&mut self, seen: Seen, shown: &Shown, now: Instant) {
        if !self.keeper.shown(seen, shown, now) {
            self.stop(Stop::Retired(self.planner.staging().to_owned()));
        } else if let Some(asked) = self.clock.wanted(*shown == Shown::Done) {
            self.actions.push(Action::ReadClock { asked });
        }
    }

    /// The next piece of slow work, if none is under way.
    pub(super) fn next_chore(&mut self, now: Now) {
        if self.chore || self.draining {
            return;
        }
        let chore = if self.keeper.look_due(now.instant) { Some(Chore::Look) } else { self.sweep_due(now.instant) };
        let chore = chore.or_else(|| self.delete_due(now.instant)).or_else(|| self.checkpoint_due());
        if let Some(chore) = chore.or_else(|| self.tidy_due(now)) {
            self.chore = true;
            self.actions.push(Action::Chore(Box::new(chore)));
        }
    }

    /// The directory of a run that must not commit any more, once all its committed files are in their places: first
    /// nobody can rename out of it any more, then what lay in it and is still needed is made again, then it goes.
    fn delete_due(&mut self, now: Instant) -> Option<Chore> {
        if !self.keeper.delete_due(now) {
            return None;
        }
        if let Some((incarnation, keys)) = self.fenced.take() {
            let markers = self.markers(&keys).into_values().collect();
            return Some(Chore::Delete { incarnation, markers });
        }
        let mut retired = self.view.incarnations().iter().filter(|(_, row)| row.retired_by.is_some());
        let staged = |name: &str| {
            self.unfinished.values().any(|row| row.finish.incarnation == name && !row.finish.bring.is_empty())
        };
        let (name, _) = retired.find(|(name, _)| **name != self.settings.incarnation && !staged(name))?;
        Some(Chore::Fence(name.clone()))
    }

    /// Only over finished records: none of their files in staging any more, and no retired directory.
    fn checkpoint_due(&mut self) -> Option<Chore> {
        let due = self.is_checkpoint_due()
            && self.unfinished.is_empty()
            && self.planner.is_idle()
            && self.view.incarnations().values().all(|row| row.retired_by.is_none());
        due.then(|| Chore::Checkpoint {
            id: CommitId((self.ids)()),
            next: self.planner.next(),
            bytes: proto::record::encode_checkpoint(&self.view.to_checkpoint()).into(),
        })
    }

    pub(super) fn is_checkpoint_due(&self) -> bool {
        self.planner.next() >= self.last_checkpoint + self.settings.checkpoint_every
    }

    fn tidy_due(&mut self, now: Now) -> Option<Chore> {
        let leftovers = self.keeper.take_leftovers();
        if !leftovers.is_empty() {
            return Some(Chore::Leftovers(leftovers));
        }
        // What is kept by its age goes only by a clock that is right.
        if !self.clock.is_right(now) {
            return None;
        }
        if self.keeper.clean_due(now.instant) {
            let kept = i64::try_from(self.keeper.limits().log_retention.as_millis()).unwrap_or(i64::MAX);
            return Some(Chore::Clean { older_than_unix_ms: now.unix_ms.saturating_sub(kept) });
        }
        self.keeper.retention_due(now.instant, now.unix_ms).map(Chore::Retention)
    }

    pub(super) fn chored(&mut self, done: Done, now: Instant) {
        self.chore = false;
        match done {
            Done::Looked(looked) => looked.iter().for_each(|looked| self.looked(looked)),
            Done::Swept(left) => self.swept(left, now),
            Done::Fenced { incarnation, markers: Some(keys) } => self.fenced = Some((incarnation, keys)),
            Done::Fenced { .. } => self.keeper.delete_later(now),
            Done::Deleted { incarnation, gone: true } => {
                self.view.directory_deleted(&incarnation);
                self.keeper.gone(&incarnation);
            }
            Done::Deleted { gone: false, .. } => self.keeper.delete_later(now),
            Done::Checkpointed(highest) => self.last_checkpoint = self.last_checkpoint.max(highest),
            Done::Tidied => {}
            Done::Cleaned(cleaned) => {
                if cleaned.records + cleaned.checkpoints > 0 {
                    tracing::info!(records = cleaned.records, checkpoints = cleaned.checkpoints, "log cleaned");
                    self.counts.cleaned_records += cleaned.records;
                }
                if cleaned.more {
                    self.keeper.clean_more(now);
                }
            }
        }
    }

    fn looked(&mut self, looked: &Looked) {
        let draft = self.planner.draft().map(|draft| draft.id.to_string());
        self.keeper.looked(looked, draft.as_deref());
        // A directory that is not listed was deleted by somebody: names are never used again.
        let retired = self.view.incarnations().iter().filter(|(_, row)| row.retired_by.is_some());
        let gone: Vec<String> = retired.map(|(name, _)| name).filter(|name| !looked.has(name)).cloned().collect();
        gone.iter().for_each(|name| self.view.directory_deleted(name));
    }

    /// A run that must not commit any more: what it committed is looked after at once.
    pub(super) fn finish_retired(&mut self, incarnation: &str, now: Instant) {
        for row in self.unfinished.values_mut().filter(|row| row.finish.incarnation == incarnation) {
            row.not_before = now;
        }
        self.next_sweep = now;
    }

    /// A record besides commits that is due now.
    pub(super) fn housekeeping_due(&mut self, now: Now) -> Option<Said> {
        if self.draining {
            return None;
        }
        if !self.clock.is_right(now) {
            // How things stand is told all the same.
            self.count_partitions(now);
            return None;
        }
        self.retire_due().or_else(|| self.expire_due(now)).or_else(|| self.seal_due(now))
    }

    fn retire_due(&self) -> Option<Said> {
        let retired = |name: &str| self.view.incarnations().get(name).is_some_and(|row| row.retired_by.is_some());
        let dead = self.keeper.life().dead();
        let (name, silent) = dead.into_iter().find(|(name, _)| !retired(name))?;
        tracing::warn!(incarnation = name, silent_seconds = silent.as_secs(), "run shows no sign of life, retiring it");
        let reason = format!("no sign of life for {} s", silent.as_secs());
        Some(Said::Retire(wire::Retire { incarnation: name.to_owned(), reason }))
    }

    fn expire_due(&mut self, now: Now) -> Option<Said> {
        if !self.keeper.expiry_due(now.instant) {
            return None;
        }
        if let Some(agent) = self.keeper.forget_due(expiry::silent(&self.view, now.unix_ms), now.instant) {
            tracing::warn!(%agent, "no record of this agent for a week, it is forgotten: no partition waits for it");
            self.keeper.expire_more(now.instant);
            let reason = "no record of it for a week".into();
            return Some(Said::Forget(wire::Forget { agent: agent.to_string(), reason }));
        }
        let expire = expiry::due(&self.view, self.keeper.limits().horizon, now.unix_ms)?;
        tracing::info!(origins = expire.origins.len(), sets = expire.expired_sets.len(), "origins expire");
        self.keeper.expire_more(now.instant);
        Some(Said::Expire(expire))
    }

    /// Other runs that show signs of life.
    pub fn living_runs(&self) -> usize {
        self.keeper.life().living().count()
    }

    /// Begins a record besides commits.
    pub(super) fn begin_action(&mut self, said: Said, now: Now) {
        self.draft_begun = now.instant;
        let draft = Draft::of_action(CommitId((self.ids)()), &self.author(now), said);
        self.planner.begin(draft);
    }

    pub(super) fn author(&self, now: Now) -> Author {
        Author {
            collector: self.settings.collector.clone(),
            incarnation: self.settings.incarnation.clone(),
            time_unix_ms: now.unix_ms,
        }
    }

    /// An own record besides commits is in the log.
    pub(super) fn own_action(&mut self, applied: &Applied, now: Instant) {
        // Whoever made it waits for what it asks for.
        self.next_sweep = now;
        match &applied.retired {
            Some(retired) if *retired == self.settings.incarnation => self.left = true,
            Some(retired) => self.finish_retired(retired, now),
            None => {}
        }
        if !applied.expired.is_empty() {
            let (groups, seqs) = self.staged.of_origins(|key| self.view.is_expired(key));
            self.take_out(groups, seqs);
        }
    }

    /// The end of a drain: when everything is committed and published, the last record says that this run is over, so
    /// that the others need not wait for its silence. It deletes nothing, and is left out when the deadline presses.
    pub(super) fn end_drain(&mut self, now: Now) {
        if !self.draining || self.drained || !self.staged.is_empty() {
            return;
        }
        if self.leaving.is_none() && !self.planner.is_idle() {
            return;
        }
        let leaving = *self.leaving.get_or_insert(now.instant);
        let draining = now.instant.saturating_duration_since(self.drain_begun);
        let over = draining >= self.settings.drain_deadline / 2
            || now.instant.saturating_duration_since(leaving) >= LEAVE_WITHIN;
        if self.left || over {
            self.drained = true;
            self.actions.push(Action::Drained);
        } else if self.planner.is_idle() {
            let incarnation = self.settings.incarnation.clone();
            self.begin_action(Said::Retire(wire::Retire { incarnation, reason: "orderly end".into() }), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::ids::Origin;

    use super::super::intake::tests::coordinator_on;
    use super::super::{Event, Replayed};
    use super::*;
    use crate::housekeeping::clock::WITHIN;
    use crate::log::View;

    const DAY: i64 = 86_400_000;
    const BASE: i64 = 1_700_000_000_000;

    /// A log with one run of one agent, complete at [`BASE`].
    fn replayed() -> Replayed {
        let cover = wire::OriginCover {
            agent: "web-1".into(),
            origin: Origin::mint(u64::try_from(BASE).unwrap() - 1000, 7).to_bytes(),
            closes: vec![wire::SeqClose { seq: 0, close: Some(wire::Close::default()) }],
            ..Default::default()
        };
        let mut record = wire::CommitRecord { time_unix_ms: BASE, incarnation: "x".into(), ..Default::default() };
        record.action = Some(Said::Publish(wire::Publish { files: Vec::new(), covers: vec![cover] }));
        let mut view = View::default();
        view.apply(0, &record).unwrap();
        Replayed { view, ..Replayed::default() }
    }

    /// What it drafts when its wall clock says so much after [`BASE`] and the store's says [`BASE`]; and whether it
    /// deletes what is old.
    fn drafts(within: Option<Duration>, ahead_ms: i64) -> (Option<Said>, bool) {
        let begun = Instant::now() + Duration::from_secs(1);
        let at = |seconds: u64| Now {
            instant: begun + Duration::from_secs(seconds),
            unix_ms: BASE + ahead_ms + i64::try_from(seconds).unwrap() * 1000,
        };
        let mut owner = coordinator_on(replayed(), within);
        let shows = owner.handle(Event::Tick, at(0));
        let seen = shows.into_iter().find_map(|action| match action {
            Action::Show { seen, .. } => Some(seen),
            _ => None,
        });
        let then = owner.handle(Event::Shown { seen: seen.unwrap(), shown: Shown::Done }, at(1));
        assert_eq!(then.iter().any(|action| matches!(action, Action::ReadClock { .. })), within.is_some());
        owner.handle(Event::StoreClock { asked: at(0), unix_ms: BASE + 500 }, at(2));
        owner.handle(Event::Chored(Box::new(Done::Looked(None))), at(3));
        owner.handle(Event::Tick, at(40));
        let actions = owner.handle(Event::Chored(Box::new(Done::Looked(None))), at(41));
        let cleans = actions.iter().any(|action| {
            matches!(action, Action::Chore(chore) if matches!(**chore, Chore::Clean { .. } | Chore::Retention(_)))
        });
        assert_eq!(owner.clock_trouble().is_some(), within.is_some() && ahead_ms != 0);
        (owner.planner.draft().and_then(|draft| draft.record.action.clone()), cleans)
    }

    #[test]
    fn a_wall_clock_that_the_store_contradicts_expires_and_deletes_nothing() {
        let expires = |said: &Option<Said>| matches!(said, Some(Said::Expire(_)));
        let (said, cleans) = drafts(None, 31 * DAY);
        assert!(expires(&said) && cleans, "a clock that cannot be compared is taken as it is: {said:?}");
        assert_eq!(drafts(Some(WITHIN), 31 * DAY), (None, false));
        assert_eq!(drafts(Some(WITHIN), 0), (None, true), "nothing is old, and the clock is right");
    }

    /// Its own last record is under way when it reads that somebody else retired it.
    #[test]
    fn a_run_that_was_retired_while_it_leaves_renames_nothing_more() {
        let begun = Instant::now() + Duration::from_secs(1);
        let now = Now { instant: begun, unix_ms: BASE };
        let mut owner = coordinator_on(replayed(), None);
        owner.handle(Event::Drain, now);
        assert!(owner.leaving.is_some() && owner.planner.draft().is_some());
        owner.handle(Event::Stepped(Box::new(Outcome::Written)), now);
        owner.handle(Event::Stepped(Box::new(Outcome::Renamed(Renamed::TargetExists))), now);
        let retire = Said::Retire(wire::Retire { incarnation: "run".into(), reason: "no sign of life".into() });
        let record = wire::CommitRecord { incarnation: "other".into(), action: Some(retire), ..Default::default() };
        let read = Outcome::Record { n: 1, record: Box::new(record) };
        let actions = owner.handle(Event::Stepped(Box::new(read)), now);
        assert!(actions.iter().any(|action| matches!(action, Action::Drained)));
        assert!(!actions.iter().any(|action| matches!(action, Action::Step(_))), "{actions:?}");
        assert!(owner.handle(Event::Tick, now).is_empty());
    }

    #[test]
    fn a_record_from_the_future_makes_nobody_silent() {
        let mut view = replayed().view;
        let mut record =
            wire::CommitRecord { time_unix_ms: BASE + 8 * DAY, incarnation: "y".into(), ..Default::default() };
        let cover = |agent: &str| wire::OriginCover {
            agent: agent.into(),
            origin: Origin::mint(u64::try_from(BASE).unwrap(), 8).to_bytes(),
            data: Some((&proto::intervals::IntervalSet::from_iter([0u64])).into()),
            ..Default::default()
        };
        record.action = Some(Said::Publish(wire::Publish { files: Vec::new(), covers: vec![cover("web-3")] }));
        let mut before = record.clone();
        before.time_unix_ms = BASE;
        before.action = Some(Said::Publish(wire::Publish { files: Vec::new(), covers: vec![cover("web-2")] }));
        view.apply(1, &before).unwrap();
        view.apply(2, &record).unwrap();
        assert!(expiry::silent(&view, BASE + DAY).is_empty(), "written by a clock that is a week ahead");
        let silent = expiry::silent(&view, BASE + 8 * DAY);
        assert!(silent.iter().any(|agent| agent.as_str() == "web-2"), "{silent:?}");
    }
}
