//! Counts by agent, dataset and hour of event time: what the edge says it cut (marks, closes) and what records say
//! became of it. They must close: cut = published + dead-lettered + quarantined + void + still under way. Pure.

use std::collections::BTreeMap;

use proto::ids::AgentName;
use proto::wire;

/// Rows that close lose their hour this long after their last change, milliseconds.
const FOLD_CLOSED_MS: i64 = 24 * 3_600_000;
/// The same for rows that do not.
const FOLD_ALL_MS: i64 = 7 * 24 * 3_600_000;

/// Whose, of what, when (hours since the epoch, UTC; none where the hour is not known).
pub type AuditKey = (AgentName, String, Option<i64>);

/// Sums by agent, dataset and hour.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuditTable {
    pub(super) rows: BTreeMap<AuditKey, wire::AuditRow>,
}

impl AuditTable {
    /// Merges what a record says of one origin.
    pub(super) fn cover(&mut self, agent: &AgentName, cover: &wire::OriginCover, time_unix_ms: i64) {
        let marks = cover.marks.iter().filter_map(|mark| mark.mark.as_ref()?.audit.as_ref());
        let closes = cover.closes.iter().filter_map(|close| close.close.as_ref()?.audit.as_ref());
        for count in marks.chain(closes).flat_map(|audit| &audit.counts) {
            let row = self.row(agent, &count.dataset, count.event_hour, time_unix_ms);
            row.read += count.read;
            row.filtered += count.filtered;
            row.cut += count.published;
            row.cut_dead_letters += count.dead_lettered;
        }
        // The seqs say it for every void, also where no mark came after it: what marks say of voids is the same again.
        for void in cover.voids.iter().filter_map(|void| void.void.as_ref()) {
            for (hour, events) in void_hours(void) {
                self.row(agent, &void.dataset, hour, time_unix_ms).voided += events;
            }
        }
        for count in &cover.counts {
            let row = self.row(agent, &count.dataset, count.event_hour, time_unix_ms);
            row.published += count.published;
            row.dead_lettered += count.dead_lettered;
            row.quarantined += count.quarantined;
        }
    }

    fn row(&mut self, agent: &AgentName, dataset: &str, hour: Option<i64>, time_unix_ms: i64) -> &mut wire::AuditRow {
        let row = self.rows.entry((agent.clone(), dataset.to_owned(), hour)).or_insert_with(|| wire::AuditRow {
            agent: agent.to_string(),
            dataset: dataset.to_owned(),
            event_hour: hour,
            ..Default::default()
        });
        row.last_change_unix_ms = row.last_change_unix_ms.max(time_unix_ms);
        row
    }

    /// Bounds the table: rows that have not changed for long are summed up in the row without an hour.
    pub(super) fn fold(&mut self, now_unix_ms: i64) {
        let old = |row: &wire::AuditRow| {
            let age = now_unix_ms.saturating_sub(row.last_change_unix_ms);
            row.event_hour.is_some() && (age > FOLD_ALL_MS || (age > FOLD_CLOSED_MS && under_way(row) == 0))
        };
        let keys: Vec<AuditKey> = self.rows.iter().filter(|(_, row)| old(row)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(gone) = self.rows.remove(&key) else { continue };
            let row = self.row(&key.0, &key.1, None, gone.last_change_unix_ms);
            row.read += gone.read;
            row.filtered += gone.filtered;
            row.cut += gone.cut;
            row.cut_dead_letters += gone.cut_dead_letters;
            row.voided += gone.voided;
            row.published += gone.published;
            row.dead_lettered += gone.dead_lettered;
            row.quarantined += gone.quarantined;
        }
    }

    /// All rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&AuditKey, &wire::AuditRow)> {
        self.rows.iter()
    }
}

/// Events of a void by hour; without an hour where it does not say.
fn void_hours(void: &wire::Void) -> Vec<(Option<i64>, u64)> {
    match &void.hours[..] {
        [] => vec![(None, void.events)],
        hours => hours.iter().map(|count| (count.hour, count.events)).collect(),
    }
}

/// Events that the edge cut and no record has yet; below 0 while their mark is still to come.
pub fn under_way(row: &wire::AuditRow) -> i64 {
    let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let cut = signed(row.cut.saturating_add(row.cut_dead_letters));
    let done = row.published.saturating_add(row.dead_lettered).saturating_add(row.quarantined);
    cut.saturating_sub(signed(done.saturating_add(row.voided)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(hour: i64, cut: u64, published: u64) -> wire::OriginCover {
        let count = wire::AuditCount {
            dataset: "d".into(),
            event_hour: Some(hour),
            read: cut,
            published: cut,
            ..Default::default()
        };
        let mark = wire::Mark { at_unix_ms: 1, audit: Some(wire::Audit { counts: vec![count] }), destroyed: vec![] };
        let done = wire::EventCount { dataset: "d".into(), event_hour: Some(hour), published, ..Default::default() };
        wire::OriginCover {
            marks: vec![wire::SeqMark { seq: 1, mark: Some(mark) }],
            counts: vec![done],
            ..Default::default()
        }
    }

    #[test]
    fn rows_that_close_are_summed_up_first() {
        let agent = AgentName::new("web-1").unwrap();
        let mut table = AuditTable::default();
        table.cover(&agent, &cover(5, 10, 10), 0);
        table.cover(&agent, &cover(6, 10, 7), 0);
        let hours = |table: &AuditTable| table.iter().map(|(key, _)| key.2).collect::<Vec<_>>();
        table.fold(FOLD_CLOSED_MS);
        assert_eq!(hours(&table), [Some(5), Some(6)]);
        table.fold(FOLD_CLOSED_MS + 1);
        assert_eq!(hours(&table), [None, Some(6)]);
        table.fold(FOLD_ALL_MS + 1);
        assert_eq!(hours(&table), [None]);
        let (_, row) = table.iter().next().unwrap();
        assert_eq!((row.read, row.cut, row.published, under_way(row)), (20, 20, 17, 3));
    }
}
