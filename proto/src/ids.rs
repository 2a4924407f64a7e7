//! Names and numbers as types. Every constructor checks, so a value of these types is always usable as a file name
//! part, a hash key or a log field.

use std::fmt;
use std::str::FromStr;

use crate::wire;

/// Why a name or number from outside is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// An agent name with a character or length outside the rule.
    #[error(
        "agent name {0:?} is not 1 to 128 characters of A-Z a-z 0-9 . _ - /, beginning with a letter or digit and without empty parts"
    )]
    Agent(String),
    /// A dataset name outside `[a-z0-9][a-z0-9_-]{0,63}`.
    #[error("dataset name {0:?} does not match [a-z0-9][a-z0-9_-]{{0,63}}")]
    Dataset(String),
    /// An origin that is not 16 bytes (or 32 hex digits).
    #[error("an origin is 16 bytes, this one is {0}")]
    Origin(usize),
    /// A partition outside 1900-01-01 ..= 2261-12-31 or an hour above 23.
    #[error("partition date {date} (days since 1970-01-01) or hour {hour:?} is out of range")]
    Partition {
        /// Days since the epoch.
        date: i32,
        /// Hour, if the dataset has hours.
        hour: Option<u32>,
    },
}

/// The stable name of one installed edge agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentName(std::sync::Arc<str>);

impl AgentName {
    /// Checks and takes a name: 1 to 128 characters of `A-Z a-z 0-9 . _ - /`, each `/`-separated part
    /// beginning with a letter or digit.
    pub fn new(name: &str) -> Result<Self, IdError> {
        let part_ok = |part: &str| {
            part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if name.len() <= 128 && name.split('/').all(part_ok) {
            Ok(Self(name.into()))
        } else {
            Err(IdError::Agent(name.chars().take(160).collect()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One run of one agent: 48 bits of milliseconds since the epoch, 80 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(pub [u8; 16]);

impl Origin {
    /// Puts an origin together from its time and its random bits (the low 80 of `random`).
    pub fn mint(unix_ms: u64, random: u128) -> Self {
        let value = (u128::from(unix_ms & 0xffff_ffff_ffff) << 80) | (random & ((1 << 80) - 1));
        Self(value.to_be_bytes())
    }

    /// Milliseconds since the epoch at which it was minted.
    pub fn unix_ms(self) -> u64 {
        (u128::from_be_bytes(self.0) >> 80) as u64
    }

    /// From the 16 bytes of a message.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        Ok(Self(bytes.try_into().map_err(|_| IdError::Origin(bytes.len()))?))
    }

    /// As the field of a message.
    pub fn to_bytes(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.0)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Origin({self})")
    }
}

impl FromStr for Origin {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match u128::from_str_radix(text, 16) {
            Ok(value) if text.len() == 32 => Ok(Self(value.to_be_bytes())),
            _ => Err(IdError::Origin(text.len() / 2)),
        }
    }
}

/// The identity of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId {
    /// As the transport names it.
    pub agent: AgentName,
    /// The run that cut it.
    pub origin: Origin,
    /// Its number there.
    pub seq: u64,
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.agent, self.origin, self.seq)
    }
}

impl From<&BatchId> for wire::BatchKey {
    fn from(id: &BatchId) -> Self {
        Self { agent: id.agent.to_string(), origin: id.origin.to_bytes(), seq: id.seq }
    }
}

impl TryFrom<&wire::BatchKey> for BatchId {
    type Error = IdError;
    fn try_from(key: &wire::BatchKey) -> Result<Self, IdError> {
        Ok(Self { agent: AgentName::new(&key.agent)?, origin: Origin::from_bytes(&key.origin)?, seq: key.seq })
    }
}

/// The name of a dataset; safe as a directory name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatasetName(std::sync::Arc<str>);

impl DatasetName {
    /// Checks `[a-z0-9][a-z0-9_-]{0,63}`.
    pub fn new(name: &str) -> Result<Self, IdError> {
        let first_ok = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest_ok = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if first_ok && rest_ok && name.len() <= 64 {
            Ok(Self(name.into()))
        } else {
            Err(IdError::Dataset(name.chars().take(80).collect()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A day, or an hour of a day, in the zone of its dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    date: i32,
    hour: Option<u8>,
}

/// 1900-01-01: what is dated before is no date of a log.
const FIRST_DATE: i32 = -25_567;
/// 2261-12-31: the last day whose microseconds and nanoseconds every reader can hold.
const LAST_DATE: i32 = 106_650;

impl Partition {
    /// `date` in days since 1970-01-01 (-25,567 ..= 106,650), `hour` 0 ..= 23.
    pub fn new(date: i32, hour: Option<u32>) -> Result<Self, IdError> {
        if (FIRST_DATE..=LAST_DATE).contains(&date) && hour.is_none_or(|h| h < 24) {
            Ok(Self { date, hour: hour.map(|h| h as u8) })
        } else {
            Err(IdError::Partition { date, hour })
        }
    }

    /// Days since 1970-01-01.
    pub fn date(self) -> i32 {
        self.date
    }

    /// The hour, for datasets that have hours.
    pub fn hour(self) -> Option<u8> {
        self.hour
    }

    /// `2026-11-20`.
    pub fn date_text(self) -> String {
        date_text(self.date)
    }

    /// `event_date=2026-11-20` or `event_date=2026-11-20/event_hour=07`.
    pub fn path(self) -> String {
        match self.hour {
            None => format!("event_date={}", self.date_text()),
            Some(hour) => format!("event_date={}/event_hour={hour:02}", self.date_text()),
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

impl From<Partition> for wire::Partition {
    fn from(partition: Partition) -> Self {
        Self { date: partition.date, hour: partition.hour.map(u32::from) }
    }
}

impl TryFrom<&wire::Partition> for Partition {
    type Error = IdError;
    fn try_from(partition: &wire::Partition) -> Result<Self, IdError> {
        Self::new(partition.date, partition.hour)
    }
}

/// `2026-11-20` for days since 1970-01-01 (years -9999 to 9999; others as `day<n>`).
pub fn date_text(days: i32) -> String {
    jiff::civil::date(1970, 1, 1)
        .checked_add(jiff::Span::new().days(days))
        .map_or_else(|_| format!("day{days}"), |date| date.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(AgentName::new("web-17").is_ok());
        assert!(AgentName::new("k8s-prod/node1").is_ok());
        for bad in ["", "/a", "a/", "a//b", "../x", "a b", "-a"] {
            assert!(AgentName::new(bad).is_err(), "{bad}");
        }
        assert!(DatasetName::new("clickstream").is_ok());
        for bad in ["", "_catchment", "A", "a.b", "-x", &"a".repeat(65)] {
            assert!(DatasetName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origin_keeps_time_and_text() {
        let origin = Origin::mint(1_763_700_000_000, u128::MAX);
        assert_eq!(origin.unix_ms(), 1_763_700_000_000);
        assert_eq!(origin.to_string().parse::<Origin>().unwrap(), origin);
        assert!("12".parse::<Origin>().is_err());
    }

    #[test]
    fn partitions_print_as_hive_paths() {
        assert_eq!(Partition::new(20_777, None).unwrap().path(), "event_date=2026-11-20");
        assert_eq!(Partition::new(0, Some(7)).unwrap().path(), "event_date=1970-01-01/event_hour=07");
        assert_eq!(Partition::new(LAST_DATE, None).unwrap().date_text(), "2261-12-31");
        assert_eq!(Partition::new(-1, None).unwrap().path(), "event_date=1969-12-31");
        assert_eq!(Partition::new(FIRST_DATE, None).unwrap().date_text(), "1900-01-01");
        assert!(Partition::new(FIRST_DATE - 1, None).is_err());
        assert!(Partition::new(2_932_896, None).is_err(), "9999-12-31");
        assert!(Partition::new(1, Some(24)).is_err());
    }
}
