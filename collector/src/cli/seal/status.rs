//! `seal status`: what every open partition waits for. Pure.

use std::fmt;

use proto::ids::{DatasetName, Partition};
use serde::Serialize;

use super::Site;
use crate::log::View;
use crate::log::view::PartitionKey;
use crate::seal::marker::{Text, text, time};
use crate::seal::times::Times;
use crate::seal::wait::{ranges, word};
use crate::seal::{Verdict, Wait, evaluate};

/// Sealed partitions that are shown when none was asked for by name.
const RECENT: usize = 10;

/// Everything that was asked for.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    destination: String,
    at: String,
    records: u64,
    open: Vec<Open>,
    sealed: Vec<Text>,
}

/// A partition that is not sealed.
#[derive(Debug, Serialize)]
struct Open {
    dataset: String,
    partition: String,
    /// `open`, `waits`, `ready` or `not_declared`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    complete: Option<bool>,
    events: u64,
    files: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    waits_for: Vec<For>,
}

/// See [`Wait`].
#[derive(Debug, Serialize)]
pub(super) struct For {
    agent: String,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_mark: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    what_to_do: String,
}

impl From<&Wait> for For {
    fn from(wait: &Wait) -> Self {
        let missing = ranges(&wait.missing, wait.missing_from);
        Self {
            agent: wait.agent.as_ref().map(ToString::to_string).unwrap_or_default(),
            reason: word(wait.reason),
            origin: wait.origin.map(|origin| origin.to_string()),
            since: time(wait.since_unix_ms),
            last_mark: wait.last_mark_unix_ms.map(time),
            missing: (!missing.is_empty()).then_some(missing),
            what_to_do: wait.advice.clone(),
        }
    }
}

impl fmt::Display for For {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let agent = if self.agent.is_empty() { "nobody" } else { &self.agent };
        write!(f, "  {agent}: {}, since {}", self.reason.replace('_', " "), self.since)?;
        if let Some(origin) = &self.origin {
            write!(f, ", run {origin}")?;
        }
        if let Some(missing) = &self.missing {
            write!(f, ", batches {missing}")?;
        }
        write!(f, "\n    {}", self.what_to_do)
    }
}

/// Looks at every partition that was asked for.
pub(super) fn report(
    site: &Site,
    view: &View,
    dataset: Option<&DatasetName>,
    partition: Option<Partition>,
    now_unix_ms: i64,
) -> Report {
    let asked = |key: &PartitionKey| {
        dataset.is_none_or(|dataset| *dataset == key.dataset) && partition.is_none_or(|asked| asked == key.partition)
    };
    let open = view.partitions().open().filter(|(key, ..)| asked(key));
    let open = open.map(|(key, _, files)| {
        let sums = files.sums();
        let mut open = Open {
            dataset: key.dataset.to_string(),
            partition: key.partition.path(),
            state: "not_declared",
            complete: None,
            events: sums.events,
            files: sums.files,
            due: site.datasets.get(&key.dataset).and_then(|d| Times::of(d, key.partition)).map(|t| time(t.due_unix_ms)),
            until: None,
            waits_for: Vec::new(),
        };
        match evaluate(&site.rule(), view, key, now_unix_ms) {
            Verdict::NotJudged => {}
            Verdict::NotYet { .. } => open.state = "open",
            Verdict::Waits { until_unix_ms, for_ } => {
                (open.state, open.until) = ("waits", Some(time(until_unix_ms)));
                open.waits_for = for_.iter().map(For::from).collect();
            }
            Verdict::Ready(seal) => (open.state, open.complete) = ("ready", Some(seal.complete)),
        }
        open
    });
    let open = open.collect();
    let sealed = view.partitions().iter().filter(|(key, _)| asked(key));
    let mut sealed: Vec<Text> = sealed.filter_map(|(key, _)| Some(text(key, view.partitions().sealed(key)?))).collect();
    sealed.sort_by(|a, b| (&b.sealed_at, &a.dataset, &a.partition).cmp(&(&a.sealed_at, &b.dataset, &b.partition)));
    if partition.is_none() {
        sealed.truncate(RECENT);
    }
    Report { destination: site.url.clone(), at: time(now_unix_ms), records: view.next(), open, sealed }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.lines(&mut text)?;
        f.write_str(text.trim_end())
    }
}

impl Report {
    fn lines(&self, f: &mut impl fmt::Write) -> fmt::Result {
        writeln!(f, "{} at {}, {} records", self.destination, self.at, self.records)?;
        if self.open.is_empty() {
            writeln!(f, "nothing is open")?;
        }
        for open in &self.open {
            write!(f, "{}/{}: {} events in {} files, ", open.dataset, open.partition, open.events, open.files)?;
            let due = open.due.as_deref().unwrap_or("?");
            match (open.state, open.complete) {
                ("open", _) => writeln!(f, "open until {due}")?,
                ("waits", _) => {
                    let until = open.until.as_deref().unwrap_or("?");
                    writeln!(f, "waits since {due}, is sealed as incomplete at {until}")?;
                }
                (_, Some(true)) => writeln!(f, "complete, not sealed yet")?,
                (_, Some(false)) => writeln!(f, "is sealed as incomplete next")?,
                _ => writeln!(f, "not judged: its dataset is not declared here")?,
            }
            for wait in &open.waits_for {
                writeln!(f, "{wait}")?;
            }
        }
        if !self.sealed.is_empty() {
            writeln!(f, "sealed, latest first:")?;
        }
        for text in &self.sealed {
            let Text { dataset, partition, events, files, late_events, seal, sealed_at, message, .. } = text;
            write!(f, "{dataset}/{partition}: {events} events in {files} files")?;
            if *late_events > 0 {
                write!(f, ", {late_events} came late")?;
            }
            writeln!(f, ", record {seal}, {sealed_at}: {message}")?;
        }
        Ok(())
    }
}
