//! When an event happened: from a log line to microseconds UTC, and from there to the day or hour of a partition.
//!
//! Invariant: the answer depends on the line, the configuration and, only for formats that leave out the year, on
//! the `now` that is passed in; never on arrival time. What has no usable time gets none: nothing is guessed.

pub mod civil;
pub mod clf;
pub mod iso;
mod zone;

use jiff::fmt::strtime::BrokenDownTime;
use serde::{Deserialize, Serialize};

pub use self::zone::{UnknownZone, Zone};
use crate::log_format::{LogFormat, LogFormatError, TimeSyntax};

/// The longest look ahead of `now` that still counts as the present year, for formats without one.
const AHEAD_US: i64 = civil::DAY_US;

/// `time = { format = "...", ... }` of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum TimeFormat {
    /// The time field of an nginx or Apache format (a name or the format string).
    LogFormat {
        /// `common`, `combined`, `vhost_combined` or the format string itself.
        log_format: String,
    },
    /// `[10/Oct/2024:13:55:36 +0000]` anywhere, by the rule of [`clf::ClfMemo::find`].
    Clf {},
    /// The first `2024-10-10T13:55:36Z` in the line.
    Iso8601 {
        /// Looked for behind this text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
        /// Zone of times that name none. Default UTC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
    },
    /// A number since 1970, at the beginning of the line or behind `after`.
    Epoch {
        /// Unit of the number; decimals are allowed.
        #[serde(default)]
        unit: EpochUnit,
        /// Looked for behind this text, e.g. `"ts":`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// A strptime pattern, at the beginning of the line or behind `after`.
    Pattern {
        /// `%d %H %M ...` as jiff's strtime has them.
        pattern: String,
        /// Looked for behind this text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
        /// Zone of times that name none. Default UTC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
    },
}

/// Unit of an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpochUnit {
    /// Seconds.
    #[default]
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

/// Why a [`TimeFormat`] cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TimeFormatError {
    /// The format string does not compile.
    #[error(transparent)]
    LogFormat(#[from] LogFormatError),
    /// It compiles, but no field of it is a time.
    #[error("log format {0:?} has no time field ($time_local, $time_iso8601, $msec, %t)")]
    NoTime(String),
    /// No such zone.
    #[error(transparent)]
    Zone(#[from] UnknownZone),
    /// Not a pattern, or one that cannot give a date.
    #[error("time pattern {pattern:?} is not usable: {reason}")]
    Pattern {
        /// As configured.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
}

/// Finds event times. Owned by one pipeline: it remembers the last date.
#[derive(Debug, Clone)]
pub struct EventTime {
    rule: Rule,
    after: Option<memchr::memmem::Finder<'static>>,
    clf: clf::ClfMemo,
    zone: Zone,
    now_us: i64,
}

#[derive(Debug, Clone)]
enum Rule {
    Bracket,
    Field(Box<LogFormat>, TimeSyntax),
    Iso,
    Epoch { scale: i64, divide: bool },
    Pattern(String),
}

impl EventTime {
    /// Checks the configuration.
    pub fn new(format: &TimeFormat) -> Result<Self, TimeFormatError> {
        let (rule, after, zone) = match format {
            TimeFormat::Clf {} => (Rule::Bracket, None, None),
            TimeFormat::LogFormat { log_format } => {
                let compiled = LogFormat::compile(log_format)?;
                let rule = match compiled.time_syntax() {
                    None => return Err(TimeFormatError::NoTime(log_format.clone())),
                    Some(TimeSyntax::Clf) if compiled.time_in_brackets() => Rule::Bracket,
                    Some(syntax) => Rule::Field(Box::new(compiled), syntax),
                };
                (rule, None, None)
            }
            TimeFormat::Iso8601 { after, zone } => (Rule::Iso, after.as_ref(), zone.as_ref()),
            TimeFormat::Epoch { unit, after } => {
                let (scale, divide) = match unit {
                    EpochUnit::S => (1_000_000, false),
                    EpochUnit::Ms => (1_000, false),
                    EpochUnit::Us => (1, false),
                    EpochUnit::Ns => (1_000, true),
                };
                (Rule::Epoch { scale, divide }, after.as_ref(), None)
            }
            TimeFormat::Pattern { pattern, after, zone } => {
                check_pattern(pattern)?;
                (Rule::Pattern(pattern.clone()), after.as_ref(), zone.as_ref())
            }
        };
        let zone = Zone::new(zone.map_or("UTC", String::as_str))?;
        let after = after.map(|text| memchr::memmem::Finder::new(text.as_bytes()).into_owned());
        Ok(Self { rule, after, clf: clf::ClfMemo::default(), zone, now_us: i64::MAX })
    }

    /// Sets the present, for formats that leave out the year.
    pub fn set_now(&mut self, now_us: i64) {
        self.now_us = now_us;
    }

    /// Microseconds since the epoch, UTC; none if the line has no usable time.
    pub fn extract(&mut self, line: &[u8]) -> Option<i64> {
        let text = match &self.after {
            None => line,
            Some(after) => &line[after.find(line)? + after.needle().len()..],
        };
        match &self.rule {
            Rule::Bracket => self.clf.find(line).map(|time| time.us),
            Rule::Field(format, syntax) => {
                let field = format.time_text(line)?;
                match syntax {
                    TimeSyntax::Clf => self.clf.parse(field).map(|time| time.us),
                    TimeSyntax::Iso => iso::parse(field).map(|time| time.us),
                    TimeSyntax::Epoch { scale } => epoch(field, *scale, false),
                }
            }
            Rule::Iso => {
                let time = iso::find(text)?;
                Some(if time.offset_minutes.is_some() { time.us } else { self.zone.to_utc(time.us) })
            }
            Rule::Epoch { scale, divide } => epoch(text.trim_ascii_start(), *scale, *divide),
            Rule::Pattern(_) => self.by_pattern(text),
        }
    }

    fn by_pattern(&mut self, text: &[u8]) -> Option<i64> {
        let Rule::Pattern(pattern) = &self.rule else { return None };
        let (mut parsed, _) = BrokenDownTime::parse_prefix(pattern, text).ok()?;
        if let Ok(instant) = parsed.to_timestamp() {
            return Some(instant.as_microsecond());
        }
        if parsed.year().is_some() || parsed.to_datetime().is_ok() {
            let local = local_us(&parsed)?;
            return Some(self.zone.to_utc(local));
        }
        let (year, _, _) = civil::date(self.now_us.div_euclid(civil::DAY_US).clamp(-700_000, 2_900_000) as i32);
        // Without a year the newest one counts that does not lie ahead; eight years reach any 29 February.
        (0..=8).find_map(|back| {
            parsed.set_year(Some((year - back) as i16)).ok()?;
            let us = self.zone.to_utc(local_us(&parsed)?);
            (us <= self.now_us.saturating_add(AHEAD_US)).then_some(us)
        })
    }
}

/// The civil time of a parsed pattern, as microseconds as if it were UTC, with a numeric offset applied if there is one.
fn local_us(parsed: &BrokenDownTime) -> Option<i64> {
    let instant = parsed.to_datetime().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    Some(instant.as_microsecond())
}

fn check_pattern(pattern: &str) -> Result<(), TimeFormatError> {
    let error = |reason: &str| TimeFormatError::Pattern { pattern: pattern.to_owned(), reason: reason.to_owned() };
    let sample = jiff::civil::date(2024, 12, 31)
        .at(23, 58, 57, 0)
        .to_zoned(jiff::tz::TimeZone::UTC)
        .map_err(|e| error(&e.to_string()))?;
    let text = jiff::fmt::strtime::format(pattern, &sample).map_err(|e| error(&e.to_string()))?;
    let (mut parsed, _) = BrokenDownTime::parse_prefix(pattern, &text).map_err(|e| error(&e.to_string()))?;
    if parsed.to_timestamp().is_ok() || parsed.to_datetime().is_ok() {
        return Ok(());
    }
    parsed.set_year(Some(2024)).map_err(|e| error(&e.to_string()))?;
    parsed.to_datetime().map(|_| ()).map_err(|_| error("it does not give a day; it needs at least month and day"))
}

/// A decimal number at the beginning of `text`, in units of `scale` microseconds (or divided by it).
pub(crate) fn epoch(text: &[u8], scale: i64, divide: bool) -> Option<i64> {
    let whole_end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    if whole_end == 0 || whole_end > 19 {
        return None;
    }
    let mut whole: i64 = 0;
    for digit in &text[..whole_end] {
        whole = whole.checked_mul(10)?.checked_add(i64::from(digit - b'0'))?;
    }
    if divide {
        return Some(whole / scale);
    }
    let mut us = whole.checked_mul(scale)?;
    if text.get(whole_end) == Some(&b'.') {
        let mut unit = scale;
        for digit in text[whole_end + 1..].iter().take_while(|byte| byte.is_ascii_digit()) {
            unit /= 10;
            us = us.checked_add(i64::from(digit - b'0') * unit)?;
        }
    }
    Some(us)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: i64 = 1_728_568_536_000_000;

    fn extract(format: TimeFormat, line: &str) -> Option<i64> {
        let mut time = EventTime::new(&format).unwrap();
        time.set_now(BASE);
        time.extract(line.as_bytes())
    }

    #[test]
    fn epochs() {
        let epoch = |unit, after: Option<&str>, line| {
            extract(TimeFormat::Epoch { unit, after: after.map(str::to_owned) }, line)
        };
        assert_eq!(epoch(EpochUnit::S, None, "1728568536.123 TCP_MISS"), Some(BASE + 123_000));
        assert_eq!(epoch(EpochUnit::Ms, Some("\"ts\":"), "{\"ts\": 1728568536123}"), Some(BASE + 123_000));
        assert_eq!(epoch(EpochUnit::Ns, None, "1728568536123456789"), Some(BASE + 123_456));
        assert_eq!(epoch(EpochUnit::S, None, "x"), None);
        assert_eq!(epoch(EpochUnit::S, None, "99999999999999999999"), None);
    }

    #[test]
    fn iso_takes_the_given_zone_where_none_is_written() {
        let iso = |zone: Option<&str>, line| {
            extract(TimeFormat::Iso8601 { after: None, zone: zone.map(str::to_owned) }, line)
        };
        assert_eq!(iso(None, "2024-10-10 13:55:36 INFO"), Some(BASE));
        assert_eq!(iso(Some("Europe/Berlin"), "2024-10-10 15:55:36 INFO"), Some(BASE));
        assert_eq!(iso(Some("Europe/Berlin"), "2024-10-10 13:55:36Z INFO"), Some(BASE));
    }

    #[test]
    fn patterns_with_and_without_year() {
        let pattern = |pattern: &str, line| {
            extract(TimeFormat::Pattern { pattern: pattern.into(), after: None, zone: None }, line)
        };
        assert_eq!(pattern("%Y/%m/%d %H:%M:%S", "2024/10/10 13:55:36 [error]"), Some(BASE));
        assert_eq!(pattern("%d/%b/%Y:%H:%M:%S %z", "10/Oct/2024:15:55:36 +0200"), Some(BASE));
        assert_eq!(pattern("%b %d %H:%M:%S", "Oct 10 13:55:36 host"), Some(BASE));
        let december = pattern("%b %d %H:%M:%S", "Dec 31 00:00:00 host").unwrap();
        assert!(december < BASE, "a December read in October is last year's");
        assert_eq!(pattern("%b %d %H:%M:%S", "none"), None);
        assert!(EventTime::new(&TimeFormat::Pattern { pattern: "%H:%M".into(), after: None, zone: None }).is_err());
        assert!(EventTime::new(&TimeFormat::Pattern { pattern: "%Q!".into(), after: None, zone: None }).is_err());
    }

    #[test]
    fn log_formats_give_their_time_field() {
        let by = |format: &str, line| extract(TimeFormat::LogFormat { log_format: format.into() }, line);
        let line = "h - - [10/Oct/2024:13:55:36 +0000] \"GET / HTTP/1.1\" garbage";
        assert_eq!(by("combined", line), Some(BASE), "the rest of the line need not be valid");
        assert_eq!(by("$msec $remote_addr", "1728568536.123 ::1"), Some(BASE + 123_000));
        assert_eq!(by("$remote_addr|$time_iso8601|$status", "::1|2024-10-10T13:55:36+00:00|200"), Some(BASE));
        assert!(EventTime::new(&TimeFormat::LogFormat { log_format: "$remote_addr".into() }).is_err());
    }
}
