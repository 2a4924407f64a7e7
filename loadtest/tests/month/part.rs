//! Partitions as the test knows them: from the time of an event, in the zone of its dataset.

use proto::ids::Partition;

pub const MINUTE: i64 = 60_000;
pub const HOUR: i64 = 60 * MINUTE;
pub const DAY: i64 = 24 * HOUR;

/// The two datasets: `(name, zone, hourly)`.
pub const DAILY: &str = "daily";
pub const HOURLY: &str = "hourly";

/// One partition of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    pub dataset: String,
    pub partition: Partition,
}

impl Part {
    /// Of an event at `at`, milliseconds since the epoch.
    pub fn of(dataset: &str, at: i64) -> Self {
        let zone = if dataset == DAILY { "Europe/Berlin" } else { "UTC" };
        let time = jiff::Timestamp::from_millisecond(at).unwrap().in_tz(zone).unwrap();
        let day = time.date().since((jiff::Unit::Day, jiff::civil::date(1970, 1, 1))).unwrap().get_days();
        let hour = (dataset == HOURLY).then(|| time.hour() as u32);
        Self { dataset: dataset.to_owned(), partition: Partition::new(day, hour).unwrap() }
    }

    pub fn dir(&self) -> String {
        format!("{}/{}", self.dataset, self.partition.path())
    }

    /// Begin and end.
    pub fn span(&self) -> (i64, i64) {
        let days = i64::from(self.partition.date());
        if let Some(hour) = self.partition.hour() {
            let start = days * DAY + i64::from(hour) * HOUR;
            return (start, start + HOUR);
        }
        let midnight = |days: i64| {
            let day = jiff::civil::date(1970, 1, 1).checked_add(jiff::Span::new().days(days)).unwrap();
            day.in_tz("Europe/Berlin").unwrap().timestamp().as_millisecond()
        };
        (midnight(days), midnight(days + 1))
    }
}
