//! Counts of one chunk by dataset and hour of the event time (I8: every event that was read is counted once).

use std::collections::HashMap;

use proto::wire;

/// What became of the events of a chunk, one row per dataset and hour.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuditDelta(pub Vec<wire::AuditCount>);

/// What became of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Filtered,
    Published,
    DeadLettered,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    filtered: u64,
    published: u64,
    dead_lettered: u64,
}

type Row = (u16, Option<i64>);

/// Counts while a chunk is cut. The last row is remembered: consecutive events mostly fall into the same hour.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    rows: Vec<(Row, Counts)>,
    index: HashMap<Row, usize>,
    last: usize,
}

impl Tally {
    /// Counts one event; `hour` in hours since the epoch, if it has a usable time.
    #[inline]
    pub fn count(&mut self, dataset: u16, hour: Option<i64>, fate: Fate) {
        let row = (dataset, hour);
        if self.rows.get(self.last).is_none_or(|(last, _)| *last != row) {
            self.last = *self.index.entry(row).or_insert(self.rows.len());
            if self.last == self.rows.len() {
                self.rows.push((row, Counts::default()));
            }
        }
        let counts = &mut self.rows[self.last].1;
        match fate {
            Fate::Filtered => counts.filtered += 1,
            Fate::Published => counts.published += 1,
            Fate::DeadLettered => counts.dead_lettered += 1,
        }
    }

    /// Gives the counts and begins anew.
    pub fn take(&mut self, name: impl Fn(u16) -> String) -> AuditDelta {
        self.index.clear();
        self.last = 0;
        let rows = self.rows.drain(..).map(|((dataset, event_hour), counts)| wire::AuditCount {
            dataset: name(dataset),
            event_hour,
            read: counts.filtered + counts.published + counts.dead_lettered,
            filtered: counts.filtered,
            published: counts.published,
            dead_lettered: counts.dead_lettered,
            voided: 0,
        });
        AuditDelta(rows.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_by_dataset_and_hour() {
        let mut tally = Tally::default();
        for (dataset, hour, fate) in [
            (0, Some(1), Fate::Published),
            (0, Some(2), Fate::Published),
            (0, Some(1), Fate::Filtered),
            (1, None, Fate::DeadLettered),
            (0, Some(1), Fate::Published),
        ] {
            tally.count(dataset, hour, fate);
        }
        let delta = tally.take(|index| format!("d{index}"));
        let rows: Vec<_> = delta
            .0
            .iter()
            .map(|row| (row.dataset.as_str(), row.event_hour, row.read, row.filtered, row.published, row.dead_lettered))
            .collect();
        assert_eq!(rows, [("d0", Some(1), 3, 1, 2, 0), ("d0", Some(2), 1, 0, 1, 0), ("d1", None, 1, 0, 0, 1)]);
        assert!(tally.take(|_| String::new()).0.is_empty());
    }
}
