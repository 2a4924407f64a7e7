//! What is done beside the commits: the files of records whose owner did not come to it; status.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proto::wire;

use super::{Coordinator, Now, Unfinished};
use crate::chores::{Chore, file_of};
use crate::log::view::{Finish, PartitionKey};

/// Between two looks at the same files.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// The same, when only that keeps a checkpoint from being written.
const SWEEP_FOR_CHECKPOINT: Duration = Duration::from_secs(5);

impl Coordinator {
    /// Records whose files are to be looked after now.
    pub(super) fn sweep_due(&mut self, now: Instant) -> Option<Chore> {
        let due = self.is_checkpoint_due();
        if self.unfinished.is_empty() || now < self.next_sweep {
            return None;
        }
        let ready = self.unfinished.iter().filter(|(_, record)| due || record.not_before <= now);
        let work: Vec<_> = ready.map(|(n, record)| (*n, record.finish.clone())).collect();
        if work.is_empty() {
            return None;
        }
        self.next_sweep = now + if due { SWEEP_FOR_CHECKPOINT } else { SWEEP_EVERY };
        // A marker counts files: it is written when all of them are in their places.
        let mut keys: BTreeSet<PartitionKey> =
            work.iter().flat_map(|(_, finish)| finish.markers.iter().cloned()).collect();
        let staged_elsewhere = |key: &PartitionKey| {
            let others = self.unfinished.iter().filter(|(n, _)| work.iter().all(|(of, _)| of != *n));
            others.flat_map(|(_, row)| &row.finish.bring).any(|file| file_of(file, key))
        };
        keys.retain(|key| !staged_elsewhere(key) && !self.publishing.markers.contains(key));
        let markers = self.markers(&keys);
        self.sweeping = work.iter().cloned().collect();
        Some(Chore::Sweep { work, markers })
    }

    /// What was given and is not left is done; what was added to a record meanwhile stays.
    pub(super) fn swept(&mut self, left: Vec<(u64, Finish)>, now: Instant) {
        let mut given = std::mem::take(&mut self.sweeping);
        for (n, left) in left {
            let (Some(given), Some(record)) = (given.remove(&n), self.unfinished.get_mut(&n)) else { continue };
            let finish = &mut record.finish;
            finish.bring.retain(|file| !given.bring.contains(file) || left.bring.contains(file));
            finish.remove.retain(|path| !given.remove.contains(path) || left.remove.contains(path));
            finish.markers.retain(|key| !given.markers.contains(key) || left.markers.contains(key));
            record.not_before = now + SWEEP_EVERY;
            if finish.is_empty() {
                self.unfinished.remove(&n);
            }
        }
    }

    pub(super) fn add_unfinished(&mut self, n: u64, mut finish: Finish, not_before: Instant) {
        // Late for a partition that was never sealed: there is no marker that could be outdated.
        finish.markers.retain(|key| self.view.partitions().sealed(key).is_some());
        if finish.is_empty() {
            return;
        }
        let row = self.unfinished.entry(n).or_insert(Unfinished { finish: Finish::default(), not_before });
        row.finish.incarnation = finish.incarnation;
        row.finish.bring.extend(finish.bring);
        row.finish.remove.extend(finish.remove);
        row.finish.markers.extend(finish.markers);
        row.not_before = not_before;
    }

    /// Records of which not every file is known to be in its place.
    pub fn unfinished_records(&self) -> usize {
        self.unfinished.len()
    }

    /// Final names of files of own records that the store refuses to bring to their places: committed, and tried
    /// again now and then.
    pub fn stuck_files(&self) -> impl Iterator<Item = &str> {
        let own = self.unfinished.values().filter(|record| record.finish.incarnation == self.settings.incarnation);
        own.flat_map(|record| &record.finish.bring).map(|file| file.r#final.as_str())
    }

    /// The first number of the log that was not read.
    pub fn next_record(&self) -> u64 {
        self.planner.next()
    }

    /// What keeps the log from going on, if something does.
    pub fn trouble(&self) -> Option<&str> {
        self.planner.trouble()
    }

    /// What is wrong with the clock, if it is: commits go on all the same.
    pub fn clock_trouble(&self) -> Option<String> {
        self.clock.trouble()
    }

    /// How far the wall clock is ahead of the store's, milliseconds; below 0: behind.
    pub fn clock_ahead_ms(&self) -> i64 {
        self.clock.skew_ms()
    }

    /// As streams are told; credit and declarations are added by their owner.
    pub fn status(&self, now: Now) -> wire::CollectorStatus {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        wire::CollectorStatus {
            time_unix_ms: now.unix_ms,
            roll_age_ms: millis(self.settings.roll.age),
            since_commit_ms: millis(now.instant.saturating_duration_since(self.last_commit)),
            waiting: !self.staged.is_empty(),
            draining: self.draining,
            ..Default::default()
        }
    }
}
