//! Running counts of what happened to events since the last mark, by dataset and hour of the event time.
//!
//! Invariant (I8): counts only move from here into a mark or a close, in the same append that stores it. The number of
//! rows is bounded: past the bound further hours are counted without their hour.

use std::collections::BTreeMap;

use common::event_time::civil::HOUR_US;
use proto::header::Kind;
use proto::wire;

/// Rows kept by dataset and hour; 20,000 hours are more than two years of one dataset.
const MAX_ROWS: usize = 20_000;
/// Rows in one mark, so that its header stays far below the limit of 64 KiB.
const ROWS_PER_MARK: usize = 400;

/// Events of a data batch by hour of event time: as its header says, or of the one hour that its range of times names.
pub fn hours_of(data: &wire::Data) -> Vec<wire::HourCount> {
    if !data.hours.is_empty() || data.dead_letters {
        return data.hours.clone();
    }
    let hour = data.min_event_time_us.div_euclid(HOUR_US);
    let one = hour == data.max_event_time_us.div_euclid(HOUR_US);
    vec![wire::HourCount { hour: one.then_some(hour), events: data.events }]
}

/// What a batch that becomes a void adds to the running counts: its events as voided; of a mark or close, the counts that
/// it carried, which go into the next one.
pub fn of_lost(lost: &Kind) -> (Vec<wire::AuditCount>, Vec<wire::Destroyed>) {
    let (audit, destroyed) = match lost {
        Kind::Data(data) => return (voided(&data.wire), Vec::new()),
        Kind::Mark(mark) => (&mark.audit, &mark.destroyed),
        Kind::Close(close) => (&close.audit, &close.destroyed),
        Kind::Open(_) | Kind::Void(_) => return (Vec::new(), Vec::new()),
    };
    (audit.as_ref().map(|audit| audit.counts.clone()).unwrap_or_default(), destroyed.clone())
}

fn voided(data: &wire::Data) -> Vec<wire::AuditCount> {
    let row = |count: wire::HourCount| wire::AuditCount {
        dataset: data.dataset.clone(),
        event_hour: count.hour,
        voided: count.events,
        ..Default::default()
    };
    hours_of(data).into_iter().map(row).collect()
}

/// Counts since the last mark.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunningAudit {
    counts: BTreeMap<(String, Option<i64>), wire::AuditCount>,
    destroyed: BTreeMap<String, wire::Destroyed>,
}

/// What one mark (or close) carries.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuditPart {
    /// Counts by dataset and hour.
    pub audit: wire::Audit,
    /// Bytes destroyed, by source.
    pub destroyed: Vec<wire::Destroyed>,
}

impl RunningAudit {
    /// Adds counts, for example those of one chunk.
    pub fn add(&mut self, counts: &[wire::AuditCount], destroyed: &[wire::Destroyed]) {
        for count in counts {
            let mut key = (count.dataset.clone(), count.event_hour);
            if self.counts.len() >= MAX_ROWS && !self.counts.contains_key(&key) {
                key.1 = None;
            }
            let row = self.counts.entry(key.clone()).or_insert_with(|| wire::AuditCount {
                dataset: key.0,
                event_hour: key.1,
                ..Default::default()
            });
            row.read += count.read;
            row.filtered += count.filtered;
            row.published += count.published;
            row.dead_lettered += count.dead_lettered;
            row.voided += count.voided;
        }
        for gone in destroyed {
            let row = self
                .destroyed
                .entry(gone.source.clone())
                .or_insert_with(|| wire::Destroyed { source: gone.source.clone(), ..Default::default() });
            row.bytes += gone.bytes;
            row.files += gone.files;
        }
    }

    /// Nothing was counted since the last mark.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.destroyed.is_empty()
    }

    /// All counts as rows, for a snapshot.
    pub fn rows(&self) -> (Vec<wire::AuditCount>, Vec<wire::Destroyed>) {
        (self.counts.values().cloned().collect(), self.destroyed.values().cloned().collect())
    }

    /// Splits the counts into parts that fit a header each; one empty part when there is nothing.
    pub fn parts(&self) -> Vec<AuditPart> {
        let (counts, destroyed) = self.rows();
        let mut parts: Vec<AuditPart> = counts
            .chunks(ROWS_PER_MARK)
            .map(|rows| AuditPart { audit: wire::Audit { counts: rows.to_vec() }, destroyed: Vec::new() })
            .collect();
        if parts.is_empty() {
            parts.push(AuditPart::default());
        }
        parts[0].destroyed = destroyed;
        parts
    }

    /// Forgets everything: a mark took it.
    pub fn clear(&mut self) {
        self.counts.clear();
        self.destroyed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(hour: Option<i64>, read: u64) -> wire::AuditCount {
        wire::AuditCount { dataset: "d".into(), event_hour: hour, read, published: read, ..Default::default() }
    }

    #[test]
    fn counts_add_up_and_split() {
        let mut audit = RunningAudit::default();
        assert_eq!(audit.parts(), [AuditPart::default()]);
        for hour in 0..1000 {
            audit.add(&[count(Some(hour), 1), count(Some(hour), 2)], &[]);
        }
        audit.add(&[], &[wire::Destroyed { source: "s".into(), bytes: 5, files: 1 }]);
        let parts = audit.parts();
        assert_eq!(parts.len(), 3);
        let read: u64 = parts.iter().flat_map(|p| &p.audit.counts).map(|c| c.read).sum();
        assert_eq!(read, 3000);
        assert_eq!(parts[0].destroyed.len(), 1);
        audit.clear();
        assert!(audit.is_empty());
    }

    #[test]
    fn rows_are_bounded() {
        let mut audit = RunningAudit::default();
        for hour in 0..MAX_ROWS as i64 + 50 {
            audit.add(&[count(Some(hour), 1)], &[]);
        }
        assert_eq!(audit.counts.len(), MAX_ROWS + 1);
        assert_eq!(audit.counts[&("d".to_owned(), None)].read, 50);
    }
}
