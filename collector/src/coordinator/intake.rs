//! What streams bring: each batch is answered at once if the log has it, waits if it is staged here, and else goes
//! into its group, is kept as a seq without a file, or is set aside whole.

use std::sync::Arc;
use std::time::Duration;

use proto::header::{Header, Kind};
use proto::ids::{BatchId, Partition};
use proto::wire;
use proto::wire::answer::Answer as Kinds;

use super::{Action, AppendAnswer, Coordinator, Delivery, Now};
use crate::config::dataset::PartitionBy;
use crate::ledger::staged::{Incoming, WithoutFile};
use crate::ledger::{GroupKey, GroupKind, OriginKey, StreamId};

/// Milliseconds in a day.
const DAY_MS: i64 = 86_400_000;
/// How long a batch waits while all groups together hold more memory than they may.
const OVER: Duration = Duration::from_secs(2);
/// Why a batch of an origin is quarantined that was forgotten a horizon after its last commit.
const EXPIRED: &str = "expired: its run was minted before the horizon and is not known any more";
/// More intervals than this are not repeated with every answer.
const MANY_SPANS: usize = 64;

impl Coordinator {
    pub(super) fn arrived(&mut self, stream: StreamId, delivery: Delivery, now: Now) {
        let id = delivery.id.clone();
        if self.view.committed().contains(&id) {
            self.counts.duplicates += 1;
            self.answer_committed(stream, &id, None);
            return;
        }
        if self.view.expired().contains(&id) {
            self.counts.duplicates += 1;
            self.answer_expired(stream, &id);
            return;
        }
        if let Some(entry) = self.staged.find(&id) {
            if entry.appended {
                self.answer_staged(stream, &id);
            }
            self.staged.wait(&id, stream);
            return;
        }
        if self.draining {
            self.answer_busy(&[stream], &id, Duration::from_secs(1));
            return;
        }
        let placed = match &delivery.content {
            // Of whatever kind: it must not make its origin known again.
            _ if self.view.is_expired(&OriginKey::of(&id)) => Err(Arc::from(EXPIRED)),
            Err(reason) => Err(Arc::clone(reason)),
            Ok(header) if header.data().is_none() => {
                let kind = header.kind.clone();
                self.keep_without_file(stream, &id, kind, now);
                return;
            }
            Ok(header) => self.group_of(&id, header).map_err(Arc::from),
        };
        let (key, refused) = match placed {
            Ok(key) => (key, None),
            Err(reason) => (quarantine_key(now), Some(reason)),
        };
        self.put(key, delivery, (stream, &[stream]), refused, now);
    }

    /// Where a data batch belongs, or why nowhere.
    fn group_of(&self, id: &BatchId, header: &Header) -> Result<GroupKey, String> {
        let data = header.data().expect("only data batches have a group");
        let Some(dataset) = self.settings.datasets.get(&data.dataset) else {
            return Err(format!("dataset {} is not declared here", data.dataset));
        };
        if !dataset.admits(id.agent.as_str()) {
            return Err(format!("agent {} is not among the writers of dataset {}", id.agent, data.dataset));
        }
        let dead_letters = data.wire.dead_letters;
        let hourly = !dead_letters && dataset.partition == PartitionBy::Hour;
        if data.partition.hour().is_some() != hourly {
            return Err(format!(
                "dataset {} is partitioned by {:?}, the batch is not",
                data.dataset, dataset.partition
            ));
        }
        let kind = if dead_letters { GroupKind::DeadLetters } else { GroupKind::Data };
        Ok(GroupKey { kind, dataset: Some(data.dataset.clone()), partition: data.partition })
    }

    fn keep_without_file(&mut self, stream: StreamId, id: &BatchId, kind: Kind, now: Now) {
        let urgent = match &kind {
            // The rest of such a run waits for it; an agent that the log does not know is invisible until then.
            Kind::Open(open) => {
                open.previous.is_none()
                    || open.restored
                    || open.after_left
                    || !self.view.committed().knows_agent(&id.agent)
            }
            _ => false,
        };
        self.staged.add_without_file(id, WithoutFile { kind, since: now.instant, urgent, requested: false }, stream);
        self.answer_staged(stream, id);
    }

    /// Puts a batch, which holds credit of a stream, into the open group of its key, which is made if there is none.
    fn put(
        &mut self,
        key: GroupKey,
        delivery: Delivery,
        (stream, waiters): (StreamId, &[StreamId]),
        refused: Option<Arc<str>>,
        now: Now,
    ) {
        let bytes = (delivery.header.len() + delivery.payload.len()) as u64;
        if let Some(delay) = self.must_wait(&key, stream, bytes, now) {
            self.answer_busy(waiters, &delivery.id, delay);
            return;
        }
        let group = self.staged.open_group(&key).unwrap_or_else(|| self.open_group(key, now));
        let events = delivery.content.as_ref().map_or(0, |header| header.events());
        let from = Incoming { events, waiters, refused: refused.clone() };
        self.staged.add_batch(&delivery.id, group, from, now.instant);
        self.in_flight.add(group, &delivery.id, stream, bytes, now.instant);
        self.actions.push(Action::Append { group, delivery: Box::new(delivery), refused });
    }

    fn open_group(&mut self, key: GroupKey, now: Now) -> u64 {
        let group = self.next_group;
        self.next_group += 1;
        let dataset = key.dataset.as_ref().and_then(|name| self.settings.datasets.get(name)).cloned();
        self.staged.add_group(group, key.clone(), now.instant);
        self.actions.push(Action::Open { group, key, dataset, day: utc_day(now.unix_ms) });
        group
    }

    /// How long the partition waits: after its group was given up, while its file is slow or holds its part of the
    /// credit, or while there are too many groups.
    fn must_wait(&self, key: &GroupKey, stream: StreamId, bytes: u64, now: Now) -> Option<Duration> {
        if let Some(retreat) = self.retreats.get(key)
            && now.instant < retreat.until
        {
            return Some(retreat.until - now.instant);
        }
        if self.over {
            return Some(OVER);
        }
        let group = self.staged.open_group(key);
        if group.is_none() && self.staged.groups().count() >= self.settings.max_groups {
            return Some(Duration::from_secs(1));
        }
        self.in_flight.must_wait(group, stream, bytes, now.instant)
    }

    pub(super) fn unanswered(&mut self, stream: StreamId, keys: &[BatchId]) {
        for id in keys {
            if self.view.committed().contains(id) {
                self.answer_committed(stream, id, None);
            } else if self.view.expired().contains(id) {
                self.answer_expired(stream, id);
            } else if let Some(entry) = self.staged.find(id) {
                if entry.appended {
                    self.answer_staged(stream, id);
                }
                self.staged.wait(id, stream);
            } else {
                self.answer(stream, id, Kinds::Again(wire::Again {}));
            }
        }
    }

    pub(super) fn appended(&mut self, group: u64, id: &BatchId, answer: AppendAnswer, now: Now) {
        let stream = self.in_flight.settle(group, id).unwrap_or_default();
        match answer {
            AppendAnswer::Appended(counts) => {
                for stream in self.staged.appended(group, id, counts) {
                    self.answer_staged(stream, id);
                }
            }
            AppendAnswer::Refused(reason, delivery) => {
                let events = delivery.content.as_ref().map_or(0, |header| header.events());
                let in_quarantine =
                    self.staged.group(group).is_some_and(|group| group.key.kind == GroupKind::Quarantine);
                if in_quarantine {
                    self.poison(group, &reason, now.instant);
                } else if let Some(entry) = self.staged.take_refused(group, id, events) {
                    self.put(quarantine_key(now), *delivery, (stream, &entry.waiters), Some(reason.into()), now);
                } else if self.staged.find(id).is_none() && !self.view.committed().contains(id) && !self.draining {
                    // Its group went first, and it was asked for again: it waits here for whoever brings it.
                    self.put(quarantine_key(now), *delivery, (stream, &[]), Some(reason.into()), now);
                }
            }
            AppendAnswer::Poisoned(reason) => self.poison(group, &reason, now.instant),
        }
    }

    pub(super) fn answer_committed(&mut self, stream: StreamId, id: &BatchId, refused: Option<&Arc<str>>) {
        let kind = match refused {
            None => Kinds::Committed(wire::Committed {}),
            Some(reason) => Kinds::Refused(wire::Refused { reason: reason.to_string() }),
        };
        let set = self.view.committed().origin(&id.agent, id.origin);
        // Of an expired origin all that can be said is which of its leftovers are set aside.
        let set = set.or_else(|| self.view.expired().origin(&id.agent, id.origin));
        let set = set.filter(|set| set.spans() <= MANY_SPANS);
        let answer = wire::Answer { key: Some(id.into()), answer: Some(kind), intervals: set.map(Into::into) };
        self.actions.push(Action::Answer { stream, answer });
    }

    /// It is in quarantine, in a record that says so.
    pub(super) fn answer_expired(&mut self, stream: StreamId, id: &BatchId) {
        self.answer_committed(stream, id, Some(&Arc::from(EXPIRED)));
    }

    pub(super) fn answer_again(&mut self, waiters: &[StreamId], id: &BatchId) {
        for stream in waiters {
            self.answer(*stream, id, Kinds::Again(wire::Again {}));
        }
    }

    fn answer_staged(&mut self, stream: StreamId, id: &BatchId) {
        let incarnation = self.settings.incarnation.clone();
        self.answer(stream, id, Kinds::Staged(wire::Staged { incarnation }));
    }

    fn answer_busy(&mut self, waiters: &[StreamId], id: &BatchId, delay: Duration) {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).max(1);
        for stream in waiters {
            self.answer(*stream, id, Kinds::Busy(wire::PartitionBusy { delay_ms }));
        }
    }

    fn answer(&mut self, stream: StreamId, id: &BatchId, kind: Kinds) {
        let answer = wire::Answer { key: Some(id.into()), answer: Some(kind), intervals: None };
        self.actions.push(Action::Answer { stream, answer });
    }
}

/// Days since the epoch, UTC.
pub fn utc_day(unix_ms: i64) -> i32 {
    i32::try_from(unix_ms.div_euclid(DAY_MS)).unwrap_or(0)
}

fn quarantine_key(now: Now) -> GroupKey {
    let partition = Partition::new(utc_day(now.unix_ms), None);
    let partition = partition.unwrap_or_else(|_| Partition::new(0, None).expect("day 0 is in range"));
    GroupKey { kind: GroupKind::Quarantine, dataset: None, partition }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;
    use std::time::Instant;

    use bytes::Bytes;
    use proto::ids::{AgentName, DatasetName, Origin};

    use super::*;
    use crate::commit::Stop;
    use crate::compact::Progress;
    use crate::config::compaction::CompactionConfig;
    use crate::config::dataset::DatasetConfig;
    use crate::config::housekeeping::HousekeepingConfig;
    use crate::coordinator::{Credit, Event, Replayed, Settings};
    use crate::housekeeping::keeper::Limits;
    use crate::roll::{GroupLimits, TotalLimits};

    pub(in crate::coordinator) fn coordinator() -> Coordinator {
        coordinator_on(Replayed::default(), None)
    }

    pub(in crate::coordinator) fn coordinator_on(replayed: Replayed, clock_within: Option<Duration>) -> Coordinator {
        let long = Duration::from_secs(3600);
        let dataset = (DatasetName::new("d").unwrap(), Arc::new(DatasetConfig::named("d")));
        let settings = Settings {
            collector: "col-1".into(),
            incarnation: "run".into(),
            datasets: HashMap::from([dataset]),
            roll: GroupLimits { bytes: u64::MAX, events: 0, age: long, idle: long },
            total: TotalLimits { buffered_bytes: u64::MAX, open: 64 },
            max_groups: 64,
            close_wait: long,
            opens_within: long,
            tail_every: long,
            checkpoint_every: 1000,
            finish_after: long,
            drain_deadline: long,
            housekeeping: Limits::new(&HousekeepingConfig::default()),
            clock_within,
            seal_every: long,
            inventory: None,
            compaction: CompactionConfig::default(),
            progress: Progress::default(),
        };
        Coordinator::new(settings, replayed, "s".into(), Box::new(|| [0; 16]), Instant::now())
    }

    pub(in crate::coordinator) fn delivery(seq: u64) -> Box<Delivery> {
        dated(seq, 1)
    }

    pub(in crate::coordinator) fn dated(seq: u64, date: i32) -> Box<Delivery> {
        let header = wire::BatchHeader {
            format: proto::FORMAT,
            origin: Origin::mint(5, 5).to_bytes(),
            seq,
            kind: Some(wire::batch_header::Kind::Data(wire::Data {
                dataset: "d".into(),
                partition: Some(wire::Partition { date, hour: None }),
                codec: wire::Codec::None as i32,
                framing: wire::Framing::Lines as i32,
                events: 1,
                raw_bytes: 2,
                payload_bytes: 2,
                payload_crc32c: crc32c::crc32c(b"x\n"),
                ..Default::default()
            })),
        };
        let header = Header::decode(prost::Message::encode_to_vec(&header).into()).unwrap();
        let id = BatchId { agent: AgentName::new("web-1").unwrap(), origin: header.origin, seq };
        let bytes = header.bytes.clone();
        let payload = Bytes::from_static(b"x\n");
        Box::new(Delivery { id, header: bytes, payload, content: Ok(Box::new(header)), hold: Vec::new() })
    }

    /// The answers of a group may overtake each other: that of a batch behind the refused one comes first.
    #[test]
    fn a_refused_batch_goes_to_quarantine_though_its_group_went_first() {
        let mut owner = coordinator();
        let now = Now { instant: Instant::now(), unix_ms: 0 };
        for seq in [1, 2] {
            owner.handle(Event::Arrived { stream: 7, delivery: delivery(seq) }, now);
        }
        let (first, second) = (delivery(1).id, delivery(2).id);
        let dead = AppendAnswer::Poisoned("its encoder panicked".into());
        owner.handle(Event::Appended { group: 0, id: second, answer: dead }, now);
        assert!(owner.staged().is_empty(), "both are asked for again");
        let refused = AppendAnswer::Refused("the encoder panicked over it".into(), delivery(1));
        owner.handle(Event::Appended { group: 0, id: first.clone(), answer: refused }, now);
        let entry = owner.staged().find(&first).expect("it is in quarantine, not in the next group");
        assert!(entry.refused.is_some());
        let again = owner.handle(Event::Arrived { stream: 7, delivery: delivery(1) }, now);
        assert!(again.is_empty(), "it waits for the quarantine file: {again:?}");
    }

    /// One batch waits until an earlier one of its partition is answered, others do not wait with it.
    #[test]
    fn a_partition_is_busy_past_its_part_of_the_credit_and_others_go_in() {
        let mut owner = coordinator();
        let now = Now { instant: Instant::now(), unix_ms: 0 };
        let credit = Credit { all: 1 << 20, stream: 8 << 10 };
        owner.handle(Event::Measured { groups: vec![], over: false, credit }, now);
        let arrive = |owner: &mut Coordinator, seq, date| {
            let actions = owner.handle(Event::Arrived { stream: 7, delivery: dated(seq, date) }, now);
            actions.into_iter().find_map(|action| match action {
                Action::Append { delivery, .. } => Some(Ok(delivery.id.seq)),
                Action::Answer { answer, .. } => Some(Err(answer.answer)),
                _ => None,
            })
        };
        assert_eq!(arrive(&mut owner, 1, 1), Some(Ok(1)));
        assert_eq!(arrive(&mut owner, 2, 1), Some(Ok(2)));
        let Some(Err(Some(Kinds::Busy(busy)))) = arrive(&mut owner, 3, 1) else { panic!("its part is taken") };
        assert!(busy.delay_ms <= 100, "{busy:?}");
        assert!(owner.staged().find(&delivery(3).id).is_none(), "nothing of it is kept here");
        assert_eq!(arrive(&mut owner, 4, 2), Some(Ok(4)), "another partition of the same stream");
        // The group goes, and its file still holds what was handed to it.
        owner.poison(0, "as the test says", now.instant);
        owner.actions.clear();
        for (seq, date) in [(5, 3), (6, 4), (7, 5)] {
            assert_eq!(arrive(&mut owner, seq, date), Some(Ok(seq)));
        }
        assert!(matches!(arrive(&mut owner, 8, 6), Some(Err(Some(Kinds::Busy(_))))), "three quarters are held");
        let poisoned = AppendAnswer::Poisoned("timed out".into());
        owner.handle(Event::Appended { group: 0, id: delivery(1).id, answer: poisoned }, now);
        assert_eq!(arrive(&mut owner, 8, 6), Some(Ok(8)), "once it is answered there is room");
    }

    /// Whatever it is doing, and it never loads the log again.
    #[test]
    fn a_view_older_than_half_of_what_is_kept_ends_the_run() {
        let mut owner = coordinator();
        let begun = Instant::now();
        let half = owner.settings().housekeeping.log_retention / 2;
        let at = |after| Now { instant: begun + after, unix_ms: 0 };
        assert!(
            !owner
                .handle(Event::Tick, at(half - Duration::from_secs(1)))
                .iter()
                .any(|action| matches!(action, Action::Stop(_)))
        );
        let late = half + Duration::from_secs(1);
        let actions = owner.handle(Event::Arrived { stream: 7, delivery: delivery(1) }, at(late));
        assert!(matches!(actions[..], [Action::Stop(Stop::Stale { .. })]), "{actions:?}");
        assert!(owner.handle(Event::Tick, at(late)).is_empty(), "nothing comes after it");
    }

    /// During an outage aggregators may come back any number of times.
    #[test]
    fn streams_that_ended_are_not_remembered() {
        let mut owner = coordinator();
        let now = Now { instant: Instant::now(), unix_ms: 0 };
        owner.handle(Event::Arrived { stream: 0, delivery: delivery(1) }, now);
        for stream in 1..=100 {
            owner.handle(Event::Gone { stream: stream - 1 }, now);
            owner.handle(Event::Unanswered { stream, keys: vec![delivery(1).id] }, now);
        }
        assert_eq!(owner.staged().find(&delivery(1).id).unwrap().waiters, [100]);
    }
}
