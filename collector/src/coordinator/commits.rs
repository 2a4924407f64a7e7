//! Rolling, drafting, merging records of others, and what follows from an own commit.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proto::ids::BatchId;
use proto::wire;
use proto::wire::commit_record::Action as Said;

use super::{Action, Answered, Coordinator, Now, Retreat};
use crate::commit::{CommitId, Draft, Effect, Outcome, Stop};
use crate::config::dataset::{LATE_SUFFIX, LatePolicy};
use crate::housekeeping;
use crate::ledger::GroupKey;
use crate::ledger::staged::{GroupState, Left};
use crate::log::layout;
use crate::log::view::{Applied, Finish, partitions};
use crate::roll::{self, GroupLimits, OpenGroup};

const FIRST_RETREAT: Duration = Duration::from_secs(1);
const LONGEST_RETREAT: Duration = Duration::from_secs(30);
/// How long a closed group waits for others that are being closed, to go into one record with them.
const GATHER: Duration = Duration::from_secs(1);
/// Between two warnings that an agent's marks are ahead.
const AHEAD_TOLD_EVERY: Duration = Duration::from_secs(3600);

impl Coordinator {
    /// Closes what is due.
    pub(super) fn roll(&mut self, now: Instant) {
        let open: Vec<_> = self.staged.groups().filter(|(_, group)| group.state == GroupState::Open).collect();
        let open: Vec<OpenGroup> = open
            .into_iter()
            .map(|(number, group)| OpenGroup {
                number,
                limits: self.limits(&group.key),
                bytes: group.bytes,
                buffered: group.buffered,
                events: group.events,
                batches: group.batches,
                opened: group.opened,
                last_write: group.last_write,
                requested: group.requested,
            })
            .collect();
        for (group, reason) in roll::due(&open, self.settings.total, self.draining, now) {
            if self.staged.roll(group, now) {
                self.actions.push(Action::Close { group, reason });
            }
        }
    }

    fn limits(&self, key: &GroupKey) -> GroupLimits {
        let mut limits = self.settings.roll;
        if let Some(dataset) = key.dataset.as_ref().and_then(|name| self.settings.datasets.get(name)) {
            let over = &dataset.roll;
            limits.bytes = over.bytes.map_or(limits.bytes, |size| size.bytes());
            limits.events = over.events.unwrap_or(limits.events);
            limits.age = over.age.map_or(limits.age, |span| span.get());
            limits.idle = over.idle.map_or(limits.idle, |span| span.get());
        }
        limits
    }

    pub(super) fn closed(&mut self, group: u64, result: Result<Vec<wire::PublishedFile>, String>, now: Instant) {
        match result {
            Ok(files) => {
                if let Some(key) = self.staged.group(group).map(|group| &group.key) {
                    self.retreats.remove(key);
                }
                self.staged.closed(group, files);
            }
            Err(reason) => self.poison(group, &reason, now),
        }
    }

    /// Gives a group up: no draft ever names it, its batches are asked for again and go to a new name, after a while.
    pub(super) fn poison(&mut self, group: u64, reason: &str, now: Instant) {
        let Some(key) = self.staged.group(group).map(|group| group.key.clone()) else { return };
        let failures = self.retreats.get(&key).map_or(0, |retreat| retreat.failures).saturating_add(1);
        let delay = (FIRST_RETREAT * 2u32.saturating_pow((failures - 1).min(10))).min(LONGEST_RETREAT);
        self.retreats.retain(|_, retreat| now < retreat.until + LONGEST_RETREAT);
        self.retreats.insert(key, Retreat { failures, until: now + delay });
        let left = self.staged.remove_group(group);
        tracing::warn!(group, reason, batches = left.len(), "group given up, its batches are asked for again");
        self.counts.poisoned += 1;
        for Left { id, entry } in left {
            self.answer_again(&entry.waiters, &id);
        }
        self.actions.push(Action::Forget { group });
    }

    /// Begins a commit or a look at the log, if it is time and nothing is under way.
    pub(super) fn plan(&mut self, now: Now) {
        if !self.planner.is_idle() {
            return;
        }
        self.drop_empty_groups();
        let waits = self.staged.groups().any(|(_, group)| match group.state {
            GroupState::Closing { since } => now.instant.saturating_duration_since(since) < self.settings.close_wait,
            _ => false,
        });
        let closed = self.staged.groups().any(|(_, group)| matches!(group.state, GroupState::Closed { .. }));
        self.closed_since = closed.then(|| self.closed_since.unwrap_or(now.instant));
        let gathered = self.closed_since.is_some_and(|since| now.instant.saturating_duration_since(since) >= GATHER);
        let seqs_due = self.staged.without_file().any(|(_, seq)| {
            let age = now.instant.saturating_duration_since(seq.since);
            self.draining
                || seq.requested
                || (seq.urgent && age >= self.settings.opens_within)
                || age >= self.settings.roll.age
        });
        if (closed && (gathered || !waits)) || seqs_due {
            self.closed_since = None;
            let author = self.author(now);
            if let Some(draft) = Draft::of(
                &self.staged,
                CommitId((self.ids)()),
                &author,
                |file| self.place_late(file),
                |key| self.view.is_expired(key),
            ) {
                self.draft_begun = now.instant;
                self.planner.begin(draft);
            }
            return;
        }
        if let Some(said) = self.housekeeping_due(now) {
            return self.begin_action(said, now);
        }
        let every = if self.staged.is_empty() { self.settings.tail_every * 5 } else { self.settings.tail_every };
        if now.instant.saturating_duration_since(self.last_tail) >= every {
            self.last_tail = now.instant;
            self.planner.tail();
        }
    }

    /// Where a file of a sealed partition goes, by the late policy of its dataset.
    fn place_late(&self, mut file: wire::PublishedFile) -> wire::PublishedFile {
        let key = partitions::key(0, &file.dataset, file.partition.as_ref());
        let sealed = file.kind() == wire::FileKind::Data
            && key.as_ref().is_ok_and(|key| self.view.partitions().sealed(key).is_some());
        let Some(key) = key.ok().filter(|_| sealed) else { return file };
        file.late_of.clone_from(&file.dataset);
        let policy = self.settings.datasets.get(&key.dataset).map_or(LatePolicy::Append, |dataset| dataset.late);
        if policy == LatePolicy::Late {
            file.dataset.push_str(LATE_SUFFIX);
            file.r#final = format!("{}/{}/{}", file.dataset, key.partition.path(), layout::name(&file.r#final));
        }
        file
    }

    /// A group whose every batch was refused has nothing to commit.
    fn drop_empty_groups(&mut self) {
        let empty = self
            .staged
            .groups()
            .filter(|(_, group)| group.batches == 0 && matches!(group.state, GroupState::Closed { .. }));
        let empty: Vec<u64> = empty.map(|(number, _)| number).collect();
        for group in empty {
            self.staged.remove_group(group);
            self.actions.push(Action::Abandon { group });
        }
    }

    pub(super) fn stepped(&mut self, outcome: Outcome, now: Now) {
        let was_end = Self::shows_end(&outcome);
        let effect = self.planner.on(outcome, now.instant);
        self.note_end(was_end);
        match effect {
            Effect::Nothing => {}
            Effect::Merge { n, record } => self.merge(n, &record, now),
            Effect::Committed { n, draft } => self.committed_draft(n, *draft, now),
            Effect::Dead(draft) => {
                tracing::info!(commit = %draft.id, "draft will never be a record, what is left of it goes into a new one");
                self.counts.dead_drafts += 1;
                if let Some(Said::Compact(compact)) = draft.record.action {
                    self.abandon_compaction(compact);
                }
            }
            Effect::Published(stuck) => self.published(stuck, now),
            Effect::Stop(stop) => self.stop(stop),
        }
    }

    pub(super) fn stop(&mut self, stop: Stop) {
        self.stopped = true;
        self.actions.push(Action::Stop(stop));
    }

    /// A record of somebody else: what it covers leaves this ledger, each with its whole group.
    fn merge(&mut self, n: u64, record: &wire::CommitRecord, now: Now) {
        if record.incarnation == self.settings.incarnation {
            return self.stop(Stop::Log(format!("record {n} is of this run, but of no draft that it knows")));
        }
        let Some(applied) = self.apply(n, record, now.instant) else { return };
        self.counts.records_read += 1;
        if applied.retired.as_deref() == Some(&*self.settings.incarnation) {
            if self.leaving.is_some() {
                self.left = true;
                return;
            }
            return self.stop(Stop::RetiredBy { n, incarnation: record.incarnation.clone() });
        }
        self.keeper.alive(&record.incarnation);
        let (mut groups, mut seqs) = self.staged.touched_by(&applied.covers);
        if matches!(record.action, Some(Said::Expire(_))) {
            let (more_groups, more_seqs) = self.staged.of_origins(|key| self.view.is_expired(key));
            groups.extend(more_groups);
            seqs.extend(more_seqs);
        }
        let draft = self.planner.draft();
        if draft.is_some_and(|d| groups.iter().any(|g| d.names(*g)) || seqs.iter().any(|id| d.seqs.contains(id)))
            || draft.is_some_and(|draft| {
                let seal_holds = |seal: &wire::Seal| self.seal_holds(seal, now);
                housekeeping::conflicts(draft, record, &applied, &self.view, seal_holds)
            })
        {
            self.planner.touch();
        }
        self.take_out(groups, seqs);
        self.add_unfinished(n, applied.finish, now.instant + self.settings.finish_after);
        if let Some(retired) = applied.retired {
            self.finish_retired(&retired, now.instant);
        }
    }

    /// A record takes these away: whole groups, and seqs without a file.
    pub(super) fn take_out(&mut self, groups: BTreeSet<u64>, seqs: Vec<BatchId>) {
        let n = self.view.next() - 1;
        for group in groups {
            let left = self.staged.remove_group(group);
            tracing::info!(n, group, batches = left.len(), "record takes a batch of this group: deleted");
            self.counts.conflicts += 1;
            self.actions.push(Action::Abandon { group });
            left.into_iter().for_each(|left| self.answer_left(left));
        }
        for id in seqs {
            if let Some(left) = self.staged.remove_without_file(&id) {
                self.answer_left(left);
            }
        }
    }

    /// Merges a record into the view; stops if it cannot be merged.
    fn apply(&mut self, n: u64, record: &wire::CommitRecord, now: Instant) -> Option<Applied> {
        match self.view.apply(n, record) {
            Ok(applied) => {
                self.tell_marks_ahead(n, &applied, now);
                if applied.twice > 0 {
                    self.counts.covered_twice += applied.twice;
                    tracing::error!(
                        n,
                        seqs = applied.twice,
                        "the log covers batches twice: report this, with this record"
                    );
                }
                Some(applied)
            }
            Err(error) => {
                self.stop(Stop::Log(error.to_string()));
                None
            }
        }
    }

    /// No seal rests on such a mark: the agent's days wait until its clock, or the collector's, is right again.
    fn tell_marks_ahead(&mut self, n: u64, applied: &Applied, now: Instant) {
        self.counts.marks_ahead += applied.marks_ahead.len() as u64;
        self.ahead_told.retain(|_, told| now.saturating_duration_since(*told) < AHEAD_TOLD_EVERY);
        for (key, ahead_ms) in &applied.marks_ahead {
            if !self.ahead_told.contains_key(&key.agent) {
                self.ahead_told.insert(key.agent.clone(), now);
                tracing::warn!(
                    n,
                    agent = %key.agent,
                    ahead_seconds = ahead_ms / 1000,
                    "a mark does not count, it is ahead of the clock of the collector that committed it: a clock is wrong"
                );
            }
        }
    }

    fn answer_left(&mut self, left: Left) {
        let Left { id, entry } = left;
        if self.view.committed().contains(&id) {
            entry.waiters.iter().for_each(|stream| self.answer_committed(*stream, &id, None));
        } else if self.view.expired().contains(&id) {
            entry.waiters.iter().for_each(|stream| self.answer_expired(*stream, &id));
        } else {
            self.answer_again(&entry.waiters, &id);
        }
    }

    fn committed_draft(&mut self, n: u64, draft: Draft, now: Now) {
        let Some(applied) = self.apply(n, &draft.record, now.instant) else { return };
        for group in &draft.groups {
            let left = self.staged.remove_group(*group);
            self.keep_answers(left);
            self.actions.push(Action::Forget { group: *group });
        }
        for id in &draft.seqs {
            let left = self.staged.remove_without_file(id);
            self.keep_answers(left);
        }
        let Some(Said::Publish(publish)) = draft.record.action else {
            tracing::info!(n, action = housekeeping::name(&draft.record), "committed");
            self.own_action(&applied, now.instant);
            return self.add_unfinished(n, applied.finish, now.instant);
        };
        self.last_commit = now.instant;
        self.count(&publish);
        // The files go first, by the planner; what else the record asks for is done beside the next commits.
        self.publishing = Finish { bring: Vec::new(), ..applied.finish };
        let since = now.instant.saturating_duration_since(self.draft_begun);
        let files = publish.files;
        tracing::info!(n, files = files.len(), batches = self.answers.len(), "committed");
        self.actions.push(Action::Committed { n, files: files.clone(), since });
        self.actions.push(Action::Announce);
        self.planner.publish(files);
    }

    fn keep_answers(&mut self, left: impl IntoIterator<Item = Left>) {
        self.answers.extend(left.into_iter().map(|Left { id, entry }| Answered {
            id,
            waiters: entry.waiters,
            refused: entry.refused,
        }));
    }

    fn count(&mut self, publish: &wire::Publish) {
        self.counts.commits += 1;
        self.counts.committed_batches += self.answers.len() as u64;
        for file in &publish.files {
            match file.kind() {
                wire::FileKind::DeadLetter => self.counts.dead_letters += file.events,
                wire::FileKind::Quarantine => self.counts.quarantined += file.batches,
                _ => {
                    self.counts.committed_events += file.events;
                    self.counts.committed_bytes += file.bytes;
                }
            }
        }
    }

    /// The files were brought to their places: the answers leave.
    fn published(&mut self, stuck: Vec<wire::PublishedFile>, now: Now) {
        let after = if stuck.is_empty() { Duration::ZERO } else { self.settings.finish_after };
        let finish = Finish { bring: stuck, ..std::mem::take(&mut self.publishing) };
        self.add_unfinished(self.planner.next() - 1, finish, now.instant + after);
        for Answered { id, waiters, refused } in std::mem::take(&mut self.answers) {
            for stream in waiters {
                self.answer_committed(stream, &id, refused.as_ref());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::intake::tests::{coordinator, dated};
    use super::super::{AppendAnswer, Event};
    use super::*;

    /// Two groups that are being closed, and everything in them is answered.
    fn closing(at: Now) -> Coordinator {
        let mut owner = coordinator();
        for (group, delivery) in [(0, dated(1, 1)), (1, dated(2, 2))] {
            let id = delivery.id.clone();
            owner.handle(Event::Arrived { stream: 7, delivery }, at);
            owner.handle(Event::Appended { group, id, answer: AppendAnswer::Appended(vec![]) }, at);
        }
        owner.handle(Event::Roll { stream: 7 }, at);
        assert!(owner.staged().groups().all(|(_, group)| matches!(group.state, GroupState::Closing { .. })));
        owner
    }

    fn drafted(owner: &Coordinator) -> Option<Vec<u64>> {
        owner.planner.draft().map(|draft| draft.groups.clone())
    }

    #[test]
    fn files_that_close_together_go_in_one_record_and_none_waits_long_for_another() {
        let begun = Instant::now();
        let at = |millis| Now { instant: begun + Duration::from_millis(millis), unix_ms: 0 };
        let close =
            |owner: &mut Coordinator, group, now| owner.handle(Event::Closed { group, result: Ok(vec![]) }, now);

        let mut owner = closing(at(0));
        close(&mut owner, 1, at(10));
        owner.handle(Event::Tick, at(900));
        assert_eq!(drafted(&owner), None, "the other one may come in time");
        close(&mut owner, 0, at(950));
        assert_eq!(drafted(&owner), Some(vec![0, 1]));

        let mut owner = closing(at(0));
        close(&mut owner, 1, at(10));
        owner.handle(Event::Tick, at(1009));
        assert_eq!(drafted(&owner), None);
        owner.handle(Event::Tick, at(1010));
        assert_eq!(drafted(&owner), Some(vec![1]), "it does not wait for a close that takes longer");
    }

    #[test]
    fn marks_that_are_ahead_are_counted_and_told_once_an_hour_by_agent() {
        let begun = Instant::now();
        let mut owner = coordinator();
        let mut read = |n: u64, agent: &str, at: Duration| {
            let mark = wire::SeqMark { seq: 0, mark: Some(wire::Mark { at_unix_ms: 120_000, ..Default::default() }) };
            let cover = wire::OriginCover {
                agent: agent.into(),
                origin: proto::ids::Origin::mint(5, u128::from(n)).to_bytes(),
                marks: vec![mark],
                ..Default::default()
            };
            let publish = wire::Publish { files: Vec::new(), covers: vec![cover] };
            let record = wire::CommitRecord { action: Some(Said::Publish(publish)), ..Default::default() };
            owner.apply(n, &record, begun + at).unwrap();
            (owner.counts().marks_ahead, owner.ahead_told.values().filter(|told| **told == begun + at).count())
        };
        assert_eq!(read(0, "web-1", Duration::ZERO), (1, 1));
        assert_eq!(read(1, "web-1", Duration::from_secs(300)), (2, 0), "told a moment ago");
        assert_eq!(read(2, "web-2", Duration::from_secs(600)), (3, 1));
        assert_eq!(read(3, "web-1", Duration::from_secs(3600)), (4, 1));
    }
}
