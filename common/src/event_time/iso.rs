//! ISO 8601 / RFC 3339: `2024-10-10T13:55:36.123Z`, `2024-10-10 13:55:36,123 +0200`.

use super::civil::{self, DAY_US, SECOND_US};

/// A parsed time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsoTime {
    /// Microseconds since the epoch: UTC if `offset_minutes` is known, else local time of an unknown zone.
    pub us: i64,
    /// Offset from UTC as written, in minutes; none if the text has none.
    pub offset_minutes: Option<i32>,
    /// Bytes of the text it takes.
    pub bytes: usize,
}

/// The first ISO 8601 date and time in `text`.
pub fn find(text: &[u8]) -> Option<IsoTime> {
    memchr::memchr_iter(b'-', text).find_map(|dash| {
        let start = dash.checked_sub(4)?;
        if start > 0 && text[start - 1].is_ascii_digit() {
            return None;
        }
        parse(&text[start..])
    })
}

/// Parses at the beginning of `text`: `YYYY-MM-DD`, `T`, `t` or a space, `hh:mm:ss`, an optional fraction behind `.` or
/// `,`, an optional `Z`, `+hh:mm`, `+hhmm` or `+hh` (with at most one space before it).
pub fn parse(text: &[u8]) -> Option<IsoTime> {
    let fixed = text.get(..19)?;
    if fixed[4] != b'-'
        || fixed[7] != b'-'
        || !matches!(fixed[10], b'T' | b't' | b' ')
        || fixed[13] != b':'
        || fixed[16] != b':'
    {
        return None;
    }
    let days = civil::days(
        civil::digits::<4>(fixed, 0)? as i32,
        civil::digits::<2>(fixed, 5)?,
        civil::digits::<2>(fixed, 8)?,
    )?;
    let clock = civil::clock_seconds(
        civil::digits::<2>(fixed, 11)?,
        civil::digits::<2>(fixed, 14)?,
        civil::digits::<2>(fixed, 17)?,
    )?;
    let (fraction_us, mut at) = fraction(text, 19);
    let offset_minutes = match offset(&text[at..]) {
        Some((minutes, bytes)) => {
            at += bytes;
            Some(minutes)
        }
        None => None,
    };
    let local = i64::from(days) * DAY_US + i64::from(clock) * SECOND_US + fraction_us;
    let us = local - i64::from(offset_minutes.unwrap_or(0)) * 60 * SECOND_US;
    Some(IsoTime { us, offset_minutes, bytes: at })
}

/// Microseconds of `.123456789` at `at`, and where it ends.
fn fraction(text: &[u8], at: usize) -> (i64, usize) {
    if !matches!(text.get(at), Some(b'.' | b',')) || !text.get(at + 1).is_some_and(u8::is_ascii_digit) {
        return (0, at);
    }
    let (mut us, mut unit, mut end) = (0, SECOND_US / 10, at + 1);
    while let Some(digit) = text.get(end).filter(|byte| byte.is_ascii_digit()) {
        us += i64::from(digit - b'0') * unit;
        unit /= 10;
        end += 1;
    }
    (us, end)
}

/// Offset in minutes and its bytes.
fn offset(text: &[u8]) -> Option<(i32, usize)> {
    if matches!(text.first(), Some(b'Z' | b'z')) {
        return Some((0, 1));
    }
    let space = usize::from(text.first() == Some(&b' '));
    let sign = match text.get(space)? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let hours = civil::digits::<2>(text, space + 1)?;
    let colon = usize::from(text.get(space + 3) == Some(&b':'));
    let (minutes, bytes) = match civil::digits::<2>(text, space + 3 + colon) {
        Some(minutes) => (minutes, space + 5 + colon),
        None => (0, space + 3),
    };
    (hours <= 15 && minutes < 60).then_some((sign * (hours * 60 + minutes) as i32, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(text: &str) -> Option<(i64, Option<i32>)> {
        find(text.as_bytes()).map(|t| (t.us, t.offset_minutes))
    }

    #[test]
    fn forms() {
        let base = 1_728_568_536_000_000;
        assert_eq!(us("2024-10-10T13:55:36Z x"), Some((base, Some(0))));
        assert_eq!(us("{\"ts\":\"2024-10-10T15:55:36.123456789+02:00\"}"), Some((base + 123_456, Some(120))));
        assert_eq!(us("[2024-10-10 13:55:36,120] WARN"), Some((base + 120_000, None)));
        assert_eq!(us("2024-10-10 08:55:36 -0500 x"), Some((base, Some(-300))));
        assert_eq!(us("id 12024-10-10T13:55:36Z"), None, "a longer number is no year");
        assert_eq!(us("a-b 2024-02-30T00:00:00Z 2024-10-10T13:55:36Z"), Some((base, Some(0))));
        assert_eq!(us("2024-10-10T25:55:36Z"), None);
        assert_eq!(us("2024-10-10"), None);
    }
}
