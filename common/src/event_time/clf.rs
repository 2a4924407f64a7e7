//! The time of access logs: `10/Oct/2024:13:55:36 +0000`, 26 bytes.
//!
//! The memo keeps what the date and the offset mean, so that of consecutive lines only the clock is read.

use super::civil::{self, DAY_US, SECOND_US};

/// Length of `10/Oct/2024:13:55:36 +0000`.
pub const CLF_BYTES: usize = 26;

/// One parsed time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClfTime {
    /// Microseconds since the epoch, UTC.
    pub us: i64,
    /// Offset from UTC as written, in minutes.
    pub offset_minutes: i32,
}

/// Reads CLF times, remembering the last date and offset.
#[derive(Debug, Clone, Default)]
pub struct ClfMemo {
    date: [u8; 12],
    offset: [u8; 6],
    midnight_us: i64,
    offset_minutes: i32,
    valid: bool,
}

impl ClfMemo {
    /// Parses exactly the first [`CLF_BYTES`] of `text`. The day must exist, the month is one of `Jan`..`Dec`, the
    /// offset is `+hhmm` or `-hhmm` up to 15:59.
    pub fn parse(&mut self, text: &[u8]) -> Option<ClfTime> {
        let text: &[u8; CLF_BYTES] = text.get(..CLF_BYTES)?.try_into().ok()?;
        if !self.valid || text[..12] != self.date || text[20..] != self.offset {
            self.remember(text)?;
        }
        if text[14] != b':' || text[17] != b':' {
            return None;
        }
        let clock = civil::clock_seconds(
            civil::digits::<2>(text, 12)?,
            civil::digits::<2>(text, 15)?,
            civil::digits::<2>(text, 18)?,
        )?;
        Some(ClfTime { us: self.midnight_us + i64::from(clock) * SECOND_US, offset_minutes: self.offset_minutes })
    }

    fn remember(&mut self, text: &[u8; CLF_BYTES]) -> Option<()> {
        self.valid = false;
        if text[2] != b'/' || text[6] != b'/' || text[11] != b':' || text[20] != b' ' {
            return None;
        }
        let month = MONTHS.iter().position(|name| name[..] == text[3..6])? as u32 + 1;
        let days = civil::days(civil::digits::<4>(text, 7)? as i32, month, civil::digits::<2>(text, 0)?)?;
        let sign = match text[21] {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        let (hours, minutes) = (civil::digits::<2>(text, 22)?, civil::digits::<2>(text, 24)?);
        if hours > 15 || minutes > 59 {
            return None;
        }
        self.offset_minutes = sign * (hours * 60 + minutes) as i32;
        self.midnight_us = i64::from(days) * DAY_US - i64::from(self.offset_minutes) * 60 * SECOND_US;
        self.date.copy_from_slice(&text[..12]);
        self.offset.copy_from_slice(&text[20..]);
        self.valid = true;
        Some(())
    }

    /// Finds and parses the time in a line of an access log: the content of the first bracket that stands at the
    /// beginning or behind a space and does not hold an IP address (digits, hex letters, `: . %` or nothing else).
    /// Only that bracket counts: a time in a URL never stands in for one that is not usable.
    pub fn find(&mut self, line: &[u8]) -> Option<ClfTime> {
        for at in memchr::memchr_iter(b'[', line) {
            let inner = &line[at + 1..];
            if at > 0 && line[at - 1] != b' ' {
                continue;
            }
            if let Some(time) = self.parse(inner) {
                return (inner.get(CLF_BYTES) == Some(&b']')).then_some(time);
            }
            let address = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'%');
            let end = inner.iter().position(|byte| !address(byte))?;
            if end == 0 || inner[end] != b']' || !inner[..end].contains(&b':') {
                return None;
            }
        }
        None
    }
}

/// Writes a time as [`ClfMemo::parse`] reads it.
pub fn render(us: i64, offset_minutes: i32, out: &mut Vec<u8>) {
    let local = us + i64::from(offset_minutes) * 60 * SECOND_US;
    let (year, month, day) = civil::date(local.div_euclid(DAY_US) as i32);
    let second = local.rem_euclid(DAY_US) / SECOND_US;
    let two = |value: i64| [b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8];
    out.extend_from_slice(&two(i64::from(day)));
    out.push(b'/');
    out.extend_from_slice(MONTHS[month as usize - 1]);
    out.push(b'/');
    out.extend_from_slice(&two(i64::from(year) / 100));
    out.extend_from_slice(&two(i64::from(year)));
    for value in [second / 3_600, second / 60 % 60, second % 60] {
        out.push(b':');
        out.extend_from_slice(&two(value));
    }
    out.extend_from_slice(if offset_minutes < 0 { b" -" } else { b" +" });
    let offset = i64::from(offset_minutes.abs());
    out.extend_from_slice(&two(offset / 60));
    out.extend_from_slice(&two(offset % 60));
}

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> Option<i64> {
        ClfMemo::default().parse(text.as_bytes()).map(|t| t.us.div_euclid(DAY_US))
    }

    #[test]
    fn dates_are_utc() {
        assert_eq!(day("31/Dec/2023:23:59:59 -0800"), Some(19_723));
        assert_eq!(day("01/Mar/2024:05:29:59 +0530"), Some(19_782));
        assert_eq!(day("31/Dec/1969:23:59:59 +0000"), Some(-1));
        assert_eq!(day("30/Jun/2015:23:59:60 +0000"), Some(16_616));
        assert_eq!(day("10/Oct/2024:13:55:36 -0000"), Some(20_006));
        assert!(day("31/Dec/9999:23:59:59 -0001").unwrap() > 2_932_896);
    }

    #[test]
    fn what_is_no_time() {
        for text in [
            "31/Feb/2024:10:00:00 +0000",
            "00/Jan/2024:10:00:00 +0000",
            "10/Foo/2024:10:00:00 +0000",
            "10/Oct/2024:24:00:00 +0000",
            "10/Oct/2024:13:55:36 +2500",
            "10/Oct/2024:13:55:36] \"GET",
            "10/Oct/24:13:55:36 +0000] ",
            "../../../etc:00:00:00 +0000",
            "10/Oct/-2024:13:55:36 +0000",
        ] {
            assert_eq!(day(text), None, "{text}");
        }
    }

    #[test]
    fn the_memo_never_answers_for_another_date_or_offset() {
        let mut memo = ClfMemo::default();
        let first = memo.parse(b"10/Oct/2024:00:00:00 +0000").unwrap().us;
        assert_eq!(memo.parse(b"10/Oct/2024:00:00:01 +0000").unwrap().us, first + SECOND_US);
        assert_eq!(memo.parse(b"10/Oct/2024:00:00:00 -0100").unwrap().us, first + 3_600 * SECOND_US);
        assert_eq!(memo.parse(b"31/Feb/2024:00:00:00 -0100"), None);
        assert_eq!(memo.parse(b"10/Oct/2024:00:00:00 -0100").unwrap().us, first + 3_600 * SECOND_US);
    }

    #[test]
    fn only_the_first_bracket_counts() {
        let mut memo = ClfMemo::default();
        assert!(memo.find(b"[2001:db8::1]:443 - - [10/Oct/2024:13:55:36 +0000] x").is_some());
        assert!(memo.find(b"a:80 [::1] - - [10/Oct/2024:13:55:36 +0000] x").is_some());
        assert!(memo.find(b"h - - [31/Feb/2024:10:00:00 +0000] \"GET /a [10/Oct/2024:13:55:36 +0000]").is_none());
        assert!(memo.find(b"h - - [] \"GET /a [10/Oct/2024:13:55:36 +0000]").is_none());
        assert!(memo.find(b"h - - [1728568536.123] \"GET /a [10/Oct/2024:13:55:36 +0000]").is_none());
        assert!(memo.find(b"h - - [10/Oct/2024:13:55:36 +0000").is_none());
    }

    #[test]
    fn render_gives_the_text_back() {
        for text in ["10/Oct/2024:13:55:36 +0000", "01/Jan/0001:00:00:00 -0130", "31/Dec/1969:23:59:59 +0545"] {
            let time = ClfMemo::default().parse(text.as_bytes()).unwrap();
            let mut out = Vec::new();
            render(time.us, time.offset_minutes, &mut out);
            assert_eq!(out, text.as_bytes());
        }
    }
}
