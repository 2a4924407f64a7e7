//! Times of generated lines: three days that end at a given day, more lines by day than by night, in the zone of the
//! host, and now and then a burst from an older day.

use jiff::civil::Date;
use jiff::tz::Offset;

/// Days that most lines are spread over.
pub const DAYS: i64 = 3;
/// Seconds of a day.
const DAY: i64 = 86_400;
/// Offsets of the hosts from UTC in seconds, taken in turn.
const OFFSETS: [i32; 6] = [0, 7_200, -18_000, 19_800, 3_600, -28_800];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The clock of one host.
#[derive(Debug)]
pub struct Clock {
    /// Seconds since the epoch at which the first line is dated.
    start: i64,
    offset: i32,
    zone: String,
    /// Day since the epoch (local) and `20/Nov/2026:`, as last rendered.
    day: (i64, String),
}

impl Clock {
    /// `end` is the last day of the three, in UTC.
    pub fn new(end: Date, host: usize) -> Self {
        let offset = OFFSETS[host % OFFSETS.len()];
        let midnight =
            end.at(0, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).map_or(0, |zoned| zoned.timestamp().as_second());
        let sign = if offset < 0 { '-' } else { '+' };
        let minutes = offset.abs() / 60;
        let zone = format!("{sign}{:02}{:02}", minutes / 60, minutes % 60);
        Self { start: midnight - (DAYS - 1) * DAY, offset, zone, day: (i64::MIN, String::new()) }
    }

    /// The second (since the epoch) of a line for which `part` (0 up to 1) of all lines were written before.
    pub fn at(&self, part: f64) -> i64 {
        let days = part.clamp(0.0, 0.999_999) * DAYS as f64;
        let (whole, day) = (days.floor(), days.fract());
        // Densest in the evening, thinnest in the morning, and never backwards: the amplitude stays under 1 / (2 pi).
        let bent = day + 0.1 * (1.0 - (std::f64::consts::TAU * day).cos());
        self.start + ((whole + bent) * DAY as f64) as i64
    }

    /// The same second on an older day, `days_back` before the first.
    pub fn older(&self, second: i64, days_back: i64) -> i64 {
        self.start - days_back * DAY + (second - self.start).rem_euclid(DAY)
    }

    /// Appends `[20/Nov/2026:13:55:36 +0200]`.
    pub fn push(&mut self, line: &mut Vec<u8>, second: i64) {
        let local = second + i64::from(self.offset);
        let (day, of_day) = (local.div_euclid(DAY), local.rem_euclid(DAY));
        if self.day.0 != day {
            self.day = (day, render_day(local));
        }
        line.push(b'[');
        line.extend_from_slice(self.day.1.as_bytes());
        push_two(line, of_day / 3600);
        line.push(b':');
        push_two(line, of_day / 60 % 60);
        line.push(b':');
        push_two(line, of_day % 60);
        line.push(b' ');
        line.extend_from_slice(self.zone.as_bytes());
        line.push(b']');
    }
}

fn render_day(local: i64) -> String {
    let Ok(time) = jiff::Timestamp::from_second(local) else { return String::from("01/Jan/1970:") };
    let date = Offset::UTC.to_datetime(time).date();
    let month = MONTHS[usize::from(date.month().unsigned_abs()) - 1];
    format!("{:02}/{month}/{:04}:", date.day(), date.year())
}

fn push_two(line: &mut Vec<u8>, number: i64) {
    line.push(b'0' + (number / 10) as u8);
    line.push(b'0' + (number % 10) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn three_days_in_order_with_the_hosts_zone() {
        let mut clock = Clock::new(date(2026, 11, 20), 1);
        let mut last = i64::MIN;
        for step in 0..3_000 {
            let second = clock.at(f64::from(step) / 3_000.0);
            assert!(second >= last, "step {step}");
            last = second;
        }
        let mut line = Vec::new();
        clock.push(&mut line, clock.at(0.0));
        clock.push(&mut line, last);
        clock.push(&mut line, clock.older(last, 5));
        let text = String::from_utf8(line).unwrap();
        assert!(text.starts_with("[18/Nov/2026:02:00:00 +0200][2"), "{text}");
        assert!(text.contains("[13/Nov/2026:") || text.contains("[14/Nov/2026:"), "{text}");
    }
}
