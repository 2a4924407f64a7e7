//! The declaration of one dataset: the collector's alone, sent up to the agents in part. What is said here decides
//! where published files lie, how they look and who may write them; nothing from an agent can change it.

use common::config::Problems;
use common::units::{Size, Span};
use proto::ids::DatasetName;
use proto::wire;
use serde::{Deserialize, Serialize};

use super::compaction::CompactionOverrides;

/// Day or hour partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionBy {
    /// `event_date=YYYY-MM-DD`.
    #[default]
    Day,
    /// `event_date=YYYY-MM-DD/event_hour=HH`.
    Hour,
}

/// How published files look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Bodies, one per line; frames are passed through.
    #[default]
    Text,
    /// Columns of the log format.
    Parquet,
}

/// Compression of published files, and of payloads on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard frames.
    #[default]
    Zstd,
    /// Gzip members.
    Gzip,
    /// Plain bytes.
    None,
}

impl Compression {
    /// As agents are told.
    pub fn codec(self) -> wire::Codec {
        match self {
            Self::Zstd => wire::Codec::Zstd,
            Self::Gzip => wire::Codec::Gzip,
            Self::None => wire::Codec::None,
        }
    }
}

/// The dataset of late events is called `<name>_late`.
pub const LATE_SUFFIX: &str = "_late";

/// Where events go that come after their partition was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatePolicy {
    /// Into the partition; its marker says how many.
    #[default]
    Append,
    /// Into the same partition of the dataset `<name>_late`.
    Late,
}

/// How much of a payload is looked at before it is appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Frame headers and block headers (a gzip member is always decoded).
    #[default]
    Headers,
    /// Every byte is decoded.
    Decode,
}

/// Where the event time stands in a line; needed only for columns when the log format has no time of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum TimeConfig {
    /// The time field of a log format.
    LogFormat {
        /// A name (`common`, `combined`) or a format string.
        log_format: String,
    },
    /// `[10/Oct/2024:13:55:36 +0000]` anywhere in the line.
    Clf,
    /// The first ISO 8601 time of the line.
    Iso8601,
    /// A number of seconds, milliseconds or microseconds since the epoch.
    Epoch {
        /// `s`, `ms` or `us`; guessed from the number of digits when absent.
        #[serde(default)]
        unit: Option<String>,
    },
    /// A strptime pattern.
    Pattern {
        /// The pattern.
        pattern: String,
    },
}

/// Roll limits of one dataset where they differ from `[roll]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RollOverrides {
    /// Size of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Size>,
    /// Age of a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<Span>,
    /// Time without an append.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
    /// Events in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
}

/// One `[[datasets]]` table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatasetConfig {
    /// `[a-z0-9][a-z0-9_-]{0,63}`.
    pub name: String,
    /// IANA zone of its partitions.
    #[serde(default = "utc")]
    pub zone: String,
    /// Day or hour.
    #[serde(default)]
    pub partition: PartitionBy,
    /// Text or Parquet.
    #[serde(default)]
    pub format: Format,
    /// Of files and payloads; Parquet files are always zstd inside.
    #[serde(default)]
    pub compression: Compression,
    /// zstd or gzip level; 0: the codec's default.
    #[serde(default)]
    pub level: i32,
    /// Names the columns of Parquet: `common`, `combined`, `vhost_combined` or a log_format string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,
    /// Event time for columns when `log_format` has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeConfig>,
    /// Published files are called `<prefix>-<incarnation>-<number>.<ext>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Mode of published files.
    #[serde(default = "file_mode")]
    pub file_mode: u32,
    /// Mode of the directories of the dataset, and of that of its late events.
    #[serde(default = "dir_mode")]
    pub dir_mode: u32,
    /// Group of published files and of those directories; absent: as the destination gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Agents that may write it: names, or prefixes ended by `*`. Empty: everybody.
    #[serde(default)]
    pub writers: Vec<String>,
    /// Events dated before this day (`YYYY-MM-DD`) are dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<String>,
    /// How long after its end a partition waits for late events.
    #[serde(default = "lateness")]
    pub allowed_lateness: Span,
    /// How much longer it waits for agents that are silent before it is sealed as incomplete.
    #[serde(default = "incomplete_after")]
    pub incomplete_after: Span,
    /// What happens to events that come after the seal.
    #[serde(default)]
    pub late: LatePolicy,
    /// What is checked before a frame is appended.
    #[serde(default)]
    pub verify: Verify,
    /// Roll limits that differ from `[roll]`.
    #[serde(default)]
    pub roll: RollOverrides,
    /// Where it differs from `[compaction]`.
    #[serde(default)]
    pub compaction: CompactionOverrides,
}

fn utc() -> String {
    "UTC".into()
}

fn file_mode() -> u32 {
    0o640
}

fn dir_mode() -> u32 {
    0o750
}

fn lateness() -> Span {
    Span::secs(4 * 3600)
}

fn incomplete_after() -> Span {
    Span::secs(4 * 3600)
}

impl DatasetConfig {
    /// A dataset with every other setting at its default.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            zone: utc(),
            partition: PartitionBy::Day,
            format: Format::Text,
            compression: Compression::Zstd,
            level: 0,
            log_format: None,
            time: None,
            prefix: None,
            file_mode: file_mode(),
            dir_mode: dir_mode(),
            group: None,
            writers: Vec::new(),
            oldest: None,
            allowed_lateness: lateness(),
            incomplete_after: incomplete_after(),
            late: LatePolicy::Append,
            verify: Verify::Headers,
            roll: RollOverrides::default(),
            compaction: CompactionOverrides::default(),
        }
    }

    /// The checked name; `validate` has refused others.
    pub fn dataset_name(&self) -> Option<DatasetName> {
        DatasetName::new(&self.name).ok()
    }

    /// May this agent write it?
    pub fn admits(&self, agent: &str) -> bool {
        self.writers.is_empty()
            || self.writers.iter().any(|writer| match writer.strip_suffix('*') {
                Some(prefix) => agent.starts_with(prefix),
                None => agent == writer,
            })
    }

    /// What agents are told of it.
    pub fn declaration(&self) -> wire::DatasetDeclaration {
        wire::DatasetDeclaration {
            name: self.name.clone(),
            zone: self.zone.clone(),
            hourly: self.partition == PartitionBy::Hour,
            codec: self.compression.codec() as i32,
            level: self.level,
            writers: self.writers.clone(),
            oldest: self.oldest.as_deref().and_then(day_number),
        }
    }

    /// Adds what is wrong with it.
    pub fn validate(&self, problems: &mut Problems) {
        problems.within("compaction", |problems| self.compaction.validate(problems));
        let mut add = |field: &str, text: String| problems.add(field, text);
        if let Err(error) = DatasetName::new(&self.name) {
            add("name", error.to_string());
        }
        if jiff::tz::TimeZone::get(&self.zone).is_err() {
            add("zone", format!("{:?} is no IANA time zone, e.g. \"UTC\" or \"Europe/Berlin\"", self.zone));
        }
        if self.late == LatePolicy::Late && DatasetName::new(&format!("{}{LATE_SUFFIX}", self.name)).is_err() {
            add("late", format!("{}{LATE_SUFFIX} is no dataset name: it is too long", self.name));
        }
        if self.partition == PartitionBy::Hour && !is_fixed_offset(&self.zone) {
            add(
                "zone",
                format!(
                    "{:?} must be UTC or a fixed offset such as \"Etc/GMT-1\" for hour partitions: an hour that a change of the clocks doubles or skips has no end",
                    self.zone
                ),
            );
        }
        if self.format == Format::Parquet && self.log_format.is_none() && self.time.is_none() {
            add(
                "log_format",
                "must be set for format = \"parquet\" (or `time`, for lines without known fields)".into(),
            );
        }
        let file_name_part = |text: &str| {
            (1..=64).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        };
        if let Some(prefix) = &self.prefix
            && (!file_name_part(prefix) || prefix.starts_with('.'))
        {
            add("prefix", format!("{prefix:?} must be 1 to 64 letters, digits, `-` or `.`, not beginning with `.`"));
        }
        for (field, mode) in [("file_mode", self.file_mode), ("dir_mode", self.dir_mode)] {
            if mode > 0o777 || mode & 0o400 == 0 {
                add(field, format!("{mode:#o} must be an octal mode such as 0o640 that lets the owner read"));
            }
        }
        if let Some(oldest) = &self.oldest
            && day_number(oldest).is_none()
        {
            add("oldest", format!("{oldest:?} must be a day as YYYY-MM-DD"));
        }
        let levels = match self.compression {
            Compression::Zstd => 0..=19,
            Compression::Gzip => 0..=12,
            Compression::None => 0..=0,
        };
        if !levels.contains(&self.level) {
            add("level", format!("{} must be {} to {} for this compression", self.level, levels.start(), levels.end()));
        }
        for writer in &self.writers {
            if writer.is_empty() || writer.trim_end_matches('*').contains('*') {
                add("writers", format!("{writer:?} must be a name, or a prefix ended by one `*`"));
            }
        }
    }
}

/// Has this zone the same offset all the time?
fn is_fixed_offset(zone: &str) -> bool {
    let Ok(zone) = jiff::tz::TimeZone::get(zone) else { return true };
    let changes = |at: jiff::Timestamp| zone.following(at).next().is_some();
    zone.to_fixed_offset().is_ok() || !changes(jiff::Timestamp::UNIX_EPOCH)
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
fn day_number(text: &str) -> Option<i32> {
    let date: jiff::civil::Date = text.parse().ok()?;
    let since = date.since((jiff::Unit::Day, jiff::civil::date(1970, 1, 1))).ok()?;
    Some(since.get_days())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_names_or_prefixes() {
        let mut dataset = DatasetConfig::named("clickstream");
        assert!(dataset.admits("anybody"));
        dataset.writers = vec!["web-*".into(), "k8s/node1".into()];
        assert!(dataset.admits("web-17") && dataset.admits("k8s/node1"));
        assert!(!dataset.admits("k8s/node12") && !dataset.admits("we"));
    }

    #[test]
    fn the_declaration_carries_the_oldest_day() {
        let mut dataset = DatasetConfig::named("clickstream");
        dataset.oldest = Some("1970-01-11".into());
        dataset.partition = PartitionBy::Hour;
        let declaration = dataset.declaration();
        assert_eq!(
            (declaration.oldest, declaration.hourly, declaration.codec),
            (Some(10), true, wire::Codec::Zstd as i32)
        );
    }

    #[test]
    fn every_problem_is_named() {
        let mut dataset = DatasetConfig::named("Bad Name");
        dataset.zone = "Mars/Olympus".into();
        dataset.format = Format::Parquet;
        dataset.oldest = Some("yesterday".into());
        dataset.level = 40;
        let mut problems = Problems::default();
        dataset.validate(&mut problems);
        assert_eq!(problems.iter().count(), 5, "{problems:?}");
    }
}
