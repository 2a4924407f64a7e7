//! Begin and end of a partition as instants, in its dataset's zone. A day is as long as it is there: 23 to 25 hours
//! where the clocks change. Pure.

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan};
use proto::ids::Partition;

use crate::config::dataset::DatasetConfig;

const HOUR_MS: i64 = 3_600_000;

/// Milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The first instant of it.
    pub start_unix_ms: i64,
    /// The first instant after it.
    pub end_unix_ms: i64,
    /// Its end and the lateness that is allowed: the T a mark must have.
    pub due_unix_ms: i64,
    /// When it is sealed as it is, if nothing else is said.
    pub until_unix_ms: i64,
}

impl Times {
    /// Of a partition of `dataset`; none if the zone is none (validation refuses those) or the date is out of range.
    pub fn of(dataset: &DatasetConfig, partition: Partition) -> Option<Self> {
        let zone = TimeZone::get(&dataset.zone).ok()?;
        let day = date(1970, 1, 1).checked_add(Span::new().days(partition.date())).ok()?;
        let (start_unix_ms, end_unix_ms) = match partition.hour() {
            None => (midnight(day, &zone)?, midnight(day.checked_add(1.day()).ok()?, &zone)?),
            Some(hour) => {
                let start = day.at(hour as i8, 0, 0, 0).to_zoned(zone).ok()?.timestamp().as_millisecond();
                (start, start + HOUR_MS)
            }
        };
        let ms = |span: common::units::Span| i64::try_from(span.get().as_millis()).unwrap_or(i64::MAX);
        let due_unix_ms = end_unix_ms.saturating_add(ms(dataset.allowed_lateness));
        let until_unix_ms = due_unix_ms.saturating_add(ms(dataset.incomplete_after));
        Some(Self { start_unix_ms, end_unix_ms, due_unix_ms, until_unix_ms })
    }
}

/// `event_date=2026-11-20` or `event_date=2026-11-20/event_hour=05`; a trailing `/` is allowed.
pub fn parse_partition(text: &str) -> Option<Partition> {
    let text = text.strip_suffix('/').unwrap_or(text).strip_prefix("event_date=")?;
    let (day, hour) = match text.split_once("/event_hour=") {
        None => (text, None),
        Some((day, hour)) if hour.len() == 2 => (day, Some(hour.parse().ok()?)),
        Some(_) => return None,
    };
    let day: Date = day.parse().ok().filter(|_| day.len() == 10)?;
    let days = day.since((jiff::Unit::Day, date(1970, 1, 1))).ok()?.get_days();
    Partition::new(days, hour).ok()
}

/// The first instant of a day: not always 00:00.
fn midnight(day: Date, zone: &TimeZone) -> Option<i64> {
    Some(day.to_zoned(zone.clone()).ok()?.start_of_day().ok()?.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(zone: &str, day: &str, hour: Option<u32>) -> Times {
        let mut dataset = DatasetConfig::named("d");
        dataset.zone = zone.into();
        let day: Date = day.parse().unwrap();
        let days = day.since((jiff::Unit::Day, date(1970, 1, 1))).unwrap().get_days();
        Times::of(&dataset, Partition::new(days, hour).unwrap()).unwrap()
    }

    #[test]
    fn a_day_is_as_long_as_it_is_in_its_zone() {
        let hours = |zone: &str, day: &str| {
            let times = times(zone, day, None);
            (times.end_unix_ms - times.start_unix_ms) / HOUR_MS
        };
        assert_eq!(hours("UTC", "2026-03-29"), 24);
        assert_eq!(hours("Europe/Berlin", "2026-03-29"), 23);
        assert_eq!(hours("Europe/Berlin", "2026-10-25"), 25);
        assert_eq!(hours("Europe/Berlin", "2026-10-26"), 24);
        // This day begins at 01:00.
        assert_eq!(hours("America/Sao_Paulo", "2018-11-04"), 23);
        assert_eq!(hours("America/Sao_Paulo", "2018-11-03"), 24);
    }

    #[test]
    fn a_path_is_read_back() {
        for path in ["event_date=2026-11-20", "event_date=2026-11-20/event_hour=05"] {
            assert_eq!(parse_partition(path).unwrap().path(), path);
        }
        assert!(parse_partition("event_date=2026-11-20/").is_some());
        for bad in ["2026-11-20", "event_date=2026-11-2", "event_date=2026-11-20/event_hour=24", "event_date=x"] {
            assert_eq!(parse_partition(bad), None, "{bad}");
        }
    }

    #[test]
    fn ends_and_lateness_are_instants() {
        let berlin = times("Europe/Berlin", "2026-11-20", None);
        assert_eq!(berlin.end_unix_ms, "2026-11-20T23:00:00Z".parse::<jiff::Timestamp>().unwrap().as_millisecond());
        assert_eq!((berlin.due_unix_ms - berlin.end_unix_ms) / HOUR_MS, 4);
        assert_eq!((berlin.until_unix_ms - berlin.due_unix_ms) / HOUR_MS, 4);
        let hour = times("Etc/GMT-1", "2026-11-20", Some(5));
        assert_eq!(hour.start_unix_ms, "2026-11-20T04:00:00Z".parse::<jiff::Timestamp>().unwrap().as_millisecond());
        assert_eq!(hour.end_unix_ms - hour.start_unix_ms, HOUR_MS);
    }
}
