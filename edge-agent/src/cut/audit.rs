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

/// Rows of one batch at most, so that its header stays small: a day has 25 hours at most, in any zone, and only dead
/// letters can have more.
const MAX_HOURS: usize = 64;

/// Events of one batch by hour of event time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hours {
    rows: Vec<(Option<i64>, u64)>,
    last: usize,
}

impl Hours {
    /// Counts one event; returns the hour it is counted under, which the audit must use too: past [`MAX_HOURS`] that is
    /// none.
    #[inline]
    pub fn count(&mut self, hour: Option<i64>) -> Option<i64> {
        if self.rows.get(self.last).is_none_or(|(last, _)| *last != hour) {
            let at = self.rows.iter().position(|(known, _)| *known == hour);
            if at.is_none() && hour.is_some() && self.rows.len() >= MAX_HOURS {
                return self.count(None);
            }
            self.last = at.unwrap_or_else(|| {
                self.rows.push((hour, 0));
                self.rows.len() - 1
            });
        }
        self.rows[self.last].1 += 1;
        hour
    }

    /// As a header carries them: nothing where the range of event times says the same. That of dead letters never does.
    pub fn into_counts(mut self, always: bool) -> Vec<wire::HourCount> {
        if !always && matches!(self.rows[..], [(Some(_), _)]) {
            return Vec::new();
        }
        self.rows.sort_unstable();
        self.rows.into_iter().map(|(hour, events)| wire::HourCount { hour, events }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_of_a_batch_are_bounded_and_lose_no_event() {
        let mut hours = Hours::default();
        let mut counted_without = 0;
        for hour in 0..200 {
            counted_without += u64::from(hours.count(Some(hour)).is_none());
            hours.count(Some(0));
        }
        let counts = hours.into_counts(false);
        assert_eq!(counts.len(), MAX_HOURS + 1);
        assert_eq!(counts.iter().map(|count| count.events).sum::<u64>(), 400);
        assert_eq!(counts[0], wire::HourCount { hour: None, events: counted_without });
        assert_eq!(counts[1], wire::HourCount { hour: Some(0), events: 201 });
    }

    #[test]
    fn one_hour_goes_without_saying_except_of_dead_letters() {
        let mut hours = Hours::default();
        hours.count(Some(7));
        assert!(hours.clone().into_counts(false).is_empty());
        assert_eq!(hours.into_counts(true), [wire::HourCount { hour: Some(7), events: 1 }]);
        let mut none = Hours::default();
        none.count(None);
        assert_eq!(none.into_counts(false).len(), 1, "no hour is no range");
    }

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
