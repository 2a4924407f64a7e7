//! Days and hours of instants in an IANA zone, with the offset in force remembered: consecutive events fall into the
//! same span between two changes of the clocks, so the zone's table is asked about twice a year.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::civil::{DAY_US, HOUR_US, SECOND_US};

/// An IANA zone with a memo. Cheap to clone; not shared between threads.
#[derive(Debug, Clone)]
pub struct Zone {
    name: String,
    zone: TimeZone,
    /// The memo: `offset_us` holds for instants in `from..until`.
    from: i64,
    until: i64,
    offset_us: i64,
}

/// A zone name nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("zone {0:?} is not in the time zone database; use a name like UTC or Europe/Berlin")]
pub struct UnknownZone(pub String);

impl Zone {
    /// Looks `name` up in the bundled or the system's database.
    pub fn new(name: &str) -> Result<Self, UnknownZone> {
        let zone = if name == "UTC" {
            TimeZone::UTC
        } else {
            TimeZone::get(name).map_err(|_| UnknownZone(name.to_owned()))?
        };
        Ok(Self { name: name.to_owned(), zone, from: 0, until: 0, offset_us: 0 })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Days since 1970-01-01 of the local date at `us` (microseconds since the epoch, UTC).
    pub fn day(&mut self, us: i64) -> i32 {
        (us + self.offset_us(us)).div_euclid(DAY_US) as i32
    }

    /// The local hour, 0..=23, at `us`.
    pub fn hour(&mut self, us: i64) -> u32 {
        ((us + self.offset_us(us)).rem_euclid(DAY_US) / HOUR_US) as u32
    }

    /// The instant at which clocks in this zone show `local_us` (microseconds since the epoch as if it were UTC). Of two
    /// the first; one that is skipped is moved on by the gap.
    pub fn to_utc(&mut self, local_us: i64) -> i64 {
        let first = local_us - self.offset_us(local_us - 14 * HOUR_US);
        let last = local_us - self.offset_us(local_us + 14 * HOUR_US);
        let shows = |zone: &mut Self, us: i64| us + zone.offset_us(us) == local_us;
        if shows(self, first) {
            first
        } else if shows(self, last) {
            last
        } else {
            first.max(last)
        }
    }

    fn offset_us(&mut self, us: i64) -> i64 {
        if us < self.from || us >= self.until {
            self.remember(us);
        }
        self.offset_us
    }

    fn remember(&mut self, us: i64) {
        let Ok(at) = Timestamp::from_microsecond(us) else {
            // Outside of the years -9999 to 9999 no zone has rules.
            (self.from, self.until, self.offset_us) = (us, us + 1, 0);
            return;
        };
        self.offset_us = i64::from(self.zone.to_offset(at).seconds()) * SECOND_US;
        let next = self.zone.following(at).next().map(|t| t.timestamp().as_microsecond());
        // `preceding` is exclusive: a change exactly at `at` begins the span.
        let after = at.checked_add(jiff::SignedDuration::from_micros(1)).unwrap_or(at);
        let last = self.zone.preceding(after).next().map(|t| t.timestamp().as_microsecond());
        self.from = last.unwrap_or(Timestamp::MIN.as_microsecond());
        self.until = next.unwrap_or(Timestamp::MAX.as_microsecond());
        if us < self.from || us >= self.until {
            (self.from, self.until) = (us, us + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn the_memo_ends_where_clocks_change() {
        let mut berlin = Zone::new("Europe/Berlin").unwrap();
        for (at, hour) in [
            ("2024-10-27T00:59:59Z", 2),
            ("2024-10-27T01:00:00Z", 2),
            ("2024-10-27T00:30:00Z", 2),
            ("2024-10-27T02:00:00Z", 3),
            ("2024-03-31T00:59:59Z", 1),
            ("2024-03-31T01:00:00Z", 3),
        ] {
            assert_eq!(berlin.hour(us(at)), hour, "{at}");
        }
    }

    #[test]
    fn the_memo_agrees_with_the_table() {
        for name in ["UTC", "Asia/Tehran", "America/St_Johns", "Pacific/Apia", "Europe/Dublin", "Asia/Kathmandu"] {
            let mut zone = Zone::new(name).unwrap();
            let table = TimeZone::get(name).unwrap();
            for step in 0..40_000_i64 {
                let us = -2_000_000_000_000_000 + step * 103_123_456_789;
                let offset = table.to_offset(Timestamp::from_microsecond(us).unwrap()).seconds();
                assert_eq!(zone.day(us), (us + i64::from(offset) * SECOND_US).div_euclid(DAY_US) as i32, "{name} {us}");
            }
        }
    }

    #[test]
    fn local_times_become_instants() {
        let mut berlin = Zone::new("Europe/Berlin").unwrap();
        assert_eq!(berlin.to_utc(us("2024-07-01T12:00:00Z")), us("2024-07-01T10:00:00Z"));
        assert_eq!(berlin.to_utc(us("2024-10-27T02:30:00Z")), us("2024-10-27T00:30:00Z"), "the first of two");
        assert_eq!(berlin.to_utc(us("2024-03-31T02:30:00Z")), us("2024-03-31T01:30:00Z"), "skipped");
    }

    #[test]
    fn unknown_and_extreme() {
        assert!(Zone::new("Mars/Olympus").is_err());
        let mut tokyo = Zone::new("Asia/Tokyo").unwrap();
        assert!(tokyo.day(i64::MAX / 4) > 2_932_896);
    }
}
