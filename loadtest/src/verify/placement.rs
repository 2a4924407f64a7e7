//! Whether a generated line lies in the partition of its own date: the date is read here anew, by a reader of its own.

/// Reads dates and compares. Partitions are days in UTC, as every generated run declares them.
#[derive(Debug, Default)]
pub struct Placement;

const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

impl Placement {
    /// True when `line` carries a date and it is not the one in `partition` (`event_date=YYYY-MM-DD`, with or without an
    /// hour). A line without a readable date is never wrong.
    pub fn is_wrong(&self, line: &[u8], partition: &str) -> bool {
        let Some(days) = utc_day(line) else { return false };
        let Some(date) = partition.strip_prefix("event_date=").and_then(|text| text.get(..10)) else { return true };
        let Ok(date) = date.parse::<jiff::civil::Date>() else { return true };
        days_of(i64::from(date.year()), i64::from(date.month()), i64::from(date.day())) != days
    }
}

/// Days since the epoch, UTC, of the first `[20/Nov/2026:13:55:36 +0200]`.
fn utc_day(line: &[u8]) -> Option<i64> {
    let open = memchr::memchr(b'[', line)?;
    let text = line.get(open + 1..open + 28)?;
    let two = |at: usize| -> Option<i64> {
        let digits = text.get(at..at + 2)?;
        let valid = digits.iter().all(u8::is_ascii_digit);
        valid.then(|| i64::from(digits[0] - b'0') * 10 + i64::from(digits[1] - b'0'))
    };
    let month = MONTHS.chunks(3).position(|name| name == &text[3..6])? as i64 + 1;
    let days = days_of(two(7)? * 100 + two(9)?, month, two(0)?);
    let seconds = two(12)? * 3600 + two(15)? * 60 + two(18)?;
    let offset = two(22)? * 3600 + two(24)? * 60;
    let offset = if text[21] == b'-' { -offset } else { offset };
    Some(days + (seconds - offset).div_euclid(86_400))
}

/// Days since 1970-01-01 in the Gregorian calendar.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_move_lines_over_midnight() {
        let wrong = |time: &str, partition: &str| {
            let line = format!("1.2.3.4 - - [{time}] \"GET / HTTP/1.1\" 200 1");
            Placement.is_wrong(line.as_bytes(), partition)
        };
        assert!(!wrong("20/Nov/2026:13:55:36 +0000", "event_date=2026-11-20"));
        assert!(!wrong("20/Nov/2026:00:30:00 +0200", "event_date=2026-11-19"));
        assert!(wrong("20/Nov/2026:00:30:00 +0200", "event_date=2026-11-20"));
        assert!(!wrong("28/Feb/2024:23:30:00 -0500", "event_date=2024-02-29/event_hour=04"));
        assert!(!wrong("no date at all", "event_date=2026-11-20"));
        assert_eq!(days_of(1970, 1, 1), 0);
        assert_eq!(days_of(2000, 3, 1), 11_017);
    }
}
