//! Counts by agent, dataset and hour of event time: what the edge says it cut (marks, closes) and what records say
//! became of it. They must close: cut = published + dead-lettered + quarantined + void + still under way. Pure.

use std::collections::BTreeMap;

use proto::ids::AgentName;
use proto::wire;

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
            row.voided += count.voided;
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

    /// All rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&AuditKey, &wire::AuditRow)> {
        self.rows.iter()
    }
}
