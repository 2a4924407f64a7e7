//! What became of the events of a batch, by dataset and hour of event time: what a record says for the audit. Pure.
//!
//! Keeps I8 on this side: the counts of a batch are made when its append is answered, are kept with its group, and leave
//! with it: into the record that names the group, or nowhere.

use std::collections::BTreeMap;

use proto::header::Header;
use proto::wire;

use super::OriginKey;
use crate::partition_writer::Appended;

const HOUR_US: i64 = 3_600_000_000;

/// Counts by dataset and hour.
type Rows = BTreeMap<(String, Option<i64>), wire::EventCount>;

/// Counts by origin, dataset and hour.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts(BTreeMap<OriginKey, Rows>);

impl Counts {
    /// Adds counts of one origin.
    pub fn add(&mut self, key: &OriginKey, counts: impl IntoIterator<Item = wire::EventCount>) {
        for count in counts {
            let rows = self.0.entry(key.clone()).or_default();
            let row = rows.entry((count.dataset.clone(), count.event_hour)).or_insert_with(|| wire::EventCount {
                dataset: count.dataset,
                event_hour: count.event_hour,
                ..Default::default()
            });
            row.published += count.published;
            row.dead_lettered += count.dead_lettered;
            row.quarantined += count.quarantined;
        }
    }

    /// Adds those of another group; `wanted` says of which origins.
    pub fn merge(&mut self, other: &Self, wanted: impl Fn(&OriginKey) -> bool) {
        for (key, rows) in other.0.iter().filter(|(key, _)| wanted(key)) {
            self.add(key, rows.values().cloned());
        }
    }

    /// The counts of one origin, in order; they are taken out.
    pub fn take(&mut self, key: &OriginKey) -> Vec<wire::EventCount> {
        self.0.remove(key).map(|rows| rows.into_values().collect()).unwrap_or_default()
    }
}

/// Counts of a batch that is in its group. Which events of a batch of several hours were made dead letters here is not
/// kept: they are taken from its fullest hours.
pub fn of_batch(header: &Header, appended: Appended) -> Vec<wire::EventCount> {
    let Some(data) = header.data().map(|data| &data.wire) else { return Vec::new() };
    let mut hours = hours_of(data, appended.events + appended.dead_letters);
    hours.sort_by_key(|hour| std::cmp::Reverse(hour.events));
    let mut dead = appended.dead_letters;
    let row = |hour: wire::HourCount| {
        let taken = dead.min(hour.events);
        dead -= taken;
        let (published, dead_lettered) =
            if data.dead_letters { (0, hour.events) } else { (hour.events - taken, taken) };
        let dataset = data.dataset.clone();
        wire::EventCount { dataset, event_hour: hour.hour, published, dead_lettered, quarantined: 0 }
    };
    hours.into_iter().map(row).collect()
}

/// Counts of a batch that is in quarantine whole; none if its header cannot be read.
pub fn of_quarantined(header: &Header) -> Vec<wire::EventCount> {
    let Some(data) = header.data().map(|data| &data.wire) else { return Vec::new() };
    let row = |hour: wire::HourCount| wire::EventCount {
        dataset: data.dataset.clone(),
        event_hour: hour.hour,
        quarantined: hour.events,
        ..Default::default()
    };
    hours_of(data, data.events).into_iter().map(row).collect()
}

/// As the header says, or of the one hour that its range of times names; without an hour where neither fits the number
/// of events.
fn hours_of(data: &wire::Data, events: u64) -> Vec<wire::HourCount> {
    let named = data.hours.iter().try_fold(0u64, |sum, hour| sum.checked_add(hour.events));
    if !data.hours.is_empty() && named == Some(events) {
        return data.hours.clone();
    }
    let hour = data.min_event_time_us.div_euclid(HOUR_US);
    let one = hour == data.max_event_time_us.div_euclid(HOUR_US) && data.hours.is_empty() && !data.dead_letters;
    vec![wire::HourCount { hour: one.then_some(hour), events }]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::ids::{AgentName, Origin};
    use proto::wire::batch_header::Kind;

    use super::*;

    fn header(hours: &[(Option<i64>, u64)], events: u64, dead_letters: bool) -> Header {
        let hours = hours.iter().map(|(hour, events)| wire::HourCount { hour: *hour, events: *events });
        let data = wire::Data {
            dataset: "d".into(),
            partition: Some(wire::Partition { date: 1, hour: None }),
            codec: wire::Codec::None as i32,
            framing: wire::Framing::Lines as i32,
            dead_letters,
            events,
            raw_bytes: events,
            payload_bytes: events,
            min_event_time_us: 7 * HOUR_US,
            max_event_time_us: 8 * HOUR_US - 1,
            zone: "UTC".into(),
            hours: hours.collect(),
            ..Default::default()
        };
        Header::encode(Origin::mint(1, 1), 1, Kind::Data(data)).unwrap()
    }

    fn rows(counts: &[wire::EventCount]) -> Vec<(Option<i64>, u64, u64, u64)> {
        counts.iter().map(|c| (c.event_hour, c.published, c.dead_lettered, c.quarantined)).collect()
    }

    #[test]
    fn dead_letters_made_here_are_taken_from_the_fullest_hours() {
        let batch = header(&[(Some(1), 3), (Some(2), 9), (None, 4)], 16, false);
        let counts = of_batch(&batch, Appended { events: 5, dead_letters: 11 });
        assert_eq!(rows(&counts), [(Some(2), 0, 9, 0), (None, 2, 2, 0), (Some(1), 3, 0, 0)]);
    }

    #[test]
    fn one_hour_goes_without_saying_and_what_contradicts_itself_has_none() {
        let appended = Appended { events: 16, dead_letters: 0 };
        assert_eq!(rows(&of_batch(&header(&[], 16, false), appended)), [(Some(7), 16, 0, 0)]);
        assert_eq!(rows(&of_batch(&header(&[(Some(1), 3)], 16, false), appended)), [(None, 16, 0, 0)]);
        assert_eq!(rows(&of_batch(&header(&[(Some(1), 16)], 16, true), appended)), [(Some(1), 0, 16, 0)]);
        assert_eq!(rows(&of_quarantined(&header(&[], 16, false))), [(Some(7), 0, 0, 16)]);
    }

    proptest! {
        #[test]
        fn sums_are_the_events_that_came(
            batches in proptest::collection::vec(
                (proptest::collection::vec((proptest::option::of(0..4i64), 0..50u64), 0..6), 0..60u64, 0..3u8, 0..3u128),
                0..30,
            ),
        ) {
            let mut sums = Counts::default();
            let (mut came, mut quarantined, mut dead) = (0, 0, 0);
            for (hours, dead_letters, fate, origin) in batches {
                let events: u64 = hours.iter().map(|(_, events)| events).sum();
                if events == 0 {
                    continue;
                }
                let batch = header(&hours, events, fate == 1);
                let key = OriginKey { agent: AgentName::new("web-1").unwrap(), origin: Origin::mint(1, origin) };
                came += events;
                if fate == 2 {
                    quarantined += events;
                    sums.add(&key, of_quarantined(&batch));
                    continue;
                }
                let dead_letters = if fate == 1 { 0 } else { dead_letters.min(events) };
                dead += if fate == 1 { events } else { dead_letters };
                sums.add(&key, of_batch(&batch, Appended { events: events - dead_letters, dead_letters }));
            }
            let all: Vec<_> = sums.0.values().flat_map(BTreeMap::values).collect();
            prop_assert_eq!(all.iter().map(|c| c.quarantined).sum::<u64>(), quarantined);
            prop_assert_eq!(all.iter().map(|c| c.dead_lettered).sum::<u64>(), dead);
            prop_assert_eq!(all.iter().map(|c| c.published + c.dead_lettered + c.quarantined).sum::<u64>(), came);
        }
    }
}
